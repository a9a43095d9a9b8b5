"""Makes room for a workload of higher priority, by stopping as little as possible.

Called for replicas that found no node. On each node that would do but for room, the replicas of
strictly lower priority are taken away in thought, and given back from the highest priority down as
long as the newcomer still fits; what is left are that node's victims. The node is taken whose most
important victim matters least, then the one with the fewest, then with the least in sum. Victims
stop now and are placed again elsewhere by their own workload's turn in the same plan, if there is
room; the newcomer is placed when their agents say that they are gone, and its room is kept for it
until then. Namespaces that are not preemptible have no victims.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from orchestrator.scheduling.affinity import Neighbours
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.decisions import Cause, Stop
from orchestrator.scheduling.filters import Need
from orchestrator.scheduling.holders import Holder, Holders, template_of
from orchestrator.scheduling.quota import Quotas
from orchestrator.scheduling.snapshot import Snapshot, Template, Workload
from orchestrator.scheduling.table import Mask, NodeTable

VICTIMS_MAX = 500
"""In one plan: a larger change takes several, each seen before the next."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A replica that could make room."""

    holder: Holder
    workload: Workload
    template: Template


class Preemption:
    """One per plan. Replicas that it stops are gone from `holders` when it returns."""

    def __init__(
        self,
        snapshot: Snapshot,
        table: NodeTable,
        holders: Holders,
        neighbours: Neighbours,
        quotas: Quotas,
    ) -> None:
        self._snapshot = snapshot
        self._table = table
        self._holders = holders
        self._neighbours = neighbours
        self._quotas = quotas
        self._by_row: defaultdict[int, list[Victim]] | None = None
        self._yielding = holders.yielding
        self._left = VICTIMS_MAX
        self.lowest = min(
            (w.priority for w in snapshot.workloads if w.uid in holders.by_workload), default=0
        )

    def can_help(self, workload: Workload) -> bool:
        """Whether anybody at all is less important, or is making room already."""
        return bool(self._yielding) or workload.priority > self.lowest

    def make_room(
        self, workload: Workload, need: Need, chooser: Chooser, among: Mask | None, number: int
    ) -> tuple[int, list[Stop]]:
        """(for how many of `number` replicas room is being made, the stops that make it)."""
        stops: list[Stop] = []
        promised = 0
        everywhere = np.ones(self._table.size, dtype=np.bool_)
        while promised < number:
            allowed = chooser.allowed_with_room(everywhere)
            if among is not None:
                allowed &= among
            row = self._waiting_room(need, allowed)
            if row is None:
                found = self._cheapest(workload, need, allowed)
                if found is None:
                    break
                row, victims = found
                stops += [self._stop(victim, workload) for victim in victims]
            # What is promised is held from now on, so that the same room is not promised twice.
            chooser.take(row)
            promised += 1
        return promised, stops

    # --- parts -----------------------------------------------------------------------------------

    def _waiting_room(self, need: Need, allowed: Mask) -> int | None:
        """A node where it fits once those are gone that were asked to make room before."""
        for row in sorted(self._yielding):
            if allowed[row] and self._fits_without(row, need, []):
                return row
        return None

    def _cheapest(
        self, workload: Workload, need: Need, allowed: Mask
    ) -> tuple[int, list[Victim]] | None:
        best: tuple[tuple[int, ...], int, list[Victim]] | None = None
        for row, candidates in sorted(self._victims().items()):
            if not allowed[row]:
                continue
            lower = [v for v in candidates if v.workload.priority < workload.priority]
            chosen = self._fewest(row, need, lower)
            if chosen is None or len(chosen) > self._left:
                continue
            priorities = [victim.workload.priority for victim in chosen]
            cost = (max(priorities, default=-(1 << 62)), len(chosen), sum(priorities))
            if best is None or cost < best[0]:
                best = (cost, row, chosen)
        return None if best is None or not best[2] else best[1:]

    def _fewest(self, row: int, need: Need, lower: list[Victim]) -> list[Victim] | None:
        """The victims on one node, or None when even without all of them it does not fit."""
        if not lower or not self._fits_without(row, need, [v.template for v in lower]):
            return None
        gone = sorted(lower, key=lambda v: (-v.workload.priority, v.holder.order, v.workload.uid))
        for victim in list(gone):
            rest = [other.template for other in gone if other is not victim]
            if self._fits_without(row, need, rest):
                gone.remove(victim)
        return gone

    def _fits_without(self, row: int, need: Need, more: list[Template]) -> bool:
        """When those are gone that make room already, and these."""
        gone = [*self._yielding.get(row, ()), *more]
        for template in gone:
            self._table.release(row, template)
        fits = self._table.has_room(row, need.template)
        for template in gone:
            self._table.hold(row, template)
        return fits

    def _stop(self, victim: Victim, workload: Workload) -> Stop:
        assert self._by_row is not None and victim.holder.row is not None
        self._by_row[victim.holder.row].remove(victim)
        self._left -= 1
        self._yielding[victim.holder.row].append(victim.template)
        uid, record = victim.workload.uid, victim.holder.record
        del self._holders.by_workload[uid][record.replica]
        if record.group is not None and record.group.exclusive:
            self._holders.remains(victim.holder.node, record)
        self._neighbours.add(uid, [victim.holder.row], -1)
        self._quotas.use(victim.workload.namespace, victim.template, -1)
        text = f"its room is needed by {workload.namespace}/{workload.name}, whose priority "
        text += f"{workload.priority} is higher than {victim.workload.priority}"
        return Stop(victim.holder.node, record, Cause.PREEMPTED, text)

    def _victims(self) -> dict[int, list[Victim]]:
        if self._by_row is None:
            self._by_row = defaultdict(list)
            for workload in self._snapshot.workloads:
                namespace = self._snapshot.namespaces.get(workload.namespace)
                kept = namespace is not None and (not namespace.preemptible or namespace.frozen)
                if kept or workload.frozen:
                    continue
                moving = self._holders.incoming.get(workload.uid, {})
                for name, holder in self._holders.by_workload.get(workload.uid, {}).items():
                    seen = self._snapshot.observed.get((holder.node, holder.record.replica_uid))
                    ended = seen is not None and seen.finished
                    if holder.row is None or name in moving or ended:
                        continue
                    number = holder.record.revision
                    template = template_of(self._snapshot, workload.uid, number)
                    self._by_row[holder.row].append(Victim(holder, workload, template))
        return self._by_row
