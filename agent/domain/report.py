"""What a replica's memory looks like from outside. Called by `reconcile.py` after every change."""

from dataclasses import replace

from agent.domain import labels
from agent.domain.backoff import Retry
from agent.domain.containers import describe, end_of
from agent.domain.plan import STOPPED_LOCALLY, Assignment
from agent.domain.probes import ProbeKind
from agent.domain.record import Cause, ContainerMemory, Record, is_ready, runs_of
from agent.domain.situation import SERVED, Situation
from agent.domain.view import ContainerView, Phase, ReplicaView
from agent.runtime.port import ContainerPhase, ContainerState, PodState
from polder.manifest import Container

MAX_MESSAGE = 1024
NONE = Cause("")


def view_of(record: Record, now: float, wall: float) -> ReplicaView:
    """The replica's reportable state. `now` and `wall` as the reconciler's."""
    pod = record.main_pod() or next(iter(record.pods.values()), None)
    shown = record.runs if pod is not None and record.runs is not None else record.assignment
    first, containers = _containers(record, pod, shown)
    running = [c for c in containers if c.state == "running"]
    phase = _phase(record, bool(running))
    ready = phase in (Phase.RUNNING, Phase.ORPHANED) and _all_ready(record, containers)
    cause = _reason(record, first, containers, ready)
    started = containers if record.situation is Situation.FINISHED else running
    digest, revision, epoch = _versions(record, pod, shown)
    started_at = max((c.started_at for c in started), default=0.0)
    return ReplicaView(
        namespace=record.namespace,
        workload=_label(pod, labels.WORKLOAD, shown.workload if shown else ""),
        workload_uid=_label(pod, labels.WORKLOAD_UID, shown.workload_uid if shown else ""),
        replica=record.replica,
        uid=record.uid,
        phase=phase,
        ready=ready,
        reason=cause.reason,
        message=cause.message[:MAX_MESSAGE],
        revision=revision,
        epoch=epoch,
        restarts=sum(c.restarts for c in (*containers, *first)),
        pod_ip=pod.ip if pod is not None else "",
        started_at=started_at,
        digest=digest,
        containers=(*containers, *first),
        ready_since=_ready_since(record, now, wall - started_at) if ready else 0.0,
        takes_over=_takes_over(record, pod),
        present=bool(record.pods) or record.blind or record.busy("pod", "container"),
    )


def _ready_since(record: Record, now: float, started_for_s: float) -> float:
    """Of a pod that an earlier agent made it is not known: it is taken to have been ready since its
    containers started, which is wrong by as much as that took."""
    if record.ready_since:
        return record.ready_since
    adopted = not record.pod_since and record.unready_since is None
    return now - min(max(0.0, started_for_s), now) if adopted else now


def _takes_over(record: Record, pod: PodState | None) -> str:
    """Once a plan assigns it, it is the plan's."""
    if record.assigned and record.assignment is not None:
        return record.assignment.takes_over
    return _label(pod, labels.TAKES_OVER, "")


def _all_ready(record: Record, containers: tuple[ContainerView, ...]) -> bool:
    """Of what runs once, containers that ended well do not count, as long as another runs."""
    if record.situation is Situation.FINISHED:
        return False
    serving = [
        c for c in containers if not (record.once and c.state == "exited" and c.exit_code == 0)
    ]
    return bool(serving) and all(c.state == "running" and c.ready for c in serving)


def _label(pod: PodState | None, key: str, otherwise: str) -> str:
    return (pod.labels.get(key) if pod is not None else "") or otherwise


def _versions(
    record: Record, pod: PodState | None, shown: Assignment | None
) -> tuple[str, int, int]:
    """Digest, revision and epoch of what runs.

    A newer revision with the same template runs already: it needs no restart, and is reported.
    """
    if pod is None or (record.runs is not None and shown is record.runs):
        return (shown.digest, shown.revision, shown.epoch) if shown is not None else ("", 0, 0)
    return (
        pod.labels.get(labels.TEMPLATE_DIGEST, ""),
        labels.number(pod.labels, labels.REVISION),
        labels.number(pod.labels, labels.EPOCH),
    )


def _phase(record: Record, running: bool) -> Phase:
    if record.situation is Situation.GONE:
        return Phase.STOPPED
    if record.situation is Situation.RETIRING:
        return Phase.STOPPING
    if record.block is not None and record.block.reason == STOPPED_LOCALLY and not record.pods:
        return Phase.STOPPED
    if record.situation in SERVED and not record.assigned:
        return Phase.ORPHANED
    ended = record.verdict
    if record.situation is Situation.FINISHED and ended is not None and not ended.running:
        return Phase.SUCCEEDED if ended.succeeded else Phase.FAILED
    return Phase.RUNNING if running else Phase.PENDING


def _reason(
    record: Record,
    first: tuple[ContainerView, ...],
    containers: tuple[ContainerView, ...],
    ready: bool,
) -> Cause:
    """Why it is not ready, or, when it is, why it is not yet what was assigned."""
    if record.situation is Situation.RETIRING:
        return _retiring(next(iter(record.doomed.values()), NONE), record.trouble or NONE)
    if record.situation is Situation.FINISHED and record.verdict is not None:
        return record.verdict.cause
    if record.block is not None:
        return record.block
    if record.situation is Situation.WAITING:
        return Cause(record.pod_retry.reason, record.pod_retry.message)
    failing = _failing_pull(record)
    if record.situation is Situation.REPLACING:
        what = f"revision {record.assignment.revision}" if record.assignment else "new revision"
        if record.restart is not None and failing is None:
            return Cause("Restarting", f"{record.restart.message}: it serves until it can")
        if failing is not None:
            return Cause(failing.reason, f"{what}: {failing.message}")
        return Cause("Updating", f"{what}: fetching its images; the old one serves until then")
    if record.situation is Situation.FETCHING:
        missing = ", ".join(i for i, m in record.images.items() if not m.ref)
        return failing or Cause("ImagePull", f"fetching {missing}")
    if record.situation is Situation.CREATING:
        return record.trouble or Cause("Starting", "creating the pod")
    if ready:
        return Cause("NonCompliant", record.noncompliant) if record.noncompliant else NONE
    if not any(c.id for c in containers):
        for number, init in enumerate(first, start=1):
            if init.state != "exited":
                return _init(init, f"{number} of {len(first)}")
    for container in containers:
        ended_well = container.state == "exited" and container.exit_code == 0
        if not container.ready and container.reason and not ended_well:
            return Cause(container.reason, f"container {container.name}: {container.message}")
    return record.trouble or NONE


def _retiring(cause: Cause, trouble: Cause) -> Cause:
    """Whoever sends it requests must turn elsewhere, whatever the cause."""
    if cause.at_once or not cause.reason:
        return trouble if trouble.reason else cause
    why = [f"{cause.reason}: {cause.message}" if cause.message else cause.reason]
    if trouble.reason:
        why.append(f"{trouble.reason}: {trouble.message}")
    return Cause("Terminating", "; ".join(why))


def _init(view: ContainerView, position: str) -> Cause:
    name = f"init container {view.name} ({position})"
    if view.state == "running":
        return Cause("Init", f"{name} runs")
    if view.reason:
        return Cause(view.reason, f"{name}: {view.message}")
    return Cause("Init", f"{name} is next")


def _failing_pull(record: Record) -> Cause | None:
    for memory in record.images.values():
        if memory.retry.failures:
            return _cause(memory.retry)
    return None


def _cause(retry: Retry) -> Cause:
    return Cause(retry.reason, retry.message)


def _containers(
    record: Record, pod: PodState | None, shown: Assignment | None
) -> tuple[tuple[ContainerView, ...], tuple[ContainerView, ...]]:
    """Of its init containers and of its containers."""
    if shown is not None and shown.template is not None:
        template = shown.template
        containers = tuple(_container(record, pod, c.name, c) for c in template.containers)
        if not template.init_containers:
            return (), containers
        first = [_container(record, pod, c.name, c, init=True) for c in template.init_containers]
        begun = any(view.id for view in containers)
        last = max((i for i, view in enumerate(first) if view.id), default=0)
        passed = len(first) if begun else last
        return (*map(_passed, first[:passed]), *first[passed:]), containers
    runs = pod.containers if pod is not None else ()
    init = {run.name for run in runs if labels.INIT in run.labels}
    names = sorted({run.name for run in runs} - init)
    return (
        tuple(_container(record, pod, name, None, init=True) for name in sorted(init)),
        tuple(_container(record, pod, name, None) for name in names),
    )


def _passed(view: ContainerView) -> ContainerView:
    """An init container after which another was started: it ended well, even if the runtime does
    not remember it."""
    if view.state == "running":
        return view
    return replace(view, state="exited", ready=True, reason="Completed", message="")


def _container(
    record: Record,
    pod: PodState | None,
    name: str,
    container: Container | None,
    *,
    init: bool = False,
) -> ContainerView:
    memory = record.containers.get(name) or ContainerMemory()
    runs = runs_of(pod, name) if pod is not None else []
    run = runs[0] if runs else None
    state, ready, cause = _state(record, memory, container, run, init=init)
    restarts = max(memory.restarts, labels.number(run.labels, labels.RESTARTS) if run else 0)
    return ContainerView(
        name=name,
        id=run.id if run is not None else "",
        state=state,
        ready=ready,
        restarts=restarts,
        reason=cause.reason,
        message=cause.message[:MAX_MESSAGE],
        started_at=run.started_at if run is not None else 0.0,
        finished_at=run.finished_at if run is not None and state != "running" else 0.0,
        exit_code=run.exit_code if run is not None and state != "running" else 0,
        last_exit=memory.last_exit,
        image=container.image if container is not None else (run.image if run else ""),
    )


def _state(
    record: Record,
    memory: ContainerMemory,
    container: Container | None,
    run: ContainerState | None,
    *,
    init: bool,
) -> tuple[str, bool, Cause]:
    """(state, ready, why it is not ready). An init container that ended well counts as ready."""
    if run is not None and run.phase is ContainerPhase.RUNNING:
        if init:
            return "running", False, NONE
        ready = container is None or is_ready(memory, container, run)
        return "running", ready, NONE if ready or container is None else _unready(memory, run)
    if run is not None and run.phase is ContainerPhase.EXITED:
        well = run.exit_code == 0
        if record.once or (init and well):
            end = end_of(memory, run, "")
            reason = end.reason or ("Completed" if well else "Error")
            return "exited", init and well, Cause(reason, "" if well else describe(end))
        if container is None:
            return "exited", False, NONE
    return "waiting", False, _waiting(record, memory, container)


def _unready(memory: ContainerMemory, run: ContainerState) -> Cause:
    if run.id in memory.stopped:
        return memory.stopped[run.id]
    state = memory.probes.get(ProbeKind.READINESS) if memory.probed == run.id else None
    if state is not None and state.passing is False:
        return Cause("ProbeFailing", f"readiness probe: {state.message}")
    last = f"; last: {state.message}" if state is not None and state.message else ""
    return Cause("Starting", f"its readiness probe has not succeeded yet{last}")


def _waiting(record: Record, memory: ContainerMemory, container: Container | None) -> Cause:
    if memory.problem is not None:
        return memory.problem
    if memory.crash.failures:
        return _cause(memory.crash)
    image = record.images.get(container.image) if container is not None else None
    if image is not None and not image.ref and image.retry.failures:
        return _cause(image.retry)
    return NONE
