"""A request's documents while apply decides on them: what was asked, and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.store.port import Compare, Op
from polder.manifest import Manifest, digest
from polder.v1 import operator_pb2

BATCH_DOCUMENTS = 40
BATCH_BYTES_MAX = 1_400_000
_ORDER = ("Namespace", "Provider", "Site", "Node", "Secret", "Config", "Workload")


@dataclass(frozen=True)
class Wanted:
    """One checked document of the request."""

    number: int
    manifest: Manifest
    expected_revision: int
    size: int
    by: str = ""  # as in Event.source
    fingerprint: bytes = b""  # of the document's bytes, see `repeating`

    @cached_property
    def template_digest(self) -> str:
        """Only for a Workload."""
        return digest(self.manifest.spec.template)


@dataclass(slots=True)
class Step:
    """What one document means for the Store, as the mirror stands."""

    wanted: Wanted
    outcome: "operator_pb2.ApplyOutcome.ValueType"
    record: StoredResource
    compares: list[Compare] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    existing: StoredResource | None = None
    revision: TemplateRevision | None = None  # that comes with it


def batches(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """What goes into one transaction each. What is referred to comes first."""
    ordered = sorted(wanted, key=lambda item: _ORDER.index(item.manifest.kind))
    found: list[list[Wanted]] = [[]]
    size = 0
    for item in ordered:
        cost = 2 * item.size
        if found[-1] and (len(found[-1]) >= BATCH_DOCUMENTS or size + cost > BATCH_BYTES_MAX):
            found.append([])
            size = 0
        found[-1].append(item)
        size += cost
    return found
