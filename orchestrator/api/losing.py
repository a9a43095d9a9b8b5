"""What follows changes (watches, events) ends when the member loses its Store.

It hears of no change any more then, and says so: readers go on at a member that hears, or are told
here that what they see is old. `WatchHub.run` looks; both kinds of streams subscribe.
"""

from collections.abc import Callable

from orchestrator.refusals import Refused, unavailable

LOST_S = 5.0
"""A Store that did not answer for so long has been lost; shorter, it is slow."""


class Losing:
    """One per process. `behind_s`: for how long the Store has not answered; 0: it does."""

    def __init__(self, behind_s: Callable[[], float], member: str) -> None:
        self._behind_s = behind_s
        self._member = member
        self._lost = False
        self._readers: set[Callable[[], None]] = set()

    def subscribe(self, lose: Callable[[], None]) -> Callable[[], None]:
        """`lose` is called at the next loss. Who begins after a loss goes on until another: it was
        told how old what it reads is. Returns what ends it."""
        self._readers.add(lose)
        return lambda: self._readers.discard(lose)

    def look(self) -> None:
        """Tells each loss once."""
        behind_s = self._behind_s()
        if not behind_s:
            self._lost = False
        elif not self._lost and behind_s >= LOST_S:
            self._lost = True
            for lose in list(self._readers):
                lose()

    def refusal(self) -> Refused:
        """How a stream ends then."""
        return unavailable(
            "StoreUnavailable",
            f"member {self._member} cannot read its store: it hears of no changes",
            "edgectl goes through its endpoints by itself",
        )
