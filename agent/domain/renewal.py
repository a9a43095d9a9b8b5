"""Files from Configs, Secrets and the epoch follow their source while a pod runs.

Called by `reconcile.py`.

What cannot be renewed stays as it is: a container that reads its files again later must not find
them gone because a disk is full or a Config was deleted.
"""

from agent.domain.containers import Turn
from agent.domain.files import epoch_files, projected_files
from agent.domain.given import Unresolved
from agent.domain.instructions import Failed, UpdateFiles
from agent.domain.plan import Assignment
from agent.domain.record import FilesMemory, Record
from agent.runtime.port import PodState


def renew(record: Record, pod: PodState, assignment: Assignment, turn: Turn) -> None:
    """Ask for an update of the files of a served pod, if what they should hold has changed.

    After a restart of the agent it is asked for once, since nobody knows what they hold.
    """
    template, epoch = assignment.template, epoch_files(assignment)
    if template is None or not (template.volumes or epoch) or not pod.containers:
        return  # the first container to start finds them made
    memory = record.files
    if memory.pod_id != pod.id:
        memory = record.files = FilesMemory(pod.id)
    try:
        wanted = projected_files(assignment, template, turn.given)
        memory.missing = ""
    except Unresolved as missing:
        if memory.missing != missing.message:
            memory.missing = missing.message
            text = f"{missing.message}; the files stay as they are"
            turn.emit(record, missing.reason, text, warning=True)
        ours = {item.volume for item in epoch}
        wanted = (*(item for item in memory.written if item.volume not in ours), *epoch)
    if wanted == memory.written:
        return
    if memory.retry.waits(turn.now):
        record.attend(memory.retry.until)
        return
    turn.ask(record, UpdateFiles(record.uid, pod.id, wanted))


def renewed(record: Record, operation: UpdateFiles, turn: Turn) -> None:
    """They hold what was asked for."""
    memory = record.files
    if memory.pod_id == operation.pod_id:
        if memory.retry.failures:
            turn.emit(record, "FilesRenewed", "the files hold their new contents now")
        memory.written = operation.files
        memory.retry.succeeded()


def not_renewed(record: Record, event: Failed, pod_id: str, turn: Turn) -> None:
    """The old files are in use, and it is tried again."""
    memory = record.files
    if memory.pod_id == pod_id:
        memory.retry.failed(turn.now, event.reason, event.message)
        text = f"{event.message}; the old files stay in use"
        turn.emit(record, event.reason, text, warning=True)
