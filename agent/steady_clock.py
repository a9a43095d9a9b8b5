"""Two clocks: one that says what time it is, and one that never jumps. Used by the supervisor.

Backoffs and probe periods are counted by the steady clock: an operator who corrects the box's date
by a day must neither stop restarts for a day nor fire a day's worth of them.
"""

import time
from typing import Protocol


def boottime() -> float:
    """Seconds since the kernel started; goes on in a suspended box."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock(Protocol):
    """Both in unix seconds when the agent starts; only `wall` follows later corrections."""

    def steady(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """Implements Clock: the boot-time clock goes on while the box is suspended."""

    def __init__(self) -> None:
        self._offset = time.time() - boottime()

    def steady(self) -> float:
        return self._offset + boottime()

    def wall(self) -> float:
        return time.time()
