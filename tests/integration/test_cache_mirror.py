"""The mirror of the Store: what a writer of this process announces is a hint, never the truth."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cache import Cache, Change, Implausible
from orchestrator.records import KeptRecord, StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put, RangeResult, Store, WatchBatch, WatchEvent
from orchestrator.store.sqlite import open_sqlite
from tests.integration.orchestrator_rig import until

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


async def test_a_store_that_suddenly_knows_nothing_is_not_believed(
    store: Store, cache: Cache
) -> None:
    for start in range(0, 300, 50):
        batch = [
            Put(keys.spec("Namespace", "", f"n{n}"), namespace(str(n)).to_bytes())
            for n in range(start, start + 50)
        ]
        result = await store.txn((), batch)
    await cache.wait_for(result.revision)
    whole = store.range

    async def nothing(prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        return replace(await whole(prefix, after=after, limit=limit), entries=(), more=False)

    store.range = nothing  # type: ignore[method-assign]
    with pytest.raises(Implausible):
        await cache._load()
    assert len(list(cache.resources("Namespace"))) == 300
    assert cache.doubt == "300 of 300 records are not in the store any more"
    store.range = whole  # type: ignore[method-assign]
    await cache._load()
    assert not cache.doubt and len(list(cache.resources("Namespace"))) == 300


async def test_a_store_that_went_back_in_time_is_not_believed(store: Store, cache: Cache) -> None:
    await written(store, cache, namespace("new"))

    async def earlier() -> int:
        return cache.revision - 1

    store.revision = earlier  # type: ignore[method-assign]
    with pytest.raises(Implausible, match="went back"):
        await cache._load()


async def test_a_record_that_cannot_be_read_stops_the_mirror_until_it_is_mended(
    store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that follows the Store died of it, and the mirror went on calling itself current."""
    monkeypatch.setattr("orchestrator.cache._UNREADABLE_RETRY_S", 0.05)
    before = await written(store, cache, namespace("good"))
    await store.txn((), (Put(KEY, b"{not JSON"),))
    await until(lambda: not cache.healthy, "the mirror says so")
    assert cache.resource("Namespace", "", "ward") == before
    result = await store.txn((), (Put(KEY, namespace("mended").to_bytes()),))
    async with asyncio.timeout(5):
        await cache.wait_for(result.revision)
    assert cache.healthy


async def test_what_came_and_went_within_one_batch_is_gone(store: Store) -> None:
    """A mirror that was cut off hears of a creation and the deletion at once. It kept the ghost of
    the record, and the member showed it for good (found by tests.faults, seed 2, run 5)."""

    class Late:
        """Hands out what happened since as one batch."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        async def watch(self, prefix: str, *, from_revision: int) -> AsyncIterator[WatchBatch]:
            await gone.wait()
            events: list[WatchEvent] = []
            async for batch in store.watch(prefix, from_revision=from_revision):
                events += batch.events
                if batch.revision >= last:
                    yield WatchBatch(batch.revision, tuple(events))

    gone, last = asyncio.Event(), 0
    mirror = Cache(Late(), lambda: 0.0)  # type: ignore[arg-type]
    told: list[Change] = []
    mirror.subscribe(told.extend)
    await mirror.start()
    try:
        config = StoredResource("Config", "ward", "c", "u", {"data": {}})
        hold = KeptRecord(f"{keys.HOLDS}h", {"a": 1})
        for record, key in ((config, keys.spec(*config.ref)), (hold, hold.key)):
            await store.txn((), (Put(key, record.to_bytes()),))
            await store.txn((), (Put(key, record.to_bytes()),))
            last = (await store.txn((), (Delete(key),))).revision
        gone.set()
        async with asyncio.timeout(5):
            await mirror.wait_for(last)
        assert not list(mirror.resources("Config")) and not mirror.kept(keys.HOLDS)
        assert [change.previous is not None for change in told] == [False, True, True] * 2
    finally:
        await mirror.stop()
