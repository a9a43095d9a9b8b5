"""Decides for one workload: what is too many, what must leave, what changes, what is missing.

`plan()` runs one per workload, in order of priority; they share the table, so that each sees what
the earlier ones took. Order within a workload: surplus stops, replacements under way are followed,
lost and deleted nodes are left, then forbidden sites, then what can wait moves or is updated one
replica at a time, then what is missing gets a place.
"""

from collections.abc import Sequence

import numpy as np

from orchestrator.scheduling import filters
from orchestrator.scheduling.decisions import Cause, Standbys
from orchestrator.scheduling.desired import is_indexed, place_names
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.moves import Moves, cause_of
from orchestrator.scheduling.part import Planning, ordered
from orchestrator.scheduling.placements import Batch, names_of
from orchestrator.scheduling.placer import Rows
from orchestrator.scheduling.snapshot import Mode, Workload
from orchestrator.scheduling.table import Mask


class WorkloadPlan(Moves):
    """Make one, and call `delete` or `decide` once.

    For a workload that goes where others are: `change_held`, `place_some` as long as anybody
    places something, and `finish`.
    """

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._blockers = filters.blockers(planning.snapshot, workload)
        self._done: list[Rows] = []  # indexes that this plan placed

    def delete(self) -> None:
        """Stop everything: the workload has a tombstone."""
        message = f"workload {self._workload.name} was deleted"
        for held in (self._held, self._incoming):
            for holder in ordered(held):
                self._stop(holder, Cause.WORKLOAD_DELETED, message)
        self._out.desired.append((self._workload.uid, 0))

    def decide(self) -> None:
        """All steps, in order."""
        self.change_held()
        self.finish()

    def change_held(self) -> None:
        """What its present replicas need: to stop, to move, to change."""
        for blocker in self._blockers:
            self._explain(blocker.code, blocker.text)
        if self._held and not self._blockers:
            self._stop_surplus()
            self._follow_replacements()
            self._leave_forced()
            self._leave_forbidden()
            self._change_gently()
            self._renew_standbys()

    def place_some(self) -> bool:
        """Place what can be placed now, without a word on the rest; whether that was any."""
        if self._blockers or self._workload.mode is not Mode.REPLICAS:
            return False
        return self._place_numbers(self._missing()) > 0

    def finish(self) -> None:
        """Place what is missing, and explain what is not as it should be."""
        wanted = len(self._held) + sum(len(part) for part in self._done)
        if not self._blockers:
            wanted += self._place_missing()
        if self._stuck:
            self._explain_stuck()
        self._out.desired.append((self._workload.uid, wanted))

    # --- surplus ---------------------------------------------------------------------------------

    def _stop_surplus(self) -> None:
        match self._workload.mode:
            case Mode.REPLICAS:
                kept = {name for name in self._held if is_indexed(self._workload, name)}
            case Mode.PER_SITE:
                sites = self._sites(filters.PLAIN_RULES)
                kept = {name for name, _ in place_names(self._workload, sites)}
            case Mode.PER_NODE:
                nodes = [self._table.nodes[row].name for row in np.flatnonzero(self._staying())]
                unknown = [h.node for h in self._held.values() if h.row is None]
                kept = {name for name, _ in place_names(self._workload, nodes + unknown)}
        surplus = {name: holder for name, holder in self._held.items() if name not in kept}
        for holder in reversed(ordered(surplus)):
            cause, message = self._surplus_cause(holder)
            self._stop(holder, cause, message)
            self._drop(holder.record.replica)
            replacement = self._incoming.pop(holder.record.replica, None)
            if replacement is not None:
                self._stop(replacement, cause, message)

    def _surplus_cause(self, holder: Holder) -> tuple[Cause, str]:
        if holder.row is not None and self._workload.mode is not Mode.REPLICAS:
            if self._table.nodes[holder.row].deleting:
                return Cause.NODE_DELETED, f"node {holder.node} is being deleted"
            broken = filters.reasons(filters.STAYING_RULES, self._table, self._need, holder.row)
            if broken:
                return cause_of(broken), broken[0].text
        mode, count = self._workload.mode.value, self._workload.count
        return Cause.SCALED_DOWN, f"workload {self._workload.name} now asks for {mode}: {count}"

    # --- what is missing -------------------------------------------------------------------------

    def _place_missing(self) -> int:
        """How many were missing; those that found a node are placed, the rest explained."""
        match self._workload.mode:
            case Mode.REPLICAS:
                return self._place_numbered()
            case Mode.PER_SITE:
                by_site: dict[str, list[str]] = {}
                for name, site in place_names(self._workload, self._sites()):
                    if name not in self._held:
                        by_site.setdefault(site, []).append(name)
                return self._place_per_site(by_site)
            case Mode.PER_NODE:
                return self._place_per_node()

    def _place_numbered(self) -> int:
        missing = self._missing()
        placed = self._place_numbers(missing)
        if placed < len(missing):
            quotas, namespace = self._planning.quotas, self._workload.namespace
            left = missing[placed:]
            self._explain_missing(left, quotas.room(namespace, self._template, len(left)))
        return len(missing)

    def _place_numbers(self, missing: Rows) -> int:
        """How many of them found a node, the first ones first."""
        planning, workload = self._planning, self._workload
        allowed = planning.quotas.room(workload.namespace, self._template, len(missing))
        if not allowed:
            return 0
        rows = planning.placer.rows_for(workload, self._need, allowed, self._rows(), self._pack)
        placed = len(rows)
        if placed:
            standbys = self._standbys_for(rows) if workload.failover.standbys else ()
            self._out.place.add(Batch(workload, missing[:placed], rows, standbys))
            planning.quotas.use(workload.namespace, self._template, placed)
            self._done.append(missing[:placed])
            self._lazy_chooser = None
            self._more_rows += [int(row) for row in rows]
        return placed

    def _missing(self) -> Rows:
        count = self._workload.count
        if not self._held and not self._done:
            return range(count)
        lacks = np.ones(count, dtype=np.bool_)
        prefix = len(self._workload.name) + 1
        lacks[[int(name[prefix:]) for name in self._held]] = False
        for part in self._done:
            lacks[np.asarray(part)] = False
        return np.flatnonzero(lacks)

    def _explain_missing(self, missing: Rows, fitless: int) -> None:
        """`fitless` of them found no node; the others are over quota."""
        name = self._workload.name
        if fitless:
            self._make_room(names_of(name, missing[:fitless]), None, "")
        if len(missing) > fitless:
            self._over_quota(names_of(name, missing[fitless:]))

    def _place_per_site(self, by_site: dict[str, list[str]]) -> int:
        """Round by round: a site that is full for now may not be when others have theirs."""
        wanted = sum(len(names) for names in by_site.values())
        waiting = dict(by_site)
        progress = True
        while progress:
            progress = False
            for site, names in waiting.items():
                left = self._place_group(names, self._site_mask(site))
                progress = progress or len(left) < len(names)
                waiting[site] = left
        for site, names in waiting.items():
            if names and self._within_quota(names):
                self._make_room(tuple(names), self._site_mask(site), f"of site {site} ")
        return wanted

    def _place_group(self, names: list[str], among: Mask) -> list[str]:
        """The names that got no node."""
        quotas, namespace = self._planning.quotas, self._workload.namespace
        for done, name in enumerate(names):
            row = (
                self._chooser().choose(among) if quotas.room(namespace, self._template, 1) else None
            )
            if row is None:  # nor will the others of this group fit
                return names[done:]
            self._place_new(name, row)
        return []

    def _place_per_node(self) -> int:
        usable = self._chooser().usable & ~self._table.flags("deleting")
        nodes = [self._table.nodes[row].name for row in np.flatnonzero(usable)]
        blocked = np.zeros(self._table.size, dtype=np.bool_)
        names, missing = [], 0
        for name, node in place_names(self._workload, nodes):
            if name in self._held:
                continue
            missing += 1
            row = self._table.index[node]
            if not self._chooser().fits(row):
                blocked[row] = True
                names.append(name)
            elif self._within_quota([name]):
                self._place_new(name, row)
        if names:
            self._make_room(tuple(names), blocked, "that qualify and lack a replica ")
        return missing

    def _place_new(self, name: str, row: int) -> None:
        self._place(name, row)
        self._planning.quotas.use(self._workload.namespace, self._template)
        # What this plan placed is counted by the caller.
        self._more_rows.append(row)
        del self._held[name]

    def _within_quota(self, names: Sequence[str]) -> bool:
        if self._planning.quotas.room(self._workload.namespace, self._template, 1):
            return True
        self._over_quota(tuple(names))
        return False

    # --- when there is no place ------------------------------------------------------------------

    def _make_room(self, names: Sequence[str], among: Mask | None, where: str) -> None:
        """By preemption, if somebody is less important; the others are explained."""
        preemption = self._planning.preemption
        promised = 0
        if preemption.can_help(self._workload):
            promised, stops = preemption.make_room(
                self._workload, self._need, self._chooser(), among, len(names)
            )
            self._out.stop += stops
        if promised:
            text = f"{promised} get a node when replicas of lower priority have made room"
            self._explain("Preempting", text, names[:promised])
        if promised < len(names):
            text, found = self._fits_nowhere(among, where)
            self._explain("Unschedulable", text, names[promised:] if promised else names, found)

    def _over_quota(self, names: Sequence[str]) -> None:
        reasons = self._planning.quotas.over(self._workload.namespace, self._template)
        text = "; ".join(reason.text for reason in reasons)
        self._explain("QuotaExceeded", text, names)

    # --- standbys --------------------------------------------------------------------------------

    def _renew_standbys(self) -> None:
        """Of replicas that stay: others for those that would not do any more."""
        if not self._workload.failover.standbys and not any(
            holder.record.standbys for holder in self._held.values()
        ):
            return
        changing = {revise.assignment.replica_uid for revise in self._out.revise}
        before = self._planning.holders.by_workload.get(self._workload.uid, {})
        for name, holder in self._held.items():
            if holder.row is None or before.get(name) is not holder:
                continue
            if holder.record.replica_uid in changing:
                continue
            wanted = self._standby_chooser().renew(holder.row, holder.record.standbys)
            if wanted != holder.record.standbys:
                self._out.standbys.append(Standbys(holder.node, holder.record, wanted))
