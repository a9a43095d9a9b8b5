"""Who holds what now: the placements, turned around from nodes to workloads.

A replica that two nodes hold (a move was cut short) belongs to the one with the higher epoch.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.decisions import Orphan
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
    """By workload uid and replica name."""

    by_workload: dict[str, dict[str, Holder]] = field(default_factory=lambda: defaultdict(dict))
    superseded: list[tuple[Holder, Holder]] = field(default_factory=list)  # (older, newer)
    orphans: list[Orphan] = field(default_factory=list)
    # Workloads that somebody may still be stopping.
    stopping: set[str] = field(default_factory=set)


def find_holders(snapshot: Snapshot, table: NodeTable) -> Holders:
    """Reads every placement once, and holds in the table what they promise.

    Stops hold what they held until their agents say that they are gone.
    """
    found = Holders()
    known = {workload.uid for workload in snapshot.workloads}
    for name in sorted(snapshot.placements):
        placement = snapshot.placements[name]
        row = table.index.get(name)
        for record in placement.assignments:
            if row is not None:
                table.hold(row, template_of(snapshot, record.workload_uid, record.revision))
            else:
                found.orphans.append(Orphan(name, record, "node"))
            if record.workload_uid not in known:
                found.orphans.append(Orphan(name, record, "workload"))
            else:
                _add(found, Holder(name, row, record))
        for stop in placement.stops:
            if row is None or (name, stop.replica_uid) in snapshot.gone:
                continue
            table.hold(row, template_of(snapshot, stop.workload_uid, stop.revision))
            if answers(table.nodes[row]):
                found.stopping.add(stop.workload_uid)
    return found


def template_of(snapshot: Snapshot, workload_uid: str, revision: int) -> Template:
    """Of a revision that is not stored any more nothing is known: it holds nothing."""
    return snapshot.templates.get((workload_uid, revision), _NOTHING)


def answers(node: Node) -> bool:
    """Whether the node's word on a stop is worth waiting for."""
    return node.liveness in (Liveness.LIVE, Liveness.SILENT)


def _add(found: Holders, holder: Holder) -> None:
    mine = found.by_workload[holder.record.workload_uid]
    other = mine.get(holder.record.replica)
    if other is None:
        mine[holder.record.replica] = holder
        return
    older, newer = sorted((other, holder), key=lambda h: (h.record.epoch, h.node))
    mine[holder.record.replica] = newer
    found.superseded.append((older, newer))
