"""Who holds what now: the placements, turned around from nodes to workloads.

A replica has one holder, or two while a replacement starts: then the newer says which stay it
replaces. Of two that say nothing of each other (a move was cut short) the higher epoch counts.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord, StopRecord
from orchestrator.scheduling.decisions import Cause, Orphan
from orchestrator.scheduling.leftovers import Leftover, ReplicaKey, leftover
from orchestrator.scheduling.snapshot import Node, Snapshot, Template
from orchestrator.scheduling.table import NodeTable

_NOTHING = Template()


@dataclass(frozen=True, slots=True)
class Holder:
    """A replica on a node. `row` is the node's in the table, None when no record of it exists."""

    node: str
    row: int | None
    record: AssignmentRecord

    @property
    def order(self) -> tuple[int, str]:
        """`hello-2` before `hello-10`."""
        return (len(self.record.replica), self.record.replica)


@dataclass(slots=True)
class Holders:
    """By workload uid and replica name. `incoming` are replacements that start."""

    by_workload: dict[str, dict[str, Holder]] = field(default_factory=lambda: defaultdict(dict))
    incoming: dict[str, dict[str, Holder]] = field(default_factory=lambda: defaultdict(dict))
    superseded: list[tuple[Holder, Holder]] = field(default_factory=list)  # (older, newer)
    # Of jobs: stays that ended or are to end, and are nobody's holder.
    apart: list[Holder] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    # Workloads that somebody may still be stopping.
    stopping: set[str] = field(default_factory=set)
    # Of exclusive replicas: stays that were told to stop and may still run.
    leftovers: dict[ReplicaKey, list[Leftover]] = field(default_factory=dict)
    # By row: what replicas still hold that were asked to make room.
    yielding: dict[int, list[Template]] = field(default_factory=lambda: defaultdict(list))

    @property
    def remaining(self) -> frozenset[str]:
        """Replica uids of the stays behind `leftovers`."""
        return frozenset(rest.uid for found in self.leftovers.values() for rest in found)

    def is_awaited(self, stop: StopRecord) -> bool:
        """Whether its replica has no holder because this stay may still run."""
        key = (stop.workload_uid, stop.replica)
        mine = any(rest.uid == stop.replica_uid for rest in self.leftovers.get(key, ()))
        return mine and stop.replica not in self.by_workload.get(stop.workload_uid, {})

    def remains(self, node: str, record: AssignmentRecord) -> None:
        """The stay of an exclusive replica is told to stop by this plan."""
        key = (record.workload_uid, record.replica)
        found = Leftover(node, record.replica_uid, f"node {node} is only now told to stop it")
        self.leftovers.setdefault(key, []).append(found)


def find_holders(snapshot: Snapshot, table: NodeTable) -> Holders:
    """Reads every placement once, and holds in the table what they promise.

    Stops hold what they held until their agents say that they are gone.
    """
    found = Holders()
    known = {workload.uid for workload in snapshot.workloads}
    apart = {uid for job in snapshot.workloads if job.once for uid in (*job.resting, *job.ending)}
    several: dict[tuple[str, str], list[Holder]] = {}
    for name in sorted(snapshot.placements):
        placement = snapshot.placements[name]
        row = table.index.get(name)
        for record in placement.assignments:
            if row is not None:
                seen = snapshot.observed.get((name, record.replica_uid))
                if seen is None or not seen.finished:
                    table.hold(row, template_of(snapshot, record.workload_uid, record.revision))
            else:
                found.orphans.append(Orphan(name, record, "node"))
            if record.workload_uid not in known:
                found.orphans.append(Orphan(name, record, "workload"))
                continue
            if record.replica_uid in apart:
                found.apart.append(Holder(name, row, record))
                continue
            mine, holder = found.by_workload[record.workload_uid], Holder(name, row, record)
            if record.replica in mine:
                first = [mine[record.replica]]
                several.setdefault((record.workload_uid, record.replica), first).append(holder)
            else:
                mine[record.replica] = holder
        for stop in placement.stops:
            if stop.group and (rest := leftover(snapshot, table, placement, stop)) is not None:
                found.leftovers.setdefault((stop.workload_uid, stop.replica), []).append(rest)
            if row is None or (name, stop.replica_uid) in snapshot.gone:
                continue
            template = template_of(snapshot, stop.workload_uid, stop.revision)
            table.hold(row, template)
            if stop.cause == Cause.PREEMPTED.value:
                found.yielding[row].append(template)
            if answers(table.nodes[row]):
                found.stopping.add(stop.workload_uid)
    for key, (node, uid) in snapshot.unrecorded.items():
        text = f"node {node} runs it, and no record says so"
        found.leftovers.setdefault(key, []).append(Leftover(node, uid, text))
    for (uid, replica), holders in several.items():
        _settle(found, uid, replica, holders)
    return found


def template_of(snapshot: Snapshot, workload_uid: str, revision: int) -> Template:
    """Of a revision that is not stored any more nothing is known: it holds nothing."""
    return snapshot.templates.get((workload_uid, revision), _NOTHING)


def answers(node: Node) -> bool:
    """Whether the node's word on a stop is worth waiting for."""
    return node.liveness in (Liveness.LIVE, Liveness.SILENT)


def _settle(found: Holders, uid: str, replica: str, holders: list[Holder]) -> None:
    """One holder, or a holder and its replacement; the others are superseded."""
    newest = max(holders, key=lambda h: (h.record.epoch, h.node))
    group = newest.record.group
    # Of an exclusive replica nobody waits for the newer one: it runs when the older one does not.
    alone = group is not None and group.exclusive
    replaced = (
        [] if alone else [h for h in holders if h.record.replica_uid == newest.record.replaces]
    )
    current = newest
    if replaced:
        current = replaced[0]
        found.incoming[uid][replica] = newest
    found.by_workload[uid][replica] = current
    for holder in sorted(holders, key=lambda h: (h.record.epoch, h.node)):
        if holder is not current and holder is not newest:
            found.superseded.append((holder, newest))
