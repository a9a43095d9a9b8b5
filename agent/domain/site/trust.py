"""Voters that broke their word, and what proves it. Part of `lease.py`.

A voter must not grant a replica to another while its lease runs. Whether it did, who holds it can
tell:

    what the holder meets                               proves
    a voter whose lease of ours runs answers that it    that voter lied
    promised or granted it to another
    a peer claims a later ballot, and says who granted  both run it: this node stops, whoever is
    it that                                             right. Ballots rise at each voter: one whose
                                                        lease of ours runs granted no later one, and
                                                        who did both lied
    the same of a peer that granted it to us            that peer lied: nobody holds without its own
                                                        vote
    so many of them that no majority is left            nothing: more likely this node's own clock
                                                        stood still. All that it holds is void

If several granted both, either they lied or who says so: that stops this node and condemns nobody.

One that lied does not count as a voter at this node, for any replica and after a restart, too,
until no plan names it any more: `edgectl delete node` and joining again clear it.
"""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from agent.domain.roster import Electorate


class Finding(Enum):
    KNOWN = "it was excluded before"
    LIED = "it is excluded from now on"
    DOUBTED = "too many would have lied: those of that group are believed again"


class Trust:
    """`excluded` is looked at by every holder, and changed in place."""

    def __init__(self) -> None:
        self.excluded: set[str] = set()
        self._how: dict[str, str] = {}

    def body(self) -> dict[str, str]:
        """For what is saved: by voter, what it did."""
        return dict(self._how)

    def read(self, body: Mapping[str, Any]) -> None:
        self._how = {str(voter): str(how) for voter, how in body.items()}
        self.excluded |= self._how.keys()

    def text(self) -> str:
        """For operators; empty: all are believed."""
        told = "; ".join(f"{voter} {self._how[voter]}" for voter in sorted(self._how))
        return f"not believed as voters of exclusive replicas: {told}" if told else ""

    def lied(self, voter: str, how: str, group: Electorate) -> Finding:
        """Seen while this node held a replica by the voters of `group`."""
        if voter in self.excluded:
            return Finding.KNOWN
        self._exclude(voter, how)
        accused = self.excluded & set(group.voters)
        if len(accused) < group.majority:
            return Finding.LIED
        self._believe(accused)
        return Finding.DOUBTED

    def keep(self, names: Collection[str]) -> bool:
        """Only those that the plan names matter. Whether one was forgotten."""
        gone = self.excluded - set(names)
        self._believe(gone)
        return bool(gone)

    def _exclude(self, voter: str, how: str) -> None:
        self._how[voter] = how
        self.excluded.add(voter)

    def _believe(self, voters: Collection[str]) -> None:
        for voter in voters:
            del self._how[voter]
            self.excluded.discard(voter)


def who_lied(claimant: str, ours: Collection[str], theirs: Collection[str]) -> list[str]:
    """Of two that hold one replica: who granted both. `ours`: voters whose lease of this node
    runs, but for itself. `theirs`: who granted the later ballot, as far as that is known."""
    if claimant in ours:
        return [claimant]
    both = sorted(set(ours) & set(theirs))
    return both if len(both) == 1 else []
