"""The containers of one pod that is served: the lower half of the table in `situation.py`.

Called by `reconcile.py` for every replica whose pod stays. Appends instructions to the turn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.domain import backoff, compose, labels
from agent.domain.devices import DevicesTaken
from agent.domain.files import PodFiles, mounts_of, pod_files
from agent.domain.given import Given
from agent.domain.instructions import (
    Emit,
    EnsureImage,
    Instruction,
    ListPods,
    Operation,
    ReadExit,
    RemoveContainer,
    RunProbe,
    StartContainer,
    StopContainer,
)
from agent.domain.plan import Assignment
from agent.domain.probes import ProbeKind, begin
from agent.domain.record import Cause, ContainerMemory, Record, runs_of
from agent.domain.situation import ContainerSituation, classify_container
from agent.domain.view import Exit
from agent.runtime.port import ContainerPhase, ContainerState, PodState, PullPolicy
from polder.manifest import Container, PodTemplate, Probe

DEVICE_RETRY_S = 2.0
DEFAULT_GRACE_S = 10.0


@dataclass(slots=True)
class Turn:
    """One event's worth of deciding. `may_act` is False while lifecycle operations must wait."""

    now: float
    settings: compose.Settings
    given: Given
    allocate: Callable[[Container], tuple[str, ...]]  # raises DevicesTaken
    wall: float = 0.0  # unix seconds, as far as anybody knows: for facts that expire
    out: list[Instruction] = field(default_factory=list)

    def ask(self, record: Record, operation: Operation) -> None:
        """Start an operation, unless one that occupies the same is under way."""
        if operation.key not in record.inflight:
            record.inflight[operation.key] = operation
            self.out.append(operation)

    def emit(self, record: Record, reason: str, message: str, *, warning: bool = False) -> None:
        self.out.append(Emit(record.namespace, record.replica, warning, reason, message))


def serve(record: Record, pod: PodState, assignment: Assignment, turn: Turn, may_act: bool) -> None:
    """Every container whose turn has come: start, restart, probe, clean up."""
    template = assignment.template
    assert template is not None
    for container in due(pod, template):
        _serve_one(record, pod, assignment, container, turn, may_act)


def due(pod: PodState, template: PodTemplate) -> tuple[Container, ...]:
    """The first init container that has not ended well; when there is none, the containers.

    That a later one is there says that the earlier ones ended well, also when their own records
    were removed meanwhile: a restart of a container does not run them again, a new pod does.
    """
    first = template.init_containers
    if not first:
        return template.containers
    there = {run.name for run in pod.containers}
    if any(container.name in there for container in template.containers):
        return template.containers
    begun = max((i for i, container in enumerate(first) if container.name in there), default=0)
    for container in first[begun:]:
        newest = runs_of(pod, container.name)[:1]
        if not newest or newest[0].phase is not ContainerPhase.EXITED or newest[0].exit_code:
            return (container,)
    return template.containers


def _serve_one(
    record: Record,
    pod: PodState,
    assignment: Assignment,
    container: Container,
    turn: Turn,
    may_act: bool,
) -> None:
    """The row of the container's table in `situation.py`."""
    runs = runs_of(pod, container.name)
    newest = runs[0] if runs else None
    memory = record.memory(container.name)
    _remember_attempts(memory, newest)
    situation = classify_container(
        newest.phase if newest is not None else None,
        unhealthy=newest is not None and _liveness_failed(memory, newest),
        counted=newest is not None and memory.counted == newest.id,
        waits=memory.crash.waits(turn.now),
        once=record.once,
    )
    if situation is ContainerSituation.UNCOUNTED and newest is not None:
        count_end(record, container, memory, newest, turn)
        situation = ContainerSituation.DONE if record.once else ContainerSituation.BACKOFF
    if situation is ContainerSituation.BACKOFF:
        record.attend(memory.crash.until)
        if memory.crash.waits(turn.now):
            return
        situation = ContainerSituation.ENDED
    if newest is not None and situation in (ContainerSituation.UP, ContainerSituation.UNHEALTHY):
        _probe(record, pod, container, memory, newest, turn)
    if may_act and ("container", container.name) not in record.inflight:
        _act(record, pod, assignment, container, newest, situation, turn)
        _clean(record, runs, turn)


def _remember_attempts(memory: ContainerMemory, newest: ContainerState | None) -> None:
    if newest is not None and newest.attempt >= memory.attempt_next:
        memory.attempt_next = newest.attempt + 1
        memory.restarts = max(memory.restarts, labels.number(newest.labels, labels.RESTARTS))


def _liveness_failed(memory: ContainerMemory, newest: ContainerState) -> bool:
    state = memory.probes.get(ProbeKind.LIVENESS)
    return memory.probed == newest.id and state is not None and state.passing is False


def count_end(
    record: Record,
    container: Container,
    memory: ContainerMemory,
    ended: ContainerState,
    turn: Turn,
) -> None:
    """The end of a run, once: whatever its exit code, a container is meant to keep running, unless
    its replica is to run once."""
    memory.counted = ended.id
    memory.probes = {}
    memory.last_exit = end_of(memory, ended, "")
    if not record.once:
        if ended.started_at and ended.finished_at - ended.started_at >= backoff.CRASH_RESET_S:
            memory.crash.succeeded()
        delay = memory.crash.failed(turn.now, "CrashLoop", "")
        memory.crash.message = f"{describe(memory.last_exit)}; next start in {delay:g} s"
    turn.ask(record, ReadExit(record.uid, ended.id, container.name, ended.log_path))


def end_of(memory: ContainerMemory, ended: ContainerState, last_log: str) -> Exit:
    """How a run ended; a stop of ours is its reason rather than the exit code that it led to."""
    ours = memory.stopped.get(ended.id)
    return Exit(
        exit_code=ended.exit_code,
        reason=ours.reason if ours is not None else ended.reason,
        message=ours.message if ours is not None else ended.message,
        started_at=ended.started_at,
        finished_at=ended.finished_at,
        last_log=last_log,
    )


def describe(end: Exit) -> str:
    """For people: `ended with exit code 1 (Error)`."""
    return f"ended with exit code {end.exit_code}" + (f" ({end.reason})" if end.reason else "")


def _act(
    record: Record,
    pod: PodState,
    assignment: Assignment,
    container: Container,
    newest: ContainerState | None,
    situation: ContainerSituation,
    turn: Turn,
) -> None:
    if situation in (ContainerSituation.ABSENT, ContainerSituation.ENDED):
        restarts = record.memory(container.name).restarts + (newest is not None)
        _start(record, pod, assignment, container, restarts, turn)
    elif situation is ContainerSituation.UNHEALTHY and newest is not None:
        memory = record.memory(container.name)
        message = "liveness probe failed: " + memory.probes[ProbeKind.LIVENESS].message
        # Killed, a container that runs once shows for good that it failed: see once.py.
        grace = 0.0 if record.once else grace_s(assignment, pod)
        stop_run(record, newest, Cause("LivenessFailed", message), grace, turn)
    elif situation is ContainerSituation.LEFTOVER and newest is not None:
        turn.ask(record, RemoveContainer(record.uid, newest.id, newest.name, newest.log_path))


def _start(
    record: Record,
    pod: PodState,
    assignment: Assignment,
    container: Container,
    restarts: int,
    turn: Turn,
) -> None:
    memory = record.memory(container.name)
    if memory.crash.waits(turn.now):  # the last try to start it failed
        record.attend(memory.crash.until)
        return
    template = assignment.template
    assert template is not None
    try:
        if not fetch(record, assignment, template, container, turn):
            return
        spec = compose.container_spec(
            turn.settings,
            assignment,
            container,
            image=record.image(container.image).ref,
            attempt=memory.attempt_next,
            restarts=restarts,
            given=turn.given,
            devices=turn.allocate(container),
            init=container in template.init_containers,
        )
        files = PodFiles()
        mounts = mounts_of(assignment, container)
        if mounts:
            rules = turn.settings.host_paths
            started = bool(pod.containers)
            files = pod_files(assignment, template, turn.given, rules, started=started)
    except (compose.Unresolved, DevicesTaken) as missing:
        memory.problem = Cause(missing.reason, missing.message)
        record.attend(turn.now + DEVICE_RETRY_S)
        return
    memory.problem = None
    memory.attempt_next += 1
    pod_spec = compose.pod_spec(turn.settings, assignment, template, pod.uid)
    turn.ask(record, StartContainer(record.uid, pod.id, pod_spec, spec, files, mounts))


def fetch(
    record: Record,
    assignment: Assignment,
    template: PodTemplate,
    container: Container,
    turn: Turn,
) -> bool:
    """Whether the container's image is there; asks for it if not. Raises compose.Unresolved."""
    memory = record.image(container.image)
    if memory.ref:
        return True
    if memory.retry.waits(turn.now):
        record.attend(memory.retry.until)
        return False
    auth = compose.registry_auth(container.image, assignment.namespace, template, turn.given)
    policy = PullPolicy(container.image_pull_policy)
    turn.ask(record, EnsureImage(record.uid, container.image, policy, auth))
    return False


def stop_run(record: Record, run: ContainerState, cause: Cause, grace: float, turn: Turn) -> None:
    """Ask for the end of a run, and remember that it was us, and why."""
    operation = StopContainer(record.uid, run.id, run.name, grace, cause.reason)
    if operation.key in record.inflight:
        return
    stopped = record.memory(run.name).stopped
    if run.id not in stopped:
        stopped.clear()  # only the newest run can still be asked about
        stopped[run.id] = cause
        if cause.message:
            turn.emit(record, cause.reason, f"container {run.name}: {cause.message}", warning=True)
    turn.ask(record, operation)


def grace_s(assignment: Assignment | None, pod: PodState) -> float:
    """Time between stop signal and SIGKILL; a default for a pod that says nothing of it."""
    if assignment is not None and assignment.template is not None:
        return assignment.template.stop_grace
    if labels.STOP_GRACE in pod.annotations:
        return labels.number(pod.annotations, labels.STOP_GRACE) / 1000
    return DEFAULT_GRACE_S


def delay_s(assignment: Assignment | None, pod: PodState) -> float:
    """Time between being reported as not ready and the stop signal."""
    if assignment is not None and assignment.template is not None:
        return assignment.template.stop_delay
    return labels.number(pod.annotations, labels.STOP_DELAY) / 1000


def _clean(record: Record, runs: list[ContainerState], turn: Turn) -> None:
    """Keep the newest run and the one before it, for its logs."""
    for run in runs[1:]:
        if run.phase is ContainerPhase.RUNNING:
            cause = Cause("DuplicateContainer", "a newer run of this container exists")
            stop_run(record, run, cause, 0.0, turn)
    for run in runs[2:]:
        if run.phase is ContainerPhase.EXITED:
            turn.ask(record, RemoveContainer(record.uid, run.id, run.name, run.log_path))


def _probe(
    record: Record,
    pod: PodState,
    container: Container,
    memory: ContainerMemory,
    run: ContainerState,
    turn: Turn,
) -> None:
    wanted = {
        ProbeKind.READINESS: container.readiness_probe,
        ProbeKind.LIVENESS: container.liveness_probe,
    }
    if memory.probed != run.id:
        started_at = run.started_at or turn.now
        memory.probed = run.id
        memory.probes = {
            kind: begin(kind, probe, started_at, turn.now)
            for kind, probe in wanted.items()
            if probe is not None
        }
    for kind, state in memory.probes.items():
        probe = wanted[kind]
        if probe is None or ("probe", f"{kind.value}/{run.id}") in record.inflight:
            continue
        if state.due_at > turn.now:
            record.attend(state.due_at)
        elif probe.exec is None and not pod.ip:
            turn.out.append(ListPods())  # it has no address yet; the next listing brings it
        else:
            port = _port(container, probe)
            turn.ask(record, RunProbe(record.uid, run.id, kind, probe, pod.ip, port))


def _port(container: Container, probe: Probe) -> int:
    check = probe.http or probe.tcp
    return container.port_number(check.port) if check is not None else 0
