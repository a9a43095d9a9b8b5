"""Freezes: an operator stops all automation, of one namespace or of everything. Pure.

A freeze is a record in the Store, so it survives every restart. While it stands nothing is placed,
moved, stopped or updated by itself, no rollout advances and no schedule fires; agents go on
restarting their containers. What operators write is accepted, and takes effect after the thaw.

The operator API writes the records (`orchestrator/api/guards.py`); the leader marks what is frozen
before it plans, and looks through the plan once more after (`orchestrator/scheduling/
guards_step.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.domain.guard import with_places
from orchestrator.records import KeptRecord
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.store import keys

REASON_MAX = 500


@dataclass(frozen=True, slots=True)
class Freeze:
    """`namespace` empty: of everything. `by` as in Event.source; `since_ms` unix ms."""

    namespace: str
    by: str
    reason: str
    since_ms: int
    store_revision: int = 0  # not part of the value

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = {"by": self.by, "reason": self.reason, "since_ms": self.since_ms}
        return KeptRecord(keys.freeze(self.namespace), body, self.store_revision)

    def __str__(self) -> str:
        what = f"namespace {self.namespace} is" if self.namespace else "everything is"
        why = f" ({self.reason})" if self.reason else ""
        return f"{what} frozen by {self.by}{why}"

    @property
    def thaw(self) -> str:
        """What ends it, to be typed."""
        return f"edgectl thaw --namespace {self.namespace}" if self.namespace else "edgectl thaw"


Freezes = Mapping[str, Freeze]
"""By namespace; the empty one is of everything."""


def read(record: KeptRecord) -> Freeze:
    """A record that is not understood freezes all the same: that is what it was made for."""
    name = record.key.removeprefix(keys.FREEZES)
    since = record.body.get("since_ms", 0)
    return Freeze(
        "" if name == keys.NO_NAMESPACE else name,
        str(record.body.get("by", "")),
        str(record.body.get("reason", "")),
        since if isinstance(since, int) else 0,
        record.store_revision,
    )


def freezes_in(kept: Iterable[KeptRecord]) -> Freezes:
    found = [read(record) for record in kept if record.key.startswith(keys.FREEZES)]
    return {freeze.namespace: freeze for freeze in found}


def freeze_of(freezes: Freezes, namespace: str) -> Freeze | None:
    """What freezes a namespace: its own, or that of everything."""
    return freezes.get(namespace) or freezes.get("")


def frozen(snapshot: Snapshot, freezes: Freezes) -> Snapshot:
    """The same with everything marked that is frozen."""
    if not freezes:
        return snapshot
    return replace(
        snapshot,
        workloads=tuple(
            replace(workload, frozen=True) if freeze_of(freezes, workload.namespace) else workload
            for workload in snapshot.workloads
        ),
        namespaces={
            name: replace(namespace, frozen=True) if freeze_of(freezes, name) else namespace
            for name, namespace in snapshot.namespaces.items()
        },
    )


def without_frozen(plan: Plan, snapshot: Snapshot, freezes: Freezes) -> Plan:
    """The plan without what would change something that is frozen. The planner leaves that out by
    itself; this keeps the promise whatever it does."""
    if not freezes:
        return plan
    still = frozenset(
        {w.uid for w in snapshot.workloads if w.frozen}
        | {
            item.workload_uid
            for placement in snapshot.placements.values()
            for item in placement.assignments
            if freeze_of(freezes, item.namespace)
        }
    )
    if not still:
        return plan
    plan = with_places(plan, lambda place: place.assignment.workload_uid not in still)
    return replace(
        plan,
        unbind=tuple(u for u in plan.unbind if not freeze_of(freezes, u.namespace)),
        stop=tuple(stop for stop in plan.stop if stop.assignment.workload_uid not in still),
        revise=tuple(r for r in plan.revise if r.assignment.workload_uid not in still),
        standbys=tuple(s for s in plan.standbys if s.assignment.workload_uid not in still),
        refresh=tuple(node for node in plan.refresh if not _still(node, snapshot, still)),
        finished_workloads=tuple(uid for uid in plan.finished_workloads if uid not in still),
        finished_nodes=() if "" in freezes else plan.finished_nodes,
    )


def _still(node: str, snapshot: Snapshot, frozen_uids: frozenset[str]) -> bool:
    """Whether a new generation would only bring changed Secrets and Configs to what is frozen. One
    that the agent is ahead of is renewed all the same: the same plan, with a number that counts."""
    placement = snapshot.placements.get(node)
    if placement is None or node in snapshot.ahead:
        return False
    return all(item.workload_uid in frozen_uids for item in placement.assignments)
