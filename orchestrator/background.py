"""Tasks that must run as long as the process does. One that ends is told, and ends the process."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Background:
    """`failed` is set when a task ended although nobody stopped it. It can be another's."""

    def __init__(self, failed: asyncio.Event | None = None) -> None:
        self.failed = failed or asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if self._stopping:
            return
        # Nobody but `stop` ends one: a cancellation that came out of what it waited for is none.
        error = None if task.cancelled() else task.exception()
        log.critical("task %s ended", task.get_name(), exc_info=error)
        self.failed.set()

    async def stop(self) -> None:
        """Cancels all and waits for them."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
