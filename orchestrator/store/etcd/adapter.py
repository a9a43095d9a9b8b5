"""The etcd Store: for an installation whose orchestrators are in several regions.

Called by the orchestrator's main, and by tests, through `open_etcd`. It says the port in etcd's
words; which member hears them is the client's business, and a watch's going on is `watch`'s.
History is kept as long as etcd's own compaction leaves it (`--auto-compaction-retention`).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

from orchestrator.store import keys
from orchestrator.store.etcd import files
from orchestrator.store.etcd import txn as transactions
from orchestrator.store.etcd.client import EtcdClient, MemberStatus
from orchestrator.store.etcd.errors import CertificateRefused
from orchestrator.store.etcd.link import REQUIRE_LEADER, Link
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.progress import Progress
from orchestrator.store.etcd.settings import EtcdSettings
from orchestrator.store.etcd.watch import Span, watch
from orchestrator.store.limits import (
    check_ttl,
    encode_key,
    encode_prefix,
    encode_txn,
    prefix_end,
)
from orchestrator.store.port import (
    Compacted,
    Compare,
    Entry,
    LeaseNotFound,
    LimitExceeded,
    Op,
    RangeResult,
    StoreUnavailable,
    StoreUnusable,
    TxnResult,
    WatchBatch,
)

_PAGE = 1000
_RANGE_TRIES_MAX = 3


async def open_etcd(settings: EtcdSettings) -> "EtcdStore":
    """Connect to the first endpoint that will have us.

    Raises StoreUnavailable when none can be used now; StoreUnusable when that will stay so: a
    certificate is missing, damaged or refused, etcd is older than 3.4.
    """
    await asyncio.to_thread(files.check, settings.tls)
    client = EtcdClient(settings)
    try:
        await client.link()
    except BaseException as error:
        await client.close()
        if isinstance(error, CertificateRefused):
            raise StoreUnusable(str(error)) from error
        raise
    return EtcdStore(client, settings.root)


class EtcdStore:
    """Implements `Store`. Made by `open_etcd`."""

    def __init__(self, client: EtcdClient, root: bytes) -> None:
        self._client = client
        self._root = root
        self._progress = Progress(client, self._root + encode_key(keys.MARK))

    # --- reading ---------------------------------------------------------------------------------

    async def get(self, key: str) -> Entry | None:
        encoded = self._root + encode_key(key)
        span = Span(encoded, b"", len(self._root))
        answer = await self._range("reading a key", pb.RangeRequest(key=encoded))
        return span.entry(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        if limit < 0:
            raise LimitExceeded(f"a limit of {limit} entries")
        span = self._span(prefix)
        start = self._root + encode_prefix(after) + b"\0" if after else b""
        for _ in range(_RANGE_TRIES_MAX):
            try:
                return await self._pages(span, max(span.low, start), limit)
            except Compacted:
                continue  # somebody compacts faster than this reads: begin anew
        raise StoreUnavailable(f"{prefix!r} was compacted away while it was read")

    async def _pages(self, span: Span, start: bytes, limit: int) -> RangeResult:
        """All pages at the revision of the first."""
        entries: list[Entry] = []
        revision = 0
        while True:
            size = min(_PAGE, limit - len(entries)) if limit else _PAGE
            request = pb.RangeRequest(key=start, range_end=span.end, limit=size, revision=revision)
            answer = await self._range("reading a range", request)
            revision = revision or answer.header.revision
            entries += [span.entry(kv) for kv in answer.kvs]
            if not answer.more or len(entries) == limit:
                return RangeResult(tuple(entries), revision, answer.more)
            start = answer.kvs[-1].key + b"\0"

    async def revision(self) -> int:
        request = pb.RangeRequest(key=self._root, count_only=True)
        revision = (await self._range("reading the revision", request)).header.revision
        self._progress.reach(revision)
        return revision

    def known_revision(self) -> int:
        return 0  # others write too

    async def _range(self, doing: str, request: pb.RangeRequest) -> pb.RangeResponse:
        async def send(link: Link, timeout_s: float) -> pb.RangeResponse:
            return await link.kv.Range(request, timeout=timeout_s, metadata=REQUIRE_LEADER)

        return await self._client.call(doing, send, again=True)

    # --- writing ---------------------------------------------------------------------------------

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        conditions, changes, _ = encode_txn(compares, ops)
        request = transactions.build(self._root, conditions, changes)
        answer = await self._txn(request, again=not changes)
        if answer.succeeded:
            return TxnResult(True, answer.header.revision)
        responses: Sequence[pb.ResponseOp] = answer.responses
        if not request.failure:
            responses = await self._look_back(conditions, answer.header.revision)
        failed = transactions.failed(conditions, responses)
        return TxnResult(False, answer.header.revision, failed)

    async def _look_back(
        self, conditions: Sequence[tuple[bytes, Compare]], revision: int
    ) -> Sequence[pb.ResponseOp]:
        """Why a transaction was refused whose request had no room for the question."""
        lookups = transactions.lookups(self._root, conditions, revision)
        try:
            return (await self._txn(pb.TxnRequest(success=lookups), again=True)).responses
        except Compacted as error:
            raise StoreUnavailable(
                "a transaction was refused, but its revision was compacted before it could be "
                "told why; nothing was written"
            ) from error

    async def _txn(self, request: pb.TxnRequest, *, again: bool) -> pb.TxnResponse:
        async def send(link: Link, timeout_s: float) -> pb.TxnResponse:
            return await link.kv.Txn(request, timeout=timeout_s, metadata=REQUIRE_LEADER)

        return await self._client.call("a transaction", send, again=again)

    async def compact(self, before_revision: int) -> None:
        """Of the whole etcd: one that is shared loses its neighbours' history too."""
        last = min(before_revision - 1, await self.revision())
        if last < 1:
            return
        request = pb.CompactionRequest(revision=last)

        async def send(link: Link, timeout_s: float) -> pb.CompactionResponse:
            return await link.kv.Compact(request, timeout=timeout_s, metadata=REQUIRE_LEADER)

        try:
            await self._client.call("compacting", send, again=True)
        except Compacted:
            return  # as far as that, or further, already

    # --- watching --------------------------------------------------------------------------------

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return watch(self._client, self._span(prefix), from_revision)

    def _span(self, prefix: str) -> Span:
        low = self._root + encode_prefix(prefix)
        end = prefix_end(low)
        assert end is not None, "the root is never empty"
        return Span(low, end, len(self._root))

    # --- leases ----------------------------------------------------------------------------------

    async def grant_lease(self, ttl_s: float) -> int:
        """In whole seconds; etcd lengthens what is below one and a half election timeouts."""
        check_ttl(ttl_s)
        request = pb.LeaseGrantRequest(TTL=math.ceil(ttl_s))

        async def send(link: Link, timeout_s: float) -> pb.LeaseGrantResponse:
            return await link.lease.LeaseGrant(request, timeout=timeout_s, metadata=REQUIRE_LEADER)

        # A grant whose answer was lost is tried again: nobody knows the lost one, and it expires.
        return (await self._client.call("granting a lease", send, again=True)).ID

    async def keep_alive(self, lease: int) -> float:
        clock = asyncio.get_running_loop().time
        asked = clock()
        answer = await self._client.keep_alive(lease)
        if answer.TTL <= 0:
            raise LeaseNotFound(f"lease {lease:x} expired or never was")
        return max(0.0, answer.TTL - (clock() - asked))

    async def revoke_lease(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease)
        tries = 0

        async def send(link: Link, timeout_s: float) -> pb.LeaseRevokeResponse:
            nonlocal tries
            tries += 1
            return await link.lease.LeaseRevoke(request, timeout=timeout_s, metadata=REQUIRE_LEADER)

        try:
            await self._client.call("revoking a lease", send, again=True)
        except LeaseNotFound:
            if tries == 1:
                raise  # else an earlier try ended it, whose answer was lost

    # --- the rest --------------------------------------------------------------------------------

    async def members(self) -> tuple[MemberStatus, ...]:
        """How each endpoint is: for operators. Raises StoreUnavailable when closed."""
        return await self._client.members()

    async def close(self) -> None:
        self._progress.stop()
        await self._client.close()
