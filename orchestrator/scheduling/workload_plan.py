"""Decides for one workload: what is too many, what must leave, what changes, what is missing.

`plan()` runs one per workload, in order of priority; they share the table, so that each sees what
the earlier ones took. Order within a workload: surplus stops, lost and deleted nodes are left,
then what can wait moves or is updated one replica at a time, then what is missing gets a place.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling import filters
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.decisions import Cause, Explanation, Place, Revise, Stop
from orchestrator.scheduling.desired import index_names, is_indexed, place_names, replica_uid
from orchestrator.scheduling.filters import ReasonCount
from orchestrator.scheduling.holders import Holder, template_of
from orchestrator.scheduling.reasons import need_of
from orchestrator.scheduling.snapshot import Mode, Node, Observed, Snapshot, Workload
from orchestrator.scheduling.table import Mask, NodeTable, asks_no_more


@dataclass(slots=True)
class Decisions:
    """What the workloads' plans add up to."""

    place: list[Place] = field(default_factory=list)
    stop: list[Stop] = field(default_factory=list)
    revise: list[Revise] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)
    desired: list[tuple[str, int]] = field(default_factory=list)


class WorkloadPlan:
    """`held` are the workload's replicas by name; the object changes it as it decides."""

    def __init__(
        self,
        snapshot: Snapshot,
        table: NodeTable,
        workload: Workload,
        held: dict[str, Holder],
        out: Decisions,
    ) -> None:
        self._snapshot = snapshot
        self._table = table
        self._workload = workload
        self._held = held
        self._out = out
        self._template = template_of(snapshot, workload.uid, workload.revision)
        self._need = need_of(snapshot, workload, self._template)
        self._lazy_chooser: Chooser | None = None
        self._lazy_staying: Mask | None = None
        self._unplaced = 0
        self._stuck: dict[str, list[Holder]] = {}

    def delete(self) -> None:
        """Stop everything: the workload has a tombstone."""
        for holder in _ordered(self._held):
            message = f"workload {self._workload.name} was deleted"
            self._stop(holder, Cause.WORKLOAD_DELETED, message)
        self._held.clear()
        self._out.desired.append((self._workload.uid, 0))

    def decide(self) -> None:
        """All steps, in order."""
        blockers = filters.blockers(self._snapshot, self._workload)
        for blocker in blockers:
            self._explain(blocker.code, blocker.text)
        if blockers:
            self._out.desired.append((self._workload.uid, len(self._held)))
            return
        self._stop_surplus()
        self._leave_forced()
        self._change_gently()
        self._place_missing()
        self._explain_stuck()
        self._out.desired.append((self._workload.uid, len(self._held) + self._unplaced))

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
        for holder in reversed(_ordered(surplus)):
            cause, message = self._surplus_cause(holder)
            self._stop(holder, cause, message)
            del self._held[holder.record.replica]

    def _surplus_cause(self, holder: Holder) -> tuple[Cause, str]:
        if holder.row is not None and self._workload.mode is not Mode.REPLICAS:
            if self._table.nodes[holder.row].deleting:
                return Cause.NODE_DELETED, f"node {holder.node} is being deleted"
            broken = filters.reasons(filters.STAYING_RULES, self._table, self._need, holder.row)
            if broken:
                return _cause_of(broken), broken[0].text
        mode, count = self._workload.mode.value, self._workload.count
        return Cause.SCALED_DOWN, f"workload {self._workload.name} now asks for {mode}: {count}"

    # --- what cannot wait ------------------------------------------------------------------------

    def _leave_forced(self) -> None:
        """Deleted nodes are left whatever comes of it; lost ones if another place exists."""
        for holder in _ordered(self._held):
            node = self._node(holder)
            if node is None:
                continue
            if node.deleting:
                message = f"node {node.name} is being deleted"
                if not self._move(holder, Cause.NODE_DELETED, message):
                    self._stop(holder, Cause.NODE_DELETED, message)
                    del self._held[holder.record.replica]
            elif node.liveness is Liveness.LOST and self._workload.mode is not Mode.PER_NODE:
                message = f"node {node.name} has been silent for too long"
                if not self._move(holder, Cause.NODE_LOST, message):
                    self._cannot_move(holder, message)

    # --- what can wait for its turn --------------------------------------------------------------

    def _change_gently(self) -> None:
        """Moves and updates: replicas that are not ready at once, ready ones one at a time.

        A replica of a lost node holds nobody up; one of a node that is only silent does.
        """
        due = [holder for holder in _ordered(self._held) if self._is_due(holder)]
        if not due:
            return
        busy = [holder for holder in _ordered(self._held) if self._is_under_way(holder)]
        waiting: list[str] = []
        # Those that serve nobody first; then those whose progress can be seen.
        for holder in sorted(due, key=lambda h: (self._serves(h), not self._is_live(h), h.order)):
            if busy and self._serves(holder):
                waiting.append(holder.record.replica)
            elif self._change(holder):
                busy.append(holder)
        if waiting:
            blocker = busy[0].record.replica
            self._explain(
                "UpdateWaits",
                f"{len(waiting)} of its replicas change when {blocker} is running and ready",
                tuple(waiting),
            )

    def _is_due(self, holder: Holder) -> bool:
        if holder.row is None:
            return False
        outdated = holder.record.revision != self._workload.revision
        return outdated or self._reason_to_leave(holder) is not None

    def _is_under_way(self, holder: Holder) -> bool:
        """Changed, and not yet seen to run and be ready that way."""
        node = self._node(holder)
        if node is None or node.liveness not in (Liveness.LIVE, Liveness.SILENT):
            return False
        if holder.record.revision != self._workload.revision:
            return False
        seen = self._observed(holder)
        return not (
            node.liveness is Liveness.LIVE
            and seen is not None
            and seen.running
            and seen.ready
            and seen.revision == self._workload.revision
        )

    def _serves(self, holder: Holder) -> bool:
        """Ready as far as is known; of a silent node's replicas nothing else can be assumed."""
        if not self._is_live(holder):
            return True
        seen = self._observed(holder)
        return seen is not None and seen.running and seen.ready

    def _change(self, holder: Holder) -> bool:
        """Move or update one replica; whether that was possible."""
        reason = self._reason_to_leave(holder)
        if reason is not None:
            cause, message = reason
            if self._move(holder, cause, message):
                return True
            self._cannot_move(holder, message)
            if holder.record.revision == self._workload.revision:
                return False
        if self._update_in_place(holder):
            return True
        message = f"revision {self._workload.revision} has no room on node {holder.node}"
        if self._workload.mode is not Mode.PER_NODE and self._move(holder, Cause.MOVED, message):
            return True
        self._cannot_move(holder, message)
        return False

    def _reason_to_leave(self, holder: Holder) -> tuple[Cause, str] | None:
        node = self._node(holder)
        if node is None or self._workload.mode is Mode.PER_NODE:
            return None
        assert holder.row is not None
        if not self._staying()[holder.row]:
            broken = filters.reasons(filters.STAYING_RULES, self._table, self._need, holder.row)
            if broken:
                return _cause_of(broken), broken[0].text
        if node.draining:
            return Cause.DRAINED, f"node {node.name} is being drained"
        return None

    def _update_in_place(self, holder: Holder) -> bool:
        assert holder.row is not None
        before = template_of(self._snapshot, self._workload.uid, holder.record.revision)
        self._table.release(holder.row, before)
        fits = asks_no_more(self._template, before) or self._table.has_room(
            holder.row, self._template
        )
        self._table.hold(holder.row, self._template if fits else before)
        if not fits:
            return False
        self._out.revise.append(Revise(holder.node, holder.record, self._workload.revision))
        record = replace(holder.record, revision=self._workload.revision)
        self._held[holder.record.replica] = Holder(holder.node, holder.row, record)
        self._lazy_chooser = None  # its idea of what is free is out of date
        return True

    # --- what is missing -------------------------------------------------------------------------

    def _place_missing(self) -> None:
        match self._workload.mode:
            case Mode.REPLICAS:
                missing = [n for n in index_names(self._workload) if n not in self._held]
                self._place_group(missing, None, "")
            case Mode.PER_SITE:
                by_site: dict[str, list[str]] = {}
                for name, site in place_names(self._workload, self._sites()):
                    if name not in self._held:
                        by_site.setdefault(site, []).append(name)
                for site, names in by_site.items():
                    self._place_group(names, self._site_mask(site), f" of site {site}")
            case Mode.PER_NODE:
                self._place_per_node()

    def _place_group(self, names: list[str], among: Mask | None, where: str) -> None:
        for done, name in enumerate(names):
            row = self._chooser().choose(among)
            if row is None:  # nor will the others of this group fit
                self._unschedulable(tuple(names[done:]), among, where)
                return
            self._place(name, row)

    def _place_per_node(self) -> None:
        usable = self._chooser().usable & ~self._table.flags("deleting")
        nodes = [self._table.nodes[row].name for row in np.flatnonzero(usable)]
        blocked = np.zeros(self._table.size, dtype=np.bool_)
        names = []
        for name, node in place_names(self._workload, nodes):
            if name in self._held:
                continue
            row = self._table.index[node]
            if self._chooser().fits(row):
                self._place(name, row)
            else:
                blocked[row] = True
                names.append(name)
        if names:
            self._unschedulable(tuple(names), blocked, " that qualify and lack a replica")

    def _place(self, name: str, row: int, moved_from: str = "") -> None:
        self._chooser().take(row)
        node = self._table.nodes[row].name
        epoch = self._snapshot.revision
        workload = self._workload
        record = AssignmentRecord(
            namespace=workload.namespace,
            workload=workload.name,
            workload_uid=workload.uid,
            replica=name,
            replica_uid=replica_uid(workload.uid, name, epoch),
            epoch=epoch,
            revision=workload.revision,
        )
        self._out.place.append(Place(node, record, moved_from))
        self._held[name] = Holder(node, row, record)

    # --- doing and explaining --------------------------------------------------------------------

    def _move(self, holder: Holder, cause: Cause, message: str) -> bool:
        """Give the replica another node and stop it on this one; False when no node fits."""
        if self._workload.mode is Mode.PER_NODE:
            return False
        row = self._chooser().choose(self._scope(holder), leaving=holder.row)
        if row is None:
            return False
        self._place(holder.record.replica, row, moved_from=holder.node)
        self._stop(holder, cause, message, moved_to=self._table.nodes[row].name)
        return True

    def _stop(self, holder: Holder, cause: Cause, message: str, moved_to: str = "") -> None:
        self._out.stop.append(Stop(holder.node, holder.record, cause, message, moved_to))

    def _cannot_move(self, holder: Holder, message: str) -> None:
        self._stuck.setdefault(message, []).append(holder)

    def _explain_stuck(self) -> None:
        """One explanation for all that would leave for one reason: they lack the same place."""
        for message, holders in self._stuck.items():
            scope = self._scope(holders[0])
            among = np.ones(self._table.size, dtype=np.bool_) if scope is None else scope.copy()
            among[holders[0].row] = False
            found = tuple(self._chooser().why_not(among))
            text = f"{message}; it stays, for {_fits_nowhere(int(among.sum()), ' other', found)}"
            names = tuple(holder.record.replica for holder in holders)
            self._explain("CannotMove", text, names, found)

    def _unschedulable(self, names: tuple[str, ...], among: Mask | None, where: str) -> None:
        scope = np.ones(self._table.size, dtype=np.bool_) if among is None else among
        found = tuple(self._chooser().why_not(scope))
        self._explain("Unschedulable", _fits_nowhere(int(scope.sum()), where, found), names, found)
        self._unplaced += len(names)

    def _explain(
        self,
        code: str,
        message: str,
        replicas: tuple[str, ...] = (),
        reasons: tuple[ReasonCount, ...] = (),
    ) -> None:
        workload = self._workload
        self._out.explanations.append(
            Explanation(workload.namespace, workload.name, code, message, replicas, reasons)
        )

    # --- looking up ------------------------------------------------------------------------------

    def _chooser(self) -> Chooser:
        if self._lazy_chooser is None:
            rows = [h.row for h in self._held.values() if h.row is not None]
            self._lazy_chooser = Chooser(self._table, self._workload, self._need, rows)
        return self._lazy_chooser

    def _staying(self) -> Mask:
        """Nodes on which a replica that is there may stay."""
        if self._lazy_staying is None:
            rules = filters.passing(filters.STAYING_RULES, self._table, self._need)
            self._lazy_staying = rules & ~self._table.flags("deleting")
        return self._lazy_staying

    def _sites(self, which: tuple[filters.Filter, ...] = filters.RULES) -> list[str]:
        """Sites with a node that qualifies, whatever its state."""
        rules = filters.passing(which, self._table, self._need)
        rows = np.flatnonzero(rules & ~self._table.flags("deleting"))
        return sorted({site for row in rows if (site := self._table.nodes[row].site)})

    def _site_mask(self, site: str) -> Mask:
        codes = self._table.topology("site")
        mask: Mask = codes.codes == codes.values.index(site)
        return mask

    def _scope(self, holder: Holder) -> Mask | None:
        """Where the replica may go: a perSite replica stays in its site."""
        node = self._node(holder)
        if self._workload.mode is Mode.PER_SITE and node is not None and node.site:
            return self._site_mask(node.site)
        return None

    def _node(self, holder: Holder) -> Node | None:
        return self._table.nodes[holder.row] if holder.row is not None else None

    def _is_live(self, holder: Holder) -> bool:
        node = self._node(holder)
        return node is not None and node.liveness is Liveness.LIVE

    def _observed(self, holder: Holder) -> Observed | None:
        return self._snapshot.observed.get((holder.node, holder.record.replica_uid))


def _ordered(held: dict[str, Holder]) -> list[Holder]:
    return sorted(held.values(), key=lambda holder: holder.order)


def _cause_of(broken: list[filters.Reason]) -> Cause:
    only_taints = all(reason.code == "Untolerated" for reason in broken)
    return Cause.UNTOLERATED if only_taints else Cause.UNSATISFIABLE


def _fits_nowhere(nodes: int, which: str, reasons: tuple[ReasonCount, ...]) -> str:
    found = ", ".join(f"{reason.nodes} {reason.code}" for reason in reasons)
    noun = "node" if nodes == 1 else "nodes"
    if which == " other":
        return f"none of {nodes} other {noun} fits" + (f": {found}" if found else "")
    return f"0 of {nodes} {noun}{which} fit" + (f": {found}" if found else "")
