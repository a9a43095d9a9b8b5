"""The mirror of the Store: what a writer of this process announces is a hint, never the truth."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.records import StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Put, Store
from orchestrator.store.sqlite import open_sqlite

KEY = keys.spec("Namespace", "", "ward")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_sqlite(tmp_path / "polder.db")
    yield opened
    await opened.close()


@pytest.fixture
async def cache(store: Store) -> AsyncIterator[Cache]:
    mirror = Cache(store, lambda: 0.0)
    await mirror.start()
    yield mirror
    await mirror.stop()


def namespace(description: str) -> StoredResource:
    return StoredResource("Namespace", "", "ward", "u", {"description": description})


async def written(store: Store, cache: Cache, record: StoredResource) -> StoredResource:
    result = await store.txn((), (Put(KEY, record.to_bytes()),))
    async with asyncio.timeout(5):
        await cache.wait_for(result.revision)
    found = cache.resource("Namespace", "", "ward")
    assert found is not None and found.store_revision == result.revision
    return found


async def test_what_was_announced_is_not_parsed_again(store: Store, cache: Cache) -> None:
    record = namespace("as announced")
    decoded = object()
    cache.expect(KEY, record.to_bytes(), record.known(decoded, 0))
    found = await written(store, cache, record)
    assert found.decoded is decoded and found.spec == record.spec


async def test_other_bytes_than_announced_are_parsed(store: Store, cache: Cache) -> None:
    announced = namespace("lost the race")
    cache.expect(KEY, announced.to_bytes(), announced.known(object(), 0))
    found = await written(store, cache, namespace("won"))
    assert found.decoded.description == "won"
    assert (await written(store, cache, announced)).decoded.description == "lost the race"


async def test_announcements_that_never_come_are_bounded(store: Store, cache: Cache) -> None:
    record = namespace("x")
    for number in range(10_000):
        cache.expect(f"/specs/Namespace/_/n{number}", b"", record)
    assert len(cache._expected) <= 4096
