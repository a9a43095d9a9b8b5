"""A bounded number of slots, of which the lower rank gets the next free one.

`agent/operations.py` starts containers and pods through it: what is half started comes before what
is not begun, so that a box with hundreds of pods to start serves from the first one on.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Among equal ranks, who came first. A waiter that is cancelled takes nothing with it."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._came = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def taken(self, rank: int) -> AsyncIterator[None]:
        """A slot for the length of the block."""
        await self._take(rank)
        try:
            yield
        finally:
            self._give()

    async def _take(self, rank: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._came += 1
        heapq.heappush(self._waiting, (rank, self._came, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given in the same moment
                self._give()
            raise

    def _give(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
