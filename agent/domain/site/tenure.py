"""What one ballot has been granted, and by when it ends. Part of `holder.py`.

A voter's word counts from when it was asked, for what the length is at least by our clock, less the
time that the switch needs to end a replica. Each voter is counted alone, over all that it granted,
and the end is the one that a majority of a group reaches: until then a majority grants it to nobody
else.
"""

from collections.abc import Set
from dataclasses import dataclass, field

from agent.domain.roster import Electorate
from agent.domain.site.group import STRETCH, Lineage

KILL_S = 0.2  # what the switch needs to end a replica


@dataclass(slots=True)
class Tenure:
    """`lineage`: where it is renewed. `ends`: by when each voter of a group may grant it to others;
    of the group before, too, which was sealed when the holder moved. `heard`: by voter, when the
    last of its words came that moved an end. `bounded`: what runs ends by these ends at the latest,
    whatever was granted to an earlier ballot; voters are told so."""

    ballot: int
    lineage: Lineage
    ends: dict[Electorate, dict[str, float]] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    bounded: bool = False
    _known: tuple[Set[str], float] | None = None  # what `until` came to, without these

    def granted(
        self, group: Electorate, voter: str, sent_at: float, length_s: float, now: float
    ) -> None:
        ends, end = self.ends.setdefault(group, {}), sent_at + length_s / STRETCH - KILL_S
        if end > ends.get(voter, 0.0):
            ends[voter], self.heard[voter] = end, now
            self._known = None

    def binds(self, voter: str, sent_at: float, now: float) -> bool:
        """Whether the voter knew, when it answered a request of that time, that it has granted the
        lease, and the lease runs yet. An answer that was under way for long may be from before."""
        end = self.ends.get(self.lineage.group, {}).get(voter, 0.0)
        return end > now and sent_at >= self.heard[voter]

    def until(self, excluded: Set[str]) -> float:
        """By then nothing of the replica may run."""
        if self._known is not None and self._known[0] == excluded:
            return self._known[1]
        found = 0.0
        for group, ends in self.ends.items():
            counted = sorted(ends[v] for v in group.voters if v in ends.keys() - excluded)
            if len(counted) >= group.majority:
                found = max(found, counted[-group.majority])
        self._known = frozenset(excluded), found
        return found

    def locked(self, now: float) -> set[str]:
        """The voters that may not grant it to another yet."""
        return {v for ends in self.ends.values() for v, end in ends.items() if end > now}

    def granters(self) -> tuple[str, ...]:
        """Who granted this ballot, at any time."""
        return tuple(sorted({voter for ends in self.ends.values() for voter in ends}))

    def voters(self) -> list[str]:
        """All that granted it, or may have."""
        groups = (self.lineage.group, *self.ends)
        return sorted({voter for group in groups for voter in group.voters})
