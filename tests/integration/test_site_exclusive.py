"""Exclusive replicas over real agents, real TLS and a real switch; only containers are simulated.

Whether two ever ran at once is asked of statuses here, and in earnest of containers in tests/e2e.
"""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polder.v1 import agent_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually
from tests.integration.site_rig import SLOW_S, Box, Rig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the switch needs root"),
]

APP = "app-0"
LATE_S = 60.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    ca = Ca()
    made = Rig(tmp_path, ca, await Orchestrator(ca).start())
    yield made
    await made.stop()


async def three(rig: Rig) -> tuple[Box, Box, Box]:
    """a holds app-0, b stands by for it, and c votes."""
    a, b, c = await rig.start("a", "b", "c")
    await rig.use(rig.assignment(APP, ["a", "b"], exclusive=True, witnesses=["c"]))
    await eventually(lambda: a.ready(APP), LATE_S)
    await eventually(lambda: b.able(APP), LATE_S)
    return a, b, c


def ready(box: Box) -> agent_pb2.ReplicaStatus:
    found = box.ready(APP)
    assert found is not None
    return found


async def some_heartbeats(box: Box, count: int) -> None:
    visit = box.visit
    assert visit is not None
    wanted = len(visit.of("heartbeat")) + count
    await eventually(lambda: len(visit.of("heartbeat")) >= wanted or visit.over, SLOW_S)


async def test_the_holder_has_a_ballot_and_the_standby_follows_with_a_higher_one(rig: Rig) -> None:
    a, b, c = await three(rig)
    first = ready(a).epoch
    await a.end()
    await eventually(lambda: b.ready(APP), LATE_S)
    assert ready(b).epoch > first
    assert ready(b).takes_over
    assert APP not in c.standbys(), "a witness holds nothing"


@pytest.mark.long
async def test_a_frozen_holder_does_not_run_on_and_does_not_start_again(rig: Rig) -> None:
    a, b, _ = await three(rig)
    a.kill(signal.SIGSTOP)
    await eventually(lambda: b.ready(APP), LATE_S)
    a.kill(signal.SIGCONT)
    await eventually(lambda: not a.ready(APP), LATE_S)
    held = ready(b).epoch
    await some_heartbeats(a, 20)
    assert not a.ready(APP) and ready(b).epoch == held


@pytest.mark.long
async def test_an_agent_that_restarts_keeps_the_lease(rig: Rig) -> None:
    a, b, _ = await three(rig)
    before = a.visit
    await a.end(signal.SIGTERM)
    a.start()
    await eventually(lambda: a.visit is not before, SLOW_S)
    await eventually(lambda: a.ready(APP), LATE_S)
    assert not b.replicas()


@pytest.mark.long
async def test_without_a_majority_nobody_takes_over_and_that_is_said_beforehand(rig: Rig) -> None:
    a, b, c = await three(rig)
    await c.end()
    await eventually(lambda: not b.able(APP), LATE_S)
    assert b.standbys()[APP].reason == "NoVoters"
    held = ready(a).epoch
    await a.end()
    await some_heartbeats(b, 40)
    assert not b.replicas()
    c.start()
    await eventually(lambda: b.ready(APP), LATE_S)
    assert ready(b).epoch > held


@pytest.mark.long
async def test_a_site_that_lost_its_power_and_its_uplink_runs_again_once(rig: Rig) -> None:
    boxes = await three(rig)
    held = ready(boxes[0]).epoch
    port = rig.orchestrator.port
    await rig.orchestrator.stop()
    for box in boxes:
        await box.end()
    for box in boxes:
        box.start()
    await eventually(lambda: sum(_running(box) for box in boxes) == 1, LATE_S)
    known = [box.visit for box in boxes]
    await rig.orchestrator.start(port)
    await eventually(lambda: all(box.visit not in known for box in boxes), SLOW_S)
    await eventually(lambda: boxes[0].ready(APP) or boxes[1].ready(APP), SLOW_S)
    assert sum(box.ready(APP) is not None for box in boxes) == 1
    stay = boxes[0].ready(APP) or ready(boxes[1])
    assert stay.epoch > held, "what ran before may have written with the last one"


def _running(box: Box) -> int:
    return int(box.status().get("replicas_running", 0))


async def test_a_site_whose_member_is_cut_off_itself_is_alone(rig: Rig) -> None:
    (a,) = await rig.start("a")
    alone = rig.assignment(APP, ["a"], exclusive=True)
    alone.group.stop_after_ms = 13_000
    await rig.use(alone)
    await eventually(lambda: a.ready(APP), LATE_S)
    visit = a.visit
    assert visit is not None
    visit.say(standing=agent_pb2.MemberStanding(cut_off=True))
    await eventually(lambda: a.condition("MemberCutOff"), SLOW_S)
    await eventually(lambda: not a.ready(APP), LATE_S)
    assert a.visit is visit and not visit.over, "its session stands all the while"
    assert a.events("StopAfter")
    visit.say(standing=agent_pb2.MemberStanding(cut_off=False))
    await eventually(lambda: a.ready(APP), LATE_S)
    assert not a.condition("MemberCutOff")
