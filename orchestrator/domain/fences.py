"""Fences: an operator vouches that stays of an exclusive replica run no more. Pure.

A node that is not heard may still run what it has, and an exclusive replica must not run twice: the
leader waits. Whoever pulled the plug, or takes the risk, says so with `edgectl fence`. The word is
about the stays that there are at that moment and no later ones; it is kept until the last trace of
them has left the placements, since a node may come back after a week and not have obeyed its stop.

The operator API writes the record (`orchestrator/api/fencing.py`), the scheduler takes the stays
for gone (`orchestrator/scheduling/exclusive.py`), and the leader sweeps what is over.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.records import KeptRecord, NodePlacement
from orchestrator.scheduling.tick import Batch, World, Write
from orchestrator.store import keys

UIDS_MAX = 64


@dataclass(frozen=True, slots=True)
class Fence:
    """`uids`: of the stays. `by` as in Event.source; `since_ms` unix ms."""

    workload_uid: str
    replica: str
    uids: tuple[str, ...]
    by: str
    since_ms: int
    store_revision: int = 0  # not part of the value

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = {"uids": list(self.uids), "by": self.by, "since_ms": self.since_ms}
        return KeptRecord(keys.fence(self.workload_uid, self.replica), body, self.store_revision)


def fenced_uids(kept: Iterable[KeptRecord]) -> frozenset[str]:
    """Of all stays that somebody vouches for. A record that is not understood vouches for none."""
    return frozenset(uid for record in kept for uid in _uids(record))


def sweep(world: World) -> tuple[Batch, ...]:
    """Deletes the fences of stays that are in no placement any more."""
    fences = [record for key, record in world.kept.items() if key.startswith(keys.FENCES)]
    if not fences:
        return ()
    named = _named(world.snapshot.placements, frozenset(u for f in fences for u in _uids(f)))
    return tuple(
        Batch((Write(record.key, None, record.store_revision),))
        for record in fences
        if named.isdisjoint(_uids(record))
    )


def _named(placements: Mapping[str, NodePlacement], uids: frozenset[str]) -> frozenset[str]:
    """Those of the stays that a placement names."""
    found: set[str] = set()
    for placement in placements.values():
        found.update(item.replica_uid for item in placement.assignments)
        found.update(stop.replica_uid for stop in placement.stops)
    return uids & found


def _uids(record: KeptRecord) -> tuple[str, ...]:
    uids = record.body.get("uids", ())
    return tuple(str(uid) for uid in uids) if isinstance(uids, list) else ()
