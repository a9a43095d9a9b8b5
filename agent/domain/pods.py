"""One replica's pods as a whole: made, recognised, retired. Called by `reconcile.py`.

Functions of a Record and a Turn; what becomes of the containers inside is in `containers.py`.
"""

from collections.abc import Iterable

from agent.domain import compose, labels
from agent.domain.containers import Turn, delay_s, fetch, grace_s, stop_run
from agent.domain.instructions import Cancel, EnsureImage, RemovePod, RunPod
from agent.domain.plan import Assignment
from agent.domain.record import Cause, ContainerMemory, Record, containers_of
from agent.domain.situation import FOLLOWS, Situation
from agent.runtime.port import ContainerPhase, PodState
from polder.manifest import PodTemplate


def doom(record: Record, pod: PodState, cause: Cause, turn: Turn) -> None:
    """This pod must go; operators hear why."""
    record.doomed[pod.id] = cause
    text = f"pod {pod.id[:12]}: {cause.reason}" + (f": {cause.message}" if cause.message else "")
    turn.emit(record, "Stopping", text)
    forget_images(record, turn)


def recognise(record: Record, main: PodState | None) -> None:
    """Which assignment the main pod was made from; memory starts anew with a new template."""
    if main is None:
        record.runs = None if not record.pods else record.runs
        return
    digest = digest_of(main)
    if record.assignment is not None and record.assignment.digest == digest:
        record.runs = record.assignment
    elif record.runs is not None and record.runs.digest != digest:
        record.runs = None
    if record.remembers != digest:
        if record.remembers:
            record.containers = {
                name: ContainerMemory(attempt_next=memory.attempt_next)
                for name, memory in record.containers.items()
            }
        record.remembers = digest


def enter(record: Record, situation: Situation, turn: Turn) -> None:
    """Note the row of the table that holds now, and say so if it must not follow the last one."""
    was = record.situation
    if was is not None and was is not situation and situation not in FOLLOWS[was]:
        turn.emit(
            record,
            "UnexpectedTransition",
            f"from {was.value} to {situation.value}; please report this",
            warning=True,
        )
    ended = record.verdict
    if situation is Situation.FINISHED and was not in (None, situation) and ended is not None:
        reason = "Succeeded" if ended.succeeded else "Failed"
        text = ended.cause.message or "every container ended with exit code 0"
        turn.emit(record, reason, text, warning=not ended.succeeded)
    record.situation = situation


def retire(record: Record, turn: Turn, may_act: bool) -> None:
    """Stop what runs in doomed pods, once nobody is sent there any more; then remove them."""
    if not may_act:
        return
    for pod_id, cause in record.doomed.items():
        pod = record.pods[pod_id]
        running = [c for c in pod.containers if c.phase is ContainerPhase.RUNNING]
        stop_at = _stop_at(record, pod, cause, turn.now)
        if running and turn.now < stop_at:
            record.attend(stop_at)
            continue
        for run in running:
            stop_run(record, run, Cause(cause.reason), grace_s(record.runs, pod), turn)
        if not running and not record.busy("container", "remove", "pod"):
            turn.ask(record, RemovePod(record.uid, pod_id, cause.reason))


def _stop_at(record: Record, pod: PodState, cause: Cause, now: float) -> float:
    """When the stop signal may come: a while after it was last reported as ready."""
    if cause.at_once or not pod.ready:
        return now
    told_at = record.unready_since if record.unready_since is not None else now
    return told_at + delay_s(record.runs, pod)


def fetch_all(record: Record, turn: Turn) -> None:
    """Ask for every image of the assignment that is not there."""
    wanted = record.assignment
    if wanted is None or wanted.template is None:
        return
    for container in containers_of(wanted.template):
        fetch(record, wanted, wanted.template, container, turn)


def create(record: Record, turn: Turn) -> None:
    """Ask for the sandbox."""
    wanted = record.assignment
    if wanted is None or wanted.template is None or record.busy("container", "remove"):
        return
    if not record.pod_uid:
        # Unique per pod, and the same again if the answer gets lost: the runtime then refuses a
        # second pod of this name instead of making it.
        record.pod_uid = f"{record.uid}-{int(turn.now * 1000):x}"
    spec = compose.pod_spec(turn.settings, wanted, wanted.template, record.pod_uid)
    turn.ask(record, RunPod(record.uid, spec))


def forget_images(record: Record, turn: Turn) -> None:
    """Drop what is known of images that nobody wants any more, and give up their pulls."""
    wanted: set[str] = set()
    for source in (record.assignment if record.assigned else None, record.runs):
        if source is not None and source.template is not None and record.stop is None:
            wanted |= {c.image for c in containers_of(source.template)}
    for image in record.images.keys() - wanted:
        del record.images[image]
    for key, operation in list(record.inflight.items()):
        if isinstance(operation, EnsureImage) and operation.image not in wanted:
            del record.inflight[key]
            turn.out.append(Cancel(operation))


def digest_of(pod: PodState) -> str:
    return pod.labels.get(labels.TEMPLATE_DIGEST, "")


def wanted_digest(record: Record) -> str | None:
    return record.assignment.digest if record.assignment is not None else None


def is_unguarded(record: Record, pod: PodState, settings: compose.Settings) -> bool:
    """Whether the dead-man's switch would miss it: it was made before its replica became exclusive,
    or with another `cgroup_parent` in the agent's settings."""
    wanted = record.assignment
    parent = compose.guarded_parent(settings, wanted) if wanted is not None else ""
    return bool(parent) and pod.annotations.get(labels.CGROUP_PARENT) != parent


def stays(record: Record, pod: PodState, settings: compose.Settings) -> bool:
    """Whether the main pod is what is assigned, or must not be exchanged for that.

    What runs once is not started anew because its template changed, as long as there is something
    to wait for.
    """
    if digest_of(pod) == wanted_digest(record) and not is_unguarded(record, pod, settings):
        return True
    if not record.once:
        return False
    running = any(run.phase is ContainerPhase.RUNNING for run in pod.containers)
    return running or record.runs is not None or record.verdict is not None


def usable(record: Record) -> bool:
    return record.assignment is not None and record.assignment.template is not None


def images_missing(record: Record) -> bool:
    wanted = record.assignment
    if wanted is None or wanted.template is None:
        return False
    return any(not record.image(c.image).ref for c in containers_of(wanted.template))


def epoch_of(record: Record) -> int:
    """The highest epoch that this replica was known to hold."""
    from_pods = (labels.number(p.labels, labels.EPOCH) for p in record.pods.values())
    return max([record.assignment.epoch if record.assignment is not None else 0, *from_pods])


def rival(record: Record, wanted: Assignment, others: Iterable[Record]) -> Cause | None:
    """Another stay of the same replica that this one cannot run beside.

    Names do not collide: the runtime tells sandboxes apart by their uid, and each has its own host
    name and logs. Host ports do, and so do local volumes, which belong to the replica: two programs
    on the same data would spoil it. Devices are given out container by container.
    """
    assert wanted.template is not None
    for other in others:
        same = (other.namespace, other.replica) == (record.namespace, record.replica)
        if other is record or not same or not (other.pods or other.inflight):
            continue
        shared = _shared(wanted.template, other)
        if shared:
            how = "is still stopping" if other.stop is not None else "runs on"
            return Cause("WaitingForPredecessor", f"{other.uid} {how} and has its {shared}")
    return None


def _shared(template: PodTemplate, other: Record) -> str:
    known = other.runs or other.assignment
    theirs = known.template if known is not None else None
    volumes = set(template.local_volumes())
    if theirs is None:
        return f"local volume {min(volumes)}, as far as is known" if volumes else ""
    volumes &= set(theirs.local_volumes())
    if volumes and other.situation is not Situation.FINISHED:
        return f"local volume {min(volumes)}"
    taken = {(port.host_port, port.protocol) for port in theirs.host_ports()}
    ports = sorted(p.host_port for p in template.host_ports() if (p.host_port, p.protocol) in taken)
    return f"host port {ports[0]}" if ports else ""
