"""Reading one's own writes: a writer waits until the mirror shows what it wrote.

Called by the operator API after each write, and by joins before they try again.
"""

import asyncio
import contextlib

from orchestrator.cache import Cache

_WAIT_S_MAX = 2.0


async def catch_up(cache: Cache, revision: int) -> None:
    """Until the mirror is at `revision`; not for long, since the write is durable without it."""
    if cache.revision >= revision or not cache.healthy:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_S_MAX):
            await cache.wait_for(revision)
