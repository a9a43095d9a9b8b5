"""The SQLite file itself: who may open it, how it is laid out, and what its errors mean.

Called by `sqlite.open_sqlite` once, and by the writer and reader threads for their connections.
"""

import fcntl
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.port import StoreError, StoreFull, StoreUnavailable, StoreUnusable

APPLICATION_ID = 0x506F6C64  # "Pold": tells our file from another program's database
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
BUSY_TIMEOUT_S = 2.0
CHANGE_SEQ_BITS = 20  # changes.id = revision << 20 | position within the revision

_ROOM_BYTES = 1 << 20  # below this an I/O error is taken for a full disk

# Values come last in a row, so that a scan that skips it never reads its overflow pages.
_SCHEMA = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    oldest_revision INTEGER NOT NULL,
    next_lease INTEGER NOT NULL
);
INSERT INTO meta VALUES (1, 0, 1, 1);
CREATE TABLE entries (
    key BLOB NOT NULL UNIQUE,
    create_revision INTEGER NOT NULL,
    mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    value BLOB NOT NULL
);
CREATE INDEX entries_by_lease ON entries (lease) WHERE lease != 0;
CREATE TABLE changes (
    id INTEGER PRIMARY KEY,
    deleted INTEGER NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL
);
CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_s REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """A database that this process holds the lock of."""

    path: Path
    max_bytes: int  # 0: as large as the disk allows
    lock_fd: int

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        """A connection for one thread at a time. Raises sqlite3.Error."""
        # Statements are few and of fixed shapes; the cache keeps them all compiled.
        db = sqlite3.connect(
            self.path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA wal_autocheckpoint = 0")  # see sqlite_checkpoint
            db.execute("PRAGMA journal_size_limit = 67108864")
            db.execute("PRAGMA cache_size = -16384")
            if read_only:
                db.execute("PRAGMA query_only = ON")
            elif self.max_bytes:
                db.execute(f"PRAGMA max_page_count = {max(1, self.max_bytes // PAGE_BYTES)}")
        except BaseException:
            db.close()
            raise
        return db

    def release(self) -> None:
        """Give up the lock. Its file stays: removing it would let two openers lock two files."""
        os.close(self.lock_fd)


def open_file(path: Path, max_bytes: int) -> DatabaseFile:
    """Lock, create or check the database at `path`. Blocking. Raises StoreUnusable, StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = DatabaseFile(path, max_bytes, _lock(path))
    except OSError as error:
        raise StoreUnusable(f"cannot open the store {path}: {error}") from error
    try:
        _create_private(path)
        _prepare(file)
    except OSError as error:
        file.release()
        raise StoreUnusable(f"cannot open the store {path}: {error}") from error
    except sqlite3.Error as error:
        file.release()
        raise explain(error, path) from error
    except BaseException:
        file.release()
        raise
    return file


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        who = (
            "this process already has it" if holder == str(os.getpid()) else f"pid {holder} has it"
        )
        raise StoreUnusable(
            f"the store {path} is in use: {who} open. Stop that process, or give this one a "
            "database of its own; two orchestrators cannot share one SQLite file"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        # The pid is only for the message above; a full disk must not keep the store from opening.
        if error.errno is None or not _is_full(path):
            os.close(fd)
            raise
    return fd


def _create_private(path: Path) -> None:
    """0600 from its first moment; SQLite gives its -wal and -shm files the same mode."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        os.close(fd)
    for suffix in ("-wal", "-shm"):
        sibling = path.with_name(path.name + suffix)
        if sibling.exists():
            sibling.chmod(0o600)


def _prepare(file: DatabaseFile) -> None:
    db = file.connect()
    try:
        version = _pragma(db, "user_version")
        application = _pragma(db, "application_id")
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty and application != APPLICATION_ID:
            raise StoreUnusable(f"{file.path} is a SQLite database, but not one of Polder's")
        if version > SCHEMA_VERSION:
            raise StoreUnusable(
                f"{file.path} has schema version {version}, this program knows {SCHEMA_VERSION}: "
                "a newer edge-orchestrator wrote it. Run that version or later, or restore a "
                "backup made before the upgrade"
            )
        mode = _pragma(db, "journal_mode = WAL")
        if mode != "wal":
            raise StoreUnusable(
                f"{file.path}: this file system cannot do SQLite's WAL ({mode}); use a local disk"
            )
        if empty:
            marks = (
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            )
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT;")
    finally:
        db.close()


def _pragma(db: sqlite3.Connection, text: str) -> Any:
    return db.execute(f"PRAGMA {text}").fetchone()[0]


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _ROOM_BYTES
    except OSError:
        return False


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """The Store error that a SQLite error stands for."""
    name: str = getattr(error, "sqlite_errorname", "") or type(error).__name__
    # Only a write reports SQLITE_FULL; a full disk can also show as a failed fsync or -shm
    # extension.
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _is_full(path)):
        return StoreFull(
            f"no room to write the store {path} ({error}): make room on its file system, raise its "
            "size limit, or compact; reads still work"
        )
    if name == "SQLITE_NOTADB":
        return StoreUnusable(f"{path} is not a SQLite database; restore it from a backup")
    if name.startswith("SQLITE_CORRUPT"):
        return StoreUnavailable(f"the store {path} is damaged ({error}): restore it from a backup")
    return StoreUnavailable(
        f"the store {path} failed with {name} ({error}): check the disk and the system's log"
    )


def again(error: StoreError) -> StoreError:
    """The same error for another caller: one that is raised twice would collect tracebacks."""
    copy = type(error)(str(error))
    copy.__cause__ = error.__cause__
    return copy
