"""Two stays of one replica on one box, and stops that clients do not notice, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.runtime.port import ContainerPhase
from agent.volumes import Prepared, Volumes
from polder.v1 import agent_pb2, plan_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import assignment, plan, stop, template
from tests.unit.test_supervisor import Box, box_in

PENDING, RUNNING = agent_pb2.REPLICA_PHASE_PENDING, agent_pb2.REPLICA_PHASE_RUNNING
STOPPING = agent_pb2.REPLICA_PHASE_STOPPING
CHECK = {"exec": {"command": ["check"]}, "period": "1s", "failureThreshold": 1}

Play = Callable[[Callable[[Box], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def start(scene: Callable[[Box], Awaitable[None]]) -> None:
        async def main() -> None:
            async with box_in(tmp_path) as box:
                await scene(box)
                assert "UnexpectedTransition" not in box.reasons()

        virtual_time.run(main())

    return start


def old(pod: dict[str, Any] | None = None) -> plan_pb2.Assignment:
    return assignment("old", pod, replica="web-0", epoch=1)


def new(pod: dict[str, Any] | None = None) -> plan_pb2.Assignment:
    wanted = pod or template("app:2")
    return assignment("new", wanted, replica="web-0", epoch=2, revision=2, replaces="old")


def end(uid: str = "old", cause: str = "Updated") -> plan_pb2.Stop:
    return stop(uid, cause, replica="web-0")


async def running(box: Box, image: str = "") -> list[str]:
    """Images of the containers that run."""
    return [
        c.image
        for p in await box.pods()
        for c in p.containers
        if c.phase is ContainerPhase.RUNNING and image in ("", c.image)
    ]


# --- two stays of one replica -------------------------------------------------------------------


def test_both_stays_run_until_the_plan_stops_the_older(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [old()]))
        await box.until(lambda: box.ready("old"))
        box.supervisor.submit_plan(plan(2, [new(), old()]))
        await box.until(lambda: box.ready("new"))
        await asyncio.sleep(60)
        assert box.ready("old") and box.ready("new")
        assert sorted(await running(box)) == ["app:1", "app:2"]
        box.supervisor.submit_plan(plan(3, [new()], [end()]))
        await box.until(lambda: "old" in box.gone)
        assert await running(box) == ["app:2"] and box.ready("new")
        assert "WaitingForPredecessor" not in box.reasons()

    play(scene)


def test_a_reboot_in_between_brings_both_back(play: Play) -> None:
    async def scene(box: Box) -> None:
        both = plan(2, [old(), new()])
        box.supervisor.submit_plan(both)
        await box.until(lambda: box.ready("old") and box.ready("new"))
        await box.stop_agent()
        box.runtime.reboot()
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(both)
        await box.until(lambda: box.ready("old") and box.ready("new"), 20)
        assert len(await box.pods()) == 2

    play(scene)


def test_the_newer_starts_while_the_older_still_stops(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.runtime.delays.stop_container_s = 100.0
        box.supervisor.submit_plan(plan(1, [old(template(stopGrace="100s"))]))
        await box.until(lambda: box.ready("old"))
        box.supervisor.submit_plan(plan(2, [new()], [end()]))
        await box.until(lambda: box.ready("new"), 5)
        assert box.phase("old") == STOPPING

    play(scene)


@pytest.mark.parametrize(
    ("shared", "what"),
    [
        ({"ports": [{"containerPort": 80, "hostPort": 8080}]}, "host port 8080"),
        (
            {
                "volumes": [{"name": "data", "local": {}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            },
            "local volume data",
        ),
    ],
)
def test_what_cannot_be_shared_is_waited_for(
    play: Play, monkeypatch: pytest.MonkeyPatch, shared: dict[str, Any], what: str
) -> None:
    async def nothing_to_mount(*_: object) -> Prepared:
        return Prepared()

    async def scene(box: Box) -> None:
        monkeypatch.setattr(Volumes, "prepare", nothing_to_mount)
        box.supervisor.submit_plan(plan(1, [old(template(**shared))]))
        await box.until(lambda: box.ready("old"))
        box.supervisor.submit_plan(plan(2, [old(template(**shared)), new(template(**shared))]))
        await box.until(lambda: "new" in box.status)
        assert box.status["new"].reason == "WaitingForPredecessor"
        assert what in box.status["new"].message
        await asyncio.sleep(60)
        assert box.ready("old") and not box.ready("new") and len(await box.pods()) == 1
        assert box.reasons().count("WaitingForPredecessor") == 1
        box.supervisor.submit_plan(plan(3, [new(template(**shared))], [end()]))
        await box.until(lambda: box.ready("new"), 5)

    play(scene)


def test_a_stay_that_no_plan_names_gives_way_to_a_newer_one(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [old()]))
        await box.until(lambda: box.ready("old"))
        box.supervisor.submit_plan(plan(2, [new()]))
        await box.until(lambda: "old" in box.gone and box.ready("new"))
        assert any("Superseded" in e.message for e in box.events)

    play(scene)


# --- stop delay ---------------------------------------------------------------------------------


def test_a_stop_is_reported_before_it_happens(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [old(template(stopDelay="8s"))]))
        await box.until(lambda: box.ready("old"))
        asked_at = box.clock.steady()
        box.supervisor.submit_plan(plan(2, [], [end(cause="ScaledDown")]))
        await box.until(lambda: not box.ready("old"), 0.1)
        status = box.status["old"]
        assert (status.phase, status.reason) == (STOPPING, "Terminating")
        assert status.message.startswith("ScaledDown")
        updates = box.updates
        await asyncio.sleep(7.5)
        assert await running(box) == ["app:1"], "who was sent there is still served"
        assert box.updates == updates
        await box.until(lambda: "old" in box.gone, 5)
        assert box.clock.steady() - asked_at > 8

    play(scene)


def test_the_delay_survives_an_agent_restart(play: Play) -> None:
    async def scene(box: Box) -> None:
        slow = template(stopDelay="20s", stopGrace="3s")
        box.supervisor.submit_plan(plan(1, [old(slow)]))
        await box.until(lambda: box.ready("old"))
        stopping = plan(2, [], [end()])
        box.supervisor.submit_plan(stopping)
        await asyncio.sleep(10)
        await box.stop_agent()
        assert await running(box) == ["app:1"]
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(stopping)
        await box.until(lambda: box.phase("old") == STOPPING)
        await asyncio.sleep(18)
        assert await running(box) == ["app:1"], "the delay began anew: the pod tells how long it is"
        await box.until(lambda: "old" in box.gone, 8)

    play(scene)


def test_an_update_in_place_waits_too(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a", template(stopDelay="8s"))]))
        await box.until(lambda: box.ready("a"))
        newer = template("app:2", stopDelay="1s")
        box.supervisor.submit_plan(plan(2, [assignment("a", newer, revision=2)]))
        await box.until(lambda: not box.ready("a"))
        changed_at = box.clock.steady()
        assert (box.phase("a"), box.status["a"].reason) == (STOPPING, "Terminating")
        await asyncio.sleep(7.5)
        assert await running(box) == ["app:1"]
        await box.until(lambda: box.ready("a") and box.status["a"].revision == 2)
        assert 8 <= box.clock.steady() - changed_at < 10

    play(scene)


def test_nobody_waits_for_what_was_not_ready(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.runtime.exec_handler = lambda _c, _a: (1, b"no")
        slow = template(stopDelay="30s", readinessProbe=CHECK)
        box.supervisor.submit_plan(plan(1, [old(slow)]))
        await asyncio.sleep(60)
        box.supervisor.submit_plan(plan(2, [], [end()]))
        await box.until(lambda: "old" in box.gone, 2)

    play(scene)


def test_a_dead_sandbox_and_a_hung_container_are_not_waited_for(play: Play) -> None:
    async def scene(box: Box) -> None:
        healthy = [True]
        box.runtime.exec_handler = lambda _c, _a: (0, b"") if healthy[0] else (1, b"stuck")
        slow = template(stopDelay="600s", livenessProbe=CHECK)
        box.supervisor.submit_plan(plan(1, [old(slow)]))
        await box.until(lambda: box.ready("old"))
        box.runtime.break_sandbox((await box.pods())[0].id)
        await box.until(lambda: not box.ready("old"))
        await box.until(lambda: box.ready("old"), 20)
        healthy[0] = False
        await box.until(lambda: box.status["old"].restarts == 1, 20)

    play(scene)


def test_a_container_that_is_being_stopped_is_not_ready(play: Play) -> None:
    async def scene(box: Box) -> None:
        healthy = [True]
        box.runtime.exec_handler = lambda _c, _a: (0, b"") if healthy[0] else (1, b"stuck")
        box.runtime.delays.stop_container_s = 10.0
        box.supervisor.submit_plan(plan(1, [old(template(livenessProbe=CHECK))]))
        await box.until(lambda: box.ready("old"))
        healthy[0] = False
        await box.until(lambda: not box.ready("old"), 3)
        assert box.status["old"].reason == "LivenessFailed"
        assert await running(box) == ["app:1"], "it is still given its grace"

    play(scene)


def test_a_stop_in_the_delay_of_another_cause_is_no_longer(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a", template(stopDelay="8s"))]))
        await box.until(lambda: box.ready("a"))
        changed_at = box.clock.steady()
        box.supervisor.submit_plan(plan(2, [assignment("a", template("app:2"), revision=2)]))
        await asyncio.sleep(4)
        box.supervisor.submit_plan(plan(3, [], [stop("a")]))
        await box.until(lambda: "a" in box.gone)
        assert box.clock.steady() - changed_at < 10
        assert "app:2" not in await running(box)

    play(scene)
