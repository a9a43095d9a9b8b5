"""Runs the state machine: hears the runtime, the plans, the probes and the clock; acts; reports.

`agent/main.py` makes one Supervisor and runs it for as long as the agent lives. For its colleagues:

    run() -> None                        until cancelled; containers run on afterwards
    submit_plan(ParsedPlan)              a plan that was verified and accepted (`agent/state.py`)
    set_devices({resource: ids})         countable devices, from the inventory
    statuses() -> [ReplicaStatus]        every replica, for Hello
    gone() -> [uid]                      stops of the plan that are finished, for the first update
    on_status = f(changed, gone)         status deltas; `SessionClient.publish_replicas` fits
    on_event = f(Event)                  what operators should hear
    counts() -> (running, ready)         for the heartbeat
    conditions.all() -> [NodeCondition]  for the heartbeat
    wait_settled(timeout_s) -> bool      after a start: statuses are true, adopted pods were probed
    find(uid, container, previous)       the container behind a logs or exec request
    restart(key, why)                    what runs of a replica is exchanged for the same again
    use_guard(f)                         why an exclusive stay must not start: the dead-man's switch
    views(), seen, now                   for the site: what runs; whether the runtime was seen

Idle it does three things: a listing every few seconds, the probes that are due, and a look at log
sizes and disks every ten seconds. Nothing is translated to protobuf unless it changed.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import pod_logs, steady_clock, translate
from agent.conditions import Conditions
from agent.domain import labels
from agent.domain.compose import Settings
from agent.domain.instructions import (
    Cancel,
    DeleteLogs,
    DevicesFound,
    Emit,
    Event,
    Instruction,
    ListPods,
    Operation,
    PlanAccepted,
    PodsListed,
    Publish,
    PublishGone,
    RestartAsked,
    RunPod,
    RuntimeLost,
    StartContainer,
    Tick,
)
from agent.domain.plan import ParsedPlan
from agent.domain.pressure import DiskUse, disk_pressure
from agent.domain.reconcile import Reconciler
from agent.domain.record import runs_of
from agent.domain.roster import Key
from agent.domain.view import Phase, ReplicaView
from agent.operations import Guard, Operations
from agent.probes import Prober
from agent.runtime.port import ContainerPhase, ContainerState, NotFound, Runtime, RuntimeFailure
from agent.steady_clock import Clock, SystemClock
from agent.volumes import Volumes
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

LIST_EVERY_S = 1.0
# Listing is much of what an idle agent costs: when nothing has changed for a while it does so less
# often, and a crash of what ran quietly is noticed so much later. If ends are heard it is at once;
# a sandbox that died without its containers, or a runtime that did, is noticed later.
QUIET_AFTER_S = 30.0
QUIET_LIST_EVERY_S = 2.0
HEARING_LIST_EVERY_S = 5.0
EVENT_WAIT_S = 60.0
RETRY_S = 1.0
HOUSEKEEPING_S = 10.0
INFO_EVERY = 6  # turns of housekeeping
UNKNOWN_LOGS_KEPT_S = 7 * 86_400.0
SETTLE_POLL_S = 0.02
FINISH_S = 10.0


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """`arch` as in OCI images. `host_paths`: what pods may see of the box, as configured."""

    node: str
    site: str
    arch: str
    state_dir: Path
    log_dir: Path
    cgroup_parent: str = ""
    dns_servers: tuple[str, ...] = ()
    host_paths: tuple[str, ...] = ()
    runtime_socket: Path | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """A container run. `running` holds for the moment of the call."""

    container_id: str
    log_path: str
    running: bool


class Supervisor:
    """Owns the runtime's pods. All methods belong to the event loop that runs it."""

    def __init__(
        self,
        runtime: Runtime,
        config: SupervisorConfig,
        *,
        clock: Clock | None = None,
        list_every_s: float = LIST_EVERY_S,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._clock = clock or SystemClock()
        self._list_every_s = list_every_s
        self._volumes = Volumes(
            config.state_dir, config.host_paths, runtime_socket=config.runtime_socket
        )
        self._operations = Operations(runtime, Prober(runtime), config.arch, self._volumes)
        self.settings = Settings(
            node=config.node,
            site=config.site,
            log_root=str(config.log_dir),
            cgroup_parent=config.cgroup_parent,
            dns_servers=config.dns_servers,
            host_paths=config.host_paths,
        )
        self._reconciler = Reconciler(self.settings)
        self.conditions = Conditions(self._clock.wall)
        self.conditions.on_change = self._condition_changed
        self.on_status: Callable[[Sequence[agent_pb2.ReplicaStatus], Sequence[str]], None] = (
            lambda _changed, _gone: None
        )
        self.on_event: Callable[[common_pb2.Event], None] = lambda _event: None
        self._tasks: dict[asyncio.Task[None], Operation] = {}
        self._look = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._changed: dict[str, ReplicaView] = {}
        self._gone: list[str] = []
        self._flushing = False
        self._turns = 0
        self._stopping = False
        self.seen = asyncio.Event()  # the runtime, at least once
        self._active_at = self._clock.steady()

    # ---- for the rest of the agent ----

    def submit_plan(self, plan: ParsedPlan) -> None:
        """Use a plan that was accepted. Takes effect at once, or when the runtime is first seen."""
        log.info("plan", extra={"generation": plan.generation, "replicas": len(plan.assignments)})
        self._handle(PlanAccepted(plan))

    def set_devices(self, devices: dict[str, tuple[str, ...]]) -> None:
        self._handle(DevicesFound(devices))

    def use_guard(self, guard: Guard) -> None:
        """Without one, nothing exclusive starts."""
        self._operations.guard = guard

    def statuses(self) -> list[agent_pb2.ReplicaStatus]:
        """Every replica on the node, complete."""
        now, steady = self._clock.wall(), self._clock.steady()
        return [translate.replica_status(view, now, steady) for view in self._reconciler.views()]

    def views(self) -> list[ReplicaView]:
        """The same, before it is put into messages."""
        return self._reconciler.views()

    def restartable(self, key: Key) -> bool:
        """Whether anything of the replica runs here that `restart` would exchange."""
        return bool(self._restartable(key))

    def _restartable(self, key: Key) -> list[str]:
        views = self._reconciler.views()
        uids = [view.uid for view in views if (view.workload_uid, view.replica) == key]
        return [uid for uid in uids if self._reconciler.restartable(uid)]

    def restart(self, key: Key, why: str) -> None:
        """Its containers end gracefully and start anew, once their images are there."""
        for uid in self._restartable(key):
            self._handle(RestartAsked(uid, why))

    @property
    def now(self) -> float:
        """Of the clock by which views say since when something is so."""
        return self._clock.steady()

    def gone(self) -> list[str]:
        """Replicas that the plan wants stopped and of which nothing is left."""
        return self._reconciler.gone()

    def counts(self) -> tuple[int, int]:
        """(running, ready) replicas."""
        views = self._reconciler.views()
        running = sum(v.phase in (Phase.RUNNING, Phase.ORPHANED) for v in views)
        return running, sum(v.ready for v in views)

    async def wait_settled(self, timeout_s: float) -> bool:
        """Until statuses can be believed after a start: no adopted replica seems unready."""
        deadline = self._clock.steady() + timeout_s
        while not self._reconciler.settled(self._clock.steady()):
            if self._clock.steady() >= deadline:
                return False
            await asyncio.sleep(SETTLE_POLL_S)
        return True

    def find(self, uid: str, container: str = "", *, previous: bool = False) -> Located:
        """The newest run of a replica's container, or the one before it. Raises NotFound.

        An empty `container` means the only one; init containers are only meant by their name.
        """
        pods = self._reconciler.pods_of(uid)
        if not pods:
            raise NotFound("ReplicaNotFound", f"replica {uid} has no pod on this node")
        names = sorted({c.name for pod in pods for c in pod.containers})
        first = {c.name for pod in pods for c in pod.containers if labels.INIT in c.labels}
        likely = [name for name in names if name not in first] or names
        if not container and len(likely) > 1:
            raise NotFound("ContainerNotFound", f"say which container: {', '.join(names)}")
        name = container or (likely[0] if likely else "")
        runs = runs_of(pods[0], name)
        if not runs:
            known = ", ".join(names) or "none has started yet"
            raise NotFound("ContainerNotFound", f"no container {name!r}; there are: {known}")
        if previous and len(runs) < 2:
            raise NotFound("NoPreviousRun", f"container {name!r} has not been restarted")
        run = runs[1] if previous else runs[0]
        return Located(run.id, run.log_path, run.phase is ContainerPhase.RUNNING)

    # ---- the loop ----

    async def run(self) -> None:
        """Supervise until cancelled. Starts under way may finish; containers are left alone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._observe(), name="observe")
                group.create_task(self._hear(), name="hear")
                group.create_task(self._keep_house(), name="keep-house")
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._let_finish()

    async def _let_finish(self) -> None:
        """A start that is cut short would be undone by the runtime: those may finish first."""
        begun = {t for t, o in self._tasks.items() if isinstance(o, RunPod | StartContainer)}
        for task in self._tasks.keys() - begun:
            task.cancel()
        self._stopping = True
        if begun:
            await asyncio.wait(begun, timeout=FINISH_S)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _observe(self) -> None:
        """List pods whenever something asks for it, and every second."""
        while True:
            self._look.clear()
            token = self._reconciler.listing_token()
            try:
                pods = await self._runtime.list_pods()
            except RuntimeFailure as failure:
                self.conditions.set("RuntimeDown", failure.reason, failure.message)
                self._handle(RuntimeLost(failure.message))
                await asyncio.sleep(RETRY_S)
                continue
            self.conditions.clear("RuntimeDown")
            self._handle(PodsListed(pods, token))
            self.seen.set()
            try:
                async with asyncio.timeout(self._list_pause_s()):
                    await self._look.wait()
            except TimeoutError:
                pass

    def _list_pause_s(self) -> float:
        quiet = self._clock.steady() - self._active_at > QUIET_AFTER_S
        if not quiet:
            return self._list_every_s
        pause_s = HEARING_LIST_EVERY_S if self._runtime.hears_ends else QUIET_LIST_EVERY_S
        return self._to_the_second(max(self._list_every_s, pause_s))

    def _to_the_second(self, pause_s: float) -> float:
        """Of its own clock: simulations play the same twice."""
        return steady_clock.to_the_second(pause_s, self._clock.steady())

    async def _hear(self) -> None:
        """The runtime's own events, where it has them, bring the next listing forward."""
        while True:
            try:
                if await self._runtime.changed(EVENT_WAIT_S):
                    self._look.set()
            except RuntimeFailure:
                await asyncio.sleep(RETRY_S)

    def _handle(self, event: Event) -> None:
        for instruction in self._reconciler.handle(event, self._clock.steady(), self._clock.wall()):
            self._act(instruction)
        self._set_timer()

    def _act(self, instruction: Instruction) -> None:
        match instruction:
            case ListPods():
                self._look.set()
            case Publish(view):
                self._active_at = self._clock.steady()
                self._changed[view.uid] = view
                self._flush_soon()
            case PublishGone(uid):
                self._changed.pop(uid, None)
                self._gone.append(uid)
                self._flush_soon()
            case Emit():
                self.on_event(translate.event(instruction, self._config.node, self._clock.wall()))
            case Cancel(operation):
                self._cancel(operation)
            case DeleteLogs(directory):
                pod_logs.delete_directory(directory)
            case _:
                task = asyncio.create_task(self._perform(instruction))
                self._tasks[task] = instruction
                task.add_done_callback(self._tasks.pop)

    async def _perform(self, operation: Operation) -> None:
        answer = await self._operations.perform(operation)
        if not self._stopping:
            self._handle(answer)

    def _cancel(self, operation: Operation) -> None:
        for task, known in self._tasks.items():
            if known is operation:
                task.cancel()

    def _set_timer(self) -> None:
        """One timer for the earliest thing that waits for time to pass."""
        due = self._reconciler.next_due()
        if due is not None and self._timer is not None and self._timer_at == due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = max(0.0, due - self._clock.steady())
            self._timer_at = due
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())

    # ---- reporting ----

    def _flush_soon(self) -> None:
        """Once per turn of the event loop: what changes together is reported together."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        now, steady = self._clock.wall(), self._clock.steady()
        views = self._changed.values()
        changed = [translate.replica_status(view, now, steady) for view in views]
        gone, self._gone = self._gone, []
        self._changed.clear()
        self._flushing = False
        if changed or gone:
            self.on_status(changed, gone)

    def report(self, reason: str, message: str, *, warning: bool = True) -> None:
        """An event about the node itself."""
        log.log(logging.WARNING if warning else logging.INFO, reason, extra={"detail": message})
        event = translate.node_event(
            self._config.node, reason, message, self._clock.wall(), warning=warning
        )
        self.on_event(event)

    def _condition_changed(self, type_: str, status: bool, message: str) -> None:
        self.report(type_ if status else f"{type_}Ended", message, warning=status)

    # ---- housekeeping ----

    async def _keep_house(self) -> None:
        """Log rotation, disk pressure, the runtime's own conditions. No failure here ends it."""
        while True:
            await asyncio.sleep(self._to_the_second(HOUSEKEEPING_S))
            try:
                await pod_logs.rotate(self._open_logs(), self._runtime.reopen_log)
                self._look_at_disks()
                if self._turns % INFO_EVERY == 0:
                    await self._look_at_runtime()
                    self._prune_logs()
                    await self._sweep_files()
            except RuntimeFailure as failure:
                log.debug("housekeeping", extra={"error": failure.message})
            except OSError as error:
                log.warning("housekeeping", extra={"error": str(error)})
            self._turns += 1

    def _open_logs(self) -> list[tuple[str, Path]]:
        runs: list[ContainerState] = [c for p in self._reconciler.pods() for c in p.containers]
        return [
            (run.id, Path(run.log_path))
            for run in runs
            if run.phase is ContainerPhase.RUNNING and run.log_path
        ]

    def _look_at_disks(self) -> None:
        disks = []
        for name, path in (("state", self._config.state_dir), ("logs", self._config.log_dir)):
            try:
                found = os.statvfs(path)
            except FileNotFoundError:
                continue
            disks.append(
                DiskUse(name, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
            )
        pressure, message = disk_pressure(self.conditions.is_set("DiskPressure"), disks)
        if pressure:
            self.conditions.set("DiskPressure", "DiskFull", message)
        else:
            self.conditions.clear("DiskPressure")

    async def _look_at_runtime(self) -> None:
        info = await self._runtime.info()
        if info.network_ready:
            self.conditions.clear("NetworkNotReady")
        else:
            self.conditions.set("NetworkNotReady", "NetworkNotReady", info.message)

    async def _sweep_files(self) -> None:
        if self.seen.is_set():
            await self._volumes.sweep({pod.id for pod in self._reconciler.pods()})

    def _prune_logs(self) -> None:
        known = {view.uid for view in self._reconciler.views()}
        if known:  # with none known, the runtime may not have been seen yet
            limit = self._clock.wall() - UNKNOWN_LOGS_KEPT_S
            pod_logs.prune_directories(self._config.log_dir, known, limit)
