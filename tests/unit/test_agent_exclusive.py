"""An exclusive replica's cgroup, its guard, and the epoch that its containers see."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.domain import cgroups, labels
from agent.domain.compose import Settings, check, pod_spec
from agent.domain.files import Projected, mounts_of, pod_files
from agent.domain.given import Unresolved, given_by
from agent.domain.instructions import (
    Done,
    EnsureImage,
    Failed,
    Instruction,
    Outcome,
    PlanAccepted,
    PodsListed,
    RemovePod,
    RunPod,
    StartContainer,
    Tick,
    UpdateFiles,
)
from agent.domain.plan import Assignment, ParsedPlan
from agent.domain.reconcile import Reconciler
from agent.operations import Operations
from agent.probes import Prober
from agent.runtime.port import ContainerPhase, ContainerState, PodState
from agent.runtime.simulated import SimulatedRuntime
from agent.volumes import Volumes
from polder.manifest.volumes import VolumeMount
from polder.v1 import plan_pb2
from tests.sim.agent_plans import assignment, plan, template

SETTINGS = Settings("box-1", "nl-utr-1", "/logs", cgroup_parent="/edge")
CONFIG = plan_pb2.ConfigData(namespace="default", name="web", data={"a": "1"})


def group(exclusive: bool = True) -> plan_pb2.FailoverGroup:
    return plan_pb2.FailoverGroup(number=1, members=["box-1", "box-2"], exclusive=exclusive)


def world(
    found: plan_pb2.FailoverGroup | None = None, *, epoch: int = 7, config: bool = True, **pod: Any
) -> ParsedPlan:
    wanted = assignment("u1", template(**pod), epoch=epoch, group=found)
    return plan(epoch, [wanted], configs=[CONFIG] if config else [])


def wanted_of(found: ParsedPlan) -> Assignment:
    return found.assignments["u1"]


# ---- where it lives ----


@pytest.mark.parametrize(
    ("base", "uid", "parent", "directory"),
    [
        ("", "s12ab", "/polder/s12ab", "polder/s12ab"),
        ("/edge/", "s12ab", "/edge/s12ab", "edge/s12ab"),
        ("edge", "s12ab", "/edge/s12ab", "edge/s12ab"),
        ("polder.slice", "s12ab", "polder-s12ab.slice", "polder.slice/polder-s12ab.slice"),
        (
            "a.slice/a-b.slice",
            "s12ab",
            "a-b-s12ab.slice",
            "a.slice/a-b.slice/a-b-s12ab.slice",
        ),
    ],
)
def test_the_parent_says_whose_driver_it_is_for(
    base: str, uid: str, parent: str, directory: str
) -> None:
    assert cgroups.own_parent(base, uid) == parent
    assert cgroups.directory(parent) == directory


@pytest.mark.parametrize("uid", ["a-b", "../../x", "A", "", "x" * 65, "a b"])
def test_a_uid_that_would_be_more_than_a_name_is_hashed(uid: str) -> None:
    token = cgroups.own_parent("", uid).removeprefix("/polder/")
    assert token.isalnum() and len(token) == 32
    assert token != cgroups.own_parent("", uid + "'").removeprefix("/polder/")


def test_only_an_exclusive_replica_has_a_cgroup_of_its_own() -> None:
    for found, parent in ((None, "/edge"), (group(False), "/edge"), (group(), "/edge/u1")):
        wanted = wanted_of(world(found))
        assert wanted.template is not None
        spec = pod_spec(SETTINGS, wanted, wanted.template, "u1-1")
        assert spec.cgroup_parent == parent
        guarded = spec.annotations.get(labels.CGROUP_PARENT)
        assert guarded == ("/edge/u1" if parent == "/edge/u1" else None)


# ---- without a switch it does not start ----


async def performed(tmp_path: Path, guard: Any, found: plan_pb2.FailoverGroup | None) -> list[Any]:
    """What RunPod and StartContainer come to, on a runtime that would do both."""
    runtime = SimulatedRuntime()
    operations = Operations(runtime, Prober(runtime), "amd64", Volumes(tmp_path))
    if guard is not None:
        operations.guard = guard
    machine = Reconciler(SETTINGS)
    instructions = machine.handle(PlanAccepted(world(found)), 1.0)
    instructions += machine.handle(PodsListed([], machine.listing_token()), 1.0)
    answers: list[Any] = []
    while instructions:
        asked = [i for i in instructions if isinstance(i, EnsureImage | RunPod | StartContainer)]
        instructions = []
        for operation in asked:
            answer = await operations.perform(operation)
            if not isinstance(operation, EnsureImage):
                answers.append(answer)
            instructions += machine.handle(answer, 2.0)
        listing = PodsListed(await runtime.list_pods(), machine.listing_token())
        instructions += machine.handle(listing, 2.0)
        if any(isinstance(answer, Failed) for answer in answers):
            break
    return answers


async def test_nothing_exclusive_starts_without_a_switch(tmp_path: Path) -> None:
    (refused,) = await performed(tmp_path, None, group())
    assert isinstance(refused.operation, RunPod) and refused.outcome is Outcome.FAILED
    assert refused.reason == "NotGuarded" and "no dead-man's switch" in refused.message
    free = await performed(tmp_path, None, group(False))
    assert [type(a.operation) for a in free] == [RunPod, StartContainer]
    assert all(isinstance(a, Done) for a in free)


async def test_the_container_is_refused_when_its_pod_is_not_where_the_switch_looks(
    tmp_path: Path,
) -> None:
    asked: list[tuple[str, bool]] = []

    def guard(uid: str, pod_runs: bool) -> str:
        asked.append((uid, pod_runs))
        return "elsewhere" if pod_runs else ""

    made, refused = await performed(tmp_path, guard, group())
    assert isinstance(made, Done) and isinstance(refused, Failed)
    assert (refused.reason, refused.message) == ("NotGuarded", "elsewhere")
    assert asked == [("u1", False), ("u1", True)]


# ---- what runs already ----


class Machine:
    """One replica whose pod runs, as after a restart of the agent."""

    def __init__(self, found: ParsedPlan, **annotations: str) -> None:
        self.machine = Reconciler(SETTINGS)
        self.now = 100.0
        self.hear(PlanAccepted(found))
        known = {
            labels.REPLICA_UID: "u1",
            labels.REPLICA: "u1-0",
            labels.NAMESPACE: "default",
            labels.TEMPLATE_DIGEST: wanted_of(found).digest,
        }
        run = ContainerState(
            "c1", "p1", "app", 0, ContainerPhase.RUNNING, "app:1", {}, {}, started_at=1.0
        )
        notes = {key.replace("_", "-"): value for key, value in annotations.items()}
        notes = {labels.PREFIX + key: value for key, value in notes.items()}
        pod = PodState("p1", "u1-0", "default", "u1-1", True, known, notes, 1.0, "10.0.0.2", (run,))
        self.first = self.hear(PodsListed([pod], self.machine.listing_token()))

    def hear(self, event: Any) -> list[Instruction]:
        return self.machine.handle(event, self.now)

    def doomed(self) -> list[str]:
        """Causes for which pods are stopped, once its images are there."""
        out = list(self.first)
        for item in self.first:
            if isinstance(item, EnsureImage):
                out += self.hear(Done(item, "app:1"))
        return [str(i.cause) for i in out if hasattr(i, "cause") and not isinstance(i, RemovePod)]


def test_a_pod_that_the_switch_would_miss_is_made_anew() -> None:
    assert Machine(world(group())).doomed() == ["NotGuarded"]
    assert Machine(world(group()), cgroup_parent="/other/u1").doomed() == ["NotGuarded"]
    assert Machine(world(group()), cgroup_parent="/edge/u1").doomed() == []
    assert Machine(world(group(False))).doomed() == []
    assert Machine(world(group(False)), cgroup_parent="/edge/u1").doomed() == []


def test_a_new_tenure_does_not_wait_for_the_failures_of_the_last() -> None:
    machine = Reconciler(SETTINGS)
    machine.handle(PlanAccepted(world(group())), 1.0)
    out = machine.handle(PodsListed([], machine.listing_token()), 1.0)
    (image,) = (i for i in out if isinstance(i, EnsureImage))
    out = machine.handle(Done(image, "app:1"), 1.0)
    now = 1.0
    for _ in range(6):
        (asked,) = (i for i in out if isinstance(i, RunPod))
        machine.handle(Failed(asked, Outcome.FAILED, "NotGuarded", "not armed"), now)
        machine.handle(PodsListed([], machine.listing_token()), now)
        now = machine.next_due() or now
        out = machine.handle(Tick(), now)
    (asked,) = (i for i in out if isinstance(i, RunPod))
    machine.handle(Failed(asked, Outcome.FAILED, "NotGuarded", "not armed"), now)
    listing = PodsListed([], machine.listing_token())
    assert not [i for i in machine.handle(listing, now + 1) if isinstance(i, RunPod)]
    out = machine.handle(PlanAccepted(world(group(), epoch=8)), now + 1)
    assert [i for i in out if isinstance(i, RunPod)]


# ---- the epoch ----


def epochs(found: list[Instruction]) -> list[dict[str, Any]]:
    return [{f.volume: dict(f.files) for f in i.files} for i in found if isinstance(i, UpdateFiles)]


def test_the_epoch_is_a_file_where_a_replica_may_be_taken_over() -> None:
    for found in (group(False), group()):
        wanted = wanted_of(world(found))
        assert wanted.template is not None
        files = pod_files(wanted, wanted.template, given_by(world(found)), ())
        assert files.volumes == (Projected("_epoch", False, {"epoch": "7\n"}),)
        (container,) = wanted.template.containers
        assert mounts_of(wanted, container) == (VolumeMount("_epoch", "/run/polder", True),)
        assert mounts_of(replace(wanted, group=None), container) == ()


def test_its_place_is_not_given_away() -> None:
    volumes = [{"name": "d", "scratch": {}}]
    for path in ("/run/polder", "/run//polder/x", "//run/polder", "/var/run/polder"):
        taken = world(group(), volumes=volumes, volumeMounts=[{"name": "d", "mountPath": path}])
        wanted = wanted_of(taken)
        assert wanted.template is not None, wanted.error
        with pytest.raises(Unresolved) as refused:
            check(SETTINGS, wanted, wanted.template, given_by(taken))
        assert refused.value.reason == "MountPathTaken"
        check(SETTINGS, replace(wanted, group=None), wanted.template, given_by(taken))


def test_the_file_follows_the_epoch_and_nothing_restarts() -> None:
    box = Machine(world(group(False)))
    assert epochs(box.first) == [{"_epoch": {"epoch": "7\n"}}], "whoever made it may be long gone"
    (first,) = (i for i in box.first if isinstance(i, UpdateFiles))
    assert not box.hear(Done(first))
    found = box.hear(PlanAccepted(world(group(False), epoch=9)))
    assert epochs(found) == [{"_epoch": {"epoch": "9\n"}}]
    assert not [i for i in found if hasattr(i, "cause")]


def test_the_epoch_is_written_although_a_config_is_gone() -> None:
    pod = {
        "volumes": [{"name": "c", "config": {"name": "web"}}],
        "volumeMounts": [{"name": "c", "mountPath": "/c"}],
    }
    box = Machine(world(group(False), **pod))
    (first,) = (i for i in box.first if isinstance(i, UpdateFiles))
    box.hear(Done(first))
    found = box.hear(PlanAccepted(world(group(False), epoch=9, config=False, **pod)))
    assert epochs(found) == [{"c": {"a": "1"}, "_epoch": {"epoch": "9\n"}}]
