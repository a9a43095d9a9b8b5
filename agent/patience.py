"""Timeouts that do not blame the other side for what this process was late with itself.

`agent/session_stream.py` waits with it. A box that was starved or frozen wakes up with a timeout
that has run out and an answer that waits in a socket: `asyncio.timeout` would look at the first
only, and drop a session that is well just when a new one is most expensive.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STEP_S = 1.0
LATE_S = 0.25
"""A loop that is later than this has not been reading."""
GRACE_S = 0.5


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """As `asyncio.timeout`, but what a step took longer than planned does not count, and after a
    late last step there is GRACE_S to read what came meanwhile. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    left_s = seconds
    waiting: asyncio.TimerHandle | None = None

    def wait(step_s: float) -> None:
        nonlocal waiting
        waiting = loop.call_later(step_s, stepped, step_s, loop.time() + step_s)

    def stepped(step_s: float, due: float) -> None:
        nonlocal left_s
        late, left_s = loop.time() - due > LATE_S, left_s - step_s
        if left_s > 0:
            wait(min(STEP_S, left_s))
        elif late and left_s > -GRACE_S:
            wait(GRACE_S)
        elif not scope.expired():
            scope.reschedule(loop.time())

    async with asyncio.timeout(None) as scope:
        wait(min(STEP_S, max(0.0, seconds)))
        try:
            yield scope
        finally:
            if waiting is not None:
                waiting.cancel()
