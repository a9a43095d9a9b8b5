"""Replicas that run once, and init containers, over the simulated runtime in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.domain.once import START_TRIES
from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ContainerSpec,
    NotFound,
    PodSpec,
)
from polder.v1 import agent_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import assignment, plan, stop, template
from tests.unit.test_supervisor import Box, box_in

PENDING, RUNNING = agent_pb2.REPLICA_PHASE_PENDING, agent_pb2.REPLICA_PHASE_RUNNING
SUCCEEDED, FAILED = agent_pb2.REPLICA_PHASE_SUCCEEDED, agent_pb2.REPLICA_PHASE_FAILED
ORPHANED = agent_pb2.REPLICA_PHASE_ORPHANED

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


def pod(*images: str, init: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """Containers c0, c1, ... and init containers i0, i1, ..."""
    made: dict[str, Any] = {
        "containers": [{"name": f"c{n}", "image": image} for n, image in enumerate(images)],
        **fields,
    }
    if init:
        made["initContainers"] = [{"name": f"i{n}", "image": i} for n, i in enumerate(init)]
    return made


def job(uid: str, wanted: dict[str, Any] | None = None, **more: Any) -> Any:
    return assignment(uid, wanted or template("job:1"), run_once=True, **more)


def ends(box: Box, image: str, code: int, after_s: float = 1.0) -> None:
    box.runtime.exits[image], box.runtime.lasts[image] = code, after_s


async def runs(box: Box) -> list[tuple[str, str]]:
    """(name, phase) of every container, in order of their start."""
    return [(c.name, c.phase.value) for p in await box.pods() for c in p.containers]


# --- run once -----------------------------------------------------------------------------------


def test_a_job_that_ends_well_has_succeeded_and_stays(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 0, 5.0)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.phase("a") == RUNNING)
        assert box.ready("a"), "while it runs it is ready as usual"
        await box.until(lambda: box.phase("a") == SUCCEEDED)
        status = box.status["a"]
        assert (status.ready, status.reason, status.restarts) == (False, "Completed", 0)
        container = status.containers[0]
        assert (container.state, container.exit_code, container.reason) == (
            "exited",
            0,
            "Completed",
        )
        assert container.finished_at_ms > container.started_at_ms > 0
        updates = box.updates
        await asyncio.sleep(1000)
        assert box.updates <= updates + 1 and await runs(box) == [("app", "exited")]
        assert box.supervisor.counts() == (0, 0)
        assert box.reasons().count("Succeeded") == 1
        box.supervisor.submit_plan(plan(2, [], [stop("a", "Completed")]))
        await box.until(lambda: "a" in box.gone)
        assert not await box.pods()

    play(scene)


def test_a_job_that_fails_is_not_started_again(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 3)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.phase("a") == FAILED)
        status = box.status["a"]
        assert (status.reason, status.ready) == ("Error", False)
        assert "container app ended with exit code 3" in status.message
        await box.until(lambda: "ContainerEnded" in box.reasons())
        ended = next(e for e in box.events if e.reason == "ContainerEnded")
        assert "next start" not in ended.message
        await asyncio.sleep(1000)
        assert await runs(box) == [("app", "exited")]
        assert box.status["a"].containers[0].last_exit.exit_code == 3
        assert box.reasons().count("Failed") == 1

    play(scene)


@pytest.mark.parametrize(("code", "phase"), [(0, SUCCEEDED), (3, FAILED)])
@pytest.mark.parametrize("reboot", [False, True])
def test_the_outcome_outlives_the_agent_and_the_box(
    play: Play, code: int, phase: int, reboot: bool
) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", code)
        wanted = plan(1, [job("a")])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == phase)
        before = box.status["a"]
        await box.stop_agent()
        box.status.clear()
        if reboot:
            box.runtime.reboot()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == phase)
        await asyncio.sleep(100)
        after = box.status["a"]
        assert (after.reason, after.message) == (before.reason, before.message)
        assert after.containers[0].id == before.containers[0].id

    play(scene)


def test_a_job_that_a_reboot_cut_off_runs_again(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 0, 50.0)
        wanted = plan(1, [job("a")])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == RUNNING)
        await box.stop_agent()
        box.runtime.reboot()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == SUCCEEDED, 120)
        assert await runs(box) == [("app", "exited")], "the pod that died is gone"

    play(scene)


def test_an_end_while_the_agent_is_away_is_seen(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 0, 50.0)
        wanted = plan(1, [job("a")])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == RUNNING)
        await box.stop_agent()
        await asyncio.sleep(100)
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == SUCCEEDED, 5)

    play(scene)


def test_a_start_that_is_refused_for_good_fails_the_job(play: Play) -> None:
    async def scene(box: Box) -> None:
        refusal = ContainerFailure("ContainerStart", "command 'nope' not found in the image")
        box.runtime.fail_next("start_container", *[refusal] * START_TRIES)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.phase("a") == FAILED)
        assert box.status["a"].reason == "ContainerStart"
        assert "'nope' not found" in box.status["a"].message
        await asyncio.sleep(1000)
        assert box.phase("a") == FAILED and await runs(box) == []

    play(scene)


def test_a_start_that_is_refused_once_is_tried_again(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.runtime.fail_next("start_container", ContainerFailure("ContainerCreate", "busy"))
        ends(box, "job:1", 0)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.phase("a") == SUCCEEDED)

    play(scene)


def test_a_job_of_two_succeeds_when_both_did(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "short:1", 0, 1.0)
        ends(box, "long:1", 0, 20.0)
        box.supervisor.submit_plan(plan(1, [job("a", pod("short:1", "long:1"))]))
        await box.until(lambda: box.phase("a") == RUNNING)
        await asyncio.sleep(5)
        assert box.phase("a") == RUNNING and box.ready("a"), "one is done, the other runs"
        assert box.status["a"].containers[0].state == "exited"
        await box.until(lambda: box.phase("a") == SUCCEEDED)

    play(scene)


def test_when_one_of_a_job_fails_the_others_are_stopped(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "bad:1", 9, 2.0)
        box.supervisor.submit_plan(plan(1, [job("a", pod("serves:1", "bad:1"))]))
        await box.until(lambda: box.phase("a") == FAILED)
        assert "container c1 ended with exit code 9" in box.status["a"].message
        assert {phase for _, phase in await runs(box)} == {"exited"}
        assert any(e.reason == "ReplicaFailed" for e in box.events)

    play(scene)


def test_a_new_template_does_not_start_a_job_anew(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 0, 60.0)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.phase("a") == RUNNING)
        before = (await box.pods())[0].id
        newer = plan(2, [job("a", template("job:2"), revision=2)])
        box.supervisor.submit_plan(newer)
        await asyncio.sleep(10)
        assert box.ready("a") and box.status["a"].revision == 1
        await box.stop_agent()
        box.start_agent()
        box.supervisor.submit_plan(newer)
        await box.until(lambda: box.phase("a") == SUCCEEDED, 120)
        assert [p.id for p in await box.pods()] == [before]

    play(scene)


def test_failed_liveness_fails_the_job_also_after_a_restart(play: Play) -> None:
    async def scene(box: Box) -> None:
        healthy = [True]
        box.runtime.exec_handler = lambda _c, _a: (0, b"") if healthy[0] else (1, b"stuck")
        probe = {"exec": {"command": ["check"]}, "period": "1s", "failureThreshold": 2}
        wanted = plan(1, [job("a", template("job:1", livenessProbe=probe))])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == RUNNING)
        healthy[0] = False
        await box.until(lambda: box.phase("a") == FAILED)
        assert box.status["a"].reason == "LivenessFailed"
        await box.stop_agent()
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.phase("a") == FAILED)
        assert len(await runs(box)) == 1

    play(scene)


def test_an_orphaned_job_is_not_started_again_either(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "job:1", 0, 10.0)
        box.supervisor.submit_plan(plan(1, [job("a")]))
        await box.until(lambda: box.ready("a"))
        box.supervisor.submit_plan(plan(2))
        await box.until(lambda: box.phase("a") == ORPHANED)
        await asyncio.sleep(100)
        assert await runs(box) == [("app", "exited")]
        assert box.phase("a") == ORPHANED and not box.ready("a")
        box.supervisor.submit_plan(plan(3, [job("a")]))
        await box.until(lambda: box.phase("a") == SUCCEEDED)

    play(scene)


# --- init containers ----------------------------------------------------------------------------


@pytest.mark.parametrize("once", [False, True])
def test_init_containers_run_one_after_the_other_and_first(play: Play, once: bool) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 0, 5.0)
        wanted = pod("app:1", "app:2", init=("init:1", "init:1"))
        box.supervisor.submit_plan(plan(1, [assignment("a", wanted, run_once=once)]))
        await box.until(lambda: "a" in box.status and box.status["a"].reason == "Init")
        await box.until(lambda: "(1 of 2) runs" in box.status["a"].message)
        assert box.phase("a") == PENDING and not box.ready("a")
        assert await runs(box) == [("i0", "running")]
        await box.until(lambda: box.status["a"].message == "init container i1 (2 of 2) runs")
        assert await runs(box) == [("i0", "exited"), ("i1", "running")]
        await box.until(lambda: box.ready("a"))
        assert [n for n, _ in await runs(box)] == ["i0", "i1", "c0", "c1"]
        shown = {c.name: (c.state, c.reason) for c in box.status["a"].containers}
        assert shown["i0"] == shown["i1"] == ("exited", "Completed")
        assert [c.name for c in box.status["a"].containers] == ["c0", "c1", "i0", "i1"]
        assert "init:1" in box.runtime.pulls
        assert box.supervisor.find("a", "i0").running is False
        with pytest.raises(NotFound, match="say which"):
            box.supervisor.find("a")

    play(scene)


def test_a_failing_init_container_is_tried_again_with_the_crash_backoff(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 4, 0.1)
        box.supervisor.submit_plan(plan(1, [assignment("a", pod("app:1", init=("init:1",)))]))
        await asyncio.sleep(100)
        status = box.status["a"]
        assert (status.phase, status.reason) == (PENDING, "CrashLoop")
        assert "init container i0 (1 of 1)" in status.message and "exit code 4" in status.message
        assert 5 <= status.restarts <= 7
        assert {name for name, _ in await runs(box)} == {"i0"}
        box.runtime.exits["init:1"] = 0
        await box.until(lambda: box.ready("a"), 120)

    play(scene)


def test_a_failing_init_container_fails_a_job(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 4)
        box.supervisor.submit_plan(plan(1, [job("a", pod("app:1", init=("init:1",)))]))
        await box.until(lambda: box.phase("a") == FAILED)
        assert "i0 ended with exit code 4" in box.status["a"].message
        await asyncio.sleep(100)
        assert await runs(box) == [("i0", "exited")]

    play(scene)


def test_a_crash_does_not_run_init_containers_again_a_new_pod_does(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 0)
        wanted = plan(1, [assignment("a", pod("app:1", init=("init:1",)))])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.ready("a"))
        first = (await box.pods())[0].containers
        await box.runtime.remove_container(first[0].id)  # someone cleans up
        box.runtime.crash(first[1].id)
        await box.until(lambda: box.status["a"].restarts == 1 and box.ready("a"))
        assert {name for name, _ in await runs(box)} == {"c0"}
        assert {c.name: c.state for c in box.status["a"].containers} == {
            "c0": "running",
            "i0": "exited",
        }
        await box.stop_agent()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        assert await box.supervisor.wait_settled(5)
        await asyncio.sleep(10)
        assert {name for name, _ in await runs(box)} == {"c0"}
        box.runtime.break_sandbox((await box.pods())[0].id)
        await box.until(lambda: not box.ready("a"))
        await box.until(lambda: box.ready("a"))
        assert [name for name, _ in await runs(box)] == ["i0", "c0"]

    play(scene)


def test_an_agent_restart_takes_init_up_where_it_was(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 0, 5.0)
        ends(box, "init:2", 0, 100.0)
        wanted = plan(1, [assignment("a", pod("app:1", init=("init:1", "init:2")))])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: "(2 of 2) runs" in box.status["a"].message if box.status else 0)
        await box.stop_agent()
        first = next(c for p in await box.pods() for c in p.containers if c.name == "i0")
        await box.runtime.remove_container(first.id)
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: "(2 of 2) runs" in box.status["a"].message if box.status else 0)
        assert box.supervisor.find("a").running, "the only one that there is"
        await box.until(lambda: box.ready("a"), 150)
        assert [name for name, _ in await runs(box)] == ["i1", "c0"]
        assert box.supervisor.find("a") == box.supervisor.find("a", "c0")

    play(scene)


def test_init_containers_give_their_devices_back(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "init:1", 0)
        box.supervisor.set_devices({"polder.eu/gpu": ("/dev/gpu0",)})
        wanted = pod("app:1", init=("init:1",))
        for kind in ("containers", "initContainers"):
            wanted[kind][0]["resources"] = {"devices": {"polder.eu/gpu": 1}}
        box.supervisor.submit_plan(plan(1, [assignment("a", wanted)]))
        await box.until(lambda: box.ready("a"))

    play(scene)


# --- several containers -------------------------------------------------------------------------


def test_one_container_crash_loops_and_the_other_serves(play: Play) -> None:
    async def scene(box: Box) -> None:
        ends(box, "bad:1", 1, 0.1)
        box.supervisor.submit_plan(plan(1, [assignment("a", pod("app:1", "bad:1"))]))
        await asyncio.sleep(100)
        status = box.status["a"]
        assert (status.phase, status.ready, status.reason) == (RUNNING, False, "CrashLoop")
        assert status.message.startswith("container c1: ended with exit code 1")
        good, bad = status.containers
        assert (good.ready, good.restarts, good.state) == (True, 0, "running")
        assert bad.restarts >= 5 and not bad.ready
        assert sum(name == "c0" for name, _ in await runs(box)) == 1

    play(scene)


def test_a_container_that_is_refused_does_not_hold_the_others(play: Play) -> None:
    async def scene(box: Box) -> None:
        real = box.runtime.start_container

        async def refuse(pod_id: str, pod: PodSpec, spec: ContainerSpec) -> str:
            if spec.image == "bad:1":
                raise ContainerFailure("ContainerStart", "command 'x' not found in the image")
            return await real(pod_id, pod, spec)

        box.runtime.start_container = refuse  # type: ignore[method-assign]
        box.supervisor.submit_plan(plan(1, [assignment("a", pod("bad:1", "app:1"))]))
        await box.until(lambda: box.phase("a") == RUNNING)
        await asyncio.sleep(60)
        assert await runs(box) == [("c1", "running")]
        assert box.status["a"].reason == "ContainerStart" and not box.ready("a")

    play(scene)


def test_containers_are_stopped_side_by_side_and_then_the_pod(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.runtime.delays.stop_container_s = 8.0
        wanted = pod("app:1", "app:2", "app:3", stopGrace="10s")
        box.supervisor.submit_plan(plan(1, [assignment("a", wanted)]))
        await box.until(lambda: box.ready("a"))
        stopped_at = box.clock.steady()
        box.supervisor.submit_plan(plan(2, [], [stop("a")]))
        await asyncio.sleep(4)
        pods = await box.pods()
        assert [c.phase for c in pods[0].containers] == [ContainerPhase.RUNNING] * 3
        await box.until(lambda: "a" in box.gone)
        assert box.clock.steady() - stopped_at < 10

    play(scene)
