"""The Store port: everything durable that the orchestrator knows lives behind it.

Called by the operator API, the gateway, the leader and identity. Two adapters pass one conformance
suite (`tests/integration/store_conformance.py`): SQLite and etcd. The model is etcd's,
because it is the weaker of the two: a flat, ordered key space of bytes, one revision counter for
the whole store, compare-and-set transactions, watches that start at a revision, and leases.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 1_500_000  # etcd's default request limit is 1.5 MiB
MAX_TXN_OPS = 128  # etcd's default --max-txn-ops; compares are counted apart, to the same limit
MAX_TXN_BYTES = 1_550_000  # keys and values of a transaction, compares included: the same 1.5 MiB


class StoreError(Exception):
    """Base of every error that a Store raises.

    StoreError
     +- StoreUnavailable   temporary: the outcome of a write is unknown; reads may be retried
     |   +- NothingWritten  temporary too, and it is certain that nothing was written
     +- StoreFull          the store refuses writes until an operator makes room; reads still work
     |                     (an etcd says so of the very write that fills it, too: that one stands)
     +- Compacted          the revision asked of a watch is gone; read again and watch from there
     +- LimitExceeded      a key, value or transaction is over the limits above: a bug in the caller
     +- LeaseNotFound      the lease expired or never was
     +- StoreUnusable      opening failed, and will until an operator acts (the message says how)
    """


class StoreUnavailable(StoreError): ...


class NothingWritten(StoreUnavailable): ...


class StoreFull(StoreError): ...


class LimitExceeded(StoreError): ...


class LeaseNotFound(StoreError): ...


class StoreUnusable(StoreError): ...


class Compacted(StoreError):
    """Raised by watch. `oldest_revision` is the first revision that can still be watched from."""

    def __init__(self, oldest_revision: int) -> None:
        super().__init__(f"revisions before {oldest_revision} are compacted; read again and resume")
        self.oldest_revision = oldest_revision


@dataclass(frozen=True, slots=True)
class Entry:
    """One key at one revision."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int  # 1 for a newly created key, +1 for every put since
    lease: int = 0  # 0: no lease


@dataclass(frozen=True, slots=True)
class RangeResult:
    """`revision` is the store's revision at which the read was made: watch from `revision + 1`."""

    entries: tuple[Entry, ...]
    revision: int
    more: bool = False  # a limit cut the range; continue with `after=entries[-1].key`


class CompareTarget(Enum):
    MOD_REVISION = "mod_revision"  # 0 means: the key must not exist
    VERSION = "version"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. Equality only: nothing here needs more."""

    key: str
    target: CompareTarget
    expected: int | bytes

    @staticmethod
    def absent(key: str) -> "Compare":
        return Compare(key, CompareTarget.MOD_REVISION, 0)

    @staticmethod
    def unchanged(entry: Entry) -> "Compare":
        return Compare(entry.key, CompareTarget.MOD_REVISION, entry.mod_revision)

    @staticmethod
    def value(key: str, value: bytes) -> "Compare":
        return Compare(key, CompareTarget.VALUE, value)


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


Op = Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`failed` names the compares that did not hold; then nothing was written."""

    committed: bool
    revision: int
    failed: tuple[Compare, ...] = ()


class EventType(Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. For DELETE only `entry.key` and `entry.mod_revision` (the deletion's) carry news:
    the value is empty and the other fields are 0."""

    type: EventType
    entry: Entry


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes of one or more whole revisions, in order: a transaction is never split.

    `revision` is the last revision covered; an empty `events` is a progress mark.
    """

    revision: int
    events: tuple[WatchEvent, ...] = field(default=())


class Store(Protocol):
    """Keys are text without NUL, ordered as UTF-8 bytes. A write that has returned is durable."""

    async def get(self, key: str) -> Entry | None:
        """Raises StoreUnavailable."""
        ...

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        """Entries whose key starts with `prefix` and is greater than `after`, in order.

        `limit` 0 means all. Raises StoreUnavailable: an unreadable store is never an empty one.
        """
        ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """All ops at one revision if all compares hold, else nothing.

        Deleting an absent key changes nothing; a transaction that changes nothing takes no revision
        and returns the current one. A caller that is cancelled while it waits does not know whether
        the transaction was made. Two ops on one key raise LimitExceeded. Raises StoreUnavailable,
        StoreFull, LeaseNotFound.
        """
        ...

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change of keys under `prefix` at `from_revision` or later, once and in order.

        A revision in the future waits for it. Close it with `aclose()`. A watcher that falls behind
        reads from the log at its own pace: memory stays bounded. Raises Compacted,
        StoreUnavailable.
        """
        ...

    async def compact(self, before_revision: int) -> None:
        """Forget changes before this revision; current values stay.

        A revision beyond the current one forgets all; one already forgotten changes nothing.
        """
        ...

    async def grant_lease(self, ttl_s: float) -> int:
        """A lease id. Keys put with it are deleted (as ordinary, watched changes) when it expires.

        It never expires early, and may expire late by an adapter's own slack. Raises LimitExceeded
        for a ttl that is not positive.
        """
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew; returns seconds left. Raises LeaseNotFound."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """End it now: its keys are deleted when this returns. Raises LeaseNotFound."""
        ...

    async def revision(self) -> int:
        """The current revision. Doubles as the health probe.

        A watch of every key ("/") is there soon after, also if the last changes are not ours.
        """
        ...

    def known_revision(self) -> int:
        """As `revision`, where that needs no question because only this process writes; else 0."""
        ...

    async def close(self) -> None: ...
