"""What operators decided at a site itself: as the orchestrator keeps it, a record for each field.

Agents tell the gateway of it (`orchestrator/gateway/local_changes.py`), which merges it into the
Store; plans carry it back to the site (`gateway/roles.py`); the leader obeys it and says where it
decided otherwise meanwhile (`overrides_step.py`); the operator API takes it back
(`api/overriding.py`). Why: ADR 28.

Pure. A field of a replica, or of a whole site, is a last-writer-wins register: of two values that
with the greater (stamp, node) counts, whichever way it came. The orchestrator writes without a
node. What was taken back stays as a record with an empty value, since a box that was away still
knows the old one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.records import KeptRecord, known_fields
from orchestrator.store import keys
from polder.v1 import plan_pb2

OF_SITE_MAX = 1_000
"""Records of one site; more are not taken, and that is told."""
FORGOTTEN_AFTER_S = 90 * 86_400.0
"""What was taken back for so long is forgotten: as long as deletions are remembered for a site."""
STAMP_MAX = 1 << 53
"""An agent that claims a greater one is broken: nobody could write after it."""
REASON_MAX = 500
NAME_MAX = 320
ORCHESTRATOR = "orchestrator"
"""As `by` of what the leader takes back because it is done."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class Field(StrEnum):
    """What can be decided at a site."""

    STOPPED = "stopped"
    PLACED_ON = "placedOn"
    FROZEN = "frozen"


OF_REPLICAS = (Field.STOPPED, Field.PLACED_ON)

Subject = tuple[str, str]
"""(workload uid, replica); twice empty for a whole site."""


@dataclass(frozen=True, slots=True)
class LocalOverride:
    """One field of one subject at one site; see Override in plan.proto.

    `heard_ms`: when a member first heard of this value. `judged`: the leader has looked whether
    something was decided against it before it was heard of. `accepted`: the conflict that an
    operator lets stand.
    """

    site: str
    field: str
    workload_uid: str = ""
    namespace: str = ""
    replica: str = ""
    value: str = ""
    stamp: int = 0
    node: str = ""
    id: str = ""
    by: str = ""
    reason: str = ""
    at_ms: int = 0
    base_revision: int = 0
    base_epoch: int = 0
    conflict: str = ""
    heard_ms: int = 0
    judged: bool = False
    accepted: str = ""
    store_revision: int = 0  # not part of the value

    @property
    def key(self) -> str:
        return keys.override(self.site, self.workload_uid, self.replica, self.field)

    @property
    def subject(self) -> Subject:
        return (self.workload_uid, self.replica)

    @property
    def holds(self) -> bool:
        """It was not taken back."""
        return bool(self.value)

    @property
    def order(self) -> tuple[int, str]:
        return (self.stamp, self.node)

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = asdict(self)
        del body["store_revision"]
        return KeptRecord(self.key, body, self.store_revision)

    def to_proto(self) -> plan_pb2.Override:
        """As plans and answers to operators carry it."""
        return plan_pb2.Override(
            id=self.id,
            workload_uid=self.workload_uid,
            namespace=self.namespace,
            replica=self.replica,
            field=self.field,
            value=self.value,
            stamp=self.stamp,
            node=self.node,
            by=self.by,
            reason=self.reason,
            at_ms=self.at_ms,
            base_revision=self.base_revision,
            base_epoch=self.base_epoch,
            conflict=self.conflict,
        )

    def taken_back(self, by: str, reason: str, now_ms: int) -> "LocalOverride":
        """By the orchestrator: newer than all that it knows of."""
        return replace(
            self,
            value="",
            stamp=self.stamp + 1,
            node="",
            id="",
            by=by,
            reason=reason[:REASON_MAX],
            at_ms=now_ms,
            conflict="",
            heard_ms=now_ms,
            judged=True,
            accepted="",
        )

    def __str__(self) -> str:
        """`stopped by operator/ann at node-a: REASON`."""
        what = {Field.STOPPED.value: "stopped", Field.FROZEN.value: "frozen"}.get(
            self.field, f"moved to node {self.value}"
        )
        where = f" at {self.node}" if self.node else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{what} by {self.by or 'somebody'}{where}{why}"


def read(record: KeptRecord) -> LocalOverride | None:
    """None: a newer version wrote it, and means something that this one does not know."""
    try:
        found = LocalOverride(
            **{**known_fields(LocalOverride, record.body), "store_revision": record.store_revision}
        )
    except TypeError:
        return None
    return found if found.key == record.key and found.field in tuple(Field) else None


def said(message: plan_pb2.Override, site: str, now_ms: int) -> LocalOverride | str:
    """What a node of the site says; or why it cannot be taken. Long texts are cut."""
    try:
        field_ = Field(message.field)
    except ValueError:
        return f"field {message.field[:40]!r} is not known"
    subject = (message.workload_uid, message.namespace, message.replica)
    if field_ is Field.FROZEN and any(subject):
        return "only a whole site is frozen"
    if field_ is not Field.FROZEN and not all(map(_is_name, subject)):
        return f"{field_} of no replica"
    values = ("", "true")
    if field_ is Field.PLACED_ON:
        if message.value and not _is_name(message.value):
            return f"{message.value[:40]!r} is not a node"
    elif message.value not in values:
        return f"{field_} is {message.value[:40]!r}"
    if not 0 < message.stamp < STAMP_MAX or (message.node and not _is_name(message.node)):
        return f"stamp {message.stamp} of {message.node[:40]!r}"
    return LocalOverride(
        site=site,
        field=field_.value,
        workload_uid=message.workload_uid,
        namespace=message.namespace,
        replica=message.replica,
        value=message.value,
        stamp=message.stamp,
        node=message.node,
        id=message.id[:64],
        by=message.by[:NAME_MAX],
        reason=message.reason[:REASON_MAX],
        at_ms=max(0, message.at_ms),
        base_revision=max(0, message.base_revision),
        base_epoch=max(0, message.base_epoch),
        heard_ms=now_ms,
    )


def merged(known: LocalOverride | None, heard: LocalOverride) -> LocalOverride | None:
    """What is to be written; None: what is known already is as new."""
    if known is None:
        return heard
    if heard.order <= known.order:
        return None
    return replace(heard, store_revision=known.store_revision)


@dataclass(frozen=True, slots=True)
class SiteDecisions:
    """What of it holds, as the scheduler is to obey it. By (site, workload uid, replica), and by
    site."""

    stopped: Mapping[tuple[str, str, str], LocalOverride] = field(default_factory=dict)
    placed_on: Mapping[tuple[str, str, str], LocalOverride] = field(default_factory=dict)
    frozen: Mapping[str, LocalOverride] = field(default_factory=dict)

    def is_stopped(self, site: str, workload_uid: str, replica: str) -> bool:
        return (site, workload_uid, replica) in self.stopped


NOTHING_DECIDED = SiteDecisions()


def decisions(kept: Iterable[KeptRecord]) -> SiteDecisions:
    """From the records under `keys.OVERRIDES`."""
    stopped, placed_on, frozen = {}, {}, {}
    for record in kept:
        found = read(record)
        if found is None or not found.holds:
            continue
        key = (found.site, *found.subject)
        if found.field == Field.FROZEN:
            frozen[found.site] = found
        elif found.field == Field.STOPPED:
            stopped[key] = found
        else:
            placed_on[key] = found
    if not (stopped or placed_on or frozen):
        return NOTHING_DECIDED
    return SiteDecisions(stopped, placed_on, frozen)


def overrides_in(kept: Mapping[str, KeptRecord] | Iterable[KeptRecord]) -> list[LocalOverride]:
    """All that can be read, those that were taken back too; by key."""
    records: Iterable[Any] = kept.values() if isinstance(kept, Mapping) else kept
    found = (read(record) for record in records if record.key.startswith(keys.OVERRIDES))
    return sorted((item for item in found if item is not None), key=lambda item: item.key)


def _is_name(text: str) -> bool:
    return len(text) <= NAME_MAX and _NAME.fullmatch(text) is not None
