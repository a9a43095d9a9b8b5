"""Events in the Store, which several members write: no count is lost, and nothing is told twice.

`events.py` keeps what is shown in memory, and says here what was recorded and what is wanted no
more. Every write compares on what was read; every member follows what the others write. Only the
member that leads deletes: what all would drop at the same moment is dropped once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.event_records import EventRecord
from orchestrator.store import keys
from orchestrator.store.port import (
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Entry,
    EventType,
    Op,
    Put,
    Store,
    StoreError,
)

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.25
RETRY_S = 2.0
_CLOSING_S = 3.0
_LOOK_EVERY_S = 5.0  # who begins to lead has something to delete
_BATCH_OPS = 100
_PAGE = 1_000
_UNWANTED_MAX = 20_000


@dataclass(slots=True)
class _Stored:
    """What the Store has under a key. `event` None: it cannot be read, or is not wanted."""

    event: EventRecord | None
    revision: int


@dataclass(slots=True)
class _Flight:
    """A write under way, compared on `expected`. `added` None: a deletion. `seen`: what it writes
    is in the Store; another member may have written the same, as long as there is no answer."""

    added: EventRecord | None
    raw: bytes
    expected: int
    seen: bool = False


class EventLog:
    """`changed` is called with a key when the Store's copy changed, whoever wrote it; `deletes`
    says whether this member deletes for all."""

    def __init__(
        self, store: Store, changed: Callable[[str], None], deletes: Callable[[], bool]
    ) -> None:
        self._store = store
        self._changed = changed
        self._deletes = deletes
        self._stored: dict[str, _Stored] = {}
        self._flying: dict[str, _Flight] = {}
        self._pending: dict[str, EventRecord] = {}
        self._unwanted: dict[str, None] = {}
        self._batch = _BATCH_OPS
        self._wake = asyncio.Event()
        self._revision = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> list[EventRecord]:
        """What is there. Raises StoreError."""
        await self._read()
        self._tasks = [
            asyncio.create_task(self._write_forever(), name="events"),
            asyncio.create_task(self._follow_forever(), name="events-of-others"),
        ]
        return [stored.event for stored in self._stored.values() if stored.event is not None]

    async def stop(self) -> None:
        """Writes what is left, once, if the Store takes it in time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_CLOSING_S):
                while await self._flush():
                    pass
        except (StoreError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            log.warning("the last events were not written: %s", reason)

    # --- for the recorder ------------------------------------------------------------------------

    def add(self, event: EventRecord) -> str:
        """It happened (again). Returns its key."""
        key = event.key
        self._pending[key] = event.and_before(self._pending.get(key))
        self._unwanted.pop(key, None)
        self._wake.set()
        return key

    def now(self, key: str) -> EventRecord | None:
        """What the Store has, will have had, and has not: as one event."""
        stored, flight = self._stored.get(key), self._flying.get(key)
        found = stored.event if stored is not None else None
        flying = flight.added if flight is not None and not flight.seen else None
        for later in (flying, self._pending.get(key)):
            found = later.and_before(found) if later is not None else found
        return found

    def drop(self, key: str) -> None:
        """Nobody needs it any more."""
        self._pending.pop(key, None)
        stored = self._stored.get(key)
        if stored is not None:
            stored.event = None
        if stored is None and key not in self._flying:
            return
        self._unwanted[key] = None
        if len(self._unwanted) > _UNWANTED_MAX:
            self._unwanted.pop(next(iter(self._unwanted)))
        if self._deletes():
            self._wake.set()

    # --- following -------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Everything. What was there and is not any more has been deleted. Raises StoreError."""
        found: dict[str, Entry] = {}
        revision, after, more = 0, "", True
        while more:
            page = await self._store.range(keys.EVENTS, after=after, limit=_PAGE)
            revision = revision or page.revision  # what changes meanwhile is followed from here
            found.update((entry.key, entry) for entry in page.entries)
            more = page.more
            after = page.entries[-1].key if page.entries else ""
        for key in self._stored.keys() - found.keys():
            self._gone(key, revision)
        for entry in found.values():
            self._heard(entry)
        self._revision = revision

    async def _follow_forever(self) -> None:
        while True:
            try:
                watch = self._store.watch(keys.EVENTS, from_revision=self._revision + 1)
                async with contextlib.aclosing(watch):
                    async for batch in watch:
                        for change in batch.events:
                            if change.type is EventType.PUT:
                                self._heard(change.entry)
                            else:
                                self._gone(change.entry.key, change.entry.mod_revision)
                        self._revision = max(self._revision, batch.revision)
            except Compacted:
                await self._read_again()
            except StoreError as error:
                log.debug("events of others are not heard; trying again: %s", error)
                await asyncio.sleep(RETRY_S)
            except Exception:  # what others tell must not end what is told here
                log.exception("events of others cannot be followed; trying again")
                await asyncio.sleep(RETRY_S)

    async def _read_again(self) -> None:
        try:
            await self._read()
        except StoreError as error:
            log.debug("events cannot be read; trying again: %s", error)
            await asyncio.sleep(RETRY_S)

    def _heard(self, entry: Entry) -> None:
        key = entry.key
        known = self._stored.get(key)
        if known is not None and entry.mod_revision <= known.revision:
            return
        try:
            event = EventRecord.from_bytes(entry.value)
        except (ValueError, TypeError):
            log.warning("an event cannot be read and is dropped", extra={"key": key})
            self._stored[key] = _Stored(None, entry.mod_revision)
            self._unwanted[key] = None
            return
        flight = self._flying.get(key)
        if flight is not None and flight.raw == entry.value:
            flight.seen = True
            if key in self._unwanted:  # since it was dropped meanwhile
                self._stored[key] = _Stored(None, entry.mod_revision)
                return
        self._stored[key] = _Stored(event, entry.mod_revision)
        self._unwanted.pop(key, None)
        self._changed(key)

    def _gone(self, key: str, revision: int) -> None:
        known = self._stored.get(key)
        if known is None or known.revision > revision:
            return
        del self._stored[key]
        self._unwanted.pop(key, None)
        flight = self._flying.get(key)
        if flight is not None and flight.added is None:
            flight.seen = True
        self._changed(key)

    # --- writing ---------------------------------------------------------------------------------

    async def _write_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            more = True
            while more:
                try:
                    more = await self._flush()
                except StoreError as error:
                    log.warning("events were not written; trying again: %s", error)
                    await asyncio.sleep(RETRY_S)
                except Exception:  # one event must not end the telling of all
                    log.exception("events cannot be written; trying again")
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(FLUSH_EVERY_S)

    async def _flush(self) -> bool:
        """One transaction; whether there may be more to write. Raises StoreError."""
        for key in list(self._flying):  # of which nobody knows how they ended
            await self._settle(key)
        compares, ops = self._take()
        if not ops:
            return False
        result = await self._store.txn(compares, ops)
        if result.committed:
            self._land(result.revision)
            self._batch = min(_BATCH_OPS, self._batch * 2)
            return True
        # Another member was quicker with some: those are read, and all come again.
        self._batch = max(1, self._batch // 4)
        changed = {compare.key for compare in result.failed}
        for key, flight in list(self._flying.items()):
            flight.seen, flight.raw = False, b""  # whoever wrote the same, it was not this one
            if changed and key not in changed:
                self._return(key)
        return True

    def _take(self) -> tuple[list[Compare], list[Op]]:
        """What is to be written next; it is under way from here on."""
        ops: list[Op] = []
        for key in list(self._pending)[: self._batch]:
            event = self.now(key)
            assert event is not None
            raw = event.to_bytes()
            self._flying[key] = _Flight(self._pending.pop(key), raw, self._known(key))
            ops.append(Put(key, raw))
        room = self._batch - len(ops) if self._deletes() else 0
        for key in list(self._unwanted)[:room]:
            del self._unwanted[key]
            if key in self._stored:
                self._flying[key] = _Flight(None, b"", self._known(key))
                ops.append(Delete(key))
        compares = [
            Compare(op.key, CompareTarget.MOD_REVISION, self._flying[op.key].expected) for op in ops
        ]
        return compares, ops

    def _known(self, key: str) -> int:
        stored = self._stored.get(key)
        return stored.revision if stored is not None else 0

    def _land(self, revision: int) -> None:
        """What was under way is written. Its echo may have come already, or something newer."""
        for key, flight in list(self._flying.items()):
            if flight.added is None:
                self._gone(key, revision)
            else:
                self._heard(Entry(key, flight.raw, 0, revision, 0))
            del self._flying[key]

    async def _settle(self, key: str) -> None:
        """Finds out what became of a write; what was not written is to be written. Raises
        StoreError."""
        entry = await self._store.get(key)
        if entry is not None:
            self._heard(entry)
        else:
            self._gone(key, self._known(key))
        self._return(key)

    def _return(self, key: str) -> None:
        """It was not written, unless it was found to be."""
        flight = self._flying.pop(key)
        if flight.seen:
            return
        if flight.added is None:
            if self._known(key) == flight.expected and key not in self._pending:
                self._unwanted[key] = None
            return  # another member told it again: it is wanted after all
        pending = self._pending.get(key)
        self._pending[key] = pending.and_before(flight.added) if pending else flight.added
