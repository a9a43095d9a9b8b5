"""The story of a replica, a workload or a node: why it is as it is, what happened, what comes next.

Pure: values in, entries out, oldest first and bounded. `telling.py` gathers the values and serves
the Story RPC. Times are unix milliseconds; 0: not known when.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from orchestrator.api.foretelling import Ahead, Circumstances
from orchestrator.domain.rollout_state import RolloutState, Standing
from orchestrator.events import EventRecord
from orchestrator.records import AssignmentRecord, StopRecord, StoredResource, TemplateRevision
from polder import epochs
from polder.v1 import common_pb2

ENTRIES_MAX = 60
BECAUSE_MAX = 8
_WARNING = common_pb2.EVENT_TYPE_WARNING
_SAME_MOMENT_MS = 1_000  # of a repeated event the first time is told, too, if it is apart
_OF_ROLLOUTS = ("Rollout", "RolledBack")
_REPEATED = ("Placed",)  # the placement itself tells it better

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. `source` as in an event; `reason` is CamelCase."""

    at_ms: int
    source: str
    reason: str
    message: str
    warning: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Story:
    """What happened, oldest first; and what will, or what it waits for."""

    entries: tuple[Entry, ...]
    next: tuple[Ahead, ...]


@dataclass(frozen=True, slots=True)
class Stay:
    """A replica on a node. `because`: the facts by which it may be there. `leaves`: why it must
    leave the node, such as a drain; empty: it need not."""

    node: str
    site: str
    assignment: AssignmentRecord
    status: Status
    because: tuple[str, ...] = ()
    former_node: str = ""  # of the stay that it replaces, while that is there
    events: tuple[EventRecord, ...] = ()  # of its node


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """All that is known of one replica. `status` is what `edgectl get` shows of it."""

    name: str
    status: Status
    leader: str
    stays: tuple[Stay, ...] = ()
    stops: tuple[tuple[str, StopRecord], ...] = ()  # with the node
    revision: TemplateRevision | None = None
    events: tuple[EventRecord, ...] = ()
    workload_events: tuple[EventRecord, ...] = ()
    circumstances: Circumstances = field(default_factory=Circumstances)


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """All that is known of one workload. `events` are its own and its replicas'."""

    record: StoredResource
    status: Status
    revisions: tuple[TemplateRevision, ...] = ()
    events: tuple[EventRecord, ...] = ()
    circumstances: Circumstances = field(default_factory=Circumstances)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that is known of one node. `events` are of this node, and of no former of its name."""

    record: StoredResource
    status: Status
    joined_at_ms: int = 0
    events: tuple[EventRecord, ...] = ()
    circumstances: Circumstances = field(default_factory=Circumstances)


def replica_story(facts: ReplicaFacts) -> Story:
    """Why it is there, what happened to it, to its node meanwhile, and to its workload."""
    known = [stay.assignment.placed_at_ms for stay in facts.stays]
    since_ms = min((*known, *(event.first_at_ms for event in facts.events)), default=0)
    entries = [entry for stay in facts.stays for entry in _placement(stay, facts.leader)]
    entries += _revision(facts.revision, current=True)
    placed = {stay.node: stay.assignment.placed_at_ms for stay in facts.stays}
    entries += _events(facts.events, told=placed)
    for stay in facts.stays:
        at_ms = stay.assignment.placed_at_ms
        during = [event for event in stay.events if event.last_at_ms >= at_ms]
        entries += _events(during, prefix=f"node {stay.node}: ")
        entries += _exits(stay)
    about = [
        event
        for event in facts.workload_events
        if event.last_at_ms >= since_ms and not _of_a_sibling(event, facts.name)
    ]
    entries += _events(about, prefix="its workload: ")
    return Story(_in_order(entries, facts.status), facts.circumstances.next_of_replica())


def _of_a_sibling(event: EventRecord, replica: str) -> bool:
    """Explanations begin with the names of their replicas."""
    names, _, _ = event.message.partition(":")
    return names.startswith(f"{event.name}-") and replica not in names and " more" not in names


def workload_story(facts: WorkloadFacts) -> Story:
    """Its revisions and how they fared, and what happened to it and to its replicas."""
    record = facts.record
    first = next((item.created_by for item in facts.revisions if item.number == 1), "")
    entries = [Entry(record.created_at_ms, first, "Created", "created")]
    entries += _changed(record)
    for revision in facts.revisions:
        entries += _revision(revision, current=False)
    events = [e for e in facts.events if e.last_at_ms >= record.created_at_ms]
    entries += _events(events, name=record.name)
    entries += _decisions(facts.circumstances.rollout, events)
    return Story(_in_order(entries, facts.status), facts.circumstances.next_of_workload())


def node_story(facts: NodeFacts) -> Story:
    """Since it joined: a former node of its name is none of its business."""
    record = facts.record
    joined = facts.joined_at_ms or record.created_at_ms
    entries = []
    if not any(event.reason in ("Joined", "JoinedAgain") for event in facts.events):
        text = f"joined site {record.spec.get('site')}"
        entries.append(Entry(joined, "", "Joined", text))
    entries += _changed(record)
    entries += _events(facts.events)
    return Story(_in_order(entries, facts.status), facts.circumstances.next_of_node())


# --- what happened ------------------------------------------------------------------------------


def _changed(record: StoredResource) -> Iterator[Entry]:
    """What its operators did last: a deletion is a change too."""
    if record.deletion_requested_at_ms:
        by = record.changed_by if record.changed_at_ms == record.deletion_requested_at_ms else ""
        yield Entry(record.deletion_requested_at_ms, by, "Deleting", "its deletion was asked for")
    elif record.changed_at_ms > record.created_at_ms:
        text = f"last changed (generation {record.generation})"
        yield Entry(record.changed_at_ms, record.changed_by, "Changed", text)


def _placement(stay: Stay, leader: str) -> Iterator[Entry]:
    item = stay.assignment
    where = f"node {stay.node}" + (f" at site {stay.site}" if stay.site else "")
    text = f"placed on {where} (epoch {epochs.shown(item.epoch)})"
    if item.replaces:
        former = f" on node {stay.former_node}" if stay.former_node else ""
        text += f", to replace its stay{former}"
    if item.because:
        text += f", because: {item.because}"
    yield Entry(item.placed_at_ms, leader, "Placed", text)
    for fact in stay.because[:BECAUSE_MAX]:
        yield Entry(item.placed_at_ms, leader, "Because", f"it may be there: {fact}")
    more = len(stay.because) - BECAUSE_MAX
    if more > 0:
        yield Entry(item.placed_at_ms, leader, "Because", f"and {more} more facts: edgectl why")


def _revision(revision: TemplateRevision | None, *, current: bool) -> Iterator[Entry]:
    if revision is not None:
        text = f"revision {revision.number} of its template was made"
        if current:
            text += ", which it is to run"
        yield Entry(revision.created_at_ms, revision.created_by, "Revision", text)


def _events(
    events: Iterable[EventRecord],
    *,
    prefix: str = "",
    told: Mapping[str, int] = MappingProxyType({}),
    name: str = "",
) -> Iterator[Entry]:
    """`told`: nodes whose placements are told already, and when those were; `name`: of the object
    that needs none."""
    known = {f"placed on node {node}": at_ms for node, at_ms in told.items()}
    for event in events:
        if event.reason in _REPEATED and event.message in known:
            if event.first_at_ms + _SAME_MOMENT_MS < known[event.message]:  # an earlier stay there
                yield Entry(event.first_at_ms, event.source, event.reason, event.message)
            continue
        about = f"{event.name}: " if name and event.name != name else ""
        found = Entry(
            event.last_at_ms,
            event.source,
            event.reason,
            f"{prefix}{about}{event.message}",
            event.type == _WARNING,
            event.count,
        )
        if event.count > 1 and event.last_at_ms - event.first_at_ms > _SAME_MOMENT_MS:
            yield replace(found, at_ms=event.first_at_ms, count=1)
        yield found


def _exits(stay: Stay) -> Iterator[Entry]:
    """How its containers last ended: with the exit code, which an event may not have."""
    for container in stay.status.get("containers", ()):
        last = container.get("lastExit") or {}
        if not last and container.get("finishedAt"):
            last = container
        if not last.get("finishedAt"):
            continue
        code, why = last.get("exitCode", 0), last.get("reason") or ""
        text = f"container {container.get('name')} ended with exit code {code}"
        text += f" ({why})" if why else ""
        if container.get("restarts"):
            times = int(container["restarts"])
            text += f"; it has been started again {'once' if times == 1 else f'{times} times'}"
        at_ms = int(last["finishedAt"])
        yield Entry(at_ms, f"agent/{stay.node}", "Exited", text, warning=code != 0)


def _decisions(rollout: RolloutState | None, events: Sequence[EventRecord]) -> Iterator[Entry]:
    """What was concluded of each revision, if its event is not kept any more."""
    told_ms = [event.last_at_ms for event in events if event.reason.startswith(_OF_ROLLOUTS)]
    for past in rollout.history if rollout is not None else ():
        if not past.decided_at_ms or past.standing is Standing.CURRENT:
            continue
        if any(abs(at_ms - past.decided_at_ms) <= 2 * _SAME_MOMENT_MS for at_ms in told_ms):
            continue
        text = f"revision {past.number} was found {past.standing.lower()}"
        text += f": {past.cause}" if past.cause else ""
        failed = past.standing is Standing.FAILED
        yield Entry(past.decided_at_ms, "leader", f"Rollout{past.standing}", text, failed)


def _now(status: Status) -> Iterator[Entry]:
    """How it is, with the age and the source of that knowledge."""
    if "phase" in status:
        word = str(status["phase"])
        at_ms = int(status.get("observedAt") or status.get("updatedAt") or 0)
        if word == "Running" and "placed" not in status:
            word = "Ready" if status.get("ready") else "NotReady"
        good = word in ("Ready", "Running", "Succeeded", "Progressing", "Complete", "Scheduled")
    else:
        ready = status.get("ready")
        word = "Ready" if ready else "NotReady" if ready is False else "Unknown"
        at_ms, good = int(status.get("lastSeenAt", 0)), ready is True
    parts = [str(status[key]) for key in ("reason", "message") if status.get(key)]
    if "placed" in status and not parts:
        parts = [f"{status.get('ready')} of {status.get('replicas')} replicas ready"]
    text = ": ".join(parts) or "as asked"
    yield Entry(at_ms, str(status.get("source") or "agents"), word, text, not good)


def _in_order(entries: Iterable[Entry], status: Status) -> tuple[Entry, ...]:
    """Oldest first, and at the end how it is now, as of when that was heard. Of too many the oldest
    go, but for the very first."""
    ordered = sorted(dict.fromkeys(entries), key=lambda entry: entry.at_ms)
    if len(ordered) >= ENTRIES_MAX:
        kept = ordered[-(ENTRIES_MAX - 3) :]
        left = len(ordered) - len(kept) - 1
        text = f"{left} entries between are left out"
        ordered = [ordered[0], Entry(ordered[1].at_ms, "", "LeftOut", text), *kept]
    return (*ordered, *_now(status))


def with_sources(story: Story, leader: str) -> Story:
    """Sources that only say `leader` become the one that leads."""
    return replace(
        story,
        entries=tuple(
            replace(entry, source=leader) if entry.source == "leader" else entry
            for entry in story.entries
        ),
    )
