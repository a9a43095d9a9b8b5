"""Whether a standby could take a replica over, and why not."""

import asyncio
from dataclasses import replace

from agent.domain.compose import Settings
from agent.domain.given import Given
from agent.domain.plan import Assignment, ParsedPlan, Role
from agent.inventory import Amounts
from agent.runtime.port import ImageFailure
from agent.runtime.simulated import SimulatedRuntime
from agent.site.abilities import Judge, Judged
from agent.site.prefetch import Prefetch
from polder.manifest import PodTemplate, decode
from tests.integration.agent_fakes import eventually

BOX = Amounts(2000, 1 << 30, 1 << 40, {"polder.eu/gpu": 1})


def template(**container: object) -> PodTemplate:
    body = {"containers": [{"name": "app", "image": "app:1", **container}]}
    found = decode(PodTemplate, body)
    assert isinstance(found, PodTemplate)
    return found


def assignment(replica: str, made: PodTemplate | None = None) -> Assignment:
    return Assignment(
        namespace="default",
        workload="app",
        workload_uid="w",
        replica=replica,
        replica_uid=f"uid-{replica}",
        epoch=1,
        revision=1,
        template=made or template(),
        digest="d",
    )


def plan(*roles: Role, assigned: tuple[Assignment, ...] = ()) -> ParsedPlan:
    return ParsedPlan(
        generation=1,
        issued_at=0.0,
        assignments={a.replica_uid: a for a in assigned},
        stops={},
        secrets={},
        endpoints=(),
        payload=b"",
        roles={role.assignment.key: role for role in roles},
    )


def judge(made: ParsedPlan, box: Amounts = BOX, missing: tuple[str, ...] = ()) -> dict[str, Judged]:
    judged = Judge(Settings("n", "s", "/logs")).judge(
        made, box, lambda image: "gone" if image in missing else "", 0.0
    )
    return {one.ability.key[1]: one for one in judged}


def reason(judged: Judged) -> str:
    assert judged.ability.able == (judged.ability.reason == "") == (judged.message == "")
    return judged.ability.reason


def test_with_room_image_and_ports_it_is_able() -> None:
    assert reason(judge(plan(Role(assignment("a"), "p")))["a"]) == ""


def test_a_vote_needs_no_ability() -> None:
    vote = Role(replace(assignment("a"), template=None), "p")
    assert judge(plan(vote)) == {}


def test_a_template_that_cannot_be_read_is_said() -> None:
    broken = Role(replace(assignment("a"), template=None, error="no such field"), "p")
    assert reason(judge(plan(broken))["a"]) == "BadTemplate"


def test_room_is_what_the_assignments_leave() -> None:
    big = template(resources={"memory": "768Mi"})
    role = Role(assignment("a", big), "p")
    assert reason(judge(plan(role))["a"]) == ""
    assert reason(judge(plan(role, assigned=(assignment("own", big),)))["a"]) == "NoRoom"


def test_all_of_one_primary_come_at_once_but_not_those_of_two() -> None:
    half = template(resources={"cpu": "1100m"})
    same = plan(Role(assignment("a", half), "p"), Role(assignment("b", half), "p"))
    assert [reason(j) for j in judge(same).values()] == ["", "NoRoom"]
    two = plan(Role(assignment("a", half), "p"), Role(assignment("b", half), "q"))
    assert [reason(j) for j in judge(two).values()] == ["", ""]


def test_devices_count() -> None:
    gpu = template(resources={"devices": {"polder.eu/gpu": 1}})
    role = Role(assignment("a", gpu), "p")
    assert reason(judge(plan(role))["a"]) == ""
    assert reason(judge(plan(role, assigned=(assignment("own", gpu),)))["a"]) == "NoRoom"
    assert reason(judge(plan(role), replace(BOX, devices={}))["a"]) == "NoRoom"


def test_host_ports_and_images_and_secrets() -> None:
    port = template(ports=[{"name": "http", "containerPort": 80, "hostPort": 8080}])
    role = Role(assignment("a", port), "p")
    assert reason(judge(plan(role, assigned=(assignment("own", port),)))["a"]) == "HostPortInUse"
    assert reason(judge(plan(role), missing=("app:1",))["a"]) == "ImageMissing"
    secret = template(env=[{"name": "X", "secret": {"name": "s", "key": "k"}}])
    assert reason(judge(plan(Role(assignment("a", secret), "p")))["a"]) == "SecretMissing"


def test_what_runs_here_already_needs_no_more_room() -> None:
    big = template(resources={"memory": "768Mi"})
    role = Role(assignment("a", big), "p")
    stay = replace(assignment("a", big), replica_uid="s1")
    assert reason(judge(plan(role, assigned=(stay,)))["a"]) == ""


def test_a_policy_that_cannot_be_read_admits_nothing() -> None:
    judged = judge(plan(Role(replace(assignment("a"), policy_json=b"{"), "p")))
    assert reason(judged["a"]) == "SovereigntyViolation"


async def test_images_are_fetched_ahead_and_what_failed_is_tried_again() -> None:
    runtime = SimulatedRuntime()
    runtime.images["app:1"] = ImageFailure("ImageNotFound", "app:1: not found")
    changes: list[None] = []
    prefetch = Prefetch(runtime, "amd64")
    prefetch.on_change = lambda: changes.append(None)
    assert prefetch.trouble("app:1")
    task = asyncio.create_task(prefetch.run())
    other = assignment("b", template(image="app:2"))
    prefetch.use([Role(assignment("a"), "p"), Role(other, "p")], Given())
    await eventually(
        lambda: not prefetch.trouble("app:2") and "NotFound" in prefetch.trouble("app:1")
    )
    assert len(changes) == 2
    runtime.images["app:1"] = None
    await eventually(lambda: not prefetch.trouble("app:1"))
    task.cancel()


async def test_an_image_that_is_always_to_be_pulled_may_be_here_already() -> None:
    runtime = SimulatedRuntime()
    runtime.preload("app:1")
    runtime.images["app:1"] = ImageFailure("ImageRegistry", "no route")
    prefetch = Prefetch(runtime, "amd64")
    task = asyncio.create_task(prefetch.run())
    always = template(imagePullPolicy="Always")
    prefetch.use([Role(assignment("a", always), "p")], Given())
    await eventually(lambda: not prefetch.trouble("app:1"))
    assert runtime.pulls == ["app:1"]
    task.cancel()
