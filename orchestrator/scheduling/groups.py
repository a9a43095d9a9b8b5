"""Who may hold a replica without being asked, and who votes on it: the failover groups of a plan.

The members are the replica's node and its standbys. An exclusive replica runs where a majority of
its group's voters has granted a lease, so the members are joined by witnesses of the site until
there is an odd number of voters, at least three. With two, either of them would stop the replica by
going away and nobody could ever take over: then its own node is the only voter.

A group is kept as long as possible. Other voters are another group with another number, which
votes when the groups `before` it are sealed at a majority of their voters; so no group is changed
of which no majority is heard. A voter whose box joined again under its name has forgotten what it
granted: it gets no part in the group (`gateway/roles.py`), and the same voters make the next one.
Used by `part.py`; agents do the sealing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.records import ElectorateRecord, GroupRecord
from orchestrator.scheduling.snapshot import Mode, Node, Workload
from orchestrator.scheduling.standbys import is_given_up
from orchestrator.scheduling.table import NodeTable
from polder import epochs

VOTERS_MIN = 3
BEFORE_MAX = 64
"""Former groups that a group names, of which none may be left out: who skips one does not seal it.
So many changes during one tenure are the last, until somebody else has held the replica."""


def shares(workload: Workload) -> bool:
    """Whether its replicas have groups: nodes of one site take over from each other what is to run
    always and does not belong to its node."""
    failover = workload.failover
    if workload.once or workload.mode is Mode.PER_NODE or failover.scope != "site":
        return False
    return failover.exclusive or failover.standbys > 0


class GroupMaker:
    """Of one workload in one plan. `number` is that of groups that begin now, `now` unix s."""

    def __init__(self, table: NodeTable, workload: Workload, number: int, now: float) -> None:
        self._table = table
        self._now = now
        self.shares = shares(workload)
        self._failover = workload.failover
        self._number = number
        self._at: dict[int, list[Node]] = {}  # by site: who may witness
        stops = workload.failover.when_isolated == "stop"
        self._stop_after_s = workload.failover.stop_after if stops else 0.0

    def first(self, row: int, standbys: Sequence[str], forced: bool = False) -> GroupRecord | None:
        """Of a replica that nobody may hold any more: nothing is sealed before it."""
        if not self.shares:
            return None
        return replace(self._made(row, standbys, ()), forced=forced)

    def after(
        self, before: GroupRecord | None, row: int, standbys: Sequence[str], epoch: int
    ) -> GroupRecord | None:
        """Of a replica on `row` that `before` may hold: the same as far as that still does.
        `epoch`: the highest that is known of a holder."""
        if not self.shares:
            return None
        if before is None or before.exclusive != self._failover.exclusive:
            return self._made(row, standbys, ())
        if not before.exclusive and self._is_as_wanted(before, row, standbys):
            return before  # without making it, in every plan for nearly every replica
        wanted = self._made(row, standbys, before.voters)
        if set(wanted.voters) == set(before.voters) and not self._has_forgotten(before):
            number, forced = before.number, before.forced
            return replace(wanted, number=number, forced=forced, before=before.before)
        if not wanted.exclusive:
            return wanted
        former = _before_the_next(before, epoch)
        return before if len(former) > BEFORE_MAX else replace(wanted, before=former)

    def _has_forgotten(self, group: GroupRecord) -> bool:
        """Whether one of its voters joined after it began: with another disk, so that it does not
        know what it granted. All that is granted in the next group has a greater number."""
        rows = (self._table.index.get(name) for name in group.voters)
        return group.exclusive and any(
            row is not None and forgets(self._table.nodes[row].joined_epoch, group) for row in rows
        )

    def _is_as_wanted(self, before: GroupRecord, row: int, standbys: Sequence[str]) -> bool:
        return (
            before.members == (self._table.nodes[row].name, *standbys)
            and before.on_return == self._failover.on_return
            and before.stop_after_s == self._stop_after_s
        )

    def can_change(self, group: GroupRecord, epoch: int) -> bool:
        """Whether another may follow: a majority of its voters is heard, so that it can be sealed,
        and the next one can name all before it. `epoch`: as for `after`."""
        if not group.exclusive:
            return True
        return len(self.heard(group.voters)) >= group.majority and not is_last(group, epoch)

    def heard(self, names: Iterable[str]) -> list[str]:
        """Those of the nodes from which something is heard."""
        found = []
        for name in names:
            row = self._table.index.get(name)
            if row is not None and self._table.nodes[row].liveness is Liveness.LIVE:
                found.append(name)
        return found

    # --- parts -----------------------------------------------------------------------------------

    def _made(self, row: int, standbys: Sequence[str], voted: Sequence[str]) -> GroupRecord:
        failover, own = self._failover, self._table.nodes[row].name
        members: tuple[str, ...] = (own, *standbys)
        witnesses: tuple[str, ...] = ()
        if failover.exclusive:
            witnesses = self._witnesses(row, members, voted)
            if len(members) + len(witnesses) < VOTERS_MIN:
                members, witnesses = (own,), ()
        return GroupRecord(
            number=self._number,
            members=members,
            witnesses=witnesses,
            exclusive=failover.exclusive,
            on_return=failover.on_return,
            stop_after_s=self._stop_after_s,
        )

    def _witnesses(self, row: int, members: Sequence[str], voted: Sequence[str]) -> tuple[str, ...]:
        """Those that voted before come first, then others of the site that are heard: one that is
        not would keep a majority away. Then who voted and is lost: to have it back is better than
        to have nobody."""
        if not self._table.nodes[row].reachable:
            return ()
        lacks = max(VOTERS_MIN, len(members) | 1) - len(members)
        free = []
        for node in self._candidates(int(self._table.site_codes[row])):
            if node.name in members:
                continue
            if node.name not in voted and node.liveness is not Liveness.LIVE:
                continue
            given_up = is_given_up(node, self._now)
            free.append((given_up, node.name not in voted, node.name))
        return tuple(name for _, _, name in sorted(free)[:lacks])

    def _candidates(self, site: int) -> list[Node]:
        """Nodes of the site that the others reach, and that were there once."""
        if site not in self._at:
            rows = np.flatnonzero(self._table.site_codes == site).tolist()
            self._at[site] = [
                node
                for node in (self._table.nodes[row] for row in rows)
                if node.reachable and not node.deleting and node.liveness is not Liveness.NEVER_SEEN
            ]
        return self._at[site]


def forgets(joined_epoch: int, group: GroupRecord) -> bool:
    """Whether a node that joined then must not vote in an exclusive group."""
    return group.exclusive and group.number < joined_epoch


def is_last(group: GroupRecord, epoch: int) -> bool:
    """Whether none may follow it before the replica has another holder. `epoch`: the highest that
    is known of its present one."""
    return len(_before_the_next(group, epoch)) > BEFORE_MAX


def _before_the_next(group: GroupRecord, epoch: int) -> tuple[ElectorateRecord, ...]:
    return _unsealed((*group.before, ElectorateRecord(group.number, group.voters)), epoch)


def _unsealed(former: tuple[ElectorateRecord, ...], epoch: int) -> tuple[ElectorateRecord, ...]:
    """Without those that are sealed for certain. A site's own epoch is above the number of the
    group that let its holder in, which was after all groups before that one were sealed."""
    if not epochs.is_local(epoch):
        return former
    voted = max((group.number for group in former if group.number < epoch), default=0)
    return tuple(group for group in former if group.number >= voted)
