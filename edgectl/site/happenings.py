"""Events of all nodes of a site in one order, and with them what operators did there. Pure."""

from collections.abc import Collection, Iterable, Iterator

from polder import journal
from polder.local_access import SITE_ACTIONS
from polder.v1 import agent_pb2, common_pb2, local_pb2, operator_pb2

_WARNING = {True: common_pb2.EVENT_TYPE_WARNING, False: common_pb2.EVENT_TYPE_NORMAL}


def merged(
    site: str,
    recalled: Iterable[tuple[str, local_pb2.RecallResponse]],
    request: operator_pb2.EventsRequest,
    replicas: Collection[str] = (),
) -> list[common_pb2.Event]:
    """Oldest first, the latest of what is asked for. `recalled`: by node. `replicas`: of the
    workload that is asked for, whose events are theirs."""
    found = [
        event
        for node, answer in recalled
        for event in (*answer.events, *_journaled(site, node, answer.journal))
        if _is_asked(event, request, replicas)
    ]
    found.sort(key=lambda event: event.last_at_ms)
    return found[-request.limit :] if request.limit else found


def _journaled(
    site: str, node: str, entries: Iterable[agent_pb2.JournalEntry]
) -> Iterator[common_pb2.Event]:
    for entry in entries:
        said = journal.words(entry)
        yield common_pb2.Event(
            object=_about(site, node, entry),
            type=_WARNING[said.warning],
            reason=said.reason,
            message=said.message,
            source=f"{entry.by} at {node}",
            first_at_ms=entry.at_ms,
            last_at_ms=entry.at_ms,
            count=1,
        )


def _about(site: str, node: str, entry: agent_pb2.JournalEntry) -> common_pb2.ResourceRef:
    """As the orchestrator has it of what was uploaded."""
    if entry.replica:
        return common_pb2.ResourceRef(kind="Replica", namespace=entry.namespace, name=entry.replica)
    if entry.verb in SITE_ACTIONS:
        return common_pb2.ResourceRef(kind="Site", name=site)
    return common_pb2.ResourceRef(kind="Node", name=node)


def _is_asked(
    event: common_pb2.Event, request: operator_pb2.EventsRequest, replicas: Collection[str]
) -> bool:
    about, asked = event.object, request.object
    if request.namespace and about.namespace != request.namespace:
        return False
    if about.kind == "Replica" and about.name in replicas:
        return True
    return asked.kind in ("", about.kind) and asked.name in ("", about.name)
