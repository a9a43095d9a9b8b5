"""What waits for an operator: the record behind `edgectl guards` and `edgectl approve`. Pure.

The leader writes a hold when it holds something back and deletes it when nothing is held any more;
an approval is written into it by the operator API. Three kinds:

    stops    a change that would stop too much at once (`orchestrator/domain/guard.py`)
    silence  so many nodes are silent that nobody is evicted (`orchestrator/domain/silence.py`)
    store    records vanished that nobody deleted (`orchestrator/domain/census.py`)
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from orchestrator.records import KeptRecord
from orchestrator.store import keys

APPROVED_FOR_S = 3600.0
"""An approval of stops is about the change that its operator saw, and not about a later one."""
WORKLOADS_MAX = 50
"""Named in a hold; the rest is counted."""


class HoldKind(StrEnum):
    STOPS = "stops"
    SILENCE = "silence"
    STORE = "store"


class Scope(StrEnum):
    """How wide. `everything` has no name."""

    EVERYTHING = "everything"
    FLEET = "fleet"
    REGION = "region"
    SITE = "site"
    NAMESPACE = "namespace"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. Times are unix milliseconds; 0: none.

    `workloads` are NAMESPACE/NAME, bounded. `covers` says what of each workload an approval is
    about; see guard.py. `nodes`, `silent` and `until_ms` are of a silence.
    """

    id: str
    kind: HoldKind
    scope: Scope
    name: str = ""
    message: str = ""
    since_ms: int = 0
    until_ms: int = 0
    stops: int = 0
    replicas: int = 0
    workloads: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    nodes: int = 0
    silent: int = 0
    approved_by: str = ""
    approved_at_ms: int = 0
    store_revision: int = 0  # not part of the value

    @property
    def key(self) -> str:
        return keys.hold(self.id)

    @property
    def approved(self) -> bool:
        return self.approved_at_ms > 0

    def approved_lately(self, now: float) -> bool:
        """`now`: unix seconds. A clock that was set by more than the hour asks once more."""
        return self.approved and abs(now - self.approved_at_ms / 1000) <= APPROVED_FOR_S

    @property
    def namespaces(self) -> frozenset[str]:
        return frozenset(workload.partition("/")[0] for workload in self.workloads)

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = {name: getattr(self, name) for name in _FIELDS}
        return KeptRecord(self.key, body, self.store_revision)

    def by(self, operator: str, now: float) -> "Hold":
        """The same, approved."""
        return replace(self, approved_by=operator, approved_at_ms=int(now * 1000))


_FIELDS = tuple(field.name for field in fields(Hold) if field.name != "store_revision")
_LISTS = ("workloads", "covers")


def read(record: KeptRecord) -> Hold:
    """Raises ValueError or TypeError for what this version did not write."""
    body: dict[str, Any] = {name: record.body[name] for name in _FIELDS if name in record.body}
    for name in _LISTS:
        body[name] = tuple(str(item) for item in body.get(name, ()))
    body["kind"], body["scope"] = HoldKind(body["kind"]), Scope(body["scope"])
    return Hold(**body, store_revision=record.store_revision)


def holds_in(kept: Mapping[str, KeptRecord] | Iterable[KeptRecord]) -> dict[str, Hold]:
    """By id. A record that cannot be read holds nothing back, and approves nothing."""
    records = kept.values() if isinstance(kept, Mapping) else kept
    found = {}
    for record in records:
        if record.key.startswith(keys.HOLDS):
            try:
                hold = read(record)
            except (KeyError, TypeError, ValueError):
                continue
            found[hold.id] = hold
    return found


def identifier(*parts: str) -> str:
    """Short enough to be typed; the same for the same parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
