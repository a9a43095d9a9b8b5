"""Replicas that must leave their node, whatever else changes, one workload at a time.

A replica that serves is replaced start first: its new holder says which stay it replaces, and the
old one stops when the new one has been seen ready. Nothing runs twice for longer than that, and
nothing stops for want of a place, but for the deadline of a drain and the deletion of its node.

    placed beside it, `replaces` set --ready--> the old one stops with the cause of the change
      its node fails, or nobody wants it any more --> the new one stops, the old one stays
      the old one's node is lost or deleted --> the new one is the holder at once
"""

from orchestrator.domain.liveness import FLAP_PATIENCE, FLAP_WINDOW_S
from orchestrator.scheduling import filters
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.decisions import Cause, NonCompliant, Revise
from orchestrator.scheduling.exclusive import Exclusives
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.lanes import Lane
from orchestrator.scheduling.part import Planning, is_lost, ordered, revised
from orchestrator.scheduling.rules import IMAGES, SOVEREIGNTY
from orchestrator.scheduling.snapshot import Mode, Node, Workload
from orchestrator.scheduling.table import Mask, asks_no_more


class Moves(Exclusives):
    """The steps in the order in which `WorkloadPlan` takes them."""

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._stuck: dict[tuple[str, str, bool], list[Holder]] = {}
        self._admitting: dict[int, Mask] = {}
        # Of jobs: ended replicas whose stay goes. They are not missing until their job says so.
        self._ended: set[str] = set()
        self._damped: dict[str, list[str]] = {}  # replicas by lost node

    # --- replacements under way ------------------------------------------------------------------

    def _follow_replacements(self) -> None:
        waiting = []
        for new in ordered(self._incoming):
            name = new.record.replica
            old = self._held[name]
            before, now = self._node(old), self._node(new)
            fault = self._fault(new)
            if (stopped := self._stopped_by(old)) is not None:
                self._give_up(name, f"what it was to replace is {stopped}")
                continue
            if before is not None and is_lost(before) and now is not None and is_lost(now):
                # Neither is heard, and of the two the older one may well serve where it is.
                self._give_up(
                    name, f"node {now.name} is lost, as is that of what it was to replace"
                )
            elif before is None or before.deleting or is_lost(before):
                lost = before is None or not before.deleting
                cause = Cause.NODE_LOST if lost else Cause.NODE_DELETED
                self._take_over(name, cause, f"node {old.node} is gone")
            elif now is None or fault:
                self._give_up(name, fault or f"node {new.node} is gone")
            elif new.record.revision != self._lanes.wanted(new):
                if self._follow_revision(old, new):
                    waiting.append(name)
            elif self._is_available(new):
                self._take_over(name, Cause(new.record.because), _ready_text(old, new))
            else:
                waiting.append(name)
        if waiting:
            text = "the old holder stops when the new one is running and ready"
            self._explain("ReplacementWaits", text, tuple(waiting))

    def _follow_revision(self, old: Holder, new: Holder) -> bool:
        """The wanted revision changed while it starts; whether the replacement goes on."""
        name, revision = new.record.replica, self._lanes.wanted(new)
        stays = old.record.revision == self._lanes.wanted(old)
        if stays and self._reason_to_leave(old) is None and self._is_compliant(old):
            text = f"revision {new.record.revision} is not wanted any more, and what it was to "
            self._give_up(name, text + f"replace has revision {old.record.revision}")
            return False
        if not self._update_in_place(new, revision):
            self._give_up(name, f"revision {revision} has no room on node {new.node}")
            return False
        return True

    def _take_over(self, name: str, cause: Cause, message: str) -> None:
        old, new = self._held[name], self._incoming.pop(name)
        self._held[name] = new
        self._stop(old, cause, message, moved_to=new.node)

    def _give_up(self, name: str, message: str) -> None:
        """The replacement stops, and the old holder stays."""
        new = self._incoming.pop(name)
        self._stop(new, Cause.REPLACEMENT_FAILED, message)
        self._use_quota(new, -1)
        self._use_quota(self._held[name], 1)
        self._choosers.clear()

    def _fault(self, new: Holder) -> str:
        """Why a node will not do for the replacement that starts on it; empty: it will."""
        node = self._node(new)
        if node is None or new.row is None:
            return ""
        if is_lost(node) or node.deleting or node.draining:
            return f"node {node.name} is lost, drained or deleted"
        broken = filters.reasons(
            (*filters.STAYING_RULES, SOVEREIGNTY), self._table, self._need, new.row
        )
        return broken[0].text if broken else self._wrong_image(new)

    # --- what cannot wait ------------------------------------------------------------------------

    def _leave_forced(self) -> None:
        """Deleted nodes and those whose drain is overdue are left whatever comes of it; lost ones
        if another place exists."""
        for holder in ordered(self._held):
            node = self._node(holder)
            if node is None:
                continue
            name, waits = holder.record.replica, holder.record.replica in self._incoming
            if self._stopped_by(holder) is not None and not node.deleting:
                continue
            if self._exclusive:
                self._leave_exclusive(holder, node)
            elif node.drain_overdue and node.draining and self._workload.mode is not Mode.PER_NODE:
                message = f"the deadline for draining node {node.name} is over"
                if waits:
                    self._take_over(name, Cause.DRAINED, message)
                else:
                    self._evict(holder, Cause.DRAINED, message)
            elif node.deleting and not waits:
                self._evict(holder, Cause.NODE_DELETED, f"node {node.name} is being deleted")
            elif self._is_lost(node) and not waits and self._workload.mode is not Mode.PER_NODE:
                self._leave_lost(holder, node)
        patience_s = FLAP_PATIENCE * self._snapshot.lost_after_s
        for lost, names in self._damped.items():
            text = f"moved for a lost node less than {FLAP_WINDOW_S:.0f} s ago; they move again "
            text += f"when node {lost} has been silent for {patience_s:.0f} s"
            self._explain("FlapDamped", text, tuple(names))

    def _evict(self, holder: Holder, cause: Cause, message: str) -> None:
        ended = self._has_ended(holder)
        if ended or not self._move(holder, cause, message):
            self._stop(holder, cause, message)
            self._drop(holder.record.replica)
            if ended:
                self._ended.add(holder.record.replica)

    def _leave_lost(self, holder: Holder, node: Node) -> None:
        if self._has_ended(holder):
            return
        now, record = self._planning.now, holder.record
        patience_s = FLAP_PATIENCE * self._snapshot.lost_after_s
        moved_s = now - record.placed_at_ms / 1000
        was_moved = record.because == Cause.NODE_LOST and moved_s < FLAP_WINDOW_S
        if was_moved and now - node.since < patience_s:
            self._damped.setdefault(node.name, []).append(record.replica)
            return
        message = f"node {node.name} has been silent for too long"
        if not self._move(holder, Cause.NODE_LOST, message):
            self._cannot_move(holder, message)

    def _leave_forbidden(self) -> None:
        """Replicas whose site no longer meets their policy: all at once, each start first. A
        job's must not run twice, and stop first."""
        failing = SOVEREIGNTY.failing(self._table, self._need)
        if failing is self._table.nowhere:
            return
        for holder in ordered(self._held):
            if holder.row is None or not failing[holder.row]:
                continue
            if self._stopped_by(holder) is not None:
                continue  # it does not run there
            reasons = SOVEREIGNTY.why(self._table, self._need, holder.row)
            name = holder.record.replica
            if self._workload.once or self._exclusive:
                moved = self._move(holder, Cause.NON_COMPLIANT, reasons[0].text)
            else:
                moved = name in self._incoming or self._start_replacement(
                    holder, Cause.NON_COMPLIANT
                )
            if not moved:
                self._cannot_move(holder, reasons[0].text, "NonCompliant")
            after = self._incoming.get(name) or self._held.get(name)
            where = after.node if moved and after is not None else ""
            self._out.noncompliant.append(NonCompliant(holder.node, holder.record, reasons, where))

    def _is_compliant(self, holder: Holder) -> bool:
        failing = SOVEREIGNTY.failing(self._table, self._need)
        return holder.row is not None and not failing[holder.row]

    # --- ways to change --------------------------------------------------------------------------

    def _reason_to_leave(self, holder: Holder) -> tuple[Cause, str] | None:
        node = self._node(holder)
        if node is None or self._workload.mode is Mode.PER_NODE:
            return None
        assert holder.row is not None
        if text := self._wrong_image(holder):
            return Cause.IMAGE_PLATFORM, text
        if not self._staying()[holder.row]:
            broken = filters.reasons(filters.STAYING_RULES, self._table, self._need, holder.row)
            if broken:
                return cause_of(broken), broken[0].text
        if node.draining:
            return Cause.DRAINED, f"node {node.name} is being drained"
        return None

    def _wrong_image(self, holder: Holder) -> str:
        """Why it cannot start where it is, however often it tries; empty: it may."""
        seen = self._observed(holder)
        if holder.row is None or seen is None or not seen.is_foreign:
            return ""
        need = self._lanes.need(holder.record.revision)
        if (
            seen.revision != holder.record.revision
            or not IMAGES.failing(self._table, need)[holder.row]
        ):
            return ""
        return IMAGES.why(self._table, need, holder.row)[0].text

    def _update_in_place(self, holder: Holder, revision: int) -> bool:
        """Another template where it is; whether there is room and right for it."""
        assert holder.row is not None
        row, template = holder.row, self._lanes.template(revision)
        before = self._lanes.template(holder.record.revision)
        quotas, namespace = self._planning.quotas, self._workload.namespace
        if not self._may_run(row, revision) or not quotas.allows_update(
            namespace, before, template
        ):
            return False
        if template.local_volumes and self._home(holder.record.replica) not in (None, row):
            return False
        self._table.release(row, before)
        fits = asks_no_more(template, before) or self._table.has_room(row, template)
        self._table.hold(row, template if fits else before)
        if not fits:
            return False
        quotas.use(namespace, before, -1)
        quotas.use(namespace, template)
        self._out.revise.append(Revise(holder.node, holder.record, revision))
        self._bind(holder.record.replica, holder.node, template)
        place = self._held if self._held.get(holder.record.replica) is holder else self._incoming
        place[holder.record.replica] = revised(holder, revision)
        for chooser in self._choosers.values():
            chooser.look_again(row)
        return True

    def _may_run(self, row: int, revision: int) -> bool:
        """Whether the node and the namespace let the revision's template in."""
        if revision not in self._admitting:
            need = self._lanes.need(revision)
            rules = (*filters.TEMPLATE_RULES, SOVEREIGNTY)
            self._admitting[revision] = filters.passing(rules, self._table, need)
        return bool(self._admitting[revision][row])

    def _move(self, holder: Holder, cause: Cause, message: str) -> bool:
        """Give the replica another node and stop it on this one; False when no node fits."""
        if self._exclusive:
            return self._hand_over(holder, cause, message)
        found = self._elsewhere(holder)
        if found is None:
            return False
        row, chooser = found
        self._place(holder.record.replica, row, chooser, leaving=holder, because=cause.value)
        self._stop(holder, cause, message, moved_to=self._table.nodes[row].name)
        return True

    def _start_replacement(self, holder: Holder, cause: Cause) -> bool:
        """On another node; False when none fits."""
        found = self._elsewhere(holder)
        if found is None:
            return False
        row, chooser = found
        self._place(
            holder.record.replica, row, chooser, leaving=holder, because=cause.value, beside=True
        )
        return True

    def _start_updated(self, holder: Holder, revision: int) -> bool:
        """The same of an update: on a node where that revision is wanted."""
        found = self._elsewhere(holder, (self._lanes.where(revision),))
        if found is None:
            return False
        row, chooser = found
        name, because = holder.record.replica, Cause.UPDATED.value
        self._place(name, row, chooser, leaving=holder, because=because, beside=True)
        return True

    def _elsewhere(
        self, holder: Holder, lanes: tuple[Lane, ...] = ()
    ) -> tuple[int, Chooser] | None:
        if self._workload.mode is Mode.PER_NODE:
            return None
        lanes = lanes or self._lanes.for_move(holder)
        return self._choose(holder.record.replica, lanes, self._scope(holder), holder)

    # --- telling ---------------------------------------------------------------------------------

    def _cannot_move(self, holder: Holder, message: str, code: str = "CannotMove") -> None:
        tied = bool(self._template.local_volumes) and holder.row is not None
        tied = tied and self._home(holder.record.replica) == holder.row
        self._stuck.setdefault((code, message, tied), []).append(holder)

    def _explain_stuck(self) -> None:
        """One explanation for all that would leave for one reason: they lack the same place."""
        for (code, message, tied), holders in self._stuck.items():
            names = tuple(holder.record.replica for holder in holders)
            if tied:
                volumes = ", ".join(self._template.local_volumes)
                text = f"{message}; it stays, for the data of its volume {volumes} is there"
                self._explain(code, text, names)
                continue
            text, found = self._fits_nowhere(self._scope(holders[0]), "other ", holders[0].row)
            self._explain(code, f"{message}; it stays, for {text}", names, found)

    def _explain_stopped(self) -> None:
        """Those that operators of their site stopped: nobody replaces or waits for them."""
        if not self._snapshot.local.stopped:
            return
        for holder in ordered(self._held):
            stopped = self._stopped_by(holder)
            if stopped is not None:
                name = holder.record.replica
                text = f"{stopped}; it starts again when its site says so, or after "
                text += f"`edgectl override drop {name}`"
                self._explain("StoppedLocally", text, (name,))

    def _has_ended(self, holder: Holder) -> bool:
        """It ran once, and is kept for its logs."""
        seen = self._observed(holder)
        return seen is not None and seen.finished


def _ready_text(old: Holder, new: Holder) -> str:
    if new.node == old.node:
        return f"its successor of revision {new.record.revision} is ready on the same node"
    return f"its replacement is ready on node {new.node}"


def cause_of(broken: list[filters.Reason]) -> Cause:
    """Of a replica that breaks these rules where it is."""
    only_taints = all(reason.code == "Untolerated" for reason in broken)
    return Cause.UNTOLERATED if only_taints else Cause.UNSATISFIABLE
