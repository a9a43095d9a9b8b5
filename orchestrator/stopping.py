"""The last resort of a stop: the process ends in a stated time, whatever in it does not.

`main.py` calls `end_within` as soon as it is told to stop. What acknowledged writes need stands in
the Store by then, and the rest hangs on leases that run out: it is better to end without having
tidied up than to be there for ever, as a namesake that keeps the next start waiting.
"""

import asyncio
import logging
import os
import threading

from polder.tasks import what_waits

log = logging.getLogger(__name__)

STOP_S = 20.0
"""Beyond `shutdown_grace`. A stop while the Store is away takes 7 s."""
_TOLD_MAX = 50


def end_within(seconds: float) -> None:
    """Call it in the loop that is about to stop. Exit code 1 when that takes longer."""
    loop = asyncio.get_running_loop()
    timer = threading.Timer(seconds, _end, (loop, seconds))
    timer.daemon = True  # who has ended before is not kept
    timer.start()


def _end(loop: asyncio.AbstractEventLoop, after_s: float) -> None:
    """In a thread: the loop itself may be what hangs."""
    log.critical("the stop took too long; ending without", extra={"after_s": after_s})
    for text in what_waits(asyncio.all_tasks(loop))[:_TOLD_MAX]:
        log.critical("has not ended: %s", text)
    os._exit(1)
