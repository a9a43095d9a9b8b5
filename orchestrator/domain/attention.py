"""How much of a time this process itself was not there to listen. Pure.

The monitor (`orchestrator/gateway/monitor.py`) wants to look once a second. When a look comes late,
the loop was busy, starved or stopped meanwhile, and read nothing: who was silent then is not to
blame, since its words may still wait in a socket.
"""

from collections import deque

KEPT_S = 120.0
"""Longer than any silence that is judged."""
_PUNCTUAL_S = 0.1


class Attention:
    """Give `look` every look. Times are seconds of one steady clock."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._looked_at: float | None = None
        self._missed: deque[tuple[float, float]] = deque()  # when it ended, how long it was

    def look(self, now: float) -> None:
        """A look begins; the next one is due `every_s` later."""
        before, self._looked_at = self._looked_at, now
        late_s = 0.0 if before is None else now - before - self._every_s
        if late_s > _PUNCTUAL_S:
            self._missed.append((now, late_s))
        while self._missed and self._missed[0][0] < now - KEPT_S:
            self._missed.popleft()

    def missed_since(self, moment: float) -> float:
        """Seconds after `moment` in which nobody listened."""
        return sum(
            min(late_s, ended_at - moment) for ended_at, late_s in self._missed if ended_at > moment
        )
