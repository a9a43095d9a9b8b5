"""Lets the store's threads run while the event loop is saturated.

Called by `sqlite.SqliteStore`, its writer and its readers. A thread that wants CPython's
interpreter lock asks for it only after a whole switch interval without any release. A busy event
loop releases it for a microsecond at each poll and takes it back before the waiting thread is
awake, so that thread can starve for as long as the loop is busy: with the default interval a commit
took seconds. So, while requests are pending and none of the threads moves, the loop stands aside
for a moment by itself.
"""

import asyncio
import threading

_TICK_S = 0.002
# At worst a quarter of the loop's time, and only while it starves the store.
_ASIDE_S = 0.0005
# The writer is probably waiting for an fsync, which needs no lock: only look.
_ASIDE_AT_DISK_S = 0.0001


class Handover:
    """`request` and `done` are for the event loop, `moved` for the threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.at_disk = False
        self._loop = loop
        self._pending = 0
        self._armed = False
        self._moves = 0  # threads may lose an increment to each other; any change will do
        self._seen = 0
        self._waiting = False
        self._moved = threading.Event()

    def request(self) -> None:
        self._pending += 1
        if not self._armed:
            self._armed = True
            self._seen = self._moves
            self._loop.call_later(_TICK_S, self._tick)

    def done(self, count: int) -> None:
        self._pending -= count

    def moved(self) -> None:
        self._moves += 1
        if self._waiting:
            self._moved.set()

    def _tick(self) -> None:
        if self._pending == 0:
            self._armed = False
            return
        if self._seen == self._moves:
            self._moved.clear()
            self._waiting = True
            self._moved.wait(_ASIDE_AT_DISK_S if self.at_disk else _ASIDE_S)
            self._waiting = False
        self._seen = self._moves
        self._loop.call_later(_TICK_S, self._tick)
