"""A token bucket that answers how long to wait. Pure.

The gateway paces three things with it: what one agent says beside its heartbeats, sessions that
begin, and plans that go out.
"""


class Bucket:
    """`per_s` in the long run, and `burst` at once. Time is an argument: seconds of one clock."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = 0.0

    def slow_down(self, per_s: float) -> None:
        """From now on so many per second."""
        self._per_s = per_s

    def take(self, now: float) -> float:
        """Seconds to wait before going on; 0 within the rate. Each caller has its own turn."""
        elapsed = max(0.0, now - self._at)
        self._at = now
        self._tokens = min(self._burst, self._tokens + elapsed * self._per_s) - 1.0
        return max(0.0, -self._tokens / self._per_s)
