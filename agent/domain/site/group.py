"""How a group of voters comes to vote: those before it are sealed, then it is opened.

Used by `holder.py`, for the first group of a replica as for every later one. Why it is safe is said
in `lease.py`.

A `Lineage` travels whole, from the plan or from a voter, so that whoever meets a sealed group can
finish what another began and died of.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.domain.roster import Electorate, Group
from agent.domain.site.messages import LeaseAnswer, Open, Seal

DRIFT = 0.01  # how far a clock may go wrong, of the time that passes
STRETCH = (1 + DRIFT) / (1 - DRIFT)
"""So much longer a duration of another's clock may last by one's own."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """A group and those before it that may not be sealed yet. `forced`: they need not be."""

    group: Electorate
    before: tuple[Electorate, ...] = ()
    forced: bool = False

    @property
    def number(self) -> int:
        return self.group.number


def lineage_of(group: Group) -> Lineage:
    """Voters in the order of their names: members may change places without a new group."""
    return Lineage(
        Electorate(group.number, tuple(sorted(group.voters))),
        () if group.forced else group.before,
        group.forced,
    )


def lineage_body(lineage: Lineage | None) -> dict[str, Any] | None:
    """For what is saved."""
    if lineage is None:
        return None
    return {
        "number": lineage.number,
        "voters": list(lineage.group.voters),
        "before": [[e.number, list(e.voters)] for e in lineage.before],
        "forced": lineage.forced,
    }


def lineage_from(body: Mapping[str, Any] | None) -> Lineage | None:
    """What `lineage_body` made. Raises KeyError, TypeError or ValueError for anything else."""
    if body is None:
        return None
    return Lineage(
        Electorate(int(body["number"]), tuple(body["voters"])),
        tuple(Electorate(int(number), tuple(voters)) for number, voters in body["before"]),
        bool(body["forced"]),
    )


@dataclass(slots=True)
class _Told:
    """What one voter said of the lease that it granted last. `until` by our clock, on the safe
    side: the voter's may go slowly."""

    ballot: int
    holder: str
    until: float


@dataclass(slots=True)
class Opening:
    """One attempt to bring a group to vote, kept until it votes: a seal holds for good."""

    lineage: Lineage
    _older: dict[int, Electorate] = field(default_factory=dict)
    _voting: int = 0  # the newest older group that somebody votes in
    _sealed: set[str] = field(default_factory=set)
    _told: dict[str, _Told] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._older = {group.number: group for group in self.lineage.before}

    def note(self, voter: str, answer: LeaseAnswer, now: float) -> None:
        """What a voter answered before it was asked for a seal. What it said to that counts for
        more: an answer that was under way for longer may be from before its last grant."""
        self._learn(answer)
        if voter not in self._sealed:
            self._remember(voter, answer, now)

    def sealed_by(self, voter: str, answer: LeaseAnswer, now: float) -> None:
        """It granted a seal: it votes in no older group any more."""
        self._learn(answer)
        self._sealed.add(voter)
        self._remember(voter, answer, now)

    def _remember(self, voter: str, answer: LeaseAnswer, now: float) -> None:
        until = now + answer.remaining_s * STRETCH
        self._told[voter] = _Told(answer.accepted, answer.holder, until)

    def _learn(self, answer: LeaseAnswer) -> None:
        if answer.reason in ("", "NotOpen") and answer.next:
            if answer.next < self.lineage.number:
                self._voting = max(self._voting, answer.next)
            for group in (*answer.next_before, Electorate(answer.next, answer.next_voters)):
                if self._concerns(group):
                    self._older.setdefault(group.number, group)

    def older_voters(self) -> list[str]:
        """Who votes in older groups that are not sealed yet."""
        return sorted(self.seals())

    def seals(self) -> dict[str, Seal]:
        """Whom to ask yet; empty when every older group is sealed by a majority of its voters.

        Those before one that somebody votes in were, when it was opened: nobody asks voters of long
        ago again, of whom no majority may be left."""
        seal = Seal(self.lineage.number, self.lineage.group.voters, self.lineage.before)
        return {
            voter: seal
            for group in self._older.values()
            if group.number >= self._voting
            and len(self._sealed & set(group.voters)) < group.majority
            for voter in group.voters
            if voter not in self._sealed
        }

    def opens(self, voters: Iterable[str], now: float) -> dict[str, Open]:
        """What to say to those. A lease that may still run in an older group goes on if it is the
        only one; of two nobody knows which it is, and both are waited for."""
        running = [told for told in self._told.values() if told.until > now]
        wait_s = max((told.until - now for told in running), default=0.0) * STRETCH
        ballots = {told.ballot for told in running}
        holders = {told.holder for told in running}
        floor, holder = max((told.ballot for told in self._told.values()), default=0), ""
        if len(ballots) == len(holders) == 1 and 0 not in ballots:
            floor, holder = ballots.pop(), holders.pop()
        lineage = self.lineage
        opened = Open(lineage.group.voters, floor, wait_s, holder, lineage.before)
        return dict.fromkeys(voters, opened)

    def _concerns(self, group: Electorate) -> bool:
        """Whether a group that a voter told of is to be sealed, too. Those before the oldest that
        the plan names are sealed: a holder was seen later."""
        if not 0 < group.number < self.lineage.number or self.lineage.forced:
            return False
        oldest = min((known.number for known in self.lineage.before), default=0)
        return group.number >= oldest
