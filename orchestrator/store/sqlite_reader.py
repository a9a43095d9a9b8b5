"""Threads that read, each with its own connection: in WAL mode they never wait for the writer.

Called by `sqlite.SqliteStore`. A handful of queued reads share one snapshot and one wakeup.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.store.port import StoreError, StoreUnavailable
from orchestrator.store.sqlite_file import DatabaseFile, again, explain
from orchestrator.store.sqlite_handover import Handover

log = logging.getLogger(__name__)

_T = TypeVar("_T")
Query = Callable[[sqlite3.Connection], _T]
_Item = tuple[Query[Any], asyncio.Future[Any]]
_Outcome = tuple[asyncio.Future[Any], Any]

_SNAPSHOT_QUERIES_MAX = 16


class Readers:
    """A bounded queue in front of a few reading threads. Used from one event loop."""

    def __init__(
        self,
        file: DatabaseFile,
        loop: asyncio.AbstractEventLoop,
        handover: Handover,
        *,
        threads: int,
        pending_max: int,
    ) -> None:
        self._file = file
        self._loop = loop
        self._handover = handover
        self._pending_max = pending_max
        self._pending = 0
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._may_read = threading.Event()
        self._may_read.set()
        self._reading = [threading.Lock() for _ in range(threads)]  # one per thread
        self._threads = [
            threading.Thread(target=self._main, args=(lock,), name=f"store-reader-{n}", daemon=True)
            for n, lock in enumerate(self._reading)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end. Blocking; nothing may be asked after."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    @contextmanager
    def quiet(self, timeout_s: float) -> Iterator[bool]:
        """On the writer thread: hold new reads back; True if those under way ended in time."""
        self._may_read.clear()
        held: list[threading.Lock] = []
        deadline = time.monotonic() + timeout_s
        try:
            for lock in self._reading:
                if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    held.append(lock)
            yield len(held) == len(self._reading)
        finally:
            for lock in held:
                lock.release()
            self._may_read.set()

    async def ask(self, query: Query[_T]) -> _T:
        """The query's result, from a snapshot no older than this call. Raises StoreUnavailable."""
        if self._pending >= self._pending_max:
            raise StoreUnavailable(
                f"{self._pending} reads are already waiting on {self._file.path}: retry with "
                "backoff, and check that its disk keeps up"
            )
        future: asyncio.Future[_T] = self._loop.create_future()
        self._pending += 1
        self._handover.request()
        self._queue.put((query, future))
        return await future

    def _main(self, reading: threading.Lock) -> None:
        db: sqlite3.Connection | None = None
        while True:
            item = self._queue.get()
            if item is None:
                break
            items = [item]
            stop = self._fill(items)
            self._may_read.wait()
            with reading:
                db, outcomes = self._answer(db, items)
            self._handover.moved()
            try:
                self._loop.call_soon_threadsafe(self._deliver, outcomes)
            except RuntimeError:
                break  # the loop is closed: nobody is left to tell
            if stop:
                break
        if db is not None:
            db.close()

    def _answer(
        self, db: sqlite3.Connection | None, items: list[_Item]
    ) -> tuple[sqlite3.Connection | None, list[_Outcome]]:
        """Run the batch in one snapshot; the connection to go on with, None to open a new one."""
        outcomes: list[_Outcome] = []
        try:
            db = db or self._file.connect(read_only=True)
            db.execute("BEGIN")
            for query, future in items:
                outcomes.append((future, self._run(db, query)))
            db.execute("ROLLBACK")
        except sqlite3.Error as cause:
            log.error("a read of the store failed: %s", cause)
            error = explain(cause, self._file.path)
            error.__cause__ = cause
            outcomes += [(future, again(error)) for _, future in items[len(outcomes) :]]
            if db is not None:
                db.close()
            return None, outcomes
        return db, outcomes

    def _fill(self, items: list[_Item]) -> bool:
        """Add queued queries to the batch; True when the end of the queue was among them."""
        try:
            while len(items) < _SNAPSHOT_QUERIES_MAX:
                item = self._queue.get_nowait()
                if item is None:
                    return True
                items.append(item)
        except queue.Empty:
            pass
        return False

    @staticmethod
    def _run(db: sqlite3.Connection, query: Query[Any]) -> Any:
        try:
            return query(db)
        except sqlite3.Error:
            raise
        except StoreError as error:
            return error
        except Exception as error:
            log.exception("a query of the store failed")
            return error

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        self._pending -= len(outcomes)
        self._handover.done(len(outcomes))
        for future, outcome in outcomes:
            settle(future, outcome)


def settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """Give a future its result or exception; a caller that was cancelled no longer wants it."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
