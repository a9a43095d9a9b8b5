"""Puts together what one tick of the leader may know: the snapshot, and the records behind it.

Called by the leader before each tick. What changes rarely is gathered again only when it changed.
"""

from collections.abc import Mapping

from orchestrator.cache import Cache, Change
from orchestrator.domain.liveness import DEFAULT_PERIODS, Periods
from orchestrator.fleet import Fleet
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import KeptRecord, TemplateRevision
from orchestrator.scheduling.steer import World
from orchestrator.store import keys


class WorldBuilder:
    """Give `on_changes` every batch of changes of the mirror."""

    def __init__(self, cache: Cache, fleet: Fleet, periods: Periods = DEFAULT_PERIODS) -> None:
        self._cache = cache
        self._snapshots = SnapshotBuilder(cache, fleet, periods)
        self._revisions: Mapping[tuple[str, int], TemplateRevision] | None = None
        self._kept: Mapping[str, KeptRecord] | None = None

    def on_changes(self, changes: list[Change]) -> None:
        if any(change.key.startswith(keys.REVISIONS) for change in changes):
            self._revisions = None
        if any(change.key.startswith(keys.KEPT) for change in changes):
            self._kept = None

    def build(self, now: float, led_since: float, steady: float) -> World:
        """`now` and `led_since` in unix seconds, `steady` by a clock that never jumps, as for the
        snapshot."""
        if self._revisions is None:
            found = self._cache.revisions()
            self._revisions = {(item.workload_uid, item.number): item for item in found}
        if self._kept is None:
            self._kept = {
                record.key: record for prefix in keys.KEPT for record in self._cache.kept(prefix)
            }
        return World(
            snapshot=self._snapshots.build(now, led_since, steady),
            workloads=tuple(self._cache.resources("Workload")),
            revisions=self._revisions,
            kept=self._kept,
        )
