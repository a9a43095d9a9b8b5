"""Waiting at start for a Store that other machines serve. Called by `server.py`.

After a power cut everything starts together, in any order: that etcd is not there yet is no reason
to end. What waiting cannot mend (StoreUnusable: wrong certificate, too old) is raised at once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator.notify import notify
from orchestrator.store.port import StoreUnavailable

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_PAUSE_S_MAX = 2.0
# systemd gives a unit 90 s to start unless it hears this again and again.
_EXTEND_US = 60_000_000

T = TypeVar("T")


async def patiently(
    attempt: Callable[[], Awaitable[T]],
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Try until the Store answers. Says so at once, and again each time the wait has doubled.

    Whatever `attempt` did before it raised StoreUnavailable it does again. Raises what else it
    raises; cancel it to give up.
    """
    started = monotonic()
    tell_after_s, pause_s = 0.0, _PAUSE_S
    while True:
        try:
            return await attempt()
        except StoreUnavailable as error:
            waited_s = monotonic() - started
            reason = " ".join(str(error).split())
            if waited_s >= tell_after_s:
                log.warning("waiting for the store: %s", reason, extra={"waited_s": int(waited_s)})
                tell_after_s = max(1.0, 2 * waited_s)
            status = f"STATUS=waiting for the store ({int(waited_s)} s): {reason}"
            notify(f"{status}\nEXTEND_TIMEOUT_USEC={_EXTEND_US}")
        await sleep(pause_s)
        pause_s = min(_PAUSE_S_MAX, 2 * pause_s)
