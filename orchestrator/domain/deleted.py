"""That a workload was deleted: kept for sites that were cut off, so that what they run of it stops.

Pure. Nothing stops because a record is missing (ADR 4): a Store that was restored from a backup
misses many. So the deletion of a workload that has standbys leaves a record, which the leader
writes with the deletion (`leader_commit.py`), goes by when a site comes back (`adoption_step.py`),
and forgets when no site can come back any more.
"""

from collections.abc import Iterable

from orchestrator.records import KeptRecord, StoredResource
from orchestrator.store import keys

KEPT_S = 90 * 86_400.0
"""A box that was away for longer runs on what nobody knows, and is told as having strays."""


def tombstone(resource: StoredResource, now_ms: int) -> KeptRecord | None:
    """What stays of a workload; None when nobody else can run it."""
    failover = resource.spec.get("failover")
    if not isinstance(failover, dict) or not failover.get("standbys"):
        return None
    body = {"namespace": resource.namespace, "name": resource.name, "at_ms": now_ms}
    return KeptRecord(keys.deleted(resource.uid), body)


def forgettable(records: Iterable[KeptRecord], now: float) -> list[KeptRecord]:
    """Those that have been kept for long enough. `now`: unix seconds."""
    return [
        record
        for record in records
        if isinstance(at_ms := record.body.get("at_ms"), int) and now - at_ms / 1000 > KEPT_S
    ]
