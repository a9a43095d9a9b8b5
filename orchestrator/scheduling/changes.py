"""What can wait for its turn: updates, drains and other moves, within what may change at once.

Replicas that serve nobody change at once, and first. One that serves is updated

    beside itself on its own node, if a replacement may be started and there is room;
    in its place, if one more may be unavailable;
    beside itself on another node;

and otherwise waits. One whose node is not heard waits until it is: it may well serve there, and
would be changed at some other time than now, together with others. One that has to leave its node
is replaced start first, while replacements may be started. Where none ever may (`maxSurge: 0`), it
stops first, if one more may be unavailable.
"""

from collections.abc import Callable

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.budget import Budget, budget_of
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.lanes import place_count
from orchestrator.scheduling.moves import Moves
from orchestrator.scheduling.part import Planning, ordered
from orchestrator.scheduling.snapshot import Mode, Workload

TRIES_MAX = 16
"""Updates per plan for which other nodes are looked for in vain; the next plan tries again."""
NAMED_MAX = 3


class Changes(Moves):
    """Called by `WorkloadPlan`, after what cannot wait."""

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._tries = TRIES_MAX
        self._waits: dict[tuple[str, str], list[str]] = {}  # (code, what it waits with): names

    def _change_gently(self) -> None:
        """All that is due, as far as the budget goes."""
        due = [holder for holder in ordered(self._held) if self._is_due(holder)]
        self._tell_daemons()
        if not due:
            return
        budget = self._budget()
        # Those that serve nobody first; then those whose progress can be seen.
        for holder in sorted(due, key=lambda h: (self._serves(h), not self._is_live(h), h.order)):
            reason = self._reason_to_leave(holder)
            if not self._serves(holder):
                self._change_idle(holder, reason)
                continue
            settled = reason is not None and self._leave(holder, reason, budget)
            if not settled and self._is_live(holder) and self._is_outdated(holder):
                self._update(holder, budget)
        self._explain_waits(budget)

    # --- who, and how many -----------------------------------------------------------------------

    def _is_due(self, holder: Holder) -> bool:
        if holder.row is None or holder.record.replica in self._incoming:
            return False
        if self._workload.once and self._has_ended(holder):
            return False
        if (self._workload.once or self._exclusive) and not self._is_live(holder):
            return False
        if self._is_live(holder) and self._is_outdated(holder):
            return True
        return self._reason_to_leave(holder) is not None

    def _is_outdated(self, holder: Holder) -> bool:
        return holder.record.revision != self._lanes.wanted(holder)

    def _serves(self, holder: Holder) -> bool:
        """Ready as far as is known; of a silent node's replicas nothing else can be assumed.

        A job's serve nobody, and must not run twice; nor does what operators of a site stopped."""
        if self._workload.once or self._stopped_by(holder) is not None:
            return False
        if not self._is_live(holder):
            return True
        seen = self._observed(holder)
        return seen is not None and seen.running and seen.ready and not seen.terminating

    def _budget(self) -> Budget:
        """Counted when something is due, after what could not wait was decided."""
        if self._workload.mode is Mode.REPLICAS:
            wanted = place_count(self._workload)
        else:
            # What belongs to a place that is lost can be nowhere else: it holds nobody up.
            nodes = [self._node(holder) for holder in self._held.values()]
            wanted = sum(node is None or not self._is_lost(node) for node in nodes)
            wanted += len(self._missing_places())
        wanted -= len(self._stopped())
        serving = [name for name in self._held if self._is_covered(name)]
        under_way = [new for new in self._incoming.values() if _is_voluntary(new)]
        return budget_of(self._workload, wanted, len(serving), len(under_way))

    def _stopped(self) -> set[str]:
        """Held, and stopped by operators of their sites: they hold nobody up."""
        if not self._snapshot.local.stopped:
            return set()
        return {name for name, holder in self._held.items() if self._stopped_by(holder) is not None}

    def _is_covered(self, name: str) -> bool:
        stays = (self._held[name], self._incoming.get(name))
        return any(stay is not None and self._is_available(stay) for stay in stays)

    # --- changing --------------------------------------------------------------------------------

    def _change_idle(self, holder: Holder, reason: tuple[Cause, str] | None) -> None:
        """It serves nobody: at once, whatever else goes on."""
        if reason is not None:
            if self._move(holder, *reason):
                return
            self._cannot_move(holder, reason[1])
        if not self._is_outdated(holder):
            return
        revision = self._lanes.wanted(holder)
        if self._update_in_place(holder, revision):
            return
        message = self._no_room(holder, revision)
        if not self._move(holder, Cause.MOVED, message):
            self._cannot_move(holder, message)

    def _update(self, holder: Holder, budget: Budget) -> None:
        revision, counted = self._lanes.wanted(holder), self._is_available(holder)
        may_surge, may_update = budget.may_surge, budget.may_update(counted)
        if may_surge and self._start_beside(holder, revision):
            budget.surging += 1
        elif may_update and self._update_in_place(holder, revision):
            budget.available -= counted
        elif may_surge and self._tried(lambda: self._start_updated(holder, revision)):
            budget.surging += 1
        elif (
            may_update
            and not budget.surge_max
            and self._tried(
                lambda: self._move(holder, Cause.MOVED, self._no_room(holder, revision))
            )
        ):
            budget.available -= counted
        elif may_update or may_surge:
            self._cannot_move(holder, self._no_room(holder, revision))
        else:
            self._waits.setdefault(("UpdateWaits", ""), []).append(holder.record.replica)

    def _leave(self, holder: Holder, reason: tuple[Cause, str], budget: Budget) -> bool:
        """Whether it does, or waits for its turn; False when no node fits."""
        cause, message = reason
        counted = self._is_available(holder)
        if budget.surge_max:
            turn = budget.may_surge
            if turn and self._start_replacement(holder, cause):
                budget.surging += 1
                return True
        else:
            turn = budget.may_disturb(counted)
            if turn and self._move(holder, cause, message):
                budget.available -= counted
                return True
        if turn:
            self._cannot_move(holder, message)
            return False
        code = "DrainBlocked" if cause is Cause.DRAINED else "UpdateWaits"
        self._waits.setdefault((code, message), []).append(holder.record.replica)
        return True

    def _start_beside(self, holder: Holder, revision: int) -> bool:
        """The next revision on the same node, beside what serves there; whether that can be."""
        node, row = self._node(holder), holder.row
        if node is None or row is None or node.liveness is not Liveness.LIVE:
            return False
        if node.deleting or node.not_ready or self._reason_to_leave(holder) is not None:
            return False
        if node.draining or not self._may_run(row, revision):
            return False
        need = self._lanes.need(revision)
        # Two that write to the same data, or open the same device of the box, disturb each other.
        if need.template.local_volumes or need.template.host_paths:
            return False
        if not self._table.has_room(row, need.template):
            return False
        if not self._quota_allows(need, holder):
            return False
        self._place_beside(holder, row, revision)
        return True

    def _tried(self, change: Callable[[], bool]) -> bool:
        """Whether it succeeded; not tried any more after many that did not."""
        if not self._tries:
            return False
        done = change()
        self._tries -= not done
        return done

    def _no_room(self, holder: Holder, revision: int) -> str:
        if holder.row is not None and not self._may_run(holder.row, revision):
            return f"revision {revision} may not run on node {holder.node}"
        return f"revision {revision} has no room on node {holder.node}"

    # --- telling ---------------------------------------------------------------------------------

    def _explain_waits(self, budget: Budget) -> None:
        behind = [name for name in self._held if name in self._incoming]
        stopped = self._stopped()
        behind += [n for n in self._held if n not in stopped and not self._is_covered(n)]
        blockers = sorted(set(behind), key=lambda name: (len(name), name))
        shown = ", ".join(blockers[:NAMED_MAX])
        if len(blockers) > NAMED_MAX:
            shown += f" and {len(blockers) - NAMED_MAX} more"
        for (code, message), names in self._waits.items():
            verb = "leave" if message else "change"
            are = "is" if len(blockers) == 1 else "are"
            text = f"{len(names)} of its replicas {verb} when {shown} {are} running and ready; "
            if not blockers:
                text = f"{len(names)} of its replicas cannot {verb}: "
            if message:
                text = f"{message}; {text}"
            self._explain(code, text + _allowed(budget, bool(message)), tuple(names))

    def _tell_daemons(self) -> None:
        """Replicas of a drained node that belong to it, as daemons do."""
        if self._workload.mode is not Mode.PER_NODE:
            return
        names = []
        for holder in ordered(self._held):
            node = self._node(holder)
            if node is not None and node.draining:
                names.append(holder.record.replica)
        if names:
            text = "its node is being drained, and it stays: perNode replicas belong to their node"
            self._explain("NodeDaemon", text, tuple(names))


def _is_voluntary(new: Holder) -> bool:
    """Whether a replacement counts as surge; those for policy's sake are not held up."""
    return new.record.because != Cause.NON_COMPLIANT


def _allowed(budget: Budget, leaving: bool) -> str:
    """The part of the budget that is used up, with the field that says so."""
    if not leaving:
        return (
            f"at most {budget.unavailable_max} may be unavailable (update.maxUnavailable) and "
            f"{budget.surge_max} started beside the others (update.maxSurge)"
        )
    if budget.surge_max:
        return f"at most {budget.surge_max} start beside the others at once (update.maxSurge)"
    return f"at most {budget.disruption_max} may be unavailable (disruption.maxUnavailable)"
