"""Package: the bytes of a package that a signed release names, read from the Store part by part.

For agents, on the connection of their session but with a flow control of its own. A download may be
the slowest thing that a box does: few run at once, each is held in memory one part at a time, and
one that is not read for long ends. The agent goes on later, from the offset that it has come to.
"""

import asyncio
from collections.abc import Awaitable, Callable

from orchestrator.cache import Cache
from orchestrator.domain.releases import PART_BYTES, releases_in
from orchestrator.refusals import exhausted, invalid, not_found, unavailable
from orchestrator.store import keys
from orchestrator.store.port import Store
from polder.v1 import agent_pb2

AT_ONCE_MAX = 8
CHUNK_BYTES = 64 << 10
_WRITE_TIMEOUT_S = 60.0

Write = Callable[[agent_pb2.PackageResponse], Awaitable[None]]


class Packages:
    """One per member."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._nodes: set[str] = set()

    async def send(self, node: str, request: agent_pb2.PackageRequest, write: Write) -> None:
        """Raises Refused (NotFound, InvalidArgument, TooManyDownloads, NotRead) and StoreError."""
        size = self._size(request.sha256)
        if not 0 <= request.offset <= size:
            raise invalid(f"the package has {size} bytes, none at {request.offset}")
        if len(self._nodes) >= AT_ONCE_MAX or node in self._nodes:
            raise exhausted(
                "TooManyDownloads",
                f"{len(self._nodes)} boxes download now",
                "try again in a minute",
            )
        self._nodes.add(node)
        try:
            await self._send(request.sha256, request.offset, size, write)
        except TimeoutError:
            raise unavailable("NotRead", "the package is not read", "go on from there") from None
        finally:
            self._nodes.discard(node)

    def _size(self, sha256: str) -> int:
        for stored in releases_in(self._cache.kept(keys.RELEASES)).values():
            for package in stored.release.packages:
                if package.sha256 == sha256 and sha256 in stored.complete:
                    return package.size
        raise not_found("no release here has such a package")

    async def _send(self, sha256: str, offset: int, size: int, write: Write) -> None:
        while offset < size:
            number, start = divmod(offset, PART_BYTES)
            entry = await self._store.get(keys.package_part(sha256, number))
            if entry is None or len(entry.value) <= start:
                raise not_found("the package was deleted meanwhile")
            for at in range(start, len(entry.value), CHUNK_BYTES):
                data = entry.value[at : at + CHUNK_BYTES]
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await write(agent_pb2.PackageResponse(data=data))
            offset = number * PART_BYTES + len(entry.value)
