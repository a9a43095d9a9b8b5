"""Exclusive replicas: what must not run twice is never replaced on suspicion.

Within its site the lease of its group keeps two apart: so it is handed over there at once, to a
node that gets the lease when the old one gives it up, and a lost node's replica is not touched: its
standbys take it over, and the leader adopts what they did. Across sites nothing keeps two apart but
the leader: it stops first, and places when nobody can run the old one any more (`leftovers.py`).

    its node is heard     a node of its site does, and its group has a majority --> handed over
                          else, if a node elsewhere does --> it stops, and is placed when gone
    its node is not       it stays: its group has the word
                          all of its group have been silent for stopAfter and more --> placed anew
                          an operator vouches that it is gone (`edgectl fence`) --> placed anew
"""

from collections import defaultdict

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.records import GroupRecord
from orchestrator.scheduling import groups
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.desired import is_indexed, place_names
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.part import Part, Planning, is_lost, ordered
from orchestrator.scheduling.snapshot import Mode, Node, Workload
from orchestrator.scheduling.table import Mask

ISOLATION_MARGIN_S = 45.0
"""Beyond stopAfter: an agent takes a dead connection for a live one until its keepalive fails
(28 s; below that a proxy may answer for us), or hears a member that does not know yet that it is
cut off (13 s; its agents are called silent ten seconds after that began). And the longest lease
that may run on: one that was renewed for a restart (15 s)."""
DRIFT = 0.02
"""By how much two steady clocks may differ, each by one percent."""


class Exclusives(Part):
    """Used by `Moves`; of workloads that are not exclusive it does nothing."""

    def __init__(self, planning: Planning, workload: Workload) -> None:
        super().__init__(planning, workload)
        self._exclusive = workload.failover.exclusive and groups.shares(workload)
        self._told: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    # --- leaving ---------------------------------------------------------------------------------

    def _leave_exclusive(self, holder: Holder, node: Node) -> None:
        """What cannot wait: its node is deleted, drained for too long, lost or fenced."""
        record = holder.record
        alone = (record.workload_uid, record.replica) not in self._planning.holders.leftovers
        if alone and self._is_fenced(holder, node):
            text = f"an operator vouches that it does not run on node {node.name} any more"
            self._place_anew(holder, text)
        elif alone and self._is_isolated(holder):
            text = f"node {node.name} and its group have been silent for longer than stopAfter"
            self._place_anew(holder, text)
        elif node.deleting:
            self._leave_at_last(holder, Cause.NODE_DELETED, f"node {node.name} is being deleted")
        elif node.drain_overdue and node.draining:
            text = f"the deadline for draining node {node.name} is over"
            self._leave_at_last(holder, Cause.DRAINED, text)

    def _leave_at_last(self, holder: Holder, cause: Cause, message: str) -> None:
        """Whether or not there is another place for it, if its node can be told."""
        if not self._hand_over(holder, cause, message) and self._is_live(holder):
            self._stop(holder, cause, message)
            self._drop(holder.record.replica)

    def _hand_over(self, holder: Holder, cause: Cause, message: str) -> bool:
        """To another node of its site, or it stops for one elsewhere; whether it leaves."""
        name = holder.record.replica
        lanes = self._lanes.for_move(holder)
        for among in self._near(holder):
            found = self._choose(name, lanes, among, holder)
            if found is not None:
                row, chooser = found
                self._place(name, row, chooser, leaving=holder, because=cause.value)
                self._stop(holder, cause, message, moved_to=self._table.nodes[row].name)
                return True
        if not self._is_live(holder):
            return False
        if self._choose(name, lanes, self._scope(holder), holder) is None:
            return False
        self._stop(holder, cause, f"{message}; it is placed again when it is gone")
        self._drop(name)
        return True

    def _near(self, holder: Holder) -> list[Mask]:
        """Rows between which the lease keeps two apart: of its group first, then of its site."""
        node, group = self._node(holder), holder.record.group
        if node is None or group is None or not node.site or not node.reachable:
            return []
        if not group.exclusive or not self._groups.can_change(group, self._epoch(holder)):
            return []
        site = self._site_mask(node.site) & self._table.flags("reachable")
        mine = np.zeros(self._table.size, dtype=np.bool_)
        mine[[self._table.index[name] for name in group.members if name in self._table.index]] = (
            True
        )
        return [site & mine, site]

    def _place_anew(self, holder: Holder, message: str) -> None:
        """Nothing of it runs, as far as anybody can know."""
        name = holder.record.replica
        found = self._choose(name, self._lanes.for_move(holder), self._scope(holder), holder)
        if found is None:
            self._told["CannotMove", f"{message}; no other node fits"].append(name)
            return
        row, chooser = found
        because = Cause.NODE_LOST
        self._place(name, row, chooser, leaving=holder, because=because.value, forced=True)
        self._stop(holder, because, message, moved_to=self._table.nodes[row].name)

    def _is_fenced(self, holder: Holder, node: Node) -> bool:
        """Whether somebody vouches for it. A node that is heard speaks for itself."""
        fenced = holder.record.replica_uid in self._snapshot.fenced
        return fenced and node.liveness is not Liveness.LIVE

    def _is_isolated(self, holder: Holder) -> bool:
        """Whether its whole group has been silent for so long that it has stopped by itself."""
        group = holder.record.group
        if group is None or not group.exclusive or not group.stop_after_s:
            return False
        patience_s = group.stop_after_s * (1 + DRIFT) + ISOLATION_MARGIN_S
        for name in group.voters:
            row = self._table.index.get(name)
            if row is None:
                continue
            node = self._table.nodes[row]
            if not is_lost(node) or self._planning.now - node.since < patience_s:
                return False
            # Without that plan it may have been told to keep running.
            if name in group.members and name not in self._snapshot.using:
                return False
        return True

    # --- what waits ------------------------------------------------------------------------------

    def _withheld(self) -> set[str]:
        """Names that are wanted, and of which nobody knows that their last stay is over."""
        if not self._exclusive:
            return set()
        workload = self._workload
        names = {n for uid, n in self._planning.holders.leftovers if uid == workload.uid}
        if not names or workload.mode is Mode.REPLICAS:
            return {name for name in names if is_indexed(workload, name)}
        return names.intersection(name for name, _ in place_names(workload, self._sites()))

    def _explain_exclusive(self) -> None:
        """Of those that are held: who cannot be taken over, and what is not known."""
        for holder in ordered(self._held):
            node, group = self._node(holder), holder.record.group
            if node is not None and group is not None and group.exclusive:
                code, text = self._standing(node, group, self._epoch(holder))
                if code:
                    self._told[code, text].append(holder.record.replica)
        for name in sorted(
            self._withheld() - self._held.keys(), key=lambda name: (len(name), name)
        ):
            found = self._planning.holders.leftovers[self._workload.uid, name][0]
            text = f"it is placed again when nobody can run it any more: {found.why}; if you know "
            text += f"that nobody does: `edgectl fence {name} --force`"
            self._told["ExclusiveWaits", text].append(name)
        for (code, text), names in self._told.items():
            self._explain(code, text, tuple(names))

    def _standing(self, node: Node, group: GroupRecord, epoch: int) -> tuple[str, str]:
        """(code, text) of what is wrong with a group; empty: nothing. Who is only silent, as all
        are when an orchestrator starts, is not yet missed."""
        missed = [name for name in group.voters if self._is_missed(name)]
        vouch = "if you know that it does not run: `edgectl fence REPLICA --force`"
        if len(group.voters) == 1:
            if missed:
                text = f"node {node.name} is not heard, and alone may hold it; {vouch}"
                return "NoMajority", text
            if self._workload.failover.standbys:
                text = f"nobody can take it over: site {node.site} has fewer than "
                text += f"{groups.VOTERS_MIN} nodes that could vote, and two cannot outvote one"
                return "NoMajority", text
            return "", ""
        if len(group.voters) - len(missed) < group.majority:
            of, lacks = ", ".join(group.voters), ", ".join(missed)
            text = f"of {of}, which vote on it, {lacks} are not heard: without {group.majority} "
            return "NoMajority", f"{text}of them nobody takes it over; {vouch}"
        if node.name in missed:
            others = ", ".join(name for name in group.members if name != node.name)
            who = f"{others} may take it over" if others else "no standby would do"
            text = f"node {node.name} is not heard, and may still run it: {who}, by a majority"
            return "ExclusiveWaits", text
        if groups.is_last(group, epoch):
            text = (
                f"who votes on it changed {groups.BEFORE_MAX} times in one tenure, and stays as it"
            )
            return "GroupFull", f"{text} is until the agent of node {node.name} is restarted"
        return "", ""

    def _is_missed(self, name: str) -> bool:
        row = self._table.index.get(name)
        if row is None:
            return True
        return self._table.nodes[row].liveness in (Liveness.LOST, Liveness.NEVER_SEEN)
