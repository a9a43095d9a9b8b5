"""The supervisor over the simulated runtime, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.runtime.port import ContainerPhase, ImageFailure, NotFound, PodState
from agent.runtime.simulated import Delays, SimulatedRuntime
from agent.supervisor import Supervisor, SupervisorConfig
from polder.v1 import agent_pb2, common_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import assignment, plan, stop, template

PENDING, RUNNING = agent_pb2.REPLICA_PHASE_PENDING, agent_pb2.REPLICA_PHASE_RUNNING
ORPHANED = agent_pb2.REPLICA_PHASE_ORPHANED


class Box:
    """One simulated box and the agent's supervisor on it; `restart_agent` forgets all memory."""

    def __init__(self, directory: Path) -> None:
        loop = asyncio.get_running_loop()
        self.clock = virtual_time.VirtualClock(loop)
        self.runtime = SimulatedRuntime(clock=self.clock.wall, delays=Delays(0.05, 0.2, 0.1, 0.3))
        self.config = SupervisorConfig(
            "box-1", "nl-utr-1", "amd64", directory / "state", directory / "logs"
        )
        self.events: list[common_pb2.Event] = []
        self.status: dict[str, agent_pb2.ReplicaStatus] = {}
        self.gone: list[str] = []
        self.updates = 0
        self.start_agent()

    def start_agent(self) -> None:
        self.supervisor = Supervisor(self.runtime, self.config, clock=self.clock)
        self.supervisor.on_event = self.events.append
        self.supervisor.on_status = self._on_status
        self.task = asyncio.create_task(self.supervisor.run())

    def _on_status(self, changed: list[agent_pb2.ReplicaStatus], gone: list[str]) -> None:
        self.updates += 1
        self.status |= {s.replica_uid: s for s in changed}
        self.gone += gone
        for uid in gone:
            self.status.pop(uid, None)

    async def stop_agent(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = self.clock.steady() + timeout_s
        while not condition():
            assert self.clock.steady() < deadline, (self.status, self.events[-5:])
            await asyncio.sleep(0.01)

    def phase(self, uid: str) -> int:
        return self.status[uid].phase if uid in self.status else 0

    def ready(self, uid: str) -> bool:
        return uid in self.status and self.status[uid].ready

    async def pods(self) -> list[PodState]:
        return list(await self.runtime.list_pods())

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events]


@asynccontextmanager
async def box_in(directory: Path) -> AsyncIterator[Box]:
    box = Box(directory)
    try:
        yield box
    finally:
        await box.stop_agent()


Play = Callable[[Box], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], None]:
    def start(scene: Play) -> None:
        async def main() -> None:
            async with box_in(tmp_path) as box:
                await scene(box)
                assert "UnexpectedTransition" not in box.reasons()

        virtual_time.run(main())

    return start


def test_an_assignment_runs_and_is_ready(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"), 1.0)
        status = box.status["a"]
        assert (status.phase, status.revision, status.restarts) == (RUNNING, 1, 0)
        assert status.template_digest and status.containers[0].state == "running"
        await box.until(lambda: box.status["a"].pod_ip, 2.0)
        assert box.supervisor.counts() == (1, 1)

    play(scene)


def test_an_idle_box_reports_nothing(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(
            plan(1, [assignment("a", template(readinessProbe={"exec": {"command": ["true"]}}))])
        )
        await box.until(lambda: box.ready("a"))
        await asyncio.sleep(3)
        before = box.updates
        await asyncio.sleep(600)
        assert box.updates == before

    play(scene)


def test_agent_restart_adopts_without_touching_anything(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        probed = template(readinessProbe={"exec": {"command": ["true"]}})
        box.supervisor.submit_plan(plan(1, [assignment("a", probed), assignment("b")]))
        await box.until(lambda: box.ready("a") and box.ready("b"))
        before = await box.pods()
        await box.stop_agent()
        assert await box.pods() == before
        await asyncio.sleep(30)
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(plan(1, [assignment("a", probed), assignment("b")]))
        assert await box.supervisor.wait_settled(5)
        assert all(s.ready for s in box.supervisor.statuses())
        await asyncio.sleep(30)
        assert await box.pods() == before

    play(scene)


def test_crash_loop_backs_off_and_says_so(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.runtime.exits["bad:1"] = 3
        box.supervisor.submit_plan(plan(1, [assignment("a", template("bad:1"))]))
        await asyncio.sleep(100)
        status = box.status["a"]
        # 0.5 + 1 + 2 + 4 + 8 + 16 + 32 s: six or seven restarts in a hundred seconds.
        assert 5 <= status.restarts <= 7
        assert (status.phase, status.reason, status.ready) == (PENDING, "CrashLoop", False)
        assert status.containers[0].last_exit.exit_code == 3
        assert "exit code 3" in status.message
        pods = await box.pods()
        assert len(pods[0].containers) == 2, "only the last two runs are kept"
        restarts = status.restarts
        await box.stop_agent()
        box.start_agent()
        box.supervisor.submit_plan(plan(1, [assignment("a", template("bad:1"))]))
        await box.until(lambda: box.status["a"].restarts > restarts)

    play(scene)


def test_backoff_starts_anew_after_a_long_run(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        for crash in range(6):
            await box.until(lambda: box.ready("a"), 120)
            box.runtime.crash(box.status["a"].containers[0].id)
            await box.until(lambda n=crash: box.status["a"].restarts == n + 1, 120)
        await box.until(lambda: box.ready("a"))
        await asyncio.sleep(700)
        crashed_at = box.clock.steady()
        box.runtime.crash(box.status["a"].containers[0].id)
        await box.until(lambda: box.status["a"].restarts == 7 and box.ready("a"))
        assert box.clock.steady() - crashed_at < 3

    play(scene)


def test_a_stop_ends_it_and_is_reported_gone(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a"), assignment("b")]))
        await box.until(lambda: box.ready("a") and box.ready("b"))
        box.supervisor.submit_plan(plan(2, [assignment("b")], [stop("a", "WorkloadDeleted")]))
        await box.until(lambda: "a" in box.gone)
        assert [p.name for p in await box.pods()] == ["b-0"]
        assert box.supervisor.gone() == ["a"]
        assert any(e.reason == "Stopping" and "WorkloadDeleted" in e.message for e in box.events)
        assert box.ready("b")

    play(scene)


def test_what_no_plan_names_runs_on_as_an_orphan(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        before = await box.pods()
        box.supervisor.submit_plan(plan(2))
        await box.until(lambda: box.phase("a") == ORPHANED)
        assert box.ready("a") and "Orphaned" in box.reasons()
        await box.stop_agent()
        box.start_agent()
        box.supervisor.submit_plan(plan(2))
        await asyncio.sleep(100)
        assert await box.pods() == before and box.phase("a") == ORPHANED
        box.supervisor.submit_plan(plan(3, [assignment("a")]))
        await box.until(lambda: box.phase("a") == RUNNING)
        assert await box.pods() == before, "an orphan that is named again is adopted"

    play(scene)


def test_a_new_template_waits_for_its_image(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        box.runtime.images["app:2"] = ImageFailure("ImageNotFound", "app:2: not found")
        old = await box.pods()
        box.supervisor.submit_plan(plan(2, [assignment("a", template("app:2"), revision=2)]))
        await box.until(lambda: box.status["a"].reason == "ImageNotFound")
        assert box.ready("a") and box.status["a"].revision == 1 and await box.pods() == old
        box.runtime.images["app:2"] = None
        await box.until(lambda: box.status["a"].revision == 2 and box.ready("a"))
        assert [p.containers[0].image for p in await box.pods()] == ["app:2"]
        assert box.status["a"].restarts == 0

    play(scene)


def test_a_new_revision_of_the_same_template_restarts_nothing(
    play: Callable[[Play], None],
) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        before = await box.pods()
        box.supervisor.submit_plan(plan(2, [assignment("a", revision=2, epoch=5)]))
        await box.until(lambda: box.status["a"].revision == 2)
        await asyncio.sleep(10)
        assert await box.pods() == before

    play(scene)


def test_cold_boot_recreates_everything_once(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        wanted = plan(1, [assignment(uid) for uid in "abc"])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: all(box.ready(uid) for uid in "abc"))
        old = {p.id for p in await box.pods()}
        await box.stop_agent()
        box.runtime.reboot()
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: all(box.ready(uid) for uid in "abc"), 15)
        new = await box.pods()
        assert len(new) == 3 and not old & {p.id for p in new}

    play(scene)


def test_host_port_taken_is_pending_with_the_reason(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        ported = template(ports=[{"containerPort": 80, "hostPort": 8080}])
        box.runtime.busy_ports.add(("TCP", 8080))
        box.supervisor.submit_plan(plan(1, [assignment("a", ported)]))
        await box.until(lambda: box.status["a"].reason == "HostPortInUse" if box.status else 0)
        assert box.phase("a") == PENDING and "8080" in box.status["a"].message
        await asyncio.sleep(300)
        assert box.reasons().count("HostPortInUse") < 20
        box.runtime.busy_ports.clear()
        await box.until(lambda: box.ready("a"), 31)

    play(scene)


def test_a_replica_that_moves_its_port_to_another_waits_no_longer_than_needed(
    play: Callable[[Play], None],
) -> None:
    async def scene(box: Box) -> None:
        ported = template(ports=[{"containerPort": 80, "hostPort": 8080}])
        box.supervisor.submit_plan(plan(1, [assignment("a", ported)]))
        await box.until(lambda: box.ready("a"))
        changed_at = box.clock.steady()
        box.supervisor.submit_plan(plan(2, [assignment("b", ported)], [stop("a")]))
        await box.until(lambda: box.ready("b"))
        assert box.clock.steady() - changed_at < 3

    play(scene)


def test_a_lost_runtime_changes_nothing(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        before = await box.pods()
        updates = box.updates
        box.runtime.available = False
        await box.until(lambda: box.supervisor.conditions.is_set("RuntimeDown"))
        box.supervisor.submit_plan(plan(2, [assignment("a"), assignment("b")]))
        await asyncio.sleep(120)
        assert box.updates <= updates + 1
        box.runtime.available = True
        await box.until(lambda: box.ready("b"), 5)
        assert before[0] in await box.pods()
        assert not box.supervisor.conditions.all()

    play(scene)


def test_failed_liveness_restarts_and_counts(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        healthy = [True]
        box.runtime.exec_handler = lambda _c, _a: (0, b"") if healthy[0] else (1, b"stuck")
        probe = {"exec": {"command": ["check"]}, "period": "1s", "failureThreshold": 2}
        box.supervisor.submit_plan(plan(1, [assignment("a", template(livenessProbe=probe))]))
        await box.until(lambda: box.ready("a"))
        healthy[0] = False
        await box.until(lambda: box.status["a"].restarts == 1)
        healthy[0] = True
        await box.until(lambda: box.ready("a"))
        assert box.status["a"].containers[0].last_exit.reason == "LivenessFailed"
        assert any(e.reason == "LivenessFailed" and "stuck" in e.message for e in box.events)
        await asyncio.sleep(60)
        assert box.status["a"].restarts == 1

    play(scene)


def test_readiness_gates_ready_and_never_restarts(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        healthy = [False]
        box.runtime.exec_handler = lambda _c, _a: (0, b"") if healthy[0] else (1, b"warming up")
        probe = {"exec": {"command": ["check"]}, "period": "5s"}
        box.supervisor.submit_plan(plan(1, [assignment("a", template(readinessProbe=probe))]))
        await box.until(lambda: box.phase("a") == RUNNING)
        await asyncio.sleep(30)
        assert not box.ready("a") and box.status["a"].reason == "ProbeFailing"
        assert "warming up" in box.status["a"].message
        healthy[0] = True
        await box.until(lambda: box.ready("a"), 6)
        healthy[0] = False
        await box.until(lambda: not box.ready("a"), 20)
        assert box.status["a"].restarts == 0

    play(scene)


def test_one_bad_template_does_not_spoil_the_rest(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a", b"{nonsense"), assignment("b")]))
        await box.until(lambda: box.ready("b") and "a" in box.status)
        assert (box.phase("a"), box.status["a"].reason) == (PENDING, "BadTemplate")
        box.supervisor.submit_plan(plan(2, [assignment("a"), assignment("b", b"[]")]))
        await box.until(lambda: box.ready("a"))
        assert box.ready("b") and box.status["b"].reason == "BadTemplate", "the old one runs on"

    play(scene)


def test_a_missing_secret_is_pending_until_it_comes(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        from polder.v1 import plan_pb2

        needy = template(env=[{"name": "KEY", "secret": {"name": "db", "key": "pw"}}])
        box.supervisor.submit_plan(plan(1, [assignment("a", needy)]))
        await box.until(lambda: "a" in box.status)
        assert box.status["a"].reason == "SecretMissing" and "'db'" in box.status["a"].message
        secret = plan_pb2.SecretData(
            namespace="default", name="db", type="Opaque", data={"pw": b"x"}
        )
        box.supervisor.submit_plan(plan(2, [assignment("a", needy)], secrets=[secret]))
        await box.until(lambda: box.ready("a"))

    play(scene)


def test_a_stop_while_the_image_is_pulled_gives_the_pull_up(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.runtime.delays.pull_s = 1000.0
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await asyncio.sleep(5)
        assert box.status["a"].reason == "ImagePull"
        box.supervisor.submit_plan(plan(2, [], [stop("a")]))
        await box.until(lambda: "a" in box.gone, 1)
        assert not await box.pods()

    play(scene)


def test_find_names_runs_for_logs_and_exec(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        with pytest.raises(NotFound):
            box.supervisor.find("a")
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        first = box.supervisor.find("a", "app")
        assert first.running
        with pytest.raises(NotFound):
            box.supervisor.find("a", "app", previous=True)
        box.runtime.crash(first.container_id)
        await box.until(lambda: box.status["a"].restarts == 1 and box.ready("a"))
        assert box.supervisor.find("a", previous=True).container_id == first.container_id
        assert box.supervisor.find("a").container_id != first.container_id
        with pytest.raises(NotFound):
            box.supervisor.find("a", "other")

    play(scene)


def test_a_clock_that_jumps_by_a_day_changes_nothing(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        box.runtime.exits["bad:1"] = 1
        box.supervisor.submit_plan(plan(1, [assignment("a", template("bad:1")), assignment("b")]))
        await box.until(lambda: box.status["a"].restarts == 3 if box.status else False)
        before = [p for p in await box.pods() if p.name == "b-0"]
        for skew in (-86_400.0, 86_400.0):
            box.clock.skew = skew
            restarts = box.status["a"].restarts
            await asyncio.sleep(200)
            assert restarts < box.status["a"].restarts < restarts + 8
        assert before == [p for p in await box.pods() if p.name == "b-0"]

    play(scene)


def test_unknown_outcome_of_a_start_makes_no_second_pod(play: Callable[[Play], None]) -> None:
    async def scene(box: Box) -> None:
        real = box.runtime.run_pod
        lost = [True]

        async def answer_lost(spec):  # type: ignore[no-untyped-def]
            from agent.runtime.port import RuntimeUnavailable

            pod_id = await real(spec)
            if lost.pop() if lost else False:
                raise RuntimeUnavailable("RuntimeUnavailable", "deadline exceeded")
            return pod_id

        box.runtime.run_pod = answer_lost  # type: ignore[method-assign]
        box.supervisor.submit_plan(plan(1, [assignment("a")]))
        await box.until(lambda: box.ready("a"))
        pods = await box.pods()
        assert len(pods) == 1
        assert pods[0].containers[0].phase is ContainerPhase.RUNNING

    play(scene)
