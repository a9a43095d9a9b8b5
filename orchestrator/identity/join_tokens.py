"""Join tokens: made for an admin, forgotten when they expire. Consumed in nodes.py.

The secret leaves this process once, in the answer to CreateJoinToken; the Store knows its hash.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from orchestrator.cache import Cache
from orchestrator.identity.authority import Authority
from orchestrator.records import TokenRecord
from orchestrator.refusals import invalid, not_found
from orchestrator.store import keys
from orchestrator.store.port import Compare, Delete, Entry, Op, Put, Store, StoreError
from orchestrator.whereabouts import Whereabouts
from polder.manifest.names import HOST_NAME, HOST_NAME_HELP
from polder.tokens import JoinToken, secret_digest

log = logging.getLogger(__name__)

TTL_S_MAX = 600.0
NAMED_TTL_S_MAX = 24 * 3600.0
"""Of a token that names its node: a pallet of boxes is not unpacked in ten minutes (ADR 30)."""
_SECRET_BYTES = 32
_SWEEP_EVERY_S = 60.0
_SWEEP_BATCH = 100
_FORGOTTEN_AFTER_S = 2 * 3600.0
"""Expired for so long: a leader whose clock is ahead must not forget what others have just made."""


class JoinTokens:
    """`join_endpoints` (host:port) are this member's: told while no member has a record."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        authority: Authority,
        clock: Callable[[], float],
        join_endpoints: tuple[str, ...],
    ) -> None:
        self._store = store
        self._cache = cache
        self._authority = authority
        self._clock = clock
        self._whereabouts = Whereabouts(cache, join_endpoints=join_endpoints)

    async def create(self, site: str, node: str, ttl_s: float, created_by: str) -> JoinToken:
        """`ttl_s` 0: ten minutes. Raises Refused (NotFound, BadName, BadTtl) and StoreError."""
        if self._cache.resource("Site", "", site) is None:
            raise not_found(f"there is no site {site!r}", "apply the Site first")
        if node and HOST_NAME.fullmatch(node) is None:
            raise invalid(
                f"the node's name {node[:80]!r} is not {HOST_NAME_HELP}", reason="BadName"
            )
        longest = NAMED_TTL_S_MAX if node else TTL_S_MAX
        if not 0 <= ttl_s <= longest:
            what = "a token for one node" if node else "a token for any node"
            raise invalid(f"{what} lives {longest:g} s at most", reason="BadTtl")
        now = self._clock()
        expires_at_ms = int((now + (ttl_s or TTL_S_MAX)) * 1000)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        record = TokenRecord(site, node, created_by, int(now * 1000), expires_at_ms)
        key = keys.token(secret_digest(secret))
        await self._store.txn([Compare.absent(key)], [Put(key, record.to_bytes())])
        root = self._authority.roots_der[0]
        endpoints = self._whereabouts.for_joining(node, site)
        return JoinToken(secret, site, node, endpoints, root, expires_at_ms)

    async def run(self, leads: Callable[[], bool]) -> None:
        """Forgets expired tokens, on the member that leads, until it is cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                if leads():
                    await self.sweep()
            except StoreError as error:
                log.warning("expired join tokens were not removed: %s", error)

    async def sweep(self) -> int:
        """Deletes what expired some time ago; returns how many. Raises StoreError."""
        removed, after, more = 0, "", True
        while more:
            page = await self._store.range(keys.TOKENS, after=after, limit=_SWEEP_BATCH)
            more = page.more
            if page.entries:
                after = page.entries[-1].key
            expired: list[Op] = [Delete(e.key) for e in page.entries if self._is_over(e)]
            if expired:
                await self._store.txn([], expired)
                removed += len(expired)
        return removed

    def _is_over(self, entry: Entry) -> bool:
        try:
            expires_at = TokenRecord.from_bytes(entry.value).expires_at_ms / 1000
        except (ValueError, TypeError):
            log.warning("a join token's record cannot be read and stays: %s", entry.key)
            return False
        return expires_at + _FORGOTTEN_AFTER_S <= self._clock()
