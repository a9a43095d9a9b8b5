"""One group commit: transactions evaluated in order over one snapshot, written with one fsync.

Called by the writer thread only. Evaluation happens in Python on an overlay of the rows concerned
and writes nothing, so that a transaction that does not hold leaves no trace and cannot hurt its
neighbours. Statements carry many rows each: every SQLite step gives up the interpreter lock, and
getting it back from a busy event loop costs more than the step.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, TypeVar

from orchestrator.store.port import Compare, CompareTarget, Op, Put, TxnResult
from orchestrator.store.sqlite_file import CHANGE_SEQ_BITS
from orchestrator.store.sqlite_leases import LeaseTable, not_found

_T = TypeVar("_T")

_ROWS_PER_STATEMENT = 64
# A lease may hold any number of keys: its end is spread over revisions of at most this many
# deletes.
_LEASE_DELETES_PER_REVISION = 1000


class Row(NamedTuple):
    """A row of `entries`."""

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    value: bytes


class Change(NamedTuple):
    """A row of `changes`: what happened to one key at one revision."""

    id: int
    deleted: int
    create_revision: int
    version: int
    lease: int
    key: bytes
    value: bytes

    @property
    def revision(self) -> int:
        return self.id >> CHANGE_SEQ_BITS


class _State(NamedTuple):
    """What evaluation needs to know of an existing key; its value is read only to be compared."""

    create_revision: int
    mod_revision: int
    version: int
    lease: int


class Group:
    """The overlay of one group. `flush` writes it inside the SQLite transaction that is open."""

    def __init__(self, db: sqlite3.Connection, revision: int, leases: LeaseTable) -> None:
        self.revision = revision
        self.changes: list[Change] = []
        self.granted: list[tuple[int, float]] = []
        self.ended: set[int] = set()
        self._db = db
        self._leases = leases
        self._states: dict[bytes, _State | None] = {}
        self._dirty: dict[bytes, Row | None] = {}

    def load(self, keys: Iterable[bytes]) -> None:
        """Read the state of these keys in as few steps as possible."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._states]
        for part in _parts(missing):
            row = self._db.execute(_states_sql(len(part)), part).fetchone()
            for key, text in zip(part, row, strict=True):
                self._states[key] = _State(*map(int, text.split())) if text else None

    def txn(
        self, compares: Sequence[tuple[bytes, Compare]], ops: Sequence[tuple[bytes, Op]]
    ) -> TxnResult:
        """Evaluate one transaction; its keys are loaded. Changes nothing if it raises
        LeaseNotFound.
        """
        failed = tuple(compare for key, compare in compares if not self._holds(key, compare))
        if failed:
            return TxnResult(False, self.revision, failed)
        for _, op in ops:
            if isinstance(op, Put) and op.lease and not self._lease_alive(op.lease):
                raise not_found(op.lease)
        revision = self.revision + 1
        first = len(self.changes)
        for key, op in ops:
            if isinstance(op, Put):
                self._put(revision, len(self.changes) - first, key, op)
            else:
                self._delete(revision, len(self.changes) - first, key)
        if len(self.changes) > first:
            self.revision = revision
        return TxnResult(True, self.revision)

    def grant(self, lease: int, ttl_s: float) -> int:
        self.granted.append((lease, ttl_s))
        return lease

    def end_leases(self, leases: Iterable[int]) -> None:
        for lease in leases:
            self.end_lease(lease)

    def end_lease(self, lease: int) -> None:
        """Delete the lease and its keys. The lease table has condemned it already."""
        self.ended.add(lease)
        keys = [key for (key,) in self._db.execute(_KEYS_OF_LEASE, (lease,))]
        self.load(keys)
        held = {key for key in keys if key not in self._dirty}
        held.update(key for key, row in self._dirty.items() if row and row.lease == lease)
        ordered = sorted(held)
        for start in range(0, len(ordered), _LEASE_DELETES_PER_REVISION):
            self.revision += 1
            for position, key in enumerate(ordered[start : start + _LEASE_DELETES_PER_REVISION]):
                self._delete(self.revision, position, key)

    @property
    def writes(self) -> bool:
        return bool(self.changes or self.granted or self.ended)

    def flush(self) -> None:
        """Write the overlay. Raises sqlite3.Error."""
        db = self._db
        puts = [row for row in self._dirty.values() if row]
        for rows in _parts(puts):
            db.execute(_upsert_sql(len(rows)), list(chain.from_iterable(rows)))
        for keys in _parts([key for key, row in self._dirty.items() if not row]):
            db.execute(_delete_sql(len(keys)), keys)
        for changes in _parts(self.changes):
            db.execute(_change_sql(len(changes)), list(chain.from_iterable(changes)))
        if self.granted:
            db.executemany("INSERT INTO leases VALUES (?, ?)", self.granted)
        if self.ended:
            db.executemany("DELETE FROM leases WHERE id = ?", [(lease,) for lease in self.ended])

    def _lease_alive(self, lease: int) -> bool:
        return self._leases.alive(lease) or any(lease == granted for granted, _ in self.granted)

    def _holds(self, key: bytes, compare: Compare) -> bool:
        state = self._states[key]
        match compare.target:
            case CompareTarget.MOD_REVISION:
                return (state.mod_revision if state else 0) == compare.expected
            case CompareTarget.VERSION:
                return (state.version if state else 0) == compare.expected
            case CompareTarget.VALUE:
                return state is not None and self._value(key) == compare.expected

    def _value(self, key: bytes) -> bytes | None:
        if key in self._dirty:
            row = self._dirty[key]
            return row.value if row else None
        found = self._db.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return bytes(found[0]) if found else None

    def _put(self, revision: int, position: int, key: bytes, op: Put) -> None:
        state = self._states[key]
        created, version = (state.create_revision, state.version + 1) if state else (revision, 1)
        self._states[key] = _State(created, revision, version, op.lease)
        self._dirty[key] = Row(key, created, revision, version, op.lease, op.value)
        change_id = revision << CHANGE_SEQ_BITS | position
        self.changes.append(Change(change_id, 0, created, version, op.lease, key, op.value))

    def _delete(self, revision: int, position: int, key: bytes) -> None:
        if self._states[key] is None:
            return
        self._states[key] = None
        self._dirty[key] = None
        self.changes.append(Change(revision << CHANGE_SEQ_BITS | position, 1, 0, 0, 0, key, b""))


def _parts(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """Runs whose lengths are powers of two: few statement shapes, all of them stay compiled."""
    start = 0
    while start < len(items):
        length = min(_ROWS_PER_STATEMENT, 1 << ((len(items) - start).bit_length() - 1))
        yield items[start : start + length]
        start += length


_KEYS_OF_LEASE = "SELECT key FROM entries WHERE lease = ? AND lease != 0"
# All columns of a key as one text, so that one step returns the state of many keys.
_STATE = (
    "(SELECT create_revision || ' ' || mod_revision || ' ' || version || ' ' || lease"
    " FROM entries WHERE key = ?)"
)


@lru_cache
def _states_sql(count: int) -> str:
    return "SELECT " + ", ".join([_STATE] * count)


@lru_cache
def _upsert_sql(count: int) -> str:
    rows = ", ".join(["(?, ?, ?, ?, ?, ?)"] * count)
    columns = "key, create_revision, mod_revision, version, lease, value"
    return (
        f"INSERT INTO entries ({columns}) VALUES {rows}"  # noqa: S608
        " ON CONFLICT (key) DO UPDATE SET create_revision = excluded.create_revision,"
        " mod_revision = excluded.mod_revision, version = excluded.version,"
        " lease = excluded.lease, value = excluded.value"
    )


@lru_cache
def _delete_sql(count: int) -> str:
    return "DELETE FROM entries WHERE key IN (" + ", ".join("?" * count) + ")"  # noqa: S608


@lru_cache
def _change_sql(count: int) -> str:
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * count)
    return f"INSERT INTO changes VALUES {rows}"  # noqa: S608
