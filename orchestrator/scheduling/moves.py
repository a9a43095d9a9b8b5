"""Replicas that must leave their node or change on it, one workload at a time.

A replica that serves is replaced start first: its new holder says which stay it replaces, and the
old one stops when the new one has been seen ready. Nothing runs twice for longer than that, and
nothing stops for want of a place.

    placed on another node, replaces set --ready--> the old one stops with the cause of the move
      its node fails or will not do any more --> the new one stops, the old one stays
      the old one's node is lost or deleted --> the new one is the holder at once
"""

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling import filters
from orchestrator.scheduling.decisions import Cause, NonCompliant, Revise
from orchestrator.scheduling.holders import Holder, template_of
from orchestrator.scheduling.part import Part, Planning, ordered, revised
from orchestrator.scheduling.rules import SOVEREIGNTY
from orchestrator.scheduling.snapshot import Mode, Workload
from orchestrator.scheduling.table import asks_no_more


class Moves(Part):
    """The steps in the order in which `WorkloadPlan` takes them."""

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._stuck: dict[tuple[str, str], list[Holder]] = {}

    # --- replacements under way ------------------------------------------------------------------

    def _follow_replacements(self) -> None:
        waiting = []
        for new in ordered(self._incoming):
            name = new.record.replica
            old = self._held[name]
            before, now = self._node(old), self._node(new)
            fault = self._fault(new)
            if before is None or before.deleting or before.liveness is Liveness.LOST:
                lost = before is None or not before.deleting
                cause = Cause.NODE_LOST if lost else Cause.NODE_DELETED
                self._take_over(name, cause, f"node {old.node} is gone")
            elif now is None or fault:
                del self._incoming[name]
                self._stop(new, Cause.REPLACEMENT_FAILED, fault or f"node {new.node} is gone")
                self._use_quota(new, -1)
                self._use_quota(old, 1)
                self._lazy_chooser = None
            elif self._is_ready(new) and new.record.revision == self._workload.revision:
                cause = Cause(new.record.because)
                self._take_over(name, cause, f"its replacement is ready on node {new.node}")
            else:
                if new.record.revision != self._workload.revision:
                    self._update_in_place(new)
                waiting.append(name)
        if waiting:
            text = "the old holder stops when the new one is running and ready"
            self._explain("ReplacementWaits", text, tuple(waiting))

    def _take_over(self, name: str, cause: Cause, message: str) -> None:
        old, new = self._held[name], self._incoming.pop(name)
        self._held[name] = new
        self._stop(old, cause, message, moved_to=new.node)

    def _fault(self, new: Holder) -> str:
        """Why a node will not do for the replacement that starts on it; empty: it will."""
        node = self._node(new)
        if node is None or new.row is None:
            return ""
        if node.liveness is Liveness.LOST or node.deleting or node.draining:
            return f"node {node.name} is lost, drained or deleted"
        broken = filters.reasons(
            (*filters.STAYING_RULES, SOVEREIGNTY), self._table, self._need, new.row
        )
        return broken[0].text if broken else ""

    # --- what cannot wait ------------------------------------------------------------------------

    def _leave_forced(self) -> None:
        """Deleted nodes are left whatever comes of it; lost ones if another place exists."""
        for holder in ordered(self._held):
            node = self._node(holder)
            if node is None or holder.record.replica in self._incoming:
                continue
            if node.deleting:
                message = f"node {node.name} is being deleted"
                if not self._move(holder, Cause.NODE_DELETED, message):
                    self._stop(holder, Cause.NODE_DELETED, message)
                    self._drop(holder.record.replica)
            elif node.liveness is Liveness.LOST and self._workload.mode is not Mode.PER_NODE:
                message = f"node {node.name} has been silent for too long"
                if not self._move(holder, Cause.NODE_LOST, message):
                    self._cannot_move(holder, message)

    def _leave_forbidden(self) -> None:
        """Replicas whose site no longer meets their policy: all at once, each start first."""
        failing = SOVEREIGNTY.failing(self._table, self._need)
        if failing is self._table.nowhere:
            return
        for holder in ordered(self._held):
            if holder.row is None or not failing[holder.row]:
                continue
            reasons = SOVEREIGNTY.why(self._table, self._need, holder.row)
            name = holder.record.replica
            if name not in self._incoming and not self._start_replacement(
                holder, Cause.NON_COMPLIANT
            ):
                self._cannot_move(holder, reasons[0].text, "NonCompliant")
            replacement = self._incoming.get(name)
            where = replacement.node if replacement is not None else ""
            self._out.noncompliant.append(NonCompliant(holder.node, holder.record, reasons, where))

    # --- what can wait for its turn --------------------------------------------------------------

    def _change_gently(self) -> None:
        """Moves and updates: replicas that are not ready at once, ready ones one at a time.

        A replica of a lost node holds nobody up; one of a node that is only silent does.
        """
        due = [holder for holder in ordered(self._held) if self._is_due(holder)]
        if not due:
            return
        busy = [holder for holder in ordered(self._held) if self._is_under_way(holder)]
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
        if holder.row is None or holder.record.replica in self._incoming:
            return False
        outdated = holder.record.revision != self._workload.revision
        return outdated or self._reason_to_leave(holder) is not None

    def _is_under_way(self, holder: Holder) -> bool:
        """Changed or being replaced, and not yet seen to run and be ready that way."""
        if holder.record.replica in self._incoming:
            return self._incoming[holder.record.replica].record.because != Cause.NON_COMPLIANT
        node = self._node(holder)
        if node is None or node.liveness not in (Liveness.LIVE, Liveness.SILENT):
            return False
        if holder.record.revision != self._workload.revision:
            return False
        return not self._is_ready(holder)

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
            if self._leave(holder, cause, message):
                return True
            self._cannot_move(holder, message)
            if holder.record.revision == self._workload.revision:
                return False
        if self._update_in_place(holder):
            return True
        message = f"revision {self._workload.revision} has no room on node {holder.node}"
        if self._leave(holder, Cause.MOVED, message):
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
                return cause_of(broken), broken[0].text
        if node.draining:
            return Cause.DRAINED, f"node {node.name} is being drained"
        return None

    def _update_in_place(self, holder: Holder) -> bool:
        assert holder.row is not None
        before = template_of(self._snapshot, self._workload.uid, holder.record.revision)
        quotas, namespace = self._planning.quotas, self._workload.namespace
        if not quotas.allows_update(namespace, before, self._template):
            return False
        self._table.release(holder.row, before)
        fits = asks_no_more(self._template, before) or self._table.has_room(
            holder.row, self._template
        )
        self._table.hold(holder.row, self._template if fits else before)
        if not fits:
            return False
        quotas.use(namespace, before, -1)
        quotas.use(namespace, self._template)
        self._out.revise.append(Revise(holder.node, holder.record, self._workload.revision))
        place = self._held if self._held.get(holder.record.replica) is holder else self._incoming
        place[holder.record.replica] = revised(holder, self._workload.revision)
        self._lazy_chooser = None  # its idea of what is free is out of date
        return True

    # --- leaving ---------------------------------------------------------------------------------

    def _leave(self, holder: Holder, cause: Cause, message: str) -> bool:
        """Start first if it serves, otherwise at once; False when no node fits."""
        if self._serves(holder):
            return self._start_replacement(holder, cause)
        return self._move(holder, cause, message)

    def _move(self, holder: Holder, cause: Cause, message: str) -> bool:
        """Give the replica another node and stop it on this one; False when no node fits."""
        row = self._row_to_go(holder)
        if row is None:
            return False
        self._place(holder.record.replica, row, leaving=holder)
        self._stop(holder, cause, message, moved_to=self._table.nodes[row].name)
        return True

    def _start_replacement(self, holder: Holder, cause: Cause) -> bool:
        row = self._row_to_go(holder)
        if row is None:
            return False
        self._place(holder.record.replica, row, leaving=holder, because=cause.value)
        return True

    def _row_to_go(self, holder: Holder) -> int | None:
        if self._workload.mode is Mode.PER_NODE or not self._quota_allows(holder):
            return None
        return self._chooser().choose(self._scope(holder), leaving=holder.row)

    def _quota_allows(self, holder: Holder) -> bool:
        """A move counts once; one that brings a larger template has to fit."""
        before = template_of(self._snapshot, self._workload.uid, holder.record.revision)
        namespace = self._workload.namespace
        return self._planning.quotas.allows_update(namespace, before, self._template)

    def _cannot_move(self, holder: Holder, message: str, code: str = "CannotMove") -> None:
        self._stuck.setdefault((code, message), []).append(holder)

    def _explain_stuck(self) -> None:
        """One explanation for all that would leave for one reason: they lack the same place."""
        for (code, message), holders in self._stuck.items():
            text, found = self._fits_nowhere(self._scope(holders[0]), "other ", holders[0].row)
            names = tuple(holder.record.replica for holder in holders)
            self._explain(code, f"{message}; it stays, for {text}", names, found)


def cause_of(broken: list[filters.Reason]) -> Cause:
    """Of a replica that breaks these rules where it is."""
    only_taints = all(reason.code == "Untolerated" for reason in broken)
    return Cause.UNTOLERATED if only_taints else Cause.UNSATISFIABLE
