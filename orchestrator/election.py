"""Who leads: a key with a lease in the Store. `orchestrator/leader.py` uses it.

The leader's term is the revision at which its key was written. Every write of the leader compares
it, so that a leader that lost the key without noticing (paused, cut off) can write nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.store import keys
from orchestrator.store.port import (
    Compare,
    CompareTarget,
    Entry,
    LeaseNotFound,
    Put,
    Store,
    StoreError,
)

log = logging.getLogger(__name__)

TTL_S = 6.0
"""When a leader vanishes another leads after about so long; after two or three seconds more if
etcd's own leader vanished with it, since etcd then lengthens every lease. Shorter would depose a
leader whose etcd member vanished: it needs three seconds to notice that, and leads on with another.
"""
_RETRY_MAX_S = 5.0
_CLOSING_S = 2.0


class Deposed(Exception):
    """This member does not lead any more."""


@dataclass(frozen=True, slots=True)
class Term:
    """A time of leading."""

    number: int
    lease: int

    @property
    def fence(self) -> Compare:
        """The compare that every write of the leader carries."""
        return Compare(keys.LEADER, CompareTarget.MOD_REVISION, self.number)


class Election:
    """One candidate. `monotonic` is a clock in seconds that never jumps."""

    def __init__(
        self, store: Store, member: str, monotonic: Callable[[], float], ttl_s: float = TTL_S
    ) -> None:
        self._store = store
        self._value = member.encode()
        self._monotonic = monotonic
        self._ttl_s = ttl_s
        # Once only: two processes that were given one name must not depose each other for ever.
        self._may_take_over = True
        self._own_lease = 0

    async def campaign(self) -> Term:
        """Returns when this member leads. A store that is away is asked again, for ever."""
        failures = 0
        while True:
            try:
                term = await self._attempt()
                if term is not None:
                    return term
                failures = 0
            except StoreError as error:
                failures += 1
                if failures == 1:
                    log.warning("cannot stand for election while the store fails: %s", error)
                await asyncio.sleep(min(_RETRY_MAX_S, 0.1 * 2**failures))

    async def hold(self, term: Term) -> None:
        """Keeps the term's lease alive. Raises Deposed when it is lost or may have run out."""
        good_until = self._monotonic() + self._ttl_s
        warned = False
        while True:
            await asyncio.sleep(self._ttl_s / 4)
            asked_at = self._monotonic()
            try:
                async with asyncio.timeout(max(0.05, good_until - asked_at)):
                    await self._store.keep_alive(term.lease)
                    entry = await self._store.get(keys.LEADER)
                if entry is None or entry.mod_revision != term.number:
                    raise Deposed("the leader's key is not ours any more")
                good_until, warned = asked_at + self._ttl_s, False
            except LeaseNotFound:
                raise Deposed("the lease of the term ran out") from None
            except (StoreError, TimeoutError) as error:
                if not warned:
                    reason = str(error) or "no answer in time"
                    log.warning("the leader's lease was not renewed; trying again: %s", reason)
                warned = True
                if self._monotonic() >= good_until:
                    raise Deposed("the lease could not be renewed in time") from error

    async def resign(self, term: Term) -> None:
        """Let another member lead at once. Failing to is harmless: the lease runs out."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                await self._store.revoke_lease(term.lease)

    async def _attempt(self) -> Term | None:
        """One try. None: another member leads, and something changed or its time may be up."""
        entry = await self._store.get(keys.LEADER)
        if entry is not None and not self._is_ours(entry):
            await self._wait_for_change(entry)
            return None
        compare = Compare.absent(keys.LEADER) if entry is None else Compare.unchanged(entry)
        lease = self._own_lease = await self._store.grant_lease(self._ttl_s)
        result = await self._store.txn([compare], [Put(keys.LEADER, self._value, lease)])
        if not result.committed:
            await self.resign(Term(0, lease))
            return None
        self._may_take_over = False
        if entry is not None and entry.lease:
            await self._forget(entry.lease)
        return Term(result.revision, lease)

    def _is_ours(self, entry: Entry) -> bool:
        """Our name from before a restart; or a term of this process, given up while the Store was
        away, or whose beginning it never heard of."""
        return entry.lease == self._own_lease != 0 or (
            entry.value == self._value and self._may_take_over
        )

    async def _forget(self, lease: int) -> None:
        """End the lease of our earlier life; the key does not hang on it any more."""
        with contextlib.suppress(StoreError):
            await self._store.revoke_lease(lease)

    async def _wait_for_change(self, entry: Entry) -> None:
        watch = self._store.watch(keys.LEADER, from_revision=entry.mod_revision + 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._ttl_s), contextlib.aclosing(watch):
                async for batch in watch:
                    if batch.events:
                        return
