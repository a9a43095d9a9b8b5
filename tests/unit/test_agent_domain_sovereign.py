"""The box judges its plan's policy on its plan's facts: it refuses a start, and never stops."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.domain.plan import Accepted, ParsedPlan, Refused, Unchanged, consider
from agent.domain.sovereign import RECHECK_S, Standing
from polder.manifest.facts import Certification, ProviderSpec, SiteSpec
from polder.manifest.identifiers import end_of_day
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, analyse_provider, facts_json, policy_json, site_facts
from polder.v1 import agent_pb2, plan_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import IDENTITY, assignment, node_plan, parsed, template
from tests.unit.test_supervisor import Box, box_in

HOME = SovereigntySpec(residency=("NL",))
CERTIFIED = SovereigntySpec(certifications=("ISO27001",))
LAST_DAY = "2027-03-31"
ENDS = end_of_day(LAST_DAY)
RUNNING = agent_pb2.REPLICA_PHASE_RUNNING
PENDING = agent_pb2.REPLICA_PHASE_PENDING


def facts(country: str = "NL", last_day: str = LAST_DAY) -> SiteFacts:
    certificate = Certification("ISO27001", "Auditor", last_day)
    spec = ProviderSpec(legal_name="Telco B.V.", seat_country="NL", certifications=(certificate,))
    return site_facts(
        "nl-utr-1",
        SiteSpec(provider="telco", country=country),
        analyse_provider("telco", spec),
    )


def judged(uid: str, policy: SovereigntySpec, known: SiteFacts, **more: Any) -> Any:
    found = assignment(uid, **more)
    found.policy_json = json.dumps(policy_json(policy)).encode()
    found.facts_json = json.dumps(facts_json(policy, known)).encode()
    return found


def only(message: plan_pb2.NodePlan, uid: str = "a") -> Any:
    return parsed(message).assignments[uid]


# --- judging ------------------------------------------------------------------------------------


def test_the_plan_is_judged_and_not_the_box() -> None:
    standing = Standing()
    assert standing.judge(only(node_plan(1, [judged("a", HOME, facts())])), 0.0) == ""
    against = standing.judge(only(node_plan(2, [judged("a", HOME, facts("DE"))])), 0.0)
    assert "is in DE" in against
    assert standing.judge(only(node_plan(3, [assignment("a")])), 0.0) == ""


def test_a_certificate_ends_while_nobody_says_anything() -> None:
    standing, wanted = Standing(), only(node_plan(1, [judged("a", CERTIFIED, facts())]))
    assert standing.judge(wanted, ENDS - 10) == ""
    assert standing.due_s(ENDS - 10) == 10
    assert standing.due_s(ENDS - 1e6) == RECHECK_S
    assert "ended with 2027-03-31" in standing.judge(wanted, ENDS)
    assert standing.due_s(ENDS) is None
    assert standing.judge(wanted, ENDS - 10) == "", "the clock was put right"


@pytest.mark.parametrize(
    ("policy", "known"),
    [
        (b"{", b"{}"),
        (b"[]", b"{}"),
        (b'{"residency": []}', b'{"site": "s"}'),
        (b'{"newDemand": 1}', b'{"site": "s"}'),
        (b'{"residency": ["NL"]}', b""),
        (b'{"residency": ["NL"]}', b'{"site": "s", "newFact": 1}'),
        (b'{"residency": ["NL"]}', b"[" * 100_000),
        (b"\xff\xfe", b"\xff"),
    ],
)
def test_what_cannot_be_read_admits_nothing(policy: bytes, known: bytes) -> None:
    message = assignment("a")
    message.policy_json, message.facts_json = policy, known
    assert Standing().judge(only(node_plan(1, [message])), 0.0)


def test_facts_that_are_missing_fail() -> None:
    message = judged("a", HOME, facts())
    message.facts_json = b'{"site": "nl-utr-1"}'
    assert "not declared" in Standing().judge(only(node_plan(1, [message])), 0.0)


def test_new_facts_are_taken_at_the_same_generation() -> None:
    def offered(current: ParsedPlan, *assignments: plan_pb2.Assignment) -> Any:
        payload = node_plan(5, assignments).SerializeToString()
        return consider(current, IDENTITY, payload)

    current = parsed(node_plan(5, [judged("a", HOME, facts())]))
    answer = offered(current, judged("a", HOME, facts("DE")))
    assert isinstance(answer, Accepted)
    assert isinstance(offered(answer.plan, judged("a", HOME, facts("DE"))), Unchanged)
    other = offered(current, judged("a", HOME, facts(), epoch=9))
    assert isinstance(other, Refused) and other.reason == "Conflict"


def test_a_box_without_policies_does_not_load_the_rules() -> None:
    code = (
        "import sys; import agent.domain.reconcile; "
        "sys.exit(any(m.startswith('polder.sovereignty') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what the supervisor does -------------------------------------------------------------------


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Box], Awaitable[None]]], None]:
    def start(scene: Callable[[Box], Awaitable[None]]) -> None:
        async def main() -> None:
            async with box_in(tmp_path) as box:
                await scene(box)
                assert "UnexpectedTransition" not in box.reasons()

        virtual_time.run(main())

    return start


Play = Callable[[Callable[[Box], Awaitable[None]]], None]


def submit(box: Box, generation: int, *assignments: plan_pb2.Assignment, **more: Any) -> None:
    box.supervisor.submit_plan(parsed(node_plan(generation, assignments, **more)))


def test_a_forbidden_replica_is_not_started_until_its_facts_allow(play: Play) -> None:
    async def scene(box: Box) -> None:
        submit(box, 1, judged("a", HOME, facts("DE")), judged("b", HOME, facts()))
        await box.until(lambda: box.ready("b"))
        await asyncio.sleep(60)
        status = box.status["a"]
        assert (status.phase, status.reason) == (PENDING, "SovereigntyViolation")
        assert "is in DE" in status.message
        assert box.reasons().count("SovereigntyViolation") == 1
        assert len(await box.pods()) == 1
        submit(box, 2, judged("a", HOME, facts()), judged("b", HOME, facts()))
        await box.until(lambda: box.ready("a"))

    play(scene)


def test_what_runs_is_not_stopped_when_a_fact_expires(play: Play) -> None:
    async def scene(box: Box) -> None:
        today = _day(box.clock.wall())  # which is over in less than two hours
        submit(box, 1, judged("a", CERTIFIED, facts(last_day=today)), issued_at_ms=1)
        await box.until(lambda: box.ready("a"))
        before = [pod.id for pod in await box.pods()]
        assert box.status["a"].reason == ""
        await asyncio.sleep(2 * 3600)
        assert box.status["a"].reason == "NonCompliant"
        assert box.status["a"].ready and box.status["a"].phase == RUNNING
        assert box.reasons().count("NonCompliant") == 1
        await asyncio.sleep(60)
        assert [pod.id for pod in await box.pods()] == before
        submit(box, 2, judged("a", CERTIFIED, facts()), issued_at_ms=1)
        await box.until(lambda: box.status["a"].reason == "")

    play(scene)


def test_a_reboot_brings_back_what_ran_and_a_new_template_is_refused(play: Play) -> None:
    async def scene(box: Box) -> None:
        submit(box, 1, judged("a", HOME, facts()))
        await box.until(lambda: box.ready("a"))
        submit(box, 2, judged("a", HOME, facts("DE")))  # sold, say
        await box.until(lambda: box.status["a"].reason == "NonCompliant")
        await box.stop_agent()
        box.status.clear()
        box.runtime.reboot()
        box.start_agent()
        submit(box, 2, judged("a", HOME, facts("DE")))
        await box.until(lambda: box.ready("a") and box.status["a"].reason == "NonCompliant")
        pods = [pod.id for pod in await box.pods()]
        changed = judged("a", HOME, facts("DE"), pod=template("app:2"), revision=2)
        submit(box, 3, changed)
        await box.until(lambda: box.status["a"].reason == "SovereigntyViolation")
        await asyncio.sleep(60)
        assert [pod.id for pod in await box.pods()] == pods and box.status["a"].ready

    play(scene)


def test_a_clock_that_went_back_does_not_bring_a_certificate_back(play: Play) -> None:
    async def scene(box: Box) -> None:
        issued = ENDS + 86_400
        submit(box, 1, judged("a", CERTIFIED, facts()), issued_at_ms=int(issued * 1000))
        await box.until(lambda: "a" in box.status)
        await asyncio.sleep(10)
        assert box.status["a"].reason == "SovereigntyViolation"

    play(scene)


def _day(at: float) -> str:
    """That day, as certificates name their last one."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).date().isoformat()
