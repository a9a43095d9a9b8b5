"""The mirror with some records as if they had been written. Used to build worlds that might be.

It has what `SnapshotBuilder` reads of a Cache, and nothing that writes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from orchestrator.cache import Cache
from orchestrator.records import (
    IdentityRecord,
    KeptRecord,
    NodePlacement,
    NodeStatusRecord,
    StoredResource,
    TemplateRevision,
)

Key = tuple[str, str, str]


class Overlay:
    """Reads fall through to the mirror, but for what is shown at the moment."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._records: dict[Key, StoredResource] = {}
        self._revisions: dict[tuple[str, int], TemplateRevision] = {}

    @contextmanager
    def showing(
        self, records: Iterable[StoredResource], revisions: Iterable[TemplateRevision]
    ) -> Iterator[None]:
        """Not while another is shown: it is for one synchronous walk at a time."""
        self._records = {record.ref: record for record in records}
        self._revisions = {(item.workload_uid, item.number): item for item in revisions}
        try:
            yield
        finally:
            self._records, self._revisions = {}, {}

    @property
    def revision(self) -> int:
        return self._cache.revision

    @property
    def epoch(self) -> int:
        return self._cache.epoch

    @property
    def synced_at(self) -> float:
        return self._cache.synced_at

    def resource(self, kind: str, namespace: str, name: str) -> StoredResource | None:
        found = self._records.get((kind, namespace, name))
        return found if found is not None else self._cache.resource(kind, namespace, name)

    def resources(self, kind: str) -> Iterable[StoredResource]:
        if not self._records:
            return self._cache.resources(kind)
        shown = {ref: record for ref, record in self._records.items() if ref[0] == kind}
        written = {record.ref: record for record in self._cache.resources(kind)}
        return list({**written, **shown}.values())

    def revisions(self) -> Iterable[TemplateRevision]:
        return [*self._cache.revisions(), *self._revisions.values()]

    def placements(self) -> list[NodePlacement]:
        return self._cache.placements()

    def kept(self, prefix: str) -> list[KeptRecord]:
        return self._cache.kept(prefix)

    def node_status(self, node: str) -> NodeStatusRecord | None:
        return self._cache.node_status(node)

    def identity(self, kind: str, name: str) -> IdentityRecord | None:
        return self._cache.identity(kind, name)
