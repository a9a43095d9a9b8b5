"""Writes of operators whose outcome would be unknown: told apart, repeated, and made once.

A transaction that was sent to etcd and never answered may stand or not. So each request of an
operator leaves a mark: a key named by the request's id and step, written in the transaction itself,
which asks that it be absent. The same transaction can then be sent again, by this member or by the
one that the operator turns to next: it stands once, and who finds the mark knows that it stands.
Marks hang on a lease that outlives every repetition (ADR 18).

The front door opens a `Request`; `SettlingStore` is the Store that the operator API writes to. What
runs outside a request (leader, gateway) goes through unchanged.
"""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from orchestrator.refusals import conflict, outcome_unknown
from orchestrator.store import keys
from orchestrator.store.around import StoreAround
from orchestrator.store.port import (
    Compare,
    Delete,
    Entry,
    LeaseNotFound,
    NothingWritten,
    Op,
    Put,
    Store,
    StoreFull,
    StoreUnavailable,
    TxnResult,
)

log = logging.getLogger(__name__)

WRITE_S = 9.0
"""A write is tried this long before its operator is told that the outcome is unknown: what was sent
to an etcd that died takes 6 s, and one more try."""
IDENTIFIER_MAX = 64
_MARK_TTL_S = 900.0
_LEASE_SHARED_S = 90.0
_PAUSE_S = 0.2
_LEFT_ALONE = b"left-alone"
"""In the mark of a step that one try found nothing to do for: no other try may do it later."""


@dataclass(frozen=True, slots=True)
class Request:
    """One operator's call. `named`: the client chose the id, and may ask again with it."""

    identifier: str
    named: bool
    repeated: bool
    until: float  # monotonic


_current: ContextVar[Request | None] = ContextVar("request", default=None)


@contextmanager
def request(identifier: str, *, repeated: bool, left_s: float | None = None) -> Iterator[Request]:
    """Around the handling of one call that writes. `left_s`: until the caller gives up."""
    limit_s = WRITE_S if left_s is None else min(WRITE_S, max(1.0, left_s - 0.5))
    found = Request(
        identifier[:IDENTIFIER_MAX].replace("/", "_") or f"{random.getrandbits(128):032x}",
        bool(identifier),
        repeated and bool(identifier),
        time.monotonic() + limit_s,
    )
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


class SettlingStore(StoreAround):
    """A Store whose `txn` finds out, within an operator's request, what came of it."""

    def __init__(self, inner: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(inner)
        self._monotonic = monotonic
        self._lease = 0
        self._lease_at = 0.0

    # --- writing -----------------------------------------------------------------------------

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """As the port's. Within a request also Refused: OutcomeUnknown, Conflict."""
        return (await self.step(_digest(ops), compares, ops))[0]

    async def step(
        self, name: str, compares: Sequence[Compare], ops: Sequence[Op], outcome: bytes = b""
    ) -> tuple[TxnResult, Entry | None]:
        """A transaction with a name that is the same in every try of a request, whatever the tries
        find; made once. The mark, whose value is its `outcome`, comes with a result that was found
        and not made: it tells of an earlier try."""
        current = _current.get()
        if current is None or not ops or not (current.named or self._is_uncertain):
            return await self._inner.txn(compares, ops), None
        mark = keys.request(current.identifier, name)
        absent = Compare.absent(mark)
        unknown = False
        while True:
            try:
                put = Put(mark, outcome, await self._mark_lease())
                result = await self._inner.txn([*compares, absent], [*ops, put])
            except LeaseNotFound:
                self._lease = 0
                continue
            except StoreFull:
                if await self._inner.get(mark) is not None:
                    return await self._met(mark)  # it is the one that filled it
                if unknown or not all(isinstance(op, Delete) for op in ops):
                    raise
                return await self._inner.txn(compares, ops), None  # a full store takes these
            except StoreUnavailable as error:
                unknown = unknown or not isinstance(error, NothingWritten)
                if self._monotonic() + _PAUSE_S >= current.until:
                    if unknown:
                        raise outcome_unknown() from error
                    raise
                log.info("sending a write again whose outcome is unknown: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if result.committed or absent not in result.failed:
                return result, None
            return await self._met(mark)

    async def _met(self, mark: str) -> tuple[TxnResult, Entry]:
        """This step of this request was made before: by us with the answer lost, or elsewhere."""
        entry = await self._inner.get(mark)
        if entry is None or entry.value == _LEFT_ALONE:
            raise conflict("this request was answered by another member", "nothing was written")
        return TxnResult(True, entry.mod_revision), entry

    # --- asking ------------------------------------------------------------------------------

    @property
    def is_repeated(self) -> bool:
        """The client sent this request before, and does not know what came of it."""
        current = _current.get()
        return current is not None and current.repeated

    async def told(self, name: str) -> Entry | None:
        """The mark of a step that an earlier try of this request made; its value is the outcome."""
        current = _current.get()
        if current is None or not current.repeated:
            return None
        entry = await self._inner.get(keys.request(current.identifier, name))
        return entry if entry is not None and entry.value != _LEFT_ALONE else None

    async def leave_alone(self, name: str) -> Entry | None:
        """This try has nothing to do for a step. None: so has every other, from now on; otherwise
        the mark of the try that has made it."""
        current = _current.get()
        if current is None or not current.repeated:
            return None
        mark = keys.request(current.identifier, name)
        put = Put(mark, _LEFT_ALONE, await self._mark_lease())
        try:
            await self._inner.txn([Compare.absent(mark)], [put])
        except NothingWritten:
            raise
        except StoreUnavailable as error:
            raise outcome_unknown() from error
        return await self.told(name)

    @property
    def _is_uncertain(self) -> bool:
        return not self._inner.known_revision()

    async def _mark_lease(self) -> int:
        """One lease for the marks of some time; it is granted before the write, and cheap."""
        now = self._monotonic()
        if not self._lease or now - self._lease_at > _LEASE_SHARED_S:
            try:
                self._lease = await self._inner.grant_lease(_MARK_TTL_S)
            except NothingWritten:
                raise
            except StoreUnavailable as error:
                raise NothingWritten(f"{error}; nothing was written") from error
            self._lease_at = now
        return self._lease


def _digest(ops: Sequence[Op]) -> str:
    """Names a step by what it writes where, not by the values: those may differ in a later try.
    Not so the certificates that count: each try answers with the one that it has issued."""
    named = sorted(f"{type(op).__name__} {op.key}" for op in ops)
    issued = [op.value for op in ops if isinstance(op, Put) and op.key.startswith(keys.IDENTITIES)]
    return hashlib.sha256(b"\n".join(["\n".join(named).encode(), *issued])).hexdigest()[:16]
