"""Two clocks: one that says what time it is, and one that never jumps. Used by the supervisor.

Backoffs and probe periods are counted by the steady clock: an operator who corrects the box's date
by a day must neither stop restarts for a day nor fire a day's worth of them.

What an idle agent does now and then it does at whole seconds of that clock, as leases are renewed
then, too (`agent/domain/site/renewal.py`): to wake up costs more than what it is mostly for.
"""

import asyncio
import time
from typing import Protocol


def boottime() -> float:
    """Seconds since the kernel started; goes on in a suspended box."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def to_the_second(pause_s: float, now: float | None = None) -> float:
    """The pause that ends nearest to `pause_s`, at a whole second of `now` (`boottime`)."""
    if now is None:
        now = boottime()
    return max(0.0, round(now + pause_s) - now)


async def sleep(pause_s: float) -> None:
    """As `asyncio.sleep`, `to_the_second`."""
    await asyncio.sleep(to_the_second(pause_s))


class Clock(Protocol):
    """Both in unix seconds when the agent starts; only `wall` follows later corrections."""

    def steady(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """Implements Clock: the boot-time clock goes on while the box is suspended. Its whole seconds
    are those of the boot time."""

    def __init__(self) -> None:
        self._offset = round(time.time() - boottime())

    def steady(self) -> float:
        return self._offset + boottime()

    def wall(self) -> float:
        return time.time()
