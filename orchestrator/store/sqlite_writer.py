"""The one thread that writes: it commits what is queued as a group and reports once per commit.

Called by `sqlite.SqliteStore`. While one group waits for its fsync the next one queues up, so that
the more clients there are, the more share each fsync.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store.port import StoreError, StoreFull, StoreUnavailable
from orchestrator.store.sqlite_checkpoint import Checkpointer
from orchestrator.store.sqlite_file import CHANGE_SEQ_BITS, DatabaseFile, again, explain
from orchestrator.store.sqlite_group import Change, Group
from orchestrator.store.sqlite_handover import Handover
from orchestrator.store.sqlite_leases import LeaseTable

log = logging.getLogger(__name__)

_GROUP_JOBS_MAX = 1024
_GROUP_BYTES_MAX = 8 << 20
_TRIM_REVISIONS = 256  # how much of the log is dropped at once: a few milliseconds of work
_RETRY_S = 0.5  # pause before lease expiry is tried again on a disk that refused it


@dataclass(slots=True)
class Job:
    """Something to do inside a group. `run` raises a StoreError with the group unchanged."""

    run: Callable[["Writer", Group], Any]
    keys: Sequence[bytes] = ()
    size_bytes: int = 0
    future: asyncio.Future[Any] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one group did, for the event loop. `resync`: changes may exist that are not listed."""

    outcomes: list[tuple[Job, Any]]  # a result, or the exception to raise
    changes: list[Change]
    revision: int
    resync: bool = False


class Writer:
    """Owns the writing connection, the revision counter and the retention of the log."""

    def __init__(
        self,
        file: DatabaseFile,
        leases: LeaseTable,
        report: Callable[[Report], None],
        handover: Handover,
        checkpointer: Checkpointer,
        *,
        retain_revisions: int,
        retain_bytes: int,
        lease_poll_s: float,
    ) -> None:
        self._file = file
        self._leases = leases
        self._report = report
        self._handover = handover
        self._checkpointer = checkpointer
        self._retain_revisions = retain_revisions
        self._retain_bytes = retain_bytes
        self._lease_poll_s = lease_poll_s
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._db: sqlite3.Connection | None = None
        self._stopping = False
        self._refused = False  # the last group failed as a whole
        self.revision = 0
        self.oldest_revision = 1
        self._next_lease = 1
        self._trimmed_revision = 1  # changes before it are physically gone
        self._log_bytes = 0
        self._thread = threading.Thread(target=self._main, name="store-writer", daemon=True)

    def start(self) -> None:
        """Open the database and start the thread. Blocking. Raises StoreError."""
        try:
            self._connect()
        except sqlite3.Error as error:
            raise explain(error, self._file.path) from error
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def stop(self) -> None:
        """Finish what is queued, then end. Blocking; nothing may be submitted after."""
        self._queue.put(None)
        self._thread.join()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def take_lease_id(self) -> int:
        self._next_lease += 1
        return self._next_lease - 1

    def forget_before(self, revision: int, group: Group) -> None:
        """Compact: what is older can no longer be watched, and is dropped in small steps later."""
        self.oldest_revision = max(self.oldest_revision, min(revision, group.revision + 1))

    def _main(self) -> None:
        while not self._stopping:
            jobs = self._collect()
            try:
                self._work(jobs)
            except Exception:
                # A bug, but one that must not take every later write down with it.
                log.exception("the store's writer failed on a group of %d", len(jobs))
                error = StoreUnavailable("the store's writer failed; its log has the cause")
                self._lose(jobs, error)
        if self._db is not None:
            self._db.close()

    def _collect(self) -> list[Job]:
        """What is queued now; waits for a job, for a lease to end, or for trimming to go on."""
        jobs: list[Job] = []
        size = 0
        timeout: float | None = self._pause_s()
        try:
            while len(jobs) < _GROUP_JOBS_MAX and size < _GROUP_BYTES_MAX:
                job = self._queue.get(timeout=timeout) if not jobs else self._queue.get_nowait()
                if job is None:
                    self._stopping = True
                    break
                jobs.append(job)
                size += job.size_bytes
        except queue.Empty:
            pass
        return jobs

    def _pause_s(self) -> float | None:
        due_s = self._leases.next_due_s()
        if self._trimmed_revision < self.oldest_revision:
            due_s = 0.0
        if self._refused:
            return None if due_s is None else max(due_s, _RETRY_S)
        # The clock is injected and may be ahead of real time: look at it now and then.
        return None if due_s is None else min(due_s, self._lease_poll_s)

    def _work(self, jobs: list[Job]) -> None:
        ended = self._leases.due()
        if ended:
            jobs.append(Job(lambda _, group: group.end_leases(ended)))
        if not jobs and self._trimmed_revision == self.oldest_revision:
            return
        if isinstance(self._attempt(jobs, last=not jobs), StoreFull) and jobs:
            # Trimming may free room; after that, what is small or frees room itself gets through.
            if self._trimmed_revision < self.oldest_revision:
                self._attempt([], last=True)
            for job in jobs:
                self._attempt([job], last=True)

    def _attempt(self, jobs: list[Job], *, last: bool) -> StoreError | None:
        """Commit jobs as one group. A full disk fails them only if this was the last attempt."""
        try:
            report = self._commit(jobs)
        except sqlite3.Error as cause:
            error = explain(cause, self._file.path)
            error.__cause__ = cause
            if not self._refused:  # once, not for as long as it lasts
                log.error("the store refused a group of %d: %s", len(jobs), error)
            self._lose(jobs if last or not isinstance(error, StoreFull) else [], error)
            return error
        self._refused = False
        if report.outcomes or report.changes:
            self._report(report)
        if self._db is not None:
            self._checkpointer.after_commit(self._db, report.changes)
        return None

    def _commit(self, jobs: list[Job]) -> Report:
        db = self._db or self._connect()
        # IMMEDIATE: no other process writes here, but an operator's sqlite3 shell might.
        db.execute("BEGIN IMMEDIATE")
        oldest = self.oldest_revision
        group = Group(db, self.revision, self._leases)
        group.load(key for job in jobs for key in job.keys)
        outcomes: list[tuple[Job, Any]] = []
        for job in jobs:
            try:
                outcomes.append((job, job.run(self, group)))
            except StoreError as error:
                outcomes.append((job, error))
        log_bytes = self._log_bytes + sum(len(x.key) + len(x.value) for x in group.changes)
        self._retain(group, log_bytes)
        trimmed, freed = self._trim(db, eager=not jobs or log_bytes > self._retain_bytes)
        group.flush()
        if group.writes or trimmed != self._trimmed_revision or oldest != self.oldest_revision:
            db.execute(
                "UPDATE meta SET revision = ?, oldest_revision = ?, next_lease = ?",
                (group.revision, self.oldest_revision, self._next_lease),
            )
            self._at_disk(True)
            db.execute("COMMIT")
            self._at_disk(False)
        else:
            db.execute("ROLLBACK")
        self.revision = group.revision
        self._trimmed_revision, self._log_bytes = trimmed, log_bytes - freed
        for lease, ttl_s in group.granted:
            self._leases.add(lease, ttl_s)
        self._leases.forget(group.ended)
        return Report(outcomes, group.changes, self.revision)

    def _at_disk(self, waiting: bool) -> None:
        self._handover.at_disk = waiting
        self._handover.moved()

    def _retain(self, group: Group, log_bytes: int) -> None:
        """Let the log's oldest revisions go, a little faster than new ones come."""
        oldest = self.oldest_revision
        excess = group.revision + 1 - self._retain_revisions - oldest
        if excess < _TRIM_REVISIONS:
            excess = 0  # in steps, not a few at every commit
        over = log_bytes - self._retain_bytes
        if over > self._retain_bytes // 16 and self._trimmed_revision == oldest:
            # As if all revisions were of average size: the next commits correct what this misses.
            excess = max(excess, 1 + (group.revision + 1 - oldest) * over // log_bytes)
        if excess:
            step = _TRIM_REVISIONS + 2 * (group.revision - self.revision)
            self.forget_before(oldest + min(excess, step), group)

    def _trim(self, db: sqlite3.Connection, *, eager: bool) -> tuple[int, int]:
        """Drop a step of what is compacted; the log's new first revision, and bytes dropped."""
        start, behind = self._trimmed_revision, self.oldest_revision - self._trimmed_revision
        if not (behind >= _TRIM_REVISIONS or (eager and behind > 0)):
            return start, 0
        upto = start + min(behind, max(4 * _TRIM_REVISIONS, behind // 16))
        end = upto << CHANGE_SEQ_BITS
        (freed,) = db.execute(_BYTES_BEFORE, (end,)).fetchone()
        db.execute("DELETE FROM changes WHERE id < ?", (end,))
        return upto, int(freed)

    def _lose(self, jobs: Sequence[Job], error: StoreError) -> None:
        """Fail these jobs; start again from what the disk says, which may include their writes."""
        self._refused = True
        self._at_disk(False)
        if self._db is not None:
            self._db.close()  # rolls back
            self._db = None
        try:
            self._connect()
        except sqlite3.Error as cause:
            log.error("the store cannot be opened again: %s", explain(cause, self._file.path))
        self._report(Report([(job, again(error)) for job in jobs], [], self.revision, resync=True))

    def _connect(self) -> sqlite3.Connection:
        db = self._file.connect()
        try:
            row = db.execute("SELECT revision, oldest_revision, next_lease FROM meta").fetchone()
            first, size = db.execute(_LOG_EXTENT).fetchone()
            self._leases.replace(db.execute("SELECT id, ttl_s FROM leases"))
        except BaseException:
            db.close()
            raise
        self.revision, self.oldest_revision, self._next_lease = row
        self._trimmed_revision = self.oldest_revision
        if first is not None:
            self._trimmed_revision = min(self.oldest_revision, first >> CHANGE_SEQ_BITS)
        self._log_bytes = size
        self._db = db
        return db


_BYTES_BEFORE = "SELECT coalesce(sum(length(key) + length(value)), 0) FROM changes WHERE id < ?"
_LOG_EXTENT = "SELECT min(id), coalesce(sum(length(key) + length(value)), 0) FROM changes"
