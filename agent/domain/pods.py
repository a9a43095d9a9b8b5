"""One replica's pods as a whole: made, recognised, retired. Called by `reconcile.py`.

Functions of a Record and a Turn; what becomes of the containers inside is in `containers.py`.
"""

from agent.domain import compose, labels
from agent.domain.containers import Turn, fetch, grace_s, stop_run
from agent.domain.instructions import Cancel, EnsureImage, RemovePod, RunPod
from agent.domain.record import Cause, ContainerMemory, Record
from agent.domain.situation import FOLLOWS, Situation
from agent.runtime.port import ContainerPhase, PodState


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
    record.situation = situation


def retire(record: Record, turn: Turn, may_act: bool) -> None:
    """Stop what runs in doomed pods, then remove them, one at a time."""
    if not may_act:
        return
    for pod_id, cause in record.doomed.items():
        pod = record.pods[pod_id]
        running = [c for c in pod.containers if c.phase is ContainerPhase.RUNNING]
        for run in running:
            stop_run(record, run, Cause(cause.reason), grace_s(record.runs), turn)
        if not running and not record.busy("container", "remove", "pod"):
            turn.ask(record, RemovePod(record.uid, pod_id, cause.reason))


def fetch_all(record: Record, turn: Turn) -> None:
    """Ask for every image of the assignment that is not there."""
    wanted = record.assignment
    if wanted is None or wanted.template is None:
        return
    for container in wanted.template.containers:
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
            wanted |= {c.image for c in source.template.containers}
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


def usable(record: Record) -> bool:
    return record.assignment is not None and record.assignment.template is not None


def images_missing(record: Record) -> bool:
    wanted = record.assignment
    if wanted is None or wanted.template is None:
        return False
    return any(not record.image(c.image).ref for c in wanted.template.containers)


def epoch_of(record: Record) -> int:
    """The highest epoch that this replica was known to hold."""
    from_pods = (labels.number(p.labels, labels.EPOCH) for p in record.pods.values())
    return max([record.assignment.epoch if record.assignment is not None else 0, *from_pods])
