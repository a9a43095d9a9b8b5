"""A Store around another one. The base of those that add something to some of its operations."""

from collections.abc import AsyncGenerator, Sequence

from orchestrator.store.port import (
    Compare,
    Entry,
    Op,
    RangeResult,
    Store,
    TxnResult,
    WatchBatch,
)


class StoreAround:
    """Does what the inner one does; see the port."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        return await self._inner.txn(compares, ops)

    async def get(self, key: str) -> Entry | None:
        return await self._inner.get(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        return await self._inner.range(prefix, after=after, limit=limit)

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self._inner.watch(prefix, from_revision=from_revision)

    async def compact(self, before_revision: int) -> None:
        await self._inner.compact(before_revision)

    async def grant_lease(self, ttl_s: float) -> int:
        return await self._inner.grant_lease(ttl_s)

    async def keep_alive(self, lease: int) -> float:
        return await self._inner.keep_alive(lease)

    async def revoke_lease(self, lease: int) -> None:
        await self._inner.revoke_lease(lease)

    async def revision(self) -> int:
        return await self._inner.revision()

    def known_revision(self) -> int:
        return self._inner.known_revision()

    async def close(self) -> None:
        await self._inner.close()
