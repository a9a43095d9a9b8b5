"""What the answer to an operation changes in a replica's memory. Called by `reconcile.py`.

A success is written into `pods` at once, as if the runtime had been looked at, so that the next
step need not wait for a listing; listings that were asked for before it are not believed any more.
"""

from collections.abc import Callable
from dataclasses import replace

from agent.domain.containers import Turn, describe, end_of
from agent.domain.instructions import (
    EnsureImage,
    ExitRead,
    Failed,
    ListPods,
    Operation,
    Outcome,
    Probed,
    RemoveContainer,
    RemovePod,
    RunPod,
    StartContainer,
    StopContainer,
    UpdateFiles,
)
from agent.domain.labels import RESTARTS, number
from agent.domain.probes import ProbeKind, after
from agent.domain.record import Cause, Record
from agent.domain.renewal import not_renewed, renewed
from agent.runtime.port import ContainerPhase, ContainerState, PodState

HOLD_S = 1.0  # after an operation that failed for no reason of its own
UNHEARD_S = 300.0  # longer than a runtime goes on with what its caller gave up
LAST_LINE_CHARS = 200


def done(record: Record, operation: Operation, value: str, turn: Turn) -> None:
    """The operation did what it says."""
    if isinstance(operation, UpdateFiles):
        renewed(record, operation, turn)
        return
    record.trouble = None
    match operation:
        case EnsureImage():
            memory = record.image(operation.image)
            memory.ref = value
            memory.retry.succeeded()
            return
        case RunPod():
            _pod_runs(record, operation, value, turn)
        case StartContainer():
            _container_runs(record, operation, value, turn)
        case StopContainer() if record.once:
            record.blind = True  # its exit code decides, and only the runtime knows that
        case StopContainer():
            _update(record, operation.container_id, _ended(turn.now))
        case RemoveContainer():
            _update(record, operation.container_id, lambda _: None)
        case RemovePod():
            record.pods.pop(operation.pod_id, None)
            record.doomed.pop(operation.pod_id, None)
        case _:
            return
    turn.out.append(ListPods())


def _pod_runs(record: Record, operation: RunPod, pod_id: str, turn: Turn) -> None:
    record.pod_retry.succeeded()
    record.pod_uid, record.pod_since = "", turn.now
    record.pod_unheard_until = 0.0  # it came
    spec = operation.spec
    known = record.pods.get(pod_id)
    if known is not None:  # a listing met it, perhaps before it was ready
        record.pods[pod_id] = replace(known, ready=True)
    else:
        record.pods[pod_id] = PodState(
            id=pod_id,
            name=spec.name,
            namespace=spec.namespace,
            uid=spec.uid,
            ready=True,
            labels=spec.labels,
            annotations=spec.annotations,
            created_at=turn.now,
            ip="",
            containers=(),
        )


def _container_runs(record: Record, operation: StartContainer, run_id: str, turn: Turn) -> None:
    spec = operation.spec
    restarts = number(spec.labels, RESTARTS)
    record.memory(spec.name).restarts = restarts
    turn.emit(record, "Started", f"container {spec.name}, restart {restarts}")
    pod = record.pods.get(operation.pod_id)
    if pod is None:
        return
    if any(c.id == run_id for c in pod.containers):
        # A listing met it between create and start. It is no left-over: it runs.
        _update(record, run_id, _started(turn.now))
        return
    run = ContainerState(
        id=run_id,
        pod_id=pod.id,
        name=spec.name,
        attempt=spec.attempt,
        phase=ContainerPhase.RUNNING,
        image=spec.image,
        labels=spec.labels,
        annotations=spec.annotations,
        created_at=turn.now,
        started_at=turn.now,
    )
    record.pods[pod.id] = replace(pod, containers=(*pod.containers, run))


Change = Callable[[ContainerState], ContainerState | None]


def _started(now: float) -> Change:
    def start(run: ContainerState) -> ContainerState:
        if run.phase is not ContainerPhase.CREATED:
            return run
        return replace(run, phase=ContainerPhase.RUNNING, started_at=now)

    return start


def _ended(now: float) -> Change:
    def end(run: ContainerState) -> ContainerState:
        if run.phase is ContainerPhase.EXITED:
            return run
        return replace(run, phase=ContainerPhase.EXITED, finished_at=now)

    return end


def _update(record: Record, run_id: str, change: Change) -> None:
    for pod in list(record.pods.values()):
        if any(c.id == run_id for c in pod.containers):
            changed = (change(c) if c.id == run_id else c for c in pod.containers)
            record.pods[pod.id] = replace(
                pod, containers=tuple(c for c in changed if c is not None)
            )


def failed(record: Record, event: Failed, turn: Turn) -> None:
    """The operation did not do what it says, or nobody knows."""
    operation, now = event.operation, turn.now
    if isinstance(operation, UpdateFiles):
        not_renewed(record, event, operation.pod_id, turn)
        return
    ends = isinstance(operation, StopContainer | RemoveContainer | RemovePod)
    if event.outcome is Outcome.NOT_FOUND and ends:
        done(record, operation, "", turn)  # what was to go is gone
        return
    if event.outcome is Outcome.FAILED and not ends:
        _refused(record, event, turn)
    else:
        record.trouble = Cause(event.reason, event.message)
        record.hold_until = now + HOLD_S
        if isinstance(operation, RunPod):
            record.pod_unheard_until = now + UNHEARD_S
    if not isinstance(operation, EnsureImage):
        record.blind = True
        turn.out.append(ListPods())


def _refused(record: Record, event: Failed, turn: Turn) -> None:
    operation, now = event.operation, turn.now
    match operation:
        case EnsureImage():
            retry = record.image(operation.image).retry
            named = event.message.startswith(f"{operation.image}: ")
            what = "image " if named else f"image {operation.image}: "
        case RunPod():
            retry, what = record.pod_retry, ""
            if now >= record.pod_unheard_until:  # else one of that name may come yet
                record.pod_uid = ""
        case StartContainer():
            retry = record.memory(operation.spec.name).crash
            what = f"container {operation.spec.name}: "
            record.images.clear()  # the image may have been removed from the box
        case _:
            return
    retry.failed(now, event.reason, event.message)
    # Without the delay, which grows: events of one failure are merged by their text.
    turn.emit(record, event.reason, f"{what}{event.message}", warning=True)


def exit_read(record: Record, event: ExitRead, turn: Turn) -> None:
    """Complete what is known of a container's end, and tell operators."""
    operation = event.operation
    memory = record.memory(operation.name)
    if memory.counted != operation.container_id or memory.last_exit is None:
        return
    if event.state is not None:
        memory.last_exit = end_of(memory, event.state, event.last_log)
    else:
        memory.last_exit = replace(memory.last_exit, last_log=event.last_log)
    what = describe(memory.last_exit)
    lines = event.last_log.rstrip().splitlines()
    last = f"; last line: {lines[-1][:LAST_LINE_CHARS]}" if lines else ""
    if record.once:
        warning = memory.last_exit.exit_code != 0
        text = f"container {operation.name} {what}{last}"
        turn.emit(record, "ContainerEnded", text, warning=warning)
        return
    wait = memory.crash.policy.delay_s(memory.crash.failures)
    if memory.crash.reason == "CrashLoop":
        memory.crash.message = f"{what}; next start in {wait:g} s"
    text = f"container {operation.name} {what}; next start in {wait:g} s{last}"
    turn.emit(record, "ContainerEnded", text, warning=True)


def probed(record: Record, event: Probed, turn: Turn) -> bool:
    """Count a probe's result. Whether it may mean anything, which the next step sees; most say what
    the one before said."""
    operation = event.operation
    means = True
    for name, memory in record.containers.items():
        state = memory.probes.get(operation.kind)
        if memory.probed != operation.container_id or state is None:
            continue
        new = after(state, operation.probe, event.passed, event.message, turn.now)
        memory.probes[operation.kind] = new
        means = (new.passing, new.message) != (state.passing, state.message)
        record.attend(new.due_at)
        if operation.kind is ProbeKind.READINESS and state.passing and new.passing is False:
            message = f"container {name}: readiness probe: {new.message}"
            turn.emit(record, "ProbeFailing", message, warning=True)
    return means
