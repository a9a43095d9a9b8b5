"""The SQLite Store: the embedded default, for an installation with one orchestrator process.

Called by the orchestrator's main, and by tests, through `open_sqlite`. One writer thread commits in
groups with one fsync each (`sqlite_writer`, `sqlite_group`); reading threads have their own
connections and never wait for it (`sqlite_reader`, `sqlite_queries`); watches are fed from commits
and fall back on a log in the database (`sqlite_watch`). A Store belongs to the event loop that
opened it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.store.limits import check_ttl, encode_key, encode_prefix, encode_txn
from orchestrator.store.port import (
    Compare,
    Entry,
    LimitExceeded,
    Op,
    RangeResult,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
)
from orchestrator.store.sqlite_checkpoint import Checkpointer
from orchestrator.store.sqlite_file import DatabaseFile, open_file
from orchestrator.store.sqlite_handover import Handover
from orchestrator.store.sqlite_leases import Clock, LeaseTable
from orchestrator.store.sqlite_queries import read_entry, read_log, read_range, read_revision
from orchestrator.store.sqlite_reader import Query, Readers, settle
from orchestrator.store.sqlite_watch import WatchHub
from orchestrator.store.sqlite_writer import Job, Report, Writer


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """What an operator may tune; the defaults suit ten thousand nodes."""

    retain_revisions: int = 100_000
    """Changes that stay watchable: a watcher further behind gets Compacted and reads again."""

    retain_log_bytes: int = 1 << 30
    """The same limit in bytes of keys and values; whichever is reached first."""

    max_bytes: int = 0
    """Refuse to let the database file grow beyond this (StoreFull). 0: the disk is the limit."""

    pending_txns_max: int = 4096
    """Writes that may wait for the disk before more are refused with StoreUnavailable."""

    pending_bytes_max: int = 64 << 20
    """The same limit in bytes of keys and values."""

    pending_reads_max: int = 16_384
    """Reads that may wait before more are refused with StoreUnavailable."""

    reader_threads: int = 2
    """Reading threads: a long range read holds one of them."""

    lease_poll_s: float = 0.5
    """How often the clock is looked at while leases exist, should it run faster than real time."""


async def open_sqlite(
    path: str | Path,
    *,
    clock: Clock = time.monotonic,
    settings: SqliteSettings | None = None,
) -> "SqliteStore":
    """Open or create the database at `path` (mode 0600; missing directories are made, 0700).

    `clock` is monotonic seconds and measures leases; every stored lease starts a full new ttl now.
    Raises StoreUnusable when another process has it open, when a newer version wrote it or when it
    is not ours; StoreFull or StoreUnavailable when the disk does not do its part.
    """
    settings = settings or SqliteSettings()
    loop = asyncio.get_running_loop()
    opening = asyncio.ensure_future(
        asyncio.to_thread(_open, Path(path).absolute(), clock, settings, loop)
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread cannot be interrupted: let it finish, and leave no lock behind.
        opening.add_done_callback(_close_unwanted)
        raise


def _open(
    path: Path, clock: Clock, settings: SqliteSettings, loop: asyncio.AbstractEventLoop
) -> "SqliteStore":
    file = open_file(path, settings.max_bytes)
    try:
        return SqliteStore(file, clock, settings, loop)
    except BaseException:
        file.release()
        raise


def _close_unwanted(opening: "asyncio.Future[SqliteStore]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abandon()


class SqliteStore:
    """Implements `Store`. Made by `open_sqlite`."""

    def __init__(
        self,
        file: DatabaseFile,
        clock: Clock,
        settings: SqliteSettings,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._file = file
        self._settings = settings
        self._loop = loop
        self._leases = LeaseTable(clock)
        self._handover = Handover(loop)
        self._readers = Readers(
            file,
            loop,
            self._handover,
            threads=settings.reader_threads,
            pending_max=settings.pending_reads_max,
        )
        self._writer = Writer(
            file,
            self._leases,
            self._report,
            self._handover,
            Checkpointer(self._readers.quiet),
            retain_revisions=settings.retain_revisions,
            retain_bytes=settings.retain_log_bytes,
            lease_poll_s=settings.lease_poll_s,
        )
        self._pending = 0
        self._pending_bytes = 0
        self._closed: StoreUnavailable | None = None
        self._closing: asyncio.Future[None] | None = None
        self._abandoning: asyncio.Future[None] | None = None  # keeps the task alive
        self._writer.start()
        self._readers.start()
        self._hub = WatchHub(self._read_log, self._writer.revision)

    async def get(self, key: str) -> Entry | None:
        encoded = encode_key(key)
        entry: Entry | None = await self._read(lambda db: read_entry(db, encoded))
        return entry

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        if limit < 0:
            raise LimitExceeded(f"a limit of {limit} entries")
        low, start = encode_prefix(prefix), encode_prefix(after)
        found: RangeResult = await self._read(lambda db: read_range(db, low, start, limit))
        return found

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        conditions, changes, size = encode_txn(compares, ops)
        keys = [key for key, _ in conditions]
        keys += [key for key, _ in changes]
        job = Job(lambda _, group: group.txn(conditions, changes), keys, size)
        result: TxnResult = await self._submit(job)
        return result

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self._hub.watch(encode_prefix(prefix), from_revision)

    async def compact(self, before_revision: int) -> None:
        await self._submit(Job(lambda writer, group: writer.forget_before(before_revision, group)))

    async def grant_lease(self, ttl_s: float) -> int:
        check_ttl(ttl_s)
        job = Job(lambda writer, group: group.grant(writer.take_lease_id(), ttl_s))
        lease: int = await self._submit(job)
        return lease

    async def keep_alive(self, lease: int) -> float:
        self._check_open()
        return self._leases.renew(lease)

    async def revoke_lease(self, lease: int) -> None:
        def revoke(_: Writer, group: Any) -> None:
            self._leases.condemn(lease)
            group.end_lease(lease)

        await self._submit(Job(revoke))

    async def revision(self) -> int:
        current: int = await self._read(read_revision)
        return current

    def known_revision(self) -> int:
        """The file is ours alone, and every commit is told here before its writer hears of it."""
        return self._hub.revision

    async def close(self) -> None:
        """Finish every write that was accepted, then let go of the file. Again is harmless."""
        if self._closing is None:
            self._closed = StoreUnavailable(f"the store {self._file.path} is closed")
            self._hub.close(self._closed)
            self._closing = asyncio.ensure_future(asyncio.to_thread(self._stop))
        await asyncio.shield(self._closing)

    def abandon(self) -> None:
        """Close without waiting, for an opener that has gone."""
        self._abandoning = asyncio.ensure_future(self.close())

    def _stop(self) -> None:
        self._writer.stop()
        self._readers.stop()
        self._file.release()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise StoreUnavailable(str(self._closed))
        if not self._writer.running:
            raise StoreUnavailable("the store's writer has died; restart this process")

    async def _read(self, query: Query[Any]) -> Any:
        self._check_open()
        return await self._readers.ask(query)

    async def _read_log(self, prefix: bytes, covered: int, head: int) -> WatchBatch:
        batch: WatchBatch = await self._read(
            partial(read_log, prefix=prefix, covered=covered, head=head)
        )
        return batch

    async def _submit(self, job: Job) -> Any:
        self._check_open()
        self._check_room(job.size_bytes)
        future: asyncio.Future[Any] = self._loop.create_future()
        job.future = future
        self._pending += 1
        self._pending_bytes += job.size_bytes
        self._handover.request()
        self._writer.submit(job)
        return await future

    def _check_room(self, size_bytes: int) -> None:
        settings = self._settings
        full = self._pending >= settings.pending_txns_max
        if full or self._pending_bytes + size_bytes > settings.pending_bytes_max:
            raise StoreUnavailable(
                f"{self._pending} writes ({self._pending_bytes} bytes) already wait for the disk "
                f"under {self._file.path}: nothing was written; retry with backoff, and check "
                "that the disk keeps up"
            )

    def _report(self, report: Report) -> None:
        """On the writer thread: one wakeup of the event loop per commit."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, report)
        except RuntimeError:
            return  # the loop is closed: nobody is left to tell

    def _deliver(self, report: Report) -> None:
        # Watchers first: who has an answer to a write can count on its watch being told already.
        if report.resync:
            self._hub.resync(report.revision)
        else:
            self._hub.dispatch(report.changes, report.revision)
        for job, outcome in report.outcomes:
            if job.future is not None:
                self._pending -= 1
                self._handover.done(1)
                self._pending_bytes -= job.size_bytes
                settle(job.future, outcome)
                job.future = None
