"""What of a box is not the agent: its pods, its disk and the dead-man's switch.

They outlive the agent's process, and end with the box. The runtime takes its time for everything
and goes on with what was asked for when whoever asked is gone. Whoever watches is told of every
process at the moment of true time at which it began or ended to run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.domain import labels
from agent.domain.instructions import (
    Done,
    EnsureImage,
    ExitRead,
    Failed,
    Operation,
    Outcome,
    Probed,
    ReadExit,
    RemoveContainer,
    RemovePod,
    RunPod,
    RunProbe,
    StartContainer,
    StopContainer,
    UpdateFiles,
)
from agent.domain.instructions import Event as RuntimeEvent
from agent.runtime.port import ContainerPhase, ContainerSpec, ContainerState, PodSpec, PodState
from tests.sim.site_world import Clock, Dice, World

SWITCH_LATE_S = 0.1
EXIT_KILLED = 137
EXIT_UNSEEN = 255
Answer = Callable[[RuntimeEvent], None]


@dataclass(frozen=True, slots=True)
class Process:
    """A container that runs. `key`: (workload uid, replica name)."""

    node: str
    key: tuple[str, str]
    uid: str
    container: str


@dataclass
class Pod:
    spec: PodSpec
    state: PodState
    containers: dict[str, ContainerState] = field(default_factory=dict)
    warm_at: dict[str, float] = field(default_factory=dict)  # by container, when probes succeed

    def seen(self) -> PodState:
        return replace(self.state, containers=tuple(self.containers.values()))

    @property
    def uid(self) -> str:
        return self.state.labels[labels.REPLICA_UID]


class Disk:
    """What was saved, by name. Writes are done one after the other, each at one moment."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world, self._dice = world, dice
        self._files: dict[str, str] = {}
        self._free_at = 0.0
        self._writer = 0
        self.slow_s = 0.01
        self.failing = 0.0

    def kept(self) -> dict[str, Any]:
        return {name: json.loads(text) for name, text in self._files.items()}

    def wipe(self) -> None:
        self._files.clear()

    def put(self, name: str, body: Mapping[str, Any]) -> None:
        """At once, for what nobody waits for."""
        self._files[name] = json.dumps(body)

    def write(self, name: str, body: Mapping[str, Any], answer: Callable[[bool], None]) -> None:
        """The answer follows the moment of the write; a crash may come between the two."""
        world = self._world
        text = json.dumps(body)
        done_at = max(self._free_at, world.now) + self._dice.between(0.0005, self.slow_s)
        self._free_at = done_at
        if self._dice.random() < self.failing:
            world.at(done_at, answer, False)
            return
        world.at(done_at, self._put, self._writer, name, text)
        world.at(done_at + self._dice.between(0, 0.001), answer, True)

    def _put(self, writer: int, name: str, text: str) -> None:
        if writer == self._writer:
            self._files[name] = text

    def writer_died(self) -> None:
        """What was on its way is not written."""
        self._writer += 1
        self._free_at = self._world.now


class Runtime:
    """Pods. `began` and `ended` are told of every container."""

    def __init__(
        self,
        world: World,
        node: str,
        dice: Dice,
        began: Callable[[Process], None],
        ended: Callable[[Process], None],
    ) -> None:
        self._world, self._dice = world, dice
        self._node = node
        self._began, self._ended = began, ended
        self._pods: dict[str, Pod] = {}
        self._ids = 0
        self._boot = 0
        self.changed: Callable[[], None] = lambda: None
        self.slow_s = 0.4
        self.warm_s = 1.0
        self.failing = 0.0
        self.gate: Callable[[str], bool] = lambda uid: True  # whether the switch lets it run
        self.wall: Callable[[], float] = lambda: world.now
        self._asleep: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None

    # ---- what the world does to it ----

    def listed(self) -> list[PodState]:
        return [pod.seen() for pod in self._pods.values()]

    def running(self) -> list[tuple[Pod, ContainerState]]:
        return [
            (pod, run)
            for pod in self._pods.values()
            for run in pod.containers.values()
            if run.phase is ContainerPhase.RUNNING
        ]

    def kill(self, uid: str) -> None:
        for pod, run in self.running():
            if pod.uid == uid:
                self._finish(pod, run, EXIT_KILLED)

    def crash_one(self) -> None:
        if self._asleep is None and (runs := self.running()):
            self._finish(*self._dice.choice(runs), code=1)

    def sleep(self) -> None:
        """The box is suspended: no process of it does anything until `wake`."""
        self._asleep = []
        for pod, run in self.running():
            self._ended(self._process(pod, run))

    def wake(self) -> None:
        """What the switch had to kill meanwhile is gone already: that the two wake up side by side
        is what ADR 23 leaves to storage that checks epochs."""
        left, self._asleep = self._asleep or [], None
        for pod, run in self.running():
            self._began(self._process(pod, run))
        for what, given in left:
            what(*given)

    def lose_power(self) -> None:
        """Every sandbox is dead; records and images remain, as with containerd."""
        self._boot += 1
        self._asleep = None
        for pod in self._pods.values():
            for run in list(pod.containers.values()):
                if run.phase is ContainerPhase.RUNNING:
                    self._finish(pod, run, EXIT_UNSEEN, "Unknown")
            pod.state = replace(pod.state, ready=False)

    # ---- operations ----

    def perform(self, operation: Operation, answer: Answer) -> None:
        """Answers once, later; never when the box loses its power meanwhile."""
        match operation:
            case EnsureImage():
                self._later(0.0, self.slow_s / 4, answer, Done(operation, operation.image))
            case RunPod():
                self._later(0.02, self.slow_s, self._run_pod, operation, answer)
            case StartContainer():
                self._later(0.02, self.slow_s, self._start, operation, answer)
            case StopContainer():
                self._later(0.0, operation.grace_s, self._stop, operation, answer)
            case RemoveContainer():
                self._later(0.0, 0.05, self._remove_container, operation, answer)
            case RemovePod():
                self._later(0.01, self.slow_s / 2, self._remove_pod, operation, answer)
            case RunProbe():
                self._later(0.0, 0.02, self._probe, operation, answer)
            case ReadExit():
                self._later(0.0, 0.02, self._read_exit, operation, answer)
            case UpdateFiles():
                self._later(0.0, 0.02, answer, Done(operation))

    def _later(self, low: float, high: float, what: Callable[..., None], *given: Any) -> None:
        delay = self._dice.between(low, max(low, high))
        self._world.after(delay, self._if_up, self._boot, what, given)

    def _if_up(self, boot: int, what: Callable[..., None], given: tuple[Any, ...]) -> None:
        if boot != self._boot:
            return
        if self._asleep is not None:
            self._asleep.append((what, given))
        else:
            what(*given)

    def _run_pod(self, operation: RunPod, answer: Answer) -> None:
        spec = operation.spec
        taken = any(pod.spec.uid == spec.uid for pod in self._pods.values())
        if taken or self._dice.random() < self.failing:
            answer(Failed(operation, Outcome.FAILED, "SandboxCreate", "no"))
            return
        self._ids += 1
        pod_id = f"{self._node}-p{self._ids}"
        state = PodState(
            id=pod_id,
            name=spec.name,
            namespace=spec.namespace,
            uid=spec.uid,
            ready=True,
            labels=spec.labels,
            annotations=spec.annotations,
            created_at=self.wall(),
            ip="10.0.0.1",
            containers=(),
        )
        self._pods[pod_id] = Pod(spec, state)
        answer(Done(operation, pod_id))

    def _start(self, operation: StartContainer, answer: Answer) -> None:
        pod = self._pods.get(operation.pod_id)
        if pod is None or not pod.state.ready:
            answer(Failed(operation, Outcome.NOT_FOUND, "NotFound", "no such pod"))
            return
        if self._dice.random() < self.failing:
            answer(Failed(operation, Outcome.FAILED, "ContainerStart", "no"))
            return
        spec: ContainerSpec = operation.spec
        self._ids += 1
        run = ContainerState(
            id=f"{self._node}-c{self._ids}",
            pod_id=pod.state.id,
            name=spec.name,
            attempt=spec.attempt,
            phase=ContainerPhase.RUNNING,
            image=spec.image,
            labels=spec.labels,
            annotations=spec.annotations,
            created_at=self.wall(),
            started_at=self.wall(),
        )
        pod.containers[run.id] = run
        pod.warm_at[run.id] = self._world.now + self._dice.between(0, self.warm_s)
        if self.gate(pod.uid):
            self._began(self._process(pod, run))
            answer(Done(operation, run.id))
        else:  # what the switch has closed stays closed: it never comes to run
            pod.containers[run.id] = replace(
                run, phase=ContainerPhase.EXITED, exit_code=EXIT_KILLED, finished_at=self.wall()
            )
            answer(Done(operation, run.id))
            self.changed()

    def _stop(self, operation: StopContainer, answer: Answer) -> None:
        for pod in self._pods.values():
            run = pod.containers.get(operation.container_id)
            if run is not None and run.phase is ContainerPhase.RUNNING:
                self._finish(pod, run, 143)
        answer(Done(operation))

    def _remove_container(self, operation: RemoveContainer, answer: Answer) -> None:
        for pod in self._pods.values():
            pod.containers.pop(operation.container_id, None)
        answer(Done(operation))

    def _remove_pod(self, operation: RemovePod, answer: Answer) -> None:
        pod = self._pods.get(operation.pod_id)
        if pod is not None:
            for run in list(pod.containers.values()):
                if run.phase is ContainerPhase.RUNNING:
                    self._finish(pod, run, EXIT_KILLED)
            del self._pods[operation.pod_id]
        answer(Done(operation))

    def _probe(self, operation: RunProbe, answer: Answer) -> None:
        for pod in self._pods.values():
            run = pod.containers.get(operation.container_id)
            if run is not None and run.phase is ContainerPhase.RUNNING:
                warm = self._world.now >= pod.warm_at[run.id]
                answer(Probed(operation, warm, "" if warm else "it warms up"))
                return
        answer(Probed(operation, None, "it does not run"))

    def _read_exit(self, operation: ReadExit, answer: Answer) -> None:
        for pod in self._pods.values():
            if operation.container_id in pod.containers:
                answer(ExitRead(operation, pod.containers[operation.container_id]))
                return
        answer(ExitRead(operation, None))

    def _finish(self, pod: Pod, run: ContainerState, code: int, reason: str = "") -> None:
        pod.containers[run.id] = replace(
            run,
            phase=ContainerPhase.EXITED,
            finished_at=self.wall(),
            exit_code=code,
            reason=reason,
        )
        if self._asleep is None:
            self._ended(self._process(pod, run))
        self.changed()

    def _process(self, pod: Pod, run: ContainerState) -> Process:
        marks = pod.state.labels
        key = (marks[labels.WORKLOAD_UID], marks[labels.REPLICA])
        return Process(self._node, key, pod.uid, run.id)


class Switch:
    """Kills what is not armed again in time, by its own timer. Once it has, nothing of that stay
    comes to run until it is armed for later."""

    def __init__(
        self, world: World, dice: Dice, clock: Callable[[], Clock], runtime: Runtime
    ) -> None:
        self._world, self._dice, self._clock, self._runtime = world, dice, clock, runtime
        self.alive = True
        self._asleep = False
        self._deadlines: dict[str, float] = {}
        self._shut: set[str] = set()
        runtime.gate = self.lets

    def lets(self, uid: str) -> bool:
        return uid not in self._shut

    def deadlines(self) -> dict[str, float]:
        return dict(self._deadlines)

    def arm(self, uid: str, deadline: float) -> bool:
        """Whether it has that now."""
        if self.alive:
            self._shut.discard(uid)
            self._deadlines[uid] = deadline
            self._world.at(self._clock().when(deadline), self._look, uid, deadline)
        return self.alive

    def disarm(self, uid: str) -> None:
        if self.alive:
            self._shut.discard(uid)
            self._deadlines.pop(uid, None)

    def _look(self, uid: str, deadline: float) -> None:
        if not self.alive or self._deadlines.get(uid) != deadline:
            return
        due = self._clock().when(deadline)  # its rate may have changed
        if due > self._world.now + 1e-9:
            self._world.at(due, self._look, uid, deadline)
            return
        self._world.after(self._dice.between(0, SWITCH_LATE_S), self._kill, uid, deadline)

    def _kill(self, uid: str, deadline: float) -> None:
        if self.alive and not self._asleep and self._deadlines.get(uid) == deadline:
            self._world.tell(f"the switch kills {uid}")
            self._shut.add(uid)
            self._runtime.kill(uid)

    def armed(self, uid: str) -> bool:
        return uid in self._deadlines

    def objection(self, uid: str) -> str:
        """As `SwitchClient.objection`: asked by the agent before anything exclusive starts."""
        if not self.alive:
            return "the switch is away"
        if self._deadlines.get(uid, 0.0) <= self._clock().at(self._world.now):
            return "the switch is not armed for it"
        return ""

    def die(self) -> None:
        """Its table stands on a file system in memory."""
        self.alive = False

    def sleep(self) -> None:
        self._asleep = True

    def wake(self) -> None:
        """A timer of CLOCK_BOOTTIME is due at once."""
        self._asleep = False
        now = self._clock().at(self._world.now)
        for uid, deadline in list(self._deadlines.items()):
            if deadline <= now:
                self._kill(uid, deadline)

    def begin(self) -> None:
        """Goes on where the last one ended."""
        self.alive = True
        for uid, deadline in self._deadlines.items():
            self._world.at(self._clock().when(deadline), self._look, uid, deadline)

    def lose_power(self) -> None:
        self.alive = self._asleep = False
        self._deadlines.clear()
        self._shut.clear()
