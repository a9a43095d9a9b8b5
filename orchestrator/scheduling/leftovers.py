"""Stays of exclusive replicas that were told to stop and may still run: nothing is placed instead.

An exclusive replica's next stay in another site is kept from running beside the last one by nobody
but the leader. So a stop of one counts as done when its agent says that it is gone, and when every
node that might take it over uses a plan that does not let it. Or an operator vouches for it.

Found by `find_holders` in every plan; the leader keeps the stop in the placement for as long.
"""

from dataclasses import dataclass

from orchestrator.domain.liveness import Liveness
from orchestrator.records import NodePlacement, StopRecord
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.table import NodeTable

SETTLE_S = 5.0
"""A standby that took over just before it got the newer plan has said so within this."""

ReplicaKey = tuple[str, str]
"""(workload uid, replica name)."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A stay that may still run, or be taken over. `why`: what is not known, for people."""

    node: str
    uid: str
    why: str


def leftover(
    snapshot: Snapshot, table: NodeTable, placement: NodePlacement, stop: StopRecord
) -> Leftover | None:
    """None: nobody runs it any more, or will."""
    if stop.group is None or not stop.group.exclusive:
        return None
    node, uid = placement.node, stop.replica_uid
    if (node, uid) not in snapshot.gone:
        if uid in snapshot.fenced and not _is_live(table, node):
            return None
        heard = "has not said yet that it is gone" if _is_live(table, node) else "is not heard"
        return Leftover(node, uid, f"node {node} {heard}")
    if uid in snapshot.fenced:
        return None
    # A clock that was set since asks no more than a clock that was not.
    if len(stop.group.members) > 1 and abs(table.now - stop.requested_at_ms / 1000) < SETTLE_S:
        return Leftover(node, uid, f"it stopped less than {SETTLE_S:g} s ago")
    for name in stop.group.members:
        known = name != node and name in table.index and name in snapshot.placements
        if known and name not in snapshot.using:
            text = f"node {name} might take it over until it uses its newest plan"
            return Leftover(name, uid, text)
    return None


def _is_live(table: NodeTable, name: str) -> bool:
    row = table.index.get(name)
    return row is not None and table.nodes[row].liveness is Liveness.LIVE
