"""What operators decided at sites, as conditions of the Workload, Replica or Site that it is about.

Called by `catalog.py` for statuses. Read from the mirror, and sorted anew only when a record of it
changed: mostly there is none. The words are those that `edgectl --site-endpoint` shows at the site.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from orchestrator.cache import Cache, Change
from orchestrator.domain.overrides import LocalOverride, overrides_in
from orchestrator.store import keys
from polder.statuses import of_override

Status = dict[str, Any]

_SHOWN_MAX = 10


class Decided:
    """By what it is about. What was taken back is not there."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._by_workload: defaultdict[str, list[LocalOverride]] = defaultdict(list)
        self._by_site: defaultdict[str, list[LocalOverride]] = defaultdict(list)
        self._stale = True
        cache.subscribe(self._on_changes)

    def of_workload(self, uid: str) -> list[Status]:
        """Of any of its replicas, each named; bounded."""
        self._read()
        found = self._by_workload.get(uid, ())
        return _conditions(found[:_SHOWN_MAX], named=True) if found else []

    def of_replica(self, workload_uid: str, replica: str, node: str) -> list[Status]:
        """Of the replica, and of the site that its node is at."""
        self._read()
        if not (self._by_workload or self._by_site):
            return []
        own = [o for o in self._by_workload.get(workload_uid, ()) if o.decision.replica == replica]
        record = self._cache.resource("Node", "", node)
        site = str(record.spec.get("site", "")) if record is not None else ""
        return _conditions([*own, *self._by_site.get(site, ())])

    def of_site(self, site: str) -> list[Status]:
        """Of the whole site."""
        self._read()
        return _conditions(self._by_site.get(site, ()))

    def _read(self) -> None:
        if not self._stale:
            return
        self._stale = False
        self._by_workload.clear()
        self._by_site.clear()
        for found in overrides_in(self._cache.kept(keys.OVERRIDES)):
            if found.decision.stands and found.decision.replica:
                self._by_workload[found.decision.workload_uid].append(found)
            elif found.decision.stands:
                self._by_site[found.site].append(found)

    def _on_changes(self, changes: list[Change]) -> None:
        if not self._stale:
            self._stale = any(change.key.startswith(keys.OVERRIDES) for change in changes)


def _conditions(overrides: Iterable[LocalOverride], *, named: bool = False) -> list[Status]:
    return [
        condition
        for override in overrides
        for condition in of_override(override.decision, override.heard_ms, named=named)
    ]
