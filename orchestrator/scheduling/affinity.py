"""Rules between workloads of one namespace: together with, or apart from, replicas by label.

`Neighbours` knows where each workload's replicas are while a plan is being made; the filters made
from it are counted on as replicas are placed. A rule is about new placements: what is placed stays
when its neighbour leaves, be it by preemption later in the same plan. A required `antiAffinity`
also keeps away those that it names.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from orchestrator.scheduling.reasons import Need, Reason
from orchestrator.scheduling.snapshot import Workload
from orchestrator.scheduling.table import Ints, Mask, NodeTable
from polder.manifest.placement import Affinity


class Neighbours:
    """Where the replicas of every workload are, by row. Inactive when no workload has a rule."""

    def __init__(self, workloads: Iterable[Workload]) -> None:
        known = sorted(workloads, key=lambda workload: workload.uid)
        self.active = any(w.placement.affinity or w.placement.anti_affinity for w in known)
        self._by_namespace: defaultdict[str, list[Workload]] = defaultdict(list)
        self._rows: dict[str, Counter[int]] = {}
        self._leaving: dict[str, Counter[int]] = {}
        if self.active:
            for workload in known:
                if not workload.deleting:
                    self._by_namespace[workload.namespace].append(workload)

    def add(self, uid: str, rows: Iterable[int], by: int = 1) -> None:
        """Count replicas in, or out with `by` -1."""
        if self.active:
            counter = self._rows.setdefault(uid, Counter())
            leaving = self._leaving.get(uid)
            for row in rows:
                counter[row] += by
                if by < 0 and leaving and leaving[row] > 0:
                    leaving[row] += by

    def leave(self, uid: str, rows: Iterable[int]) -> None:
        """Those there are being replaced: still to be kept apart from, no longer to be joined."""
        if self.active:
            self._leaving.setdefault(uid, Counter()).update(rows)

    def rows(self, uid: str, apart: bool) -> Mapping[int, int]:
        """Replicas by row, as a rule counts them that keeps apart, or that joins."""
        found = self._rows.get(uid, Counter())
        return found if apart or uid not in self._leaving else found - self._leaving[uid]

    def named(self, namespace: str, labels: Mapping[str, str]) -> Iterable[Workload]:
        """The workloads that a rule means."""
        return (w for w in self._by_namespace[namespace] if matches(labels, w.labels))

    def keeping_away(self, need: Need, uid: str) -> Iterable[tuple[Workload, Affinity]]:
        """Required rules of others that name this one."""
        for other in self._by_namespace[need.namespace]:
            for rule in other.placement.anti_affinity:
                if rule.required and other.uid != uid and matches(rule.workloads, need.labels):
                    yield other, rule


def matches(asked: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in asked.items())


class NeighbourRule:
    """One rule as a filter, and as what is better where it is only preferred."""

    def __init__(
        self, table: NodeTable, rule: Affinity, counts: Ints, apart: bool, own: bool, whose: str
    ) -> None:
        self.code = "AntiAffinity" if apart else "AffinityUnmet"
        self.by = rule.by
        self.own = own
        self.apart = apart
        self._codes = table.topology(rule.by).codes
        self._values = table.topology(rule.by).values
        self._counts = counts
        self._rule = rule
        self._whose = whose

    def failing(self, table: NodeTable, need: Need) -> Mask:
        codes = self._codes
        if not len(self._counts):
            return np.ones(table.size, dtype=np.bool_)
        if not self.apart and self.own and not self._counts.any():
            first: Mask = codes < 0
            return first
        there = self._counts[codes] > 0
        failing: Mask = there if self.apart else ~there
        return failing | (codes < 0)

    def good(self) -> Mask:
        """Rows where the rule is met."""
        if not len(self._counts):
            return np.zeros(len(self._codes), dtype=np.bool_)
        there = (self._counts[self._codes] > 0) & (self._codes >= 0)
        return ~there if self.apart else there

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        code = int(self._codes[row])
        field = "antiAffinity" if self.apart else "affinity"
        knob = f"placement.{field}.{self.by}"
        if code < 0:
            return (Reason(self.code, f"its {self.by} is not known", knob),)
        labels = ", ".join(f"{k}={v}" for k, v in sorted(self._rule.workloads.items()))
        where = f"{self.by} {self._values[code]}"
        if self._whose:
            text = f"{where} has a replica of {self._whose}, which keeps {labels} away"
            return (Reason(self.code, text),)
        text = f"{where} has a replica of {labels}" if self.apart else f"{where} has no {labels}"
        return (Reason(self.code, text, knob),)

    def change(self, row: int, by: int) -> None:
        """One of the workload's own replicas is placed on the row, or leaves it."""
        if self.own and self._codes[row] >= 0:
            self._counts[self._codes[row]] += by


def rules_of(
    table: NodeTable, neighbours: Neighbours, need: Need, uid: str
) -> tuple[list[NeighbourRule], list[NeighbourRule]]:
    """(required, preferred), with what is placed so far counted in."""
    required: list[NeighbourRule] = []
    preferred: list[NeighbourRule] = []
    if not neighbours.active:
        return required, preferred
    where = need.placement
    for apart, rules in ((False, where.affinity), (True, where.anti_affinity)):
        for rule in rules:
            uids = [w.uid for w in neighbours.named(need.namespace, rule.workloads)]
            own = matches(rule.workloads, need.labels)
            counts = _counts(table, neighbours, rule.by, uids, apart)
            made = NeighbourRule(table, rule, counts, apart, own, "")
            (required if rule.required else preferred).append(made)
    for other, rule in neighbours.keeping_away(need, uid):
        counts = _counts(table, neighbours, rule.by, [other.uid], apart=True)
        required.append(NeighbourRule(table, rule, counts, True, False, other.name))
    return required, preferred


def _counts(
    table: NodeTable, neighbours: Neighbours, by: str, uids: Iterable[str], apart: bool
) -> Ints:
    codes = table.topology(by)
    counts = np.zeros(len(codes.values), dtype=np.int64)
    for uid in uids:
        for row, number in neighbours.rows(uid, apart).items():
            if codes.codes[row] >= 0:
                counts[codes.codes[row]] += number
    return counts
