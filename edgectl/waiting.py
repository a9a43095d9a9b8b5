"""Waiting for one resource until a condition holds. Called by wait and delete."""

from edgectl.conditions import Condition, Verdict
from edgectl.progress import Progress
from edgectl.reader import WatchSource
from edgectl.resources import Item
from edgectl.watching import ADDED, DELETED, MODIFIED, SYNCED, Watch
from polder.v1 import common_pb2, operator_pb2


def wait_for(
    client: WatchSource,
    ref: common_pb2.ResourceRef,
    condition: Condition,
    deadline: float,
    progress: Progress,
) -> Verdict:
    """The last verdict at the deadline (time.monotonic()), or once it is final.

    Raises CallError when the orchestrator refuses.
    """
    label = f"{ref.kind.lower()}/{ref.name}"
    request = operator_pb2.WatchRequest(kind=ref.kind, namespace=ref.namespace, name=ref.name)
    watch = Watch(
        client,
        request,
        deadline=deadline,
        on_break=lambda error: progress.note(f"warning: {error.message}; connecting again"),
    )
    item: Item | None = None
    known = False
    verdict = Verdict(False, "the orchestrator did not answer")
    changes = watch.changes()
    for change in changes:
        if change.type in (ADDED, MODIFIED):
            item = change.item
        elif change.type == DELETED:
            item = None
        known = known or change.type in (ADDED, MODIFIED, DELETED, SYNCED)
        if not known:
            continue
        verdict = condition(item)
        if verdict.met or verdict.hopeless:
            changes.close()
            return verdict
        progress.show(f"{label}: {verdict.why}")
    return verdict
