"""What a replica's memory looks like from outside. Called by `reconcile.py` after every change."""

from agent.domain import labels
from agent.domain.backoff import Retry
from agent.domain.plan import Assignment
from agent.domain.probes import ProbeKind
from agent.domain.record import Cause, ContainerMemory, Record, is_ready, runs_of
from agent.domain.situation import SERVED, Situation
from agent.domain.view import ContainerView, Phase, ReplicaView
from agent.runtime.port import ContainerPhase, ContainerState, PodState
from polder.manifest import Container

MAX_MESSAGE = 1024
NONE = Cause("")


def view_of(record: Record) -> ReplicaView:
    """The replica's reportable state."""
    pod = record.main_pod() or next(iter(record.pods.values()), None)
    shown = record.runs if pod is not None and record.runs is not None else record.assignment
    containers = _containers(record, pod, shown)
    running = [c for c in containers if c.state == "running"]
    phase = _phase(record, bool(running))
    ready = (
        phase in (Phase.RUNNING, Phase.ORPHANED)
        and len(running) == len(containers) > 0
        and all(c.ready for c in containers)
    )
    cause = _reason(record, containers, ready)
    digest, revision, epoch = _versions(record, pod, shown)
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
        restarts=sum(c.restarts for c in containers),
        pod_ip=pod.ip if pod is not None else "",
        started_at=max((c.started_at for c in running), default=0.0),
        digest=digest,
        containers=containers,
    )


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
    if record.situation in SERVED and not record.assigned:
        return Phase.ORPHANED
    return Phase.RUNNING if running else Phase.PENDING


def _reason(record: Record, containers: tuple[ContainerView, ...], ready: bool) -> Cause:
    """Why it is not ready, or, when it is, why it is not yet what was assigned."""
    if record.situation is Situation.RETIRING:
        return record.trouble or next(iter(record.doomed.values()), NONE)
    if record.block is not None:
        return record.block
    if record.situation is Situation.WAITING:
        return Cause(record.pod_retry.reason, record.pod_retry.message)
    failing = _failing_pull(record)
    if record.situation is Situation.REPLACING:
        what = f"revision {record.assignment.revision}" if record.assignment else "new revision"
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
    for container in containers:
        if not container.ready and container.reason:
            return Cause(container.reason, f"container {container.name}: {container.message}")
    return record.trouble or NONE


def _failing_pull(record: Record) -> Cause | None:
    for memory in record.images.values():
        if memory.retry.failures:
            return _cause(memory.retry)
    return None


def _cause(retry: Retry) -> Cause:
    return Cause(retry.reason, retry.message)


def _containers(
    record: Record, pod: PodState | None, shown: Assignment | None
) -> tuple[ContainerView, ...]:
    if shown is not None and shown.template is not None:
        wanted = {c.name: c for c in shown.template.containers}
        return tuple(_container(record, pod, name, c) for name, c in wanted.items())
    names = sorted({c.name for c in pod.containers}) if pod is not None else []
    return tuple(_container(record, pod, name, None) for name in names)


def _container(
    record: Record, pod: PodState | None, name: str, container: Container | None
) -> ContainerView:
    memory = record.containers.get(name) or ContainerMemory()
    runs = runs_of(pod, name) if pod is not None else []
    run = runs[0] if runs else None
    restarts = max(memory.restarts, labels.number(run.labels, labels.RESTARTS) if run else 0)
    if run is not None and run.phase is ContainerPhase.RUNNING:
        ready = container is None or is_ready(memory, container, run)
        cause = NONE if ready or container is None else _unready(memory, run)
        state = "running"
    else:
        ready, state = False, "exited" if run is not None and container is None else "waiting"
        cause = _waiting(record, memory, container)
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


def _unready(memory: ContainerMemory, run: ContainerState) -> Cause:
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
