"""Notices when the Store suddenly knows less than it did, although nobody deleted anything. Pure.

Workloads and nodes go by a tombstone first, and placements go with their node. So a workload, node
or placement that is simply not there any more was lost: by a read that came back empty, a damaged
disk, a restored copy. Nothing stops for that anyway (a stop is explicit); but nothing may be
concluded from it either, such as that all replicas want placing again. When too much is missing the
leader changes nothing, says so, and waits until it is back or an operator approves.

The leader asks in every tick (`orchestrator/scheduling/guards_step.py`). A new leader has nothing
to compare with: it believes what it finds.
"""

from dataclasses import dataclass

from orchestrator.domain.holds import Hold, HoldKind, Scope, identifier
from orchestrator.scheduling.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Census:
    """What the Store knew. Workloads by uid; jobs come and go and are not counted."""

    workloads: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    placements: frozenset[str] = frozenset()


def take(snapshot: Snapshot) -> Census:
    """What is not being deleted, and so must be there the next time too."""
    nodes = frozenset(node.name for node in snapshot.nodes if not node.deleting)
    return Census(
        frozenset(w.uid for w in snapshot.workloads if not w.deleting and not w.once),
        nodes,
        frozenset(snapshot.placements.keys() & nodes),
    )


def missing(before: Census, snapshot: Snapshot, count_max: int, share_max: float) -> str:
    """What is missing, in words; empty when it is little: a single loss shows as an orphan."""
    found = []
    for what, known, there in (
        ("workloads", before.workloads, {w.uid for w in snapshot.workloads}),
        ("nodes", before.nodes, {node.name for node in snapshot.nodes}),
        ("placements", before.placements, snapshot.placements.keys()),
    ):
        gone = len(known - there)
        everything = gone == len(known) and gone > 1
        if everything or gone > max(count_max, share_max * len(known)):
            found.append(f"{gone} of {len(known)} {what}")
    return ", ".join(found)


def hold_for(what: str, now: float) -> Hold:
    """One at a time: there is one Store. `now`: unix seconds."""
    return Hold(
        id=f"store-{identifier('store', what)}",
        kind=HoldKind.STORE,
        scope=Scope.STORE,
        message=f"{what} are not in the store any more, and nobody deleted them",
        since_ms=int(now * 1000),
    )
