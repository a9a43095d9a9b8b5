"""A member's registration over a real etcd: presence, names, versions, and what undoes them."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import members
from orchestrator.members import NotAdmitted, Registry
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.port import Delete, LeaseNotFound, Put, Store, StoreError, StoreFull
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_server import EtcdCluster

pytestmark = pytest.mark.etcd
TTL_S = 2.0
_prefixes = (f"/members{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def store(cluster: EtcdCluster) -> AsyncIterator[Store]:
    opened = await open_etcd(cluster.settings(next(_prefixes)))
    yield opened
    await opened.close()


def registry(store: Store, name: str = "a", version: str = "0.1.0", **more: Any) -> Registry:
    record = MemberRecord(name, "north", version, ("h:1",), ("h:2",), "h:3", (52.0, 5.0))
    made = Registry(store, record, time.time, **{"exclusive": False, "ttl_s": TTL_S, **more})
    # As if it ran on another machine: only its lease tells of it.
    made.instance_id = f"elsewhere-{made.instance_id}"
    made._presence = replace(made._presence, instance_id=made.instance_id)
    return made


@asynccontextmanager
async def staying(one: Registry) -> AsyncIterator["asyncio.Task[None]"]:
    await one.claim()
    await one.announce()
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, NotAdmitted):
            await task


async def present(store: Store, name: str = "a") -> PresenceRecord | None:
    entry = await store.get(keys.present(name))
    return PresenceRecord.from_bytes(entry.value) if entry is not None else None


async def eventually(condition: Callable[[], Awaitable[Any]], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := await condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return found


# --- presence -------------------------------------------------------------------------------------


async def test_it_is_there_until_it_leaves_and_its_address_stays(store: Store) -> None:
    one = registry(store)
    async with staying(one):
        found = await store.get(keys.present("a"))
        assert found is not None
        assert found.lease
        assert PresenceRecord.from_bytes(found.value).instance_id == one.instance_id
        await asyncio.sleep(2 * TTL_S)
        assert await store.get(keys.present("a")) == found
    await one.leave()
    assert await present(store) is None
    record = await store.get(keys.member("a"))
    assert record is not None
    assert MemberRecord.from_bytes(record.value) == one.record


async def test_an_unchanged_record_is_not_written_again(store: Store) -> None:
    async with staying(registry(store)):
        before = await store.get(keys.member("a"))
    await eventually(lambda: _is_gone(store, keys.present("a")))
    async with staying(registry(store)):
        assert await store.get(keys.member("a")) == before


async def _is_gone(store: Store, key: str) -> bool:
    return await store.get(key) is None


async def test_nobody_is_sent_to_who_does_not_serve_yet(store: Store) -> None:
    one = registry(store)
    await one.claim()
    await one._beat()
    assert await present(store) is not None
    assert await store.get(keys.member("a")) is None
    await one.announce()
    assert await store.get(keys.member("a")) is not None


async def test_what_was_lost_is_made_again(store: Store) -> None:
    one = registry(store)
    async with staying(one):
        entry = await store.get(keys.present("a"))
        assert entry is not None
        await store.revoke_lease(entry.lease)
        await eventually(lambda: present(store))
        await store.txn([], [Delete(keys.present("a")), Delete(keys.member("a"))])
        await eventually(lambda: present(store))
        await eventually(lambda: store.get(keys.member("a")))


async def test_a_store_that_was_away_finds_it_again(
    cluster: EtcdCluster, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with Proxy(cluster.members[0].client_port) as proxy:
        settings = replace(
            cluster.settings(next(_prefixes)), endpoints=(proxy.endpoint,), deadline_s=1.0
        )
        seen = await open_etcd(replace(settings, endpoints=cluster.settings().endpoints))
        cut = await open_etcd(settings)
        async with staying(registry(cut)) as running:
            await proxy.cut()
            await eventually(lambda: _is_gone(seen, keys.present("a")))
            await asyncio.sleep(TTL_S)
            assert not running.done()
            await proxy.restore()
            await eventually(lambda: _said(caplog, "renewed again"))
            assert await present(seen) is not None
        await cut.close()
        await seen.close()
    assert caplog.text.count("was not renewed") == 1


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


# --- names ----------------------------------------------------------------------------------------


async def test_a_second_live_process_of_the_name_is_refused(store: Store) -> None:
    async with staying(registry(store, version="0.1.0")) as first:
        with pytest.raises(NotAdmitted, match="a member named a runs already") as caught:
            await registry(store).claim()
        assert "name of its own" in caught.value.hint
        assert not first.done()


async def test_a_dead_processs_lease_is_waited_for(store: Store) -> None:
    await registry(store).claim()
    started = time.monotonic()
    second = registry(store)
    await second.claim()
    assert time.monotonic() - started > TTL_S / 2
    assert (await present(store)) == second._presence


async def test_a_dead_process_of_this_machine_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry(store, ttl_s=60.0).claim()
    monkeypatch.setattr(members, "has_ended", lambda _: True)
    async with asyncio.timeout(30):
        await registry(store, ttl_s=60.0).claim()


async def test_who_was_away_for_long_yields_to_its_successor(store: Store) -> None:
    first = registry(store)
    await first.claim()
    second = registry(store)
    await second.claim()
    with pytest.raises(NotAdmitted, match="another process took the name a"):
        await first._beat()
    assert (await present(store)) == second._presence


async def test_a_claim_whose_answer_was_lost_is_made_again(store: Store) -> None:
    one = registry(store, ttl_s=60.0)
    await one.claim()
    first, one._lease = one._lease, 0  # as if it had not heard
    async with asyncio.timeout(30):
        await one.claim()
    async with staying(one):
        found = await store.get(keys.present("a"))
        with contextlib.suppress(LeaseNotFound):
            await store.revoke_lease(first)  # as if it were over
        assert found is not None and await store.get(keys.present("a")) == found
        assert PresenceRecord.from_bytes(found.value) == one._presence


async def test_alone_with_its_store_it_asks_nobody(store: Store) -> None:
    await registry(store, ttl_s=60.0, version="0.7.0").claim()
    await store.txn([], [Put(keys.member("former"), registry(store).record.to_bytes())])
    await store.txn([], [Put(keys.FLOOR, b"0.7")])
    alone = registry(store, exclusive=True, ttl_s=60.0, version="0.6.0")
    await alone.claim()
    await alone.announce()
    assert (await present(store)) == alone._presence
    assert await store.get(keys.member("former")) is None
    assert await _floor(store) == "0.6"


# --- versions -------------------------------------------------------------------------------------


async def test_who_is_older_than_the_floor_stays_out(store: Store) -> None:
    first, second = (registry(store, name, "0.2.0", settle_s=0.0) for name in "ab")
    old = registry(store, "c", "0.1.0")
    await old.claim()
    async with staying(first), staying(second):
        await asyncio.sleep(TTL_S)
        assert await _floor(store) == "0.1"
        await old.leave()
        await eventually(lambda: _floor_is(store, "0.2"))
        with pytest.raises(NotAdmitted, match=r"at 0\.2 or later") as caught:
            await registry(store, "c", "0.1.0").claim()
        assert "0.2.0" in caught.value.hint
        assert await present(store, "c") is None
        with pytest.raises(NotAdmitted, match=r"member a runs 0\.2\.0") as caught:
            await registry(store, "d", "0.4.0").claim()
        assert "0.3 first" in caught.value.hint
        await registry(store, "e", "0.3.0").claim()


async def test_the_floor_does_not_rise_at_once(store: Store) -> None:
    await registry(store, "old", "0.1.0").claim()
    await eventually(lambda: _is_gone(store, keys.present("old")))
    async with staying(registry(store, "a", "0.2.0", settle_s=60.0)):
        await asyncio.sleep(TTL_S)
        assert await _floor(store) == "0.1"
        await registry(store, "old", "0.1.0").claim()  # it was only restarted


async def _floor(store: Store) -> str:
    entry = await store.get(keys.FLOOR)
    return entry.value.decode() if entry is not None else ""


async def _floor_is(store: Store, wanted: str) -> bool:
    return await _floor(store) == wanted


async def test_two_that_do_not_fit_never_come_in_together(store: Store) -> None:
    for _ in range(20):
        low, high = registry(store, "low", "0.1.0"), registry(store, "high", "0.3.0")
        results = await asyncio.gather(low.claim(), high.claim(), return_exceptions=True)
        refused = [result for result in results if isinstance(result, NotAdmitted)]
        assert len(refused) == 1, results
        await low.leave()
        await high.leave()
        await store.txn([], [Delete(keys.FLOOR)])


# --- a store in trouble ---------------------------------------------------------------------------


async def test_a_full_store_keeps_nobody_from_serving(store: Store) -> None:
    class Full:
        full = True

        async def grant_lease(self, ttl_s: float) -> int:
            if self.full:
                raise StoreFull("full")
            return await store.grant_lease(ttl_s)

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    full = Full()
    async with staying(registry(full)):
        assert await present(store) is None
        full.full = False
        await eventually(lambda: present(store))


async def test_a_claim_that_cannot_be_made_says_so(cluster: EtcdCluster) -> None:
    async with Proxy(cluster.members[0].client_port) as proxy:
        settings = replace(cluster.settings(), endpoints=(proxy.endpoint,), deadline_s=0.5)
        opened = await open_etcd(settings)
        await proxy.cut()
        with pytest.raises(StoreError):
            await registry(opened).claim()
        await opened.close()
