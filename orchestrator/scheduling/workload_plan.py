"""Decides for one workload: what is too many, what must leave, what changes, what is missing.

`plan()` runs one per workload, in order of priority; they share the table, so that each sees what
the earlier ones took. Order within a workload: surplus stops, replacements under way are followed,
lost and deleted nodes are left, then forbidden sites, then what can wait moves or is updated one
replica at a time, then what is missing gets a place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.scheduling import filters
from orchestrator.scheduling.changes import Changes
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.decisions import Cause, Standbys
from orchestrator.scheduling.desired import index_names, is_indexed, place_names
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.lanes import Lane
from orchestrator.scheduling.moves import cause_of
from orchestrator.scheduling.part import Planning, ordered
from orchestrator.scheduling.placements import Batch, Heirs, names_of
from orchestrator.scheduling.placer import Rows
from orchestrator.scheduling.snapshot import Mode, Workload
from orchestrator.scheduling.table import Ints, Mask


class WorkloadPlan(Changes):
    """Make one, and call `delete` or `decide` once.

    For a workload that goes where others are: `change_held`, `place_some` as long as anybody
    places something, and `finish`.
    """

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._blockers = filters.blockers(planning.snapshot, workload)
        namespace = planning.snapshot.namespaces.get(workload.namespace)
        self._frozen = workload.frozen or (namespace is not None and namespace.frozen)
        self._done: list[Rows] = []  # indexes that this plan placed

    def delete(self) -> None:
        """Stop everything: the workload has a tombstone."""
        if self._frozen:
            self._tell_frozen("it was deleted, and goes")
            return
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
        if self._frozen:
            self._tell_frozen("nothing about it changes, and what is due is done")
            return
        for blocker in self._blockers:
            self._explain(blocker.code, blocker.text)
        if self._held and not self._blockers:
            self._stop_surplus()
            self._follow_replacements()
            self._leave_forced()
            self._leave_forbidden()
            self._change_gently()
            self._renew_heirs()

    def place_some(self) -> bool:
        """Place what can be placed now, without a word on the rest; whether that was any."""
        if self._blockers or self._frozen:
            return False
        self._choosers.clear()  # others may have placed something since
        if self._workload.mode is Mode.REPLICAS:
            return self._place_numbers(self._missing()) > 0
        missing = self._missing_places()
        return len(self._place_in_rounds(missing)) < len(missing)

    def finish(self) -> None:
        """Place what is missing, and explain what is not as it should be."""
        if self._frozen:
            return
        if self._done or self._named:
            self._choosers.clear()
        wanted = len(self._held) + len(self._named) + sum(len(part) for part in self._done)
        if not self._blockers:
            wanted += self._place_missing() + len(self._withheld() - self._held.keys())
        if self._stuck:
            self._explain_stuck()
        self._explain_stopped()
        if self._exclusive:
            self._explain_exclusive()
        if self._workload.held_elsewhere and not self._lanes.admitted.all():
            self._explain_held()
        self._out.desired.append((self._workload.uid, wanted))

    def _tell_frozen(self, what: str) -> None:
        names = tuple(holder.record.replica for holder in ordered(self._held))
        self._explain("Frozen", f"{what} after `edgectl thaw`", names)
        self._out.desired.append((self._workload.uid, len(self._held)))

    def _explain_held(self) -> None:
        text = f"revision {self._workload.revision} goes to some sites first, and the revision from"
        text += " before is not in the store: elsewhere replicas keep what they have, and none is"
        self._explain("RevisionLost", f"{text} placed until the rollout comes there")

    # --- surplus ---------------------------------------------------------------------------------

    def _stop_surplus(self) -> None:
        match self._workload.mode:
            case Mode.REPLICAS:
                kept = self._kept_numbers()
            case Mode.PER_SITE:
                sites = self._sites(filters.PLAIN_RULES)
                kept = {name for name, _ in place_names(self._workload, sites)}
            case Mode.PER_NODE:
                barred = {h.node for h in self._held.values() if self._wrong_image(h)}
                names = [self._table.nodes[row].name for row in np.flatnonzero(self._staying())]
                nodes = [name for name in names if name not in barred]
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

    def _kept_numbers(self) -> set[str]:
        if self._workload.indexes is not None:
            return set(index_names(self._workload)).intersection(self._held)
        return {name for name in self._held if is_indexed(self._workload, name)}

    def _surplus_cause(self, holder: Holder) -> tuple[Cause, str]:
        if self._workload.indexes is not None:
            ended = self._has_ended(holder)
            message = "it is finished" if ended else "its job does not want it any more"
            return Cause.COMPLETED, message
        if holder.row is not None and self._workload.mode is not Mode.REPLICAS:
            if self._table.nodes[holder.row].deleting:
                return Cause.NODE_DELETED, f"node {holder.node} is being deleted"
            broken = filters.reasons(filters.STAYING_RULES, self._table, self._need, holder.row)
            if broken:
                return cause_of(broken), broken[0].text
            if text := self._wrong_image(holder):
                return Cause.IMAGE_PLATFORM, text
        mode, count = self._workload.mode.value, self._workload.count
        return Cause.SCALED_DOWN, f"workload {self._workload.name} now asks for {mode}: {count}"

    # --- what is missing -------------------------------------------------------------------------

    def _place_missing(self) -> int:
        """How many were missing; those that found a node are placed, the rest explained."""
        if self._workload.mode is Mode.REPLICAS:
            return self._place_numbered()
        missing = self._missing_places()
        left: dict[str, list[str]] = {}
        for name, place in self._place_in_rounds(missing):
            left.setdefault(place, []).append(name)
        names = [name for waiting in left.values() for name in waiting]
        if names and self._within_quota(names):
            if self._workload.mode is Mode.PER_NODE:
                self._make_room(tuple(names), self._mask(left), "that qualify and lack a replica ")
            else:
                for site, waiting in left.items():
                    self._make_room(tuple(waiting), self._mask([site]), f"of site {site} ")
        return len(missing)

    def _place_in_rounds(self, missing: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those that got no node. A place that will not do for now may when others have theirs."""
        masks = {place: self._mask([place]) for place in {place for _, place in missing}}
        waiting, progress = missing, True
        while progress:
            left, full = [], set[str]()
            for name, place in waiting:
                found = None
                if place not in full:
                    found = self._choose(name, self._lanes.for_new(), masks[place])
                if found is None:
                    full.add(place)
                    left.append((name, place))
                else:
                    self._place_new(name, *found)
            progress = len(left) < len(waiting)
            waiting = left
        return waiting

    def _mask(self, places: Iterable[str]) -> Mask:
        """Rows of these nodes, or of this site."""
        if self._workload.mode is Mode.PER_SITE:
            (site,) = places
            return self._site_mask(site)
        mask = np.zeros(self._table.size, dtype=np.bool_)
        mask[[self._table.index[node] for node in places]] = True
        return mask

    def _place_numbered(self) -> int:
        missing = self._missing()
        self._place_numbers(missing)
        left = self._missing() if len(missing) else missing
        if self._template.local_volumes:
            left = self._explain_tied(left)
        if len(left):
            quotas, namespace = self._planning.quotas, self._workload.namespace
            self._explain_missing(left, quotas.room(namespace, self._template, len(left)))
        return len(missing)

    def _place_numbers(self, missing: Rows) -> int:
        """How many of them found a node, the first ones first."""
        placed = 0
        if self._template.local_volumes:
            tied = [int(i) for i in missing if self._home(self._name(i)) is not None]
            placed = self._place_singly(tied, self._lanes.for_new())
            missing = np.setdiff1d(np.asarray(missing), tied)
        many = self._place_many(missing)
        placed += many
        if self._lanes.mixed and many < len(missing):
            # What has room for one of two revisions only.
            for lane in self._lanes.for_new()[1:]:
                self._choosers.clear()
                placed += self._place_singly(self._missing(), (lane,), stop=True)
        return placed

    def _place_many(self, missing: Rows) -> int:
        planning, workload = self._planning, self._workload
        allowed = planning.quotas.room(workload.namespace, self._template, len(missing))
        if not allowed:
            return 0
        rows = planning.placer.rows_for(workload, self._need, allowed, self._rows(), self._pack)
        placed = len(rows)
        if not placed:
            return 0
        indexes = missing[:placed]
        heirs = self._heirs_for(rows) if self._has_heirs else ()
        batch = Batch(workload, indexes, rows, heirs, self._lanes.usual)
        if self._lanes.mixed:
            batch = replace(batch, revisions=self._revisions_at(np.asarray(rows)))
        else:
            planning.quotas.use(workload.namespace, self._template, placed)
        self._out.place.add(batch)
        if self._template.local_volumes:
            for index, row in zip(indexes, rows, strict=True):
                node = self._table.nodes[int(row)].name
                self._bind(self._name(index), node, self._template)
        self._done.append(indexes)
        self._choosers.clear()
        self._more_rows += [int(row) for row in rows]
        return placed

    def _revisions_at(self, rows: Ints) -> Ints:
        """Of new replicas that were placed with the needs of both revisions; what they do not need
        is given back."""
        revisions = self._lanes.at_rows(rows)
        namespace = self._workload.namespace
        for row, revision in zip(rows.tolist(), revisions.tolist(), strict=True):
            template = self._lanes.template(revision)
            self._planning.quotas.use(namespace, template)
            self._table.release(row, self._template)
            self._table.hold(row, template)
        return revisions

    def _place_singly(self, indexes: Rows, lanes: tuple[Lane, ...], stop: bool = False) -> int:
        """One after the other, with `stop` up to the first that finds no node."""
        placed = 0
        for index in indexes:
            found = self._choose(self._name(index), lanes)
            if found is not None:
                self._place_new(self._name(index), *found)
                self._named.discard(self._name(index))
                self._done.append((int(index),))
                placed += 1
            elif stop:
                break
        return placed

    def _name(self, index: int) -> str:
        return f"{self._workload.name}-{index}"

    def _missing(self) -> Rows:
        workload = self._workload
        if workload.indexes is not None:
            there = {*self._held, *self._ended}
            done = {int(index) for part in self._done for index in part}
            return np.array(
                [i for i in workload.indexes if i not in done and self._name(i) not in there],
                dtype=np.int64,
            )
        count = workload.count
        if not self._held and not self._done and not self._withheld():
            return range(count)
        lacks = np.ones(count, dtype=np.bool_)
        prefix = len(self._workload.name) + 1
        lacks[[int(name[prefix:]) for name in (*self._held, *self._withheld())]] = False
        for part in self._done:
            lacks[np.asarray(part)] = False
        return np.flatnonzero(lacks)

    def _explain_tied(self, missing: Rows) -> Rows:
        """Those whose data is on a node that will not do are told by node; the others are left."""
        tied: dict[int, list[str]] = {}
        free = []
        for index in missing:
            home = self._home(self._name(index))
            if home is None:
                free.append(int(index))
            else:
                tied.setdefault(home, []).append(self._name(index))
        volumes = ", ".join(self._template.local_volumes)
        for row, names in tied.items():
            mask = np.zeros(self._table.size, dtype=np.bool_)
            mask[row] = True
            text, found = self._fits_nowhere(mask, "")
            node = self._table.nodes[row].name
            text = f"the data of its volume {volumes} is on node {node}; {text}"
            self._explain("Unschedulable", text, tuple(names), found)
        return np.array(free, dtype=np.int64)

    def _explain_missing(self, missing: Rows, fitless: int) -> None:
        """`fitless` of them found no node; the others are over quota."""
        name = self._workload.name
        if fitless:
            self._make_room(names_of(name, missing[:fitless]), None, "")
        if len(missing) > fitless:
            self._over_quota(names_of(name, missing[fitless:]))

    def _place_new(self, name: str, row: int, chooser: Chooser) -> None:
        self._place(name, row, chooser)
        # Those that this plan placed are kept apart from those that were there.
        placed = self._held.pop(name)
        template = self._lanes.template(placed.record.revision)
        self._planning.quotas.use(self._workload.namespace, template)
        self._more_rows.append(row)
        self._named.add(name)

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

    # --- who else may hold them ------------------------------------------------------------------

    def _renew_heirs(self) -> None:
        """Of replicas that stay: others for those that would not do any more."""
        if not self._has_heirs and not any(
            holder.record.standbys or holder.record.group for holder in self._held.values()
        ):
            return
        changing = {revise.assignment.replica_uid for revise in self._out.revise}
        before = self._planning.holders.by_workload.get(self._workload.uid, {})
        for name, holder in self._held.items():
            record = holder.record
            if holder.row is None or before.get(name) is not holder:
                continue
            if record.replica_uid in changing:
                continue
            standbys, group = self._renewed(holder, holder.row)
            if standbys != record.standbys or group != record.group:
                self._out.standbys.append(Standbys(holder.node, record, standbys, group))

    def _renewed(self, holder: Holder, row: int) -> Heirs:
        record = holder.record
        if not self._has_heirs:
            return (), None
        chooser, group = self._standby_chooser(), record.group
        if group is None or not group.exclusive or not self._exclusive:
            names = chooser.renew(row, record.standbys)
        elif not self._groups.can_change(group, self._epoch(holder)):
            return record.standbys, group
        elif self._is_lost(self._table.nodes[row]):
            names = chooser.relieve(row, record.standbys)
        else:
            names = chooser.renew(row, record.standbys)
        return self._agreed(self._groups.after(group, row, names, self._epoch(holder)), names)
