"""Watches: who wants which prefix, and how far each has come.

Called by `sqlite.SqliteStore`, on the event loop only. Commits arrive here once each, in order, and
go to the short queues of the watchers whose prefix they touch; nobody else is woken. A watcher
whose queue is full drops it and reads the log from where it was, so that a slow one costs a bounded
amount of memory and nothing to the others.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from orchestrator.store.port import (
    Entry,
    EventType,
    StoreUnavailable,
    WatchBatch,
    WatchEvent,
)
from orchestrator.store.sqlite_group import Change

BATCH_EVENTS_MAX = 512
BATCH_BYTES_MAX = 4 << 20
_QUEUE_EVENTS_MAX = 1024
_QUEUE_BYTES_MAX = 8 << 20
# A watcher of a quiet prefix learns of progress this often, well before its place is compacted.
PROGRESS_REVISIONS = 1000

ReadLog = Callable[[bytes, int, int], Awaitable[WatchBatch]]
"""Changes under a prefix after a revision, up to another; may stop earlier, and says where."""


def to_event(change: Change) -> WatchEvent:
    entry = Entry(
        change.key.decode(),
        change.value,
        change.create_revision,
        change.revision,
        change.version,
        change.lease,
    )
    return WatchEvent(EventType.DELETE if change.deleted else EventType.PUT, entry)


@dataclass(slots=True, eq=False)
class _Watcher:
    """`covered`: all up to here was handed out. `head`: up to here from the log, then the queue."""

    prefix: bytes
    covered: int
    head: int
    queue: deque[tuple[WatchEvent, int]] = field(default_factory=deque)
    queue_bytes: int = 0
    lagging: bool = False
    marked: int = 0  # a progress mark up to this revision is due
    wakeup: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.wakeup is not None and not self.wakeup.done():
            self.wakeup.set_result(None)

    def offer(self, event: WatchEvent, size: int) -> None:
        if self.lagging or event.entry.mod_revision <= self.covered:
            return
        if len(self.queue) >= _QUEUE_EVENTS_MAX or self.queue_bytes + size > _QUEUE_BYTES_MAX:
            self.lag(self.covered)
            return
        self.queue.append((event, size))
        self.queue_bytes += size
        self.wake()

    def lag(self, dispatched: int) -> None:
        """Go back to the log, to read what the queue held and the rest. `dispatched`: the last
        revision offered, should the queue be empty."""
        if not self.lagging and self.covered >= self.head:
            # What precedes the queue never concerned this watcher, and may be compacted by now.
            first = self.queue[0][0].entry.mod_revision - 1 if self.queue else dispatched
            self.covered = max(self.covered, first)
        self.lagging = True
        self.queue.clear()
        self.queue_bytes = 0
        self.wake()

    def take(self) -> WatchBatch:
        """Whole revisions from the queue, as many as fit a batch."""
        events: list[WatchEvent] = []
        size = 0
        while self.queue:
            event, event_bytes = self.queue[0]
            new_revision = not events or event.entry.mod_revision != events[-1].entry.mod_revision
            if events and new_revision and full_batch(len(events), size):
                break
            self.queue.popleft()
            self.queue_bytes -= event_bytes
            size += event_bytes
            events.append(event)
        return WatchBatch(events[-1].entry.mod_revision, tuple(events))


def full_batch(events: int, size_bytes: int) -> bool:
    return events >= BATCH_EVENTS_MAX or size_bytes >= BATCH_BYTES_MAX


class WatchHub:
    """All watchers of one store."""

    def __init__(self, read_log: ReadLog, revision: int) -> None:
        self._read_log = read_log
        self._revision = revision
        self._by_prefix: dict[bytes, set[_Watcher]] = {}
        self._lengths: list[int] = []
        self._closed: StoreUnavailable | None = None

    @property
    def revision(self) -> int:
        """The last that was dispatched."""
        return self._revision

    def dispatch(self, changes: list[Change], revision: int) -> None:
        """Changes of one group commit, all revisions after the last dispatch up to `revision`."""
        if self._by_prefix:
            for change in changes:
                self._offer(change)
            if revision // PROGRESS_REVISIONS != self._revision // PROGRESS_REVISIONS:
                for watcher in self._all():
                    watcher.marked = revision
                    watcher.wake()
        self._revision = revision

    def resync(self, revision: int) -> None:
        """The writer lost track of what was committed: everybody reads the log."""
        for watcher in self._all():
            watcher.lag(self._revision)
        self._revision = revision

    def close(self, error: StoreUnavailable) -> None:
        """Every watcher raises `error`."""
        self._closed = error
        for watcher in self._all():
            watcher.wake()

    async def watch(self, prefix: bytes, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See `Store.watch`."""
        watcher = _Watcher(prefix, from_revision - 1, self._revision)
        self._add(watcher)
        told = watcher.covered
        try:
            while True:
                if self._closed is not None:
                    raise StoreUnavailable(str(self._closed))
                batch = await self._next(watcher)
                if batch is None:
                    continue
                watcher.covered = batch.revision
                if batch.events or batch.revision - told >= PROGRESS_REVISIONS:
                    told = batch.revision
                    yield batch
        finally:
            self._remove(watcher)

    async def _next(self, watcher: _Watcher) -> WatchBatch | None:
        """A step: a page of the log, what is queued, a progress mark, or None after a wait."""
        if watcher.covered < watcher.head:
            return await self._read_log(watcher.prefix, watcher.covered, watcher.head)
        if watcher.lagging:
            watcher.lagging, watcher.head = False, self._revision
            return None
        if watcher.queue:
            return watcher.take()
        if watcher.marked > watcher.covered:
            return WatchBatch(watcher.marked)
        watcher.wakeup = asyncio.get_running_loop().create_future()
        await watcher.wakeup
        return None

    def _offer(self, change: Change) -> None:
        event: WatchEvent | None = None
        for length in self._lengths:
            if length > len(change.key):
                break
            watchers = self._by_prefix.get(change.key[:length])
            if watchers:
                event = event or to_event(change)
                for watcher in watchers:
                    watcher.offer(event, len(change.key) + len(change.value))

    def _all(self) -> list[_Watcher]:
        return [watcher for watchers in self._by_prefix.values() for watcher in watchers]

    def _add(self, watcher: _Watcher) -> None:
        self._by_prefix.setdefault(watcher.prefix, set()).add(watcher)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix})

    def _remove(self, watcher: _Watcher) -> None:
        watchers = self._by_prefix[watcher.prefix]
        watchers.discard(watcher)
        if not watchers:
            del self._by_prefix[watcher.prefix]
            self._lengths = sorted({len(prefix) for prefix in self._by_prefix})
