"""What operators decided at a site itself: as the orchestrator keeps it, a record for each field.

Agents tell the gateway of it (`orchestrator/gateway/local_changes.py`), which merges it into the
Store; plans carry it back to the site (`gateway/roles.py`); the leader obeys it and says where it
decided otherwise meanwhile (`overrides_step.py`); the operator API takes it back
(`api/overriding.py`). Why: ADR 28.

Pure. What counts of two is the rule of `polder/overrides.py`, as for agents. The orchestrator
writes without a node. What was taken back stays as a record with an empty value, since a box that
was away still knows the old one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.records import KeptRecord
from orchestrator.store import keys
from polder.overrides import (
    CONFLICT_MAX,
    FROZEN,
    PLACED_ON,
    REASON_MAX,
    STOPPED,
    BadOverride,
    Override,
    from_body,
    from_message,
    next_stamp,
    to_body,
    words,
)
from polder.v1 import plan_pb2

FORGOTTEN_AFTER_S = 90 * 86_400.0
"""What was taken back for so long is forgotten: as long as deletions are remembered for a site."""
ORCHESTRATOR = "orchestrator"
"""As `by` of what the leader takes back because it is done."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class LocalOverride:
    """A decision of a site.

    `heard_ms`: when a member first heard of it. `judged`: the leader has looked whether something
    was decided against it before it was heard of. `accepted`: the conflict that an operator lets
    stand.
    """

    site: str
    decision: Override
    heard_ms: int = 0
    judged: bool = False
    accepted: str = ""
    store_revision: int = 0  # not part of the value

    @property
    def key(self) -> str:
        decision = self.decision
        return keys.override(self.site, decision.workload_uid, decision.replica, decision.field)

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = {
            "decision": to_body(self.decision),
            "heard_ms": self.heard_ms,
            "judged": self.judged,
            "accepted": self.accepted,
        }
        return KeptRecord(self.key, body, self.store_revision)

    def taken_back(self, by: str, reason: str, now_ms: int) -> "LocalOverride":
        """By the orchestrator: newer than what it knows."""
        decision = replace(
            self.decision,
            value="",
            stamp=next_stamp([self.decision]),
            node="",
            id="",
            by=by,
            reason=reason[:REASON_MAX],
            at_ms=now_ms,
            conflict="",
            proof=None,
        )
        return replace(self, decision=decision, heard_ms=now_ms, judged=True, accepted="")

    def contradicted(self, conflict: str) -> "LocalOverride":
        """With what was decided against it; empty: nothing."""
        decision = replace(self.decision, conflict=conflict[:CONFLICT_MAX])
        return replace(self, decision=decision, judged=True)

    def __str__(self) -> str:
        return words(self.decision)


def read(record: KeptRecord) -> LocalOverride | None:
    """None: a newer version wrote it, and means something that this one does not know."""
    site = record.key.removeprefix(keys.OVERRIDES).partition("/")[0]
    body = record.body
    try:
        found = LocalOverride(
            site,
            from_body(body["decision"]),
            int(body.get("heard_ms", 0)),
            bool(body.get("judged")),
            str(body.get("accepted", "")),
            record.store_revision,
        )
    except (BadOverride, KeyError, TypeError, ValueError):
        return None
    return found if found.key == record.key else None


def said(message: plan_pb2.Override, site: str, now_ms: int) -> LocalOverride:
    """What a node of the site says. Raises BadOverride. A conflict is for the leader to find."""
    decision = replace(from_message(message), conflict="")
    if not decision.stamp:
        raise BadOverride("it has no stamp")
    names = (decision.workload_uid, decision.namespace, decision.replica, decision.node)
    moved_to = decision.value if decision.field == PLACED_ON else ""
    for name in (*names, moved_to):
        if name and _NAME.fullmatch(name) is None:
            raise BadOverride(f"{name[:40]!r} is no name")
    return LocalOverride(site, decision, now_ms)


def merged(known: LocalOverride | None, heard: LocalOverride) -> LocalOverride | None:
    """What is to be written; None: what is known already is as new."""
    if known is None:
        return heard
    if heard.decision.rank <= known.decision.rank:
        return None
    return replace(heard, store_revision=known.store_revision)


@dataclass(frozen=True, slots=True)
class SiteDecisions:
    """What of it holds, as the scheduler is to obey it: by (site, workload uid, replica), and by
    site. `all`: with what was taken back, by key."""

    stopped: Mapping[tuple[str, str, str], LocalOverride] = field(default_factory=dict)
    placed_on: Mapping[tuple[str, str, str], LocalOverride] = field(default_factory=dict)
    frozen: Mapping[str, LocalOverride] = field(default_factory=dict)
    all: tuple[LocalOverride, ...] = ()


NOTHING_DECIDED = SiteDecisions()


def decisions(kept: Iterable[KeptRecord]) -> SiteDecisions:
    """From the records under `keys.OVERRIDES`."""
    stopped, placed_on, frozen = {}, {}, {}
    every = tuple(overrides_in(kept))
    for found in every:
        if not found.decision.stands:
            continue
        key = (found.site, *found.decision.subject)
        if found.decision.field == FROZEN:
            frozen[found.site] = found
        elif found.decision.field == STOPPED:
            stopped[key] = found
        else:
            placed_on[key] = found
    return SiteDecisions(stopped, placed_on, frozen, every) if every else NOTHING_DECIDED


def overrides_in(kept: Iterable[KeptRecord]) -> list[LocalOverride]:
    """All of these records that can be read, those that were taken back too; by key."""
    found = (read(record) for record in kept)
    return sorted((item for item in found if item is not None), key=lambda item: item.key)
