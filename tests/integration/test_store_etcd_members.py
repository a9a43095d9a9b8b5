"""The etcd Store on three members: lost, frozen, cut off, all gone and back."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.port import Compare, Put, Store, StoreUnavailable
from tests.integration.etcd_server import EtcdCluster, EtcdMember
from tests.integration.store_conformance import check_whole_revisions, keys, put, watching

pytestmark = pytest.mark.etcd

DEADLINE_S = 30.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path, members=3)
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster
    finally:
        cluster.stop()


@asynccontextmanager
async def opened(cluster: EtcdCluster) -> AsyncIterator[EtcdStore]:
    settings = replace(
        cluster.settings(),
        watch_probe_s=1.0,
        watch_resume_s=4.0,
        attempt_s=1.0,
        deadline_s=4.0,
        close_s=0.5,
    )
    store = await open_etcd(settings)
    try:
        yield store
    finally:
        await store.close()


def others(cluster: EtcdCluster, *but: EtcdMember) -> list[EtcdMember]:
    return [member for member in cluster.members if member not in but]


async def leader(store: EtcdStore, cluster: EtcdCluster) -> EtcdMember:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for member in await store.members():
                if member.is_leader:
                    return cluster.member_at(member.endpoint)


async def insist(store: Store, key: str) -> None:
    """Create the key, however often the outcome is unknown; it must be created once."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(StoreUnavailable):
                result = await store.txn([Compare.absent(key)], [Put(key, key.encode())])
                assert result.committed or result.failed == (Compare.absent(key),)
                return
            await asyncio.sleep(0.05)


async def test_leaders_come_and_go_under_writes(cluster: EtcdCluster) -> None:
    """What was acknowledged is there; a watcher sees each creation once and in order."""
    async with opened(cluster) as store, opened(cluster) as other:
        start = await store.revision() + 1
        done = asyncio.Event()
        acknowledged: list[str] = []

        async def write(name: str) -> None:
            for n in itertools.count():
                if done.is_set():
                    return
                await insist(store, f"/w/{name}/{n:05}")
                acknowledged.append(f"/w/{name}/{n:05}")

        async with watching(store, "/w/", start) as seen, watching(other, "/w/", start) as second:
            writers = [asyncio.create_task(write(f"{n}")) for n in range(3)]
            for _ in range(2):
                victim = await leader(other, cluster)
                await asyncio.to_thread(victim.kill)
                count = len(acknowledged)
                async with asyncio.timeout(DEADLINE_S):
                    while len(acknowledged) < count + 30:  # noqa: ASYNC110 - three writers grow it
                        await asyncio.sleep(0.05)
                cluster.start_member(victim)
                await asyncio.to_thread(victim.wait_until_healthy)
            done.set()
            await asyncio.gather(*writers)
            found = await keys(store, "/w/")
            assert set(acknowledged) <= set(found)
            for watcher in (seen, second):
                await watcher.until_count(len(found))
                check_whole_revisions(watcher.batches)
                assert sorted(event.entry.key for event in watcher.events) == found
                assert all(event.entry.version == 1 for event in watcher.events)


async def test_a_frozen_member_is_left(cluster: EtcdCluster) -> None:
    async with opened(cluster) as store, opened(cluster) as other:
        start = await put(store, "/a")
        frozen = cluster.member_at(store._client.endpoint)
        async with watching(store, "/", start) as seen:
            await seen.until_count(1)
            frozen.freeze()
            try:
                await insist(other, "/b")
                assert await store.get("/b") is not None
                assert store._client.endpoint != frozen.endpoint
                await seen.until_count(2)
                statuses = {member.endpoint: member.error for member in await store.members()}
                assert [endpoint for endpoint, error in statuses.items() if error] == [
                    frozen.endpoint
                ]
            finally:
                frozen.thaw()
            await put(store, "/c")
            await seen.until_count(3)
            assert [event.entry.key for event in seen.events] == ["/a", "/b", "/c"]


@pytest.mark.slow
async def test_a_member_without_a_leader_ends_its_watches(cluster: EtcdCluster) -> None:
    async with opened(cluster) as store:
        start = await put(store, "/a")
        lonely = cluster.member_at(store._client.endpoint)
        async with watching(store, "/", start) as seen:
            await seen.until_count(1)
            for member in others(cluster, lonely):
                await asyncio.to_thread(member.kill)
            assert isinstance(await seen.error(), StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await store.get("/a")
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            await put(store, "/b")
        for member in others(cluster, lonely):
            cluster.start_member(member)
        await insist(store, "/c")
        async with watching(store, "/", start + 1) as seen:
            await seen.until_count(1)
            assert [event.entry.key for event in seen.events] == ["/c"]


async def test_all_members_gone_and_back(cluster: EtcdCluster) -> None:
    async with opened(cluster) as store:
        lease = await store.grant_lease(60)
        await put(store, "/leased", b"", lease)
        before = await store.range("")
        for member in cluster.members:
            await asyncio.to_thread(member.kill)
        with pytest.raises(StoreUnavailable):
            await store.revision()
        for member in cluster.members:
            cluster.start_member(member)
        await insist(store, "/back")
        assert (await store.range("")).entries[1:] == before.entries
        assert 0 < await store.keep_alive(lease) <= 60
