"""What the reading threads ask of SQLite. Each function runs inside one snapshot."""

import sqlite3
from typing import Any

from orchestrator.store.limits import prefix_end
from orchestrator.store.port import Compacted, Entry, RangeResult, WatchBatch, WatchEvent
from orchestrator.store.sqlite_file import CHANGE_SEQ_BITS
from orchestrator.store.sqlite_group import Change
from orchestrator.store.sqlite_watch import full_batch, to_event

# A page of the log looks at this many revisions at most, so that a sparse prefix of a long log does
# not hold a reading thread for long.
_PAGE_REVISIONS = 5000

_ENTRY = "SELECT key, value, create_revision, mod_revision, version, lease FROM entries"


def read_revision(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT revision FROM meta").fetchone()[0])


def read_entry(db: sqlite3.Connection, key: bytes) -> Entry | None:
    row = db.execute(f"{_ENTRY} WHERE key = ?", (key,)).fetchone()
    return _entry(row) if row else None


def read_range(db: sqlite3.Connection, prefix: bytes, after: bytes, limit: int) -> RangeResult:
    where, bounds = _within(prefix)
    sql = f"{_ENTRY} WHERE key > ? AND {where} ORDER BY key LIMIT ?"
    # An empty `after` is below every key, because no key is empty.
    rows = db.execute(sql, (after, *bounds, limit + 1 if limit else -1)).fetchall()
    more = bool(limit) and len(rows) > limit
    entries = tuple(_entry(row) for row in (rows[:limit] if more else rows))
    return RangeResult(entries, read_revision(db), more)


def read_log(db: sqlite3.Connection, prefix: bytes, covered: int, head: int) -> WatchBatch:
    """Changes after `covered` up to `head`, or up to where a batch is full. Raises Compacted."""
    (oldest,) = db.execute("SELECT oldest_revision FROM meta").fetchone()
    if covered + 1 < oldest:
        raise Compacted(oldest)
    last = min(head, covered + _PAGE_REVISIONS)
    where, bounds = _within(prefix)
    sql = (
        "SELECT id, deleted, create_revision, version, lease, key, value FROM changes"  # noqa: S608
        f" WHERE id >= ? AND id < ? AND {where} ORDER BY id"
    )
    span = (covered + 1 << CHANGE_SEQ_BITS, last + 1 << CHANGE_SEQ_BITS)
    events: list[WatchEvent] = []
    size = 0
    for row in db.execute(sql, (*span, *bounds)):
        change = Change(*row)
        if (
            events
            and full_batch(len(events), size)
            and change.revision != events[-1].entry.mod_revision
        ):
            last = events[-1].entry.mod_revision
            break
        events.append(to_event(change))
        size += len(change.key) + len(change.value)
    return WatchBatch(last, tuple(events))


def _within(prefix: bytes) -> tuple[str, tuple[bytes, ...]]:
    end = prefix_end(prefix)
    return ("key >= ? AND key < ?", (prefix, end)) if end else ("key >= ?", (b"",))


def _entry(row: tuple[Any, ...]) -> Entry:
    key, value, created, modified, version, lease = row
    return Entry(key.decode(), value, created, modified, version, lease)
