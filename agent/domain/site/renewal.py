"""When a lease is renewed, and who has granted that. Part of `holder.py`.

A node renews all that it holds at the same moments: so each voter is asked once a second for all of
them, in one message, however many there are (`agent/site/talk.py`).
"""

from collections.abc import Iterable
from math import floor

RENEW_S = 1.0
RETRY_S = 0.3  # until a question is asked again of those who are silent


class Renewal:
    """Of one lease. `due_at`: when to ask those `lacking`."""

    def __init__(self) -> None:
        self.due_at = 0.0
        self._began_at = self._next_at = 0.0
        self._by: set[str] = set()

    def begin(self, asked_at: float, by: Iterable[str]) -> None:
        """A majority granted it, asked then."""
        self._began_at, self._by = asked_at, set(by)
        self.due_at = self._next_at = _together(asked_at)

    def at_once(self, now: float) -> None:
        self._began_at = self.due_at = now
        self._next_at = _together(now)
        self._by.clear()

    def lacking(self, voters: Iterable[str], now: float) -> list[str]:
        """Of the voters those to be asked now."""
        if now >= self._next_at:
            self._began_at, self._next_at = now, _together(now)
            self._by.clear()
        self.due_at = now + RETRY_S
        return [voter for voter in voters if voter not in self._by]

    def granted(self, voter: str, asked_at: float, majority: int) -> None:
        """By one of them. Once a majority has, it is time enough to ask the others again."""
        if asked_at < self._began_at:
            return
        self._by.add(voter)
        if len(self._by) >= majority:
            self.due_at = self._next_at


def _together(after: float) -> float:
    return (floor(after / RENEW_S) + 1) * RENEW_S
