"""At what rate new sessions may begin on a member with too little CPU for its `accept_rate`. Pure.

`orchestrator/gateway/service.py` says every moment how late its event loop is. A loop that is late
does not get done what it has let in: heartbeats wait in sockets, sessions look half open, agents
come back with a handshake each, and the storm feeds itself. So the rate is halved while that lasts
and climbs back by steps once it is over (additive increase, multiplicative decrease, as TCP does).
"""

LATE_S = 0.5
"""So late the loop is when it cannot keep up; a single long step is less."""
_PUNCTUAL_S = 0.1
_AGAIN_S = 1.0  # what was let in before has to be worked off first
_STEP = 1 / 20  # of the full rate, each second
_LEAST = 1 / 30


class Pace:
    """Of one member. `full` and `rate` in sessions per second, times of one steady clock."""

    def __init__(self, full: float) -> None:
        self._full = full
        self.rate = full
        self._changed_at: float | None = None

    @property
    def is_held_back(self) -> bool:
        return self.rate < self._full

    def felt(self, late_s: float, now: float) -> None:
        """The loop was so much later than it wanted to be."""
        if self._changed_at is not None and now - self._changed_at < _AGAIN_S:
            return
        if late_s > LATE_S:
            self.rate = max(self._full * _LEAST, self.rate / 2)
        elif late_s < _PUNCTUAL_S and self.is_held_back:
            self.rate = min(self._full, self.rate + self._full * _STEP)
        else:
            return
        self._changed_at = now
