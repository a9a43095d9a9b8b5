"""What every Store adapter must do, as one test class.

An adapter's test module imports `StoreConformance`, subclasses it as `Test...` and provides a
fixture `store_factory`: a callable that returns an async context manager which yields an open Store
with an empty key space and closes it. It may be entered many times, also from another event loop.
Nothing here assumes that revisions start at 1 or come without gaps, or that a lease ends on the
dot.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.store.port import (
    MAX_KEY_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Entry,
    EventType,
    LeaseNotFound,
    LimitExceeded,
    Op,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
    WatchEvent,
)

StoreFactory = Callable[[], AbstractAsyncContextManager[Store]]

DEADLINE_S = 30.0


async def put(store: Store, key: str, value: bytes = b"v", lease: int = 0) -> int:
    result = await store.txn([], [Put(key, value, lease)])
    assert result.committed
    return result.revision


async def delete(store: Store, key: str) -> int:
    return (await store.txn([], [Delete(key)])).revision


async def keys(store: Store, prefix: str) -> list[str]:
    return [entry.key for entry in (await store.range(prefix)).entries]


class Watching:
    """A watch read by a task of its own; `events` grows as batches come."""

    def __init__(self, watch: AsyncGenerator[WatchBatch, None]) -> None:
        self.batches: list[WatchBatch] = []
        self.events: list[WatchEvent] = []
        self._news = asyncio.Condition()
        self._watch = watch
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async with aclosing(self._watch) as watch:
                async for batch in watch:
                    self.batches.append(batch)
                    self.events.extend(batch.events)
                    async with self._news:
                        self._news.notify_all()
        finally:
            async with self._news:
                self._news.notify_all()

    async def until(self, condition: Callable[["Watching"], bool]) -> None:
        """Wait until it holds; raises what the watch raised if that ends first."""
        async with asyncio.timeout(DEADLINE_S), self._news:
            while not condition(self):
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the watch ended")
                await self._news.wait()

    async def until_count(self, count: int) -> list[WatchEvent]:
        await self.until(lambda watching: len(watching.events) >= count)
        return self.events

    async def error(self) -> BaseException:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait([self._task])
        error = self._task.exception()
        assert error is not None
        return error

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def watching(store: Store, prefix: str, from_revision: int) -> AsyncIterator[Watching]:
    reader = Watching(store.watch(prefix, from_revision=from_revision))
    try:
        yield reader
    finally:
        await reader.stop()


def summary(events: list[WatchEvent]) -> list[tuple[str, str, bytes]]:
    return [(event.type.value, event.entry.key, event.entry.value) for event in events]


def check_whole_revisions(batches: list[WatchBatch]) -> None:
    """In order, each revision in one batch, and no batch behind what an earlier one covered."""
    covered = 0
    for batch in batches:
        revisions = [event.entry.mod_revision for event in batch.events]
        assert revisions == sorted(revisions)
        assert batch.revision >= covered
        if revisions:
            assert revisions[0] > covered
            assert batch.revision >= revisions[-1]
        covered = batch.revision


_KEYS = ["/m", "/m/", "/m/a", "/m/é", "/m/\U0010ffff", "/n"]
_key = st.sampled_from(_KEYS)
_value = st.binary(max_size=3)
_op = st.one_of(st.builds(Put, _key, _value), st.builds(Delete, _key))
_compare = st.tuples(_key, st.sampled_from(CompareTarget), st.booleans(), _value)
_CompareSpec = tuple[str, CompareTarget, bool, bytes]
# Transactions that run at once, and what is asked about a key: it holds now, or it is made up.
Step = list[tuple[list[_CompareSpec], list[Op]]]
_txn = st.tuples(
    st.lists(_compare, max_size=2),
    st.lists(_op, max_size=4, unique_by=lambda op: op.key),
)
_steps = st.lists(_txn, min_size=1, max_size=4)


class StoreConformance:
    """Subclass this, with a `store_factory` fixture."""

    # -- single keys ---------------------------------------------------------------------------

    async def test_what_was_put_is_read_back(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            assert await store.get("/a") is None
            first = await put(store, "/a", b"1")
            assert await store.get("/a") == Entry("/a", b"1", first, first, 1)
            second = await put(store, "/a", b"")
            assert second > first
            assert await store.get("/a") == Entry("/a", b"", first, second, 2)
            await delete(store, "/a")
            assert await store.get("/a") is None
            third = await put(store, "/a", b"\0\xff")
            assert await store.get("/a") == Entry("/a", b"\0\xff", third, third, 1)

    async def test_revision_counts_changes_only(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            revision = await put(store, "/a")
            assert await store.revision() == revision
            assert await store.txn([], []) == TxnResult(True, revision)
            assert await store.txn([], [Delete("/absent")]) == TxnResult(True, revision)
            refused = await store.txn([Compare.absent("/a")], [Put("/b", b"")])
            assert refused == TxnResult(False, revision, (Compare.absent("/a"),))
            assert await store.revision() == revision

    async def test_store_is_empty_at_first(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            found = await store.range("")
            assert found.entries == ()
            assert not found.more
            assert found.revision == await store.revision()

    # -- ranges --------------------------------------------------------------------------------

    async def test_keys_are_ordered_by_utf8_bytes(self, store_factory: StoreFactory) -> None:
        # UTF-16 order would put U+FFFD after U+10000; a collation would put "B" after "a".
        names = [
            "B",
            "a",
            "a\x01",
            "a/",
            "ab",
            "\x7f",
            "é",
            "ÿ",
            "\ufffd",
            "\U00010000",
            "\U0010ffff",
        ]
        async with store_factory() as store:
            for name in random.Random(1).sample(names, len(names)):
                await put(store, name)
            assert await keys(store, "") == sorted(names, key=str.encode)
            assert await keys(store, "a") == ["a", "a\x01", "a/", "ab"]

    @pytest.mark.parametrize(
        "prefix", ["\x7f", "ÿ", "\u07ff", "\uffff", "\U0010ffff", "p/\U0010ffff"]
    )
    async def test_prefix_ends_at_the_next_character(
        self, store_factory: StoreFactory, prefix: str
    ) -> None:
        async with store_factory() as store:
            inside = [prefix, prefix + "\x01", prefix + "\U0010ffff"]
            for key in [*inside, "p/", "o", "p/\uffff", "\x7e\U0010ffff", "þ\U0010ffff"]:
                await put(store, key)
            expected = [key for key in await keys(store, "") if key.startswith(prefix)]
            assert await keys(store, prefix) == expected
            assert set(inside) <= set(expected)

    async def test_pages_follow_one_another(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            names = [f"/p/{n:02}" for n in range(10)]
            for name in [*names, "/o", "/q"]:
                await put(store, name)
            for size in (1, 3, 5, 10, 11):
                seen: list[str] = []
                after = ""
                while True:
                    page = await store.range("/p/", after=after, limit=size)
                    assert len(page.entries) <= size
                    seen += [entry.key for entry in page.entries]
                    if not page.more:
                        break
                    assert len(page.entries) == size
                    after = seen[-1]
                assert seen == names
            assert not (await store.range("/p/", limit=10)).more

    async def test_after_is_exclusive_and_stays_in_the_prefix(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:
            for key in ["/a", "/p/1", "/p/2", "/p/2x", "/z"]:
                await put(store, key)

            async def after(mark: str) -> list[str]:
                return [entry.key for entry in (await store.range("/p/", after=mark)).entries]

            assert await after("/p/2") == ["/p/2x"]
            assert await after("/p/15") == ["/p/2", "/p/2x"]
            assert await after("/a") == ["/p/1", "/p/2", "/p/2x"]
            assert await after("/p/") == ["/p/1", "/p/2", "/p/2x"]
            assert await after("/z") == []

    async def test_a_range_is_one_snapshot(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            await store.txn([], [Put("/s/a", b"0"), Put("/s/b", b"0")])
            done = False

            async def write() -> None:
                for n in range(1, 100):
                    await store.txn([], [Put("/s/a", b"%d" % n), Put("/s/b", b"%d" % n)])

            writing = asyncio.create_task(write())
            while not done:
                done = writing.done()
                found = await store.range("/s/")
                first, second = found.entries
                assert first.value == second.value
                assert first.mod_revision == second.mod_revision <= found.revision
            await writing

    # -- transactions --------------------------------------------------------------------------

    async def test_compares(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            await put(store, "/a", b"old")
            await put(store, "/a", b"new")
            entry = await store.get("/a")
            assert entry is not None
            mod = entry.mod_revision
            holds = [
                Compare.unchanged(entry),
                Compare("/a", CompareTarget.VERSION, 2),
                Compare.value("/a", b"new"),
                Compare.absent("/none"),
                Compare("/none", CompareTarget.VERSION, 0),
            ]
            fails = [
                Compare("/a", CompareTarget.MOD_REVISION, mod - 1),
                Compare("/a", CompareTarget.VERSION, 1),
                Compare.value("/a", b"old"),
                Compare.absent("/a"),
                Compare("/none", CompareTarget.MOD_REVISION, mod),
                Compare.value("/none", b""),
            ]
            assert (await store.txn(holds, [])).committed
            for compare in fails:
                result = await store.txn([*holds, compare], [Put("/never", b"")])
                assert not result.committed
                assert result.failed == (compare,)
            assert (await store.txn(fails, [])).failed == tuple(fails)
            assert await store.get("/never") is None

    async def test_a_transaction_is_one_revision(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            await put(store, "/t/gone")
            ops: list[Op] = [Put("/t/b", b"2"), Delete("/t/gone"), Put("/t/a", b"1")]
            result = await store.txn([Compare.absent("/t/a")], ops)
            found = await store.range("/t/")
            assert [entry.key for entry in found.entries] == ["/t/a", "/t/b"]
            assert {entry.mod_revision for entry in found.entries} == {result.revision}
            again = await store.txn([Compare.absent("/t/a")], [Put("/t/b", b"x"), Delete("/t/a")])
            assert not again.committed
            assert await store.range("/t/") == found

    async def test_limits(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            most: list[Op] = [Put(f"/l/{n}", b"") for n in range(MAX_TXN_OPS)]
            checks = [Compare.absent(f"/l/{n}") for n in range(MAX_TXN_OPS)]
            assert (await store.txn(checks, most)).committed
            longest = "/" + "k" * (MAX_KEY_BYTES - 1)
            assert (await store.txn([], [Put(longest, b"v" * MAX_VALUE_BYTES)])).committed
            entry = await store.get(longest)
            assert entry is not None
            assert len(entry.value) == MAX_VALUE_BYTES
            half = b"v" * (MAX_TXN_BYTES // 2)
            before = await store.revision()
            bad: list[tuple[list[Compare], list[Op]]] = [
                ([], [*most, Put("/more", b"")]),
                ([*checks, Compare.absent("/more")], []),
                ([], [Put(longest + "k", b"")]),
                ([], [Put("/v", b"v" * (MAX_VALUE_BYTES + 1))]),
                ([], [Put("/1", half), Put("/2", half)]),
                ([Compare.value("/1", half)], [Put("/2", half)]),
                ([], [Put("", b"")]),
                ([], [Put("/a\0b", b"")]),
                ([], [Put("/\ud800", b"")]),
                ([Compare.absent("")], []),
                ([], [Delete("/" + "é" * MAX_KEY_BYTES)]),
            ]
            for compares, ops in bad:
                with pytest.raises(LimitExceeded):
                    await store.txn(compares, ops)
            for key in ("", "/a\0b", longest + "k"):
                with pytest.raises(LimitExceeded):
                    await store.get(key)
            assert await store.revision() == before

    @pytest.mark.parametrize(
        "ops",
        [
            [Put("/d", b"1"), Put("/d", b"2")],
            [Put("/d", b"1"), Delete("/d")],
            [Delete("/d"), Delete("/d")],
        ],
    )
    async def test_two_operations_on_one_key(
        self, store_factory: StoreFactory, ops: list[Op]
    ) -> None:
        async with store_factory() as store:
            with pytest.raises(LimitExceeded):
                await store.txn([], ops)
            assert await store.get("/d") is None

    async def test_one_of_many_creators_wins(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            results = await asyncio.gather(
                *(store.txn([Compare.absent("/one")], [Put("/one", b"%d" % n)]) for n in range(200))
            )
            winners = [n for n, result in enumerate(results) if result.committed]
            assert len(winners) == 1
            entry = await store.get("/one")
            assert entry is not None
            assert entry.value == b"%d" % winners[0]

    async def test_concurrent_increments_are_never_lost(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            await put(store, "/n", b"0")

            async def increment(times: int) -> None:
                while times:
                    entry = await store.get("/n")
                    assert entry is not None
                    more = b"%d" % (int(entry.value) + 1)
                    result = await store.txn([Compare.unchanged(entry)], [Put("/n", more)])
                    times -= result.committed

            await asyncio.gather(*(increment(20) for _ in range(8)))
            entry = await store.get("/n")
            assert entry is not None
            assert entry.value == b"160"
            assert entry.version == 161

    async def test_revisions_of_concurrent_writers_differ(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:
            revisions = await asyncio.gather(*(put(store, f"/c/{n}") for n in range(300)))
            assert len(set(revisions)) == 300
            for entry in (await store.range("/c/")).entries:
                assert entry.mod_revision == revisions[int(entry.key.removeprefix("/c/"))]

    async def test_a_write_that_returned_is_seen_by_every_read(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:

            async def client(name: str) -> None:
                for n in range(30):
                    revision = await put(store, name, b"%d" % n)
                    entry = await store.get(name)
                    assert entry is not None
                    assert entry.value == b"%d" % n
                    assert (await store.range(name)).revision >= revision

            await asyncio.gather(*(client(f"/w/{n}") for n in range(8)))

    async def test_cancelled_callers_corrupt_nothing(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await store.revision() + 1
            chance = random.Random(7)
            tasks = [
                asyncio.create_task(store.txn([], [Put(f"/x/{n}/a", b""), Put(f"/x/{n}/b", b"")]))
                for n in range(200)
            ]
            for task in chance.sample(tasks, 100):
                await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            kept = [n for n, result in enumerate(results) if isinstance(result, TxnResult)]
            assert len(kept) >= 100
            # Cancelled ones may have been made or not, but never by half.
            mark = await put(store, "/x/end")
            found = {key for key in await keys(store, "/x/") if key != "/x/end"}
            assert {f"/x/{n}/{half}" for n in kept for half in "ab"} <= found
            assert all(key[:-1] + "a" in found and key[:-1] + "b" in found for key in found)
            async with watching(store, "/x/", start) as seen:
                await seen.until(lambda w: w.batches[-1:] != [] and w.batches[-1].revision >= mark)
                assert len(seen.events) == len(found) + 1
                check_whole_revisions(seen.batches)

    # -- watches -------------------------------------------------------------------------------

    async def test_watch_from_the_past(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            first = await put(store, "/w/a", b"1")
            second = await put(store, "/w/a", b"2")
            await put(store, "/other")
            third = await delete(store, "/w/a")
            async with watching(store, "/w/", first) as seen:
                assert await seen.until_count(3) == [
                    WatchEvent(EventType.PUT, Entry("/w/a", b"1", first, first, 1)),
                    WatchEvent(EventType.PUT, Entry("/w/a", b"2", first, second, 2)),
                    WatchEvent(EventType.DELETE, Entry("/w/a", b"", 0, third, 0)),
                ]
            async with watching(store, "/w/", second) as seen:
                await seen.until_count(2)
                assert [event.entry.mod_revision for event in seen.events] == [second, third]

    async def test_watch_from_the_present(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            await put(store, "/w/before")
            found = await store.range("/w/")
            async with watching(store, "/w/", found.revision + 1) as seen:
                await put(store, "/w/b", b"2")
                await put(store, "/v/c", b"3")
                await delete(store, "/w/before")
                await seen.until_count(2)
                assert summary(seen.events) == [
                    ("put", "/w/b", b"2"),
                    ("delete", "/w/before", b""),
                ]

    async def test_watch_from_the_future(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await put(store, "/w/0")
            async with watching(store, "/w/", start + 4) as seen:
                for n in range(1, 8):
                    last = await put(store, f"/w/{n}")
                await seen.until(lambda w: bool(w.events) and w.events[-1].entry.key == "/w/7")
                revisions = [event.entry.mod_revision for event in seen.events]
                assert min(revisions) >= start + 4
                assert revisions[-1] == last

    async def test_watch_prefixes_are_exact(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await store.revision() + 1
            prefixes = ["", "/", "/a", "/a/", "/a/é", "/a/\U0010ffff", "/ab", "/zz"]
            names = [
                "/a",
                "/a/",
                "/a/b",
                "/a/é",
                "/a/éa",
                "/a/è",
                "/a/\U0010ffffx",
                "/ab",
                "/b",
                "c",
            ]
            live = [Watching(store.watch(prefix, from_revision=start)) for prefix in prefixes]
            for name in names:
                await put(store, name)
            late = [Watching(store.watch(prefix, from_revision=start)) for prefix in prefixes]
            for prefix, reader in zip(prefixes * 2, live + late, strict=True):
                expected = [name for name in names if name.startswith(prefix)]
                await reader.until_count(len(expected))
                assert [event.entry.key for event in reader.events] == expected
                await reader.stop()

    async def test_a_transaction_arrives_whole(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await store.revision() + 1
            async with watching(store, "/t/", start) as live:
                for n in range(10):
                    await store.txn(
                        [], [Put(f"/t/{n}/{m}", b"v" * 5000) for m in range(MAX_TXN_OPS)]
                    )
                async with watching(store, "/t/", start) as late:
                    for seen in (live, late):
                        await seen.until_count(10 * MAX_TXN_OPS)
                        check_whole_revisions(seen.batches)
                        assert len(seen.events) == 10 * MAX_TXN_OPS

    async def test_every_watcher_sees_everything_once_in_order(
        self, store_factory: StoreFactory
    ) -> None:
        """Watchers that join at any moment, while many write: exactly the log, in its order."""
        async with store_factory() as store:
            start = await store.revision() + 1
            readers = [Watching(store.watch("/e/", from_revision=start)) for _ in range(4)]

            async def writer(name: int) -> None:
                chance = random.Random(name)
                for n in range(60):
                    key = f"/e/{chance.randrange(20)}"
                    op: Op = (
                        Delete(key) if chance.random() < 0.3 else Put(key, b"%d-%d" % (name, n))
                    )
                    await store.txn([], [op, Put(f"/noise/{name}", b"")])
                    if chance.random() < 0.05:
                        readers.append(Watching(store.watch("/e/", from_revision=start)))

            await asyncio.gather(*(writer(n) for n in range(8)))
            end = await put(store, "/e/end")
            for reader in readers:
                await reader.until(lambda w: bool(w.events) and w.events[-1].entry.key == "/e/end")
                check_whole_revisions(reader.batches)
                assert reader.events == readers[0].events
                await reader.stop()
            assert readers[0].events[-1].entry.mod_revision == end
            replayed: dict[str, Entry] = {}
            for event in readers[0].events:
                if event.type is EventType.PUT:
                    replayed[event.entry.key] = event.entry
                else:
                    del replayed[event.entry.key]
            assert (
                tuple(replayed[key] for key in sorted(replayed))
                == (await store.range("/e/")).entries
            )

    async def test_a_slow_watcher_loses_nothing(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await store.revision() + 1
            total = 3000
            async with aclosing(store.watch("/s/", from_revision=start)) as watch:
                await put(store, "/s/0")
                seen = [event.entry.key for event in (await anext(watch)).events]
                # Far more than any adapter should hold for a watcher that does not read.
                for first in range(1, total, 100):
                    await asyncio.gather(
                        *(put(store, f"/s/{n}", b"v" * 2000) for n in range(first, first + 100))
                    )
                batches: list[WatchBatch] = []
                async with asyncio.timeout(DEADLINE_S):
                    while len(seen) <= total:
                        batches.append(await anext(watch))
                        seen += [event.entry.key for event in batches[-1].events]
                        await asyncio.sleep(0)
            check_whole_revisions(batches)
            assert len(seen) == len(set(seen)) == total + 1

    async def test_a_closed_watch_is_gone(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            start = await store.revision() + 1
            for n in range(20):
                watch = store.watch("/c/", from_revision=start)
                await put(store, f"/c/{n}")
                await anext(watch)
                await watch.aclose()
            unread = store.watch("/c/", from_revision=start)
            await unread.aclose()

    # -- compaction ----------------------------------------------------------------------------

    async def test_compacted_revisions_cannot_be_watched(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            revisions = [await put(store, "/k", b"%d" % n) for n in range(10)]
            await store.compact(revisions[5])
            async with watching(store, "/k", revisions[4]) as seen:
                error = await seen.error()
            assert isinstance(error, Compacted)
            assert revisions[4] < error.oldest_revision <= revisions[5]
            async with watching(store, "/k", error.oldest_revision) as seen:
                await seen.until_count(5)
                assert [event.entry.value for event in seen.events] == [
                    b"5",
                    b"6",
                    b"7",
                    b"8",
                    b"9",
                ]
            entry = await store.get("/k")
            assert entry == Entry("/k", b"9", revisions[0], revisions[9], 10)

    async def test_compaction_of_the_past_and_of_everything(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:
            first = await put(store, "/k", b"1")
            second = await put(store, "/k", b"2")
            await store.compact(second)
            await store.compact(first)
            await store.compact(second + 1_000_000)
            assert await store.revision() == second
            async with watching(store, "/k", second) as seen:
                assert isinstance(await seen.error(), Compacted)
            async with watching(store, "/k", second + 1) as seen:
                await put(store, "/k", b"3")
                await seen.until_count(1)
                assert summary(seen.events) == [("put", "/k", b"3")]

    async def test_compaction_does_not_disturb_a_live_watch(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:
            start = await put(store, "/k", b"0")
            async with watching(store, "/k", start) as seen:
                await seen.until_count(1)
                for n in range(1, 20):
                    revision = await put(store, "/k", b"%d" % n)
                    await seen.until_count(n + 1)
                    await store.compact(revision)
                assert [int(event.entry.value) for event in seen.events] == list(range(20))

    # -- leases --------------------------------------------------------------------------------

    async def test_an_expired_lease_deletes_its_keys(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            lease = await store.grant_lease(3.0)
            await put(store, "/l/a", b"1", lease)
            await put(store, "/l/b", b"2", lease)
            kept = await put(store, "/l/kept")
            entry = await store.get("/l/a")
            assert entry is not None
            assert entry.lease == lease
            async with watching(store, "/l/", kept + 1) as seen:
                await seen.until_count(2)
                assert sorted(summary(seen.events)) == [
                    ("delete", "/l/a", b""),
                    ("delete", "/l/b", b""),
                ]
                check_whole_revisions(seen.batches)
            assert await keys(store, "/l/") == ["/l/kept"]
            with pytest.raises(LeaseNotFound):
                await store.keep_alive(lease)
            with pytest.raises(LeaseNotFound):
                await put(store, "/l/c", b"", lease)

    async def test_a_renewed_lease_lives_on(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            renewed, left = await store.grant_lease(3.0), await store.grant_lease(3.0)
            start = await put(store, "/l/renewed", b"", renewed)
            await put(store, "/l/left", b"", left)
            async with watching(store, "/l/", start) as seen:
                # The other lease, as old as this one, tells when an unrenewed one would have gone.
                while len(seen.events) < 3:
                    assert await store.keep_alive(renewed) > 0
                    await asyncio.sleep(0.2)
                assert seen.events[2].entry.key == "/l/left"
            assert await keys(store, "/l/") == ["/l/renewed"]

    async def test_a_revoked_lease_takes_its_keys_along(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            lease, other = await store.grant_lease(600), await store.grant_lease(600)
            assert lease != other
            await put(store, "/l/stays", b"", other)
            for n in range(MAX_TXN_OPS + 20):
                await put(store, f"/l/{n:04}", b"", lease)
            await store.revoke_lease(lease)
            assert await keys(store, "/l/") == ["/l/stays"]
            with pytest.raises(LeaseNotFound):
                await store.revoke_lease(lease)
            with pytest.raises(LeaseNotFound):
                await store.keep_alive(lease)

    async def test_the_last_put_decides_the_lease(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            first, second = await store.grant_lease(600), await store.grant_lease(600)
            await put(store, "/l/moved", b"", first)
            await put(store, "/l/freed", b"", first)
            await put(store, "/l/again", b"", first)
            await put(store, "/l/moved", b"", second)
            await put(store, "/l/freed")
            await delete(store, "/l/again")
            await put(store, "/l/again")
            await store.revoke_lease(first)
            assert await keys(store, "/l/") == ["/l/again", "/l/freed", "/l/moved"]
            await store.revoke_lease(second)
            assert await keys(store, "/l/") == ["/l/again", "/l/freed"]

    async def test_an_unknown_lease(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            before = await store.revision()
            with pytest.raises(LeaseNotFound):
                await store.txn([], [Put("/l/a", b""), Put("/l/b", b"", 987654321)])
            assert await store.get("/l/a") is None
            assert await store.revision() == before
            with pytest.raises(LeaseNotFound):
                await store.keep_alive(987654321)
            with pytest.raises(LeaseNotFound):
                await store.revoke_lease(987654321)

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
    async def test_a_lease_needs_a_real_ttl(
        self, store_factory: StoreFactory, ttl_s: float
    ) -> None:
        async with store_factory() as store:
            with pytest.raises(LimitExceeded):
                await store.grant_lease(ttl_s)

    # -- closing -------------------------------------------------------------------------------

    async def test_a_closed_store_is_unavailable(self, store_factory: StoreFactory) -> None:
        async with store_factory() as store:
            revision = await put(store, "/a")
            lease = await store.grant_lease(600)
            async with watching(store, "/", revision + 1) as seen:
                await put(store, "/a")
                await seen.until_count(1)
                await store.close()
                assert isinstance(await seen.error(), StoreUnavailable)
            await store.close()
            for attempt in (
                store.get("/a"),
                store.range("/"),
                store.txn([], [Put("/a", b"")]),
                store.revision(),
                store.grant_lease(1),
                store.keep_alive(lease),
                store.revoke_lease(lease),
                store.compact(1),
            ):
                with pytest.raises(StoreUnavailable):
                    await attempt

    async def test_writes_under_way_end_definitely_at_close(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory() as store:
            tasks = [asyncio.create_task(put(store, f"/p/{n}")) for n in range(100)]
            await asyncio.sleep(0)
            await store.close()
            async with asyncio.timeout(DEADLINE_S):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert isinstance(result, int | StoreUnavailable)

    # -- against a model -----------------------------------------------------------------------

    @settings(
        max_examples=40,
        deadline=None,
        # Each adapter runs this case as its own, on purpose.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.differing_executors,
        ],
    )
    @given(program=st.lists(_steps, max_size=25))
    def test_agrees_with_a_dictionary(
        self, store_factory: StoreFactory, program: list[Step]
    ) -> None:
        asyncio.run(_run_against_model(store_factory, program))


class _Model:
    """The port in a dictionary: no durability, no concurrency, no log but a list."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.events: list[WatchEvent] = []

    def compare(self, spec: _CompareSpec) -> Compare:
        key, target, truthful, made_up = spec
        entry = self.entries.get(key)
        if target is CompareTarget.VALUE:
            return Compare(key, target, entry.value if truthful and entry else made_up)
        actual = getattr(entry, target.value) if entry else 0
        return Compare(key, target, actual if truthful else len(made_up))

    def failed(self, compares: list[Compare]) -> tuple[Compare, ...]:
        failed = []
        for compare in compares:
            entry = self.entries.get(compare.key)
            absent = None if compare.target is CompareTarget.VALUE else 0
            actual = getattr(entry, compare.target.value) if entry else absent
            if actual != compare.expected:
                failed.append(compare)
        return tuple(failed)

    def apply(self, ops: list[Op], revision: int) -> bool:
        """Make the changes; False when there were none."""
        count = len(self.events)
        for op in ops:
            old = self.entries.get(op.key)
            if isinstance(op, Put):
                created, version = (old.create_revision, old.version) if old else (revision, 0)
                entry = Entry(op.key, op.value, created, revision, version + 1)
                self.entries[op.key] = entry
                self.events.append(WatchEvent(EventType.PUT, entry))
            elif old:
                del self.entries[op.key]
                gone = Entry(op.key, b"", 0, revision, 0)
                self.events.append(WatchEvent(EventType.DELETE, gone))
        return len(self.events) > count


async def _run_against_model(store_factory: StoreFactory, program: list[Step]) -> None:
    async with store_factory() as store:
        model = _Model()
        revision = await store.revision()
        start = revision + 1
        async with watching(store, "/m", start) as live:
            for step in program:
                txns = [([model.compare(spec) for spec in specs], ops) for specs, ops in step]
                # One at a time and at once must agree; at once, an adapter takes them in any order.
                results = await asyncio.gather(*(store.txn(*txn) for txn in txns))
                revision = _replay(model, txns, list(results), revision)
                await _check_reads(store, model)
            end = await put(store, "/m/end")
            expected = [e for e in model.events if e.entry.key.startswith("/m")]
            async with watching(store, "/m", start) as late:
                for seen in (live, late):
                    await seen.until_count(len(expected) + 1)
                    check_whole_revisions(seen.batches)
                    order = [(e.entry.mod_revision, e.entry.key) for e in seen.events[:-1]]
                    assert [revision for revision, _ in order] == sorted(r for r, _ in order)
                    assert sorted(seen.events[:-1], key=_event_order) == sorted(
                        expected, key=_event_order
                    )
                    assert seen.events[-1].entry.mod_revision == end


def _event_order(event: WatchEvent) -> tuple[int, str]:
    return event.entry.mod_revision, event.entry.key


def _replay(
    model: _Model,
    txns: list[tuple[list[Compare], list[Op]]],
    results: list[TxnResult],
    revision: int,
) -> int:
    """Apply in the order of revisions; those that changed nothing fit right after theirs."""
    waiting = sorted(range(len(txns)), key=lambda n: results[n].revision)
    while waiting:
        for n in waiting:
            (compares, ops), result = txns[n], results[n]
            fails = model.failed(compares)
            unchanged = bool(fails) or not _would_change(model, ops)
            expected = result.revision == revision if unchanged else result.revision > revision
            if fails == result.failed and result.committed is not bool(fails) and expected:
                if not unchanged:
                    model.apply(ops, result.revision)
                    revision = result.revision
                waiting.remove(n)
                break
        else:
            raise AssertionError(f"no order of these explains the results: {txns} {results}")
    return revision


def _would_change(model: _Model, ops: list[Op]) -> bool:
    return any(isinstance(op, Put) or op.key in model.entries for op in ops)


async def _check_reads(store: Store, model: _Model) -> None:
    for prefix in ("", "/m", "/m/", "/m/é"):
        expected = [model.entries[key] for key in sorted(model.entries, key=str.encode)]
        found = await store.range(prefix)
        assert list(found.entries) == [e for e in expected if e.key.startswith(prefix)]
    for key in _KEYS:
        assert await store.get(key) == model.entries.get(key)
