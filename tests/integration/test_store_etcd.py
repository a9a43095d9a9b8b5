"""The etcd Store: the conformance suite, and what only a store of several members must stand."""

import asyncio
import base64
import http.client
import itertools
import json
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from devcluster.ports import free_port
from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.settings import EtcdSettings, EtcdTls
from orchestrator.store.port import (
    MAX_TXN_OPS,
    Compacted,
    Compare,
    LimitExceeded,
    Put,
    Store,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
)
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_server import EtcdCluster, TestAuthority
from tests.integration.store_conformance import (
    StoreConformance,
    StoreFactory,
    check_whole_revisions,
    delete,
    keys,
    put,
    watching,
)

pytestmark = pytest.mark.etcd

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member for all tests that need no more; each test has a prefix of its own."""
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def _clean(settings: EtcdSettings) -> None:
    """Leases left by one test would expire, and take a revision, in the next."""
    client = EtcdClient(settings)
    try:
        link = await client.link()
        left = await link.lease.LeaseLeases(pb.LeaseLeasesRequest())
        for lease in left.leases:
            await link.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=lease.ID))
        root = settings.root
        end = root[:-1] + b"0"
        await link.kv.DeleteRange(pb.DeleteRangeRequest(key=root, range_end=end))
    finally:
        await client.close()


@asynccontextmanager
async def opened(settings: EtcdSettings) -> AsyncIterator[EtcdStore]:
    store = await open_etcd(settings)
    try:
        yield store
    finally:
        await store.close()
        await _clean(settings)


@pytest.fixture
def store_factory(etcd: EtcdCluster) -> StoreFactory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Store]:
        async with opened(etcd.settings(f"/t{next(_numbers)}")) as store:
            yield store

    return factory


class TestEtcdConforms(StoreConformance):
    """Every test is inherited."""


# -- getting in --------------------------------------------------------------------------------


def test_settings_say_what_is_wrong(etcd: EtcdCluster) -> None:
    tls = etcd.client_tls
    for endpoints, prefix in (
        ((), "/polder"),
        (("https://a:1",), "/polder"),
        (("a",), "/polder"),
        (("a:1",), "polder"),
        (("a:1",), "/"),
        (("a:1",), "/" + "p" * 32),
    ):
        with pytest.raises(StoreUnusable):
            EtcdSettings(endpoints, tls, prefix)


async def test_a_stranger_is_refused(etcd: EtcdCluster, tmp_path: Path) -> None:
    strange = TestAuthority(tmp_path).issue("stranger")
    ours = etcd.client_tls
    # In TLS 1.3 a refused client may see its connection reset before it sees why.
    tls = EtcdTls(ours.ca, strange.certificate, strange.key)
    with pytest.raises((StoreUnusable, StoreUnavailable), match="no endpoint of etcd can be used"):
        await open_etcd(replace(etcd.settings(), tls=tls))
    tls = EtcdTls(strange.ca, ours.certificate, ours.key)
    with pytest.raises(StoreUnusable, match="one side refuses the other's certificate"):
        await open_etcd(replace(etcd.settings(), tls=tls))
    with pytest.raises(StoreUnusable, match="No such file"):
        await open_etcd(replace(etcd.settings(), tls=replace(ours, key=tmp_path / "none")))


async def test_files_that_no_waiting_mends_are_refused_at_once(
    etcd: EtcdCluster, tmp_path: Path
) -> None:
    ours, other = etcd.client_tls, etcd.authority.issue("other")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for tls, words in (
        (replace(ours, key=other.key), "does not belong to the certificate"),
        (replace(ours, key=ours.certificate), "holds no private key"),
        (replace(ours, certificate=ours.key), "holds no certificate"),
        (replace(ours, certificate=damaged), "holds no certificate"),
        (replace(ours, ca=damaged), "holds no certificate"),
    ):
        with pytest.raises(StoreUnusable, match=words):
            await open_etcd(replace(etcd.settings(), tls=tls))


async def test_an_expired_certificate_is_replaced_without_a_restart(
    etcd: EtcdCluster, tmp_path: Path
) -> None:
    tls = etcd.authority.issue("renewed")
    settings = replace(etcd.settings("/renewed"), tls=tls, deadline_s=1.0)
    async with opened(settings) as store:
        await put(store, "/a")
        etcd.authority.issue("renewed", timedelta(hours=-1))
        await put(store, "/b")  # the connection stands
        store._client.leave(await store._client.link(), "for the test")
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            await put(store, "/c")
        etcd.authority.issue("renewed")
        await put(store, "/c")
        assert await keys(store, "") == ["/a", "/b", "/c"]


def _gateway(cluster: EtcdCluster, path: str, body: dict[str, object]) -> None:
    """An operator's request, by etcd's JSON gateway: its client has no part in the tests."""
    tls = cluster.client_tls
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.load_cert_chain(tls.certificate, tls.key)
    port = cluster.members[0].client_port
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    connection.request("POST", f"/v3/auth/{path}", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200, response.read()
    connection.close()


async def test_the_certificates_name_is_etcds_user(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path)
    try:
        cluster.start()
        settings = cluster.settings()
        low = base64.b64encode(settings.root).decode()
        end = base64.b64encode(settings.root[:-1] + b"0").decode()
        grant = {"name": "polder", "perm": {"permType": 2, "key": low, "range_end": end}}
        for path, body in (
            ("user/add", {"name": "root", "password": "unused"}),
            ("user/add", {"name": "polder", "options": {"no_password": True}}),
            ("role/add", {"name": "root"}),
            ("role/add", {"name": "polder"}),
            ("role/grant", grant),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/grant", {"user": "polder", "role": "polder"}),
            ("enable", {}),
        ):
            _gateway(cluster, path, body)
        store = await open_etcd(settings)
        try:
            lease = await store.grant_lease(60)
            start = await put(store, "/a", b"1", lease)
            async with watching(store, "", start) as seen:
                await seen.until_count(1)
            assert (await store.txn([Compare.absent("/a")], [])).failed
            assert await keys(store, "") == ["/a"]
            await store.revoke_lease(lease)
            await store.compact(start)
        finally:
            await store.close()
        stranger = await open_etcd(replace(settings, tls=cluster.authority.issue("stranger")))
        try:
            with pytest.raises(StoreUnusable, match="grant the certificate's user"):
                await stranger.get("/a")
            with pytest.raises(StoreUnusable, match="grant the certificate's user"):
                await put(stranger, "/a")
            async with watching(stranger, "/", 1) as seen:
                assert isinstance(await seen.error(), StoreUnusable)
        finally:
            await stranger.close()
    finally:
        cluster.stop()


async def test_nobody_there(etcd: EtcdCluster) -> None:
    nowhere = replace(etcd.settings(), endpoints=(f"127.0.0.1:{free_port()}",))
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await open_etcd(nowhere)


async def test_the_next_endpoint_is_taken(etcd: EtcdCluster) -> None:
    settings = etcd.settings("/next")
    endpoints = (*(f"127.0.0.1:{free_port()}" for _ in range(3)), *settings.endpoints)
    async with opened(replace(settings, endpoints=endpoints)) as store:
        await put(store, "/a")
        found = {member.endpoint: member for member in await store.members()}
        assert found[settings.endpoints[0]].is_leader
        assert found[settings.endpoints[0]].db_bytes > 0
        assert all(found[endpoint].error for endpoint in endpoints[:3])


# -- the key space -----------------------------------------------------------------------------


async def test_neighbours_do_not_meet(etcd: EtcdCluster) -> None:
    async with opened(etcd.settings("/n")) as ours, opened(etcd.settings("/n2")) as theirs:
        start = await put(ours, "2/a", b"ours")
        assert await keys(theirs, "") == []
        async with watching(ours, "", start) as seen, watching(theirs, "", start) as other:
            for n in range(20):
                await put(theirs, f"/k{n}", b"theirs")
                await put(ours, f"/k{n}", b"ours")
            await seen.until_count(21)
            await other.until_count(20)
            assert {event.entry.value for event in seen.events} == {b"ours"}
            assert {event.entry.value for event in other.events} == {b"theirs"}
            check_whole_revisions(seen.batches)
        assert len(await keys(ours, "")) == 21


async def test_what_is_not_text_ends_no_watch(etcd: EtcdCluster) -> None:
    settings = etcd.settings("/odd")
    async with opened(settings) as store:
        start = await put(store, "/a")
        request = pb.RequestOp(request_put=pb.PutRequest(key=settings.root + b"\xff", value=b"?"))
        await (await store._client.link()).kv.Txn(pb.TxnRequest(success=[request]))
        async with watching(store, "", start) as seen:
            await put(store, "/b")
            await seen.until_count(3)
            assert [event.entry.key for event in seen.events] == ["/a", "\\xff", "/b"]
        assert await keys(store, "") == ["/a", "/b", "\\xff"]


async def test_a_long_range_is_one_snapshot(etcd: EtcdCluster) -> None:
    async with opened(etcd.settings("/long")) as store:
        for first in range(0, 2560, MAX_TXN_OPS):
            await store.txn([], [Put(f"/l/{n:05}", b"0") for n in range(first, first + 128)])
        done = asyncio.Event()

        async def write() -> int:
            count = 0
            while not done.is_set():
                count += 1
                await store.txn(
                    [], [Put("/l/00000", b"%d" % count), Put("/l/02559", b"%d" % count)]
                )
            return count

        writing = asyncio.create_task(write())
        for _ in range(10):
            found = await store.range("/l/")
            assert len(found.entries) == 2560
            assert found.entries[0].value == found.entries[-1].value
        done.set()
        assert await writing > 0
        assert len((await store.range("/l/", limit=1500)).entries) == 1500


async def test_a_refused_transaction_at_the_limit_says_why(etcd: EtcdCluster) -> None:
    """Its request has no room for the question, which is asked afterwards."""
    async with opened(etcd.settings("/limit")) as store:
        await put(store, "/taken")
        compares = [Compare.absent(f"/{n:03}" + "k" * 1000) for n in range(MAX_TXN_OPS - 1)]
        ops = [Put("/big", b"v" * 1_400_000)]
        result = await store.txn([*compares, Compare.absent("/taken")], ops)
        assert result.failed == (Compare.absent("/taken"),)
        assert (await store.txn(compares, ops)).committed


# -- compaction --------------------------------------------------------------------------------


async def test_a_deletion_at_the_compacted_revision_is_not_lost(etcd: EtcdCluster) -> None:
    async with opened(etcd.settings("/edge")) as store:
        await put(store, "/a")
        gone = await delete(store, "/a")
        link = await store._client.link()
        await link.kv.Compact(pb.CompactionRequest(revision=gone, physical=True))
        async with watching(store, "/", gone) as seen:
            error = await seen.error()
        assert isinstance(error, Compacted)
        assert error.oldest_revision == gone + 1


async def test_a_watch_that_is_cut_off_during_a_compaction(etcd: EtcdCluster) -> None:
    async with Proxy(etcd.members[0].client_port) as proxy:
        settings = replace(etcd.settings("/cut"), endpoints=(proxy.endpoint,))
        async with opened(etcd.settings("/cut")) as store, opened(settings) as cut:
            start = await put(store, "/a")
            async with watching(cut, "/", start) as seen:
                await seen.until_count(1)
                await proxy.cut()
                last = await put(store, "/b")
                await store.compact(last + 1)
                await proxy.restore()
                error = await seen.error()
            assert isinstance(error, Compacted)
            assert error.oldest_revision == last + 1
            async with watching(cut, "/", error.oldest_revision) as seen:
                await put(store, "/c")
                await seen.until_count(1)


async def test_a_quiet_prefix_learns_of_progress(etcd: EtcdCluster) -> None:
    async with opened(etcd.settings("/quiet")) as store:
        start = await put(store, "/q/a")
        async with watching(store, "/q/", start) as seen:
            await seen.until_count(1)
            last = await put(store, "/noise")
            await seen.until(lambda w: w.batches[-1].revision >= last)
            await put(store, "/q/b")
            await seen.until_count(2)
            check_whole_revisions(seen.batches)


# -- the connection ----------------------------------------------------------------------------


async def test_a_watch_goes_on_where_its_connection_broke(etcd: EtcdCluster) -> None:
    """Cut at any moment, also amid the parts of a large transaction: nothing lost or twice."""
    chance = random.Random(5)
    async with Proxy(etcd.members[0].client_port) as proxy:
        settings = replace(etcd.settings("/broken"), endpoints=(proxy.endpoint,))
        async with opened(etcd.settings("/broken")) as store, opened(settings) as cut:
            start = await store.revision() + 1
            total = 0
            async with watching(cut, "/", start) as seen:
                for n in range(12):
                    size = chance.choice([1, 3, MAX_TXN_OPS])
                    value = b"v" * (10_000 if size == MAX_TXN_OPS else 10)
                    await store.txn([], [Put(f"/{n}/{m}", value) for m in range(size)])
                    total += size
                    if n % 3 == 2:
                        await proxy.cut()
                        await proxy.restore()
                await seen.until_count(total)
                check_whole_revisions(seen.batches)
                assert len({event.entry.key for event in seen.events}) == total
                assert len(seen.events) == total


async def test_a_write_whose_answer_is_lost_is_not_called_failed(etcd: EtcdCluster) -> None:
    async with Proxy(etcd.members[0].client_port) as proxy:
        settings = replace(etcd.settings("/lost"), endpoints=(proxy.endpoint,), deadline_s=1.0)
        async with opened(etcd.settings("/lost")) as store, opened(settings) as cut:
            await put(cut, "/a")
            proxy.mute()
            with pytest.raises(StoreUnavailable, match="whether a write was made is unknown"):
                await put(cut, "/b")
            entry = await store.get("/b")
            assert entry is not None
            assert entry.version == 1  # sent once
            await proxy.restore()
            await put(cut, "/c")
            await proxy.cut()
            with pytest.raises(StoreUnavailable):  # it may have been on its way
                await put(cut, "/d")
            with pytest.raises(StoreUnavailable, match="nothing was written"):
                await put(cut, "/e")
            assert await keys(store, "") == ["/a", "/b", "/c"]
            await proxy.restore()


async def test_a_silent_connection_is_left_and_then_reported(etcd: EtcdCluster) -> None:
    async with Proxy(etcd.members[0].client_port) as proxy:
        settings = replace(
            etcd.settings("/silent"),
            endpoints=(proxy.endpoint,),
            watch_probe_s=0.3,
            watch_resume_s=1.0,
            connect_s=0.3,
        )
        async with opened(etcd.settings("/silent")) as store, opened(settings) as cut:
            start = await put(store, "/a")
            async with watching(cut, "/", start) as seen:
                await seen.until_count(1)
                proxy.mute()
                await put(store, "/b")
                assert isinstance(await seen.error(), StoreUnavailable)
            await proxy.restore()
            async with watching(cut, "/", start + 1) as seen:
                await seen.until_count(1)
                assert seen.events[0].entry.key == "/b"


async def test_many_callers_of_a_store_that_is_away_wait_no_longer_than_one(
    etcd: EtcdCluster,
) -> None:
    async with Proxy(etcd.members[0].client_port) as proxy:
        settings = replace(
            etcd.settings("/away"), endpoints=(proxy.endpoint,), connect_s=0.4, deadline_s=1.0
        )
        async with opened(settings) as store:
            proxy.mute()
            store._client.leave(await store._client.link(), "for the test")
            started = asyncio.get_running_loop().time()
            results = await asyncio.gather(
                *(store.get(f"/{n}") for n in range(100)), return_exceptions=True
            )
            assert all(isinstance(result, StoreUnavailable) for result in results)
            assert asyncio.get_running_loop().time() - started < 20, (
                "one after the other: 40 at least"
            )
            getting = asyncio.create_task(store.get("/a"))
            await asyncio.sleep(0)
            getting.cancel()
            await asyncio.wait([getting])
            assert getting.cancelled()
            await proxy.restore()
            assert await store.get("/a") is None


# -- limits of etcd's own ----------------------------------------------------------------------


async def test_a_full_etcd(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path, flags=("--quota-backend-bytes=4000000",))
    try:
        cluster.start()
        async with opened(cluster.settings()) as store:
            lease = await store.grant_lease(600)
            await put(store, "/leased", b"", lease)
            async with watching(store, "/", 1) as seen:
                count = 0
                with pytest.raises(StoreFull, match="disarm"):
                    while True:
                        await put(store, f"/f/{count}", b"v" * 200_000)
                        count += 1
                assert count >= 5
                # The write that fills it may stand; the next one does not.
                with pytest.raises(StoreFull):
                    await put(store, "/f/next", b"v")
                assert "/f/next" not in await keys(store, "/f/")
                with pytest.raises(StoreFull):
                    await store.grant_lease(5)
                assert await store.keep_alive(lease) > 0
                assert any("NOSPACE" in alarm for alarm in (await store.members())[0].alarms)
                await delete(store, "/f/0")
                await seen.until(lambda w: w.events[-1].type.value == "delete")
            await _make_room(store)
            await put(store, "/again")
    finally:
        cluster.stop()


async def _make_room(store: EtcdStore) -> None:
    """What an operator does."""
    for key in await keys(store, "/f/"):
        await delete(store, key)
    link = await store._client.link()
    revision = await store.revision()
    await link.kv.Compact(pb.CompactionRequest(revision=revision, physical=True))
    await link.maintenance.Defragment(pb.DefragmentRequest())
    raised = await link.maintenance.Alarm(pb.AlarmRequest(action=pb.AlarmRequest.GET))
    for one in raised.alarms:
        disarm = pb.AlarmRequest(
            action=pb.AlarmRequest.DEACTIVATE, memberID=one.memberID, alarm=one.alarm
        )
        await link.maintenance.Alarm(disarm)


async def test_an_etcd_with_a_lower_limit(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path, flags=("--max-request-bytes=100000",))
    try:
        cluster.start()
        async with opened(cluster.settings()) as store:
            with pytest.raises(LimitExceeded, match="too large"):
                await put(store, "/a", b"v" * 200_000)
            with pytest.raises(LimitExceeded):
                await put(store, "/a", b"v" * 1_400_000)
            await put(store, "/a", b"v" * 90_000)
    finally:
        cluster.stop()


# -- where a shared etcd is --------------------------------------------------------------------


async def test_watches_come_to_a_revision_that_is_others(etcd: EtcdCluster) -> None:
    """Without the marks that etcd makes by itself, which may be ten minutes apart."""
    async with (
        opened(etcd.settings("/shared-a")) as ours,
        opened(etcd.settings("/shared-a")) as also_ours,
        opened(etcd.settings("/shared-b")) as others,
    ):
        start = await put(ours, "/a")
        async with watching(ours, "/", start) as seen, watching(also_ours, "/", start) as other:
            await seen.until_count(1)
            for turn in range(5):
                foreign = await put(others, f"/noise-{turn}")
                revision = await ours.revision()
                assert revision >= foreign
                await seen.until(lambda w, r=revision: w.batches[-1].revision >= r)
            assert await ours.get("/mark") is not None, "etcd 3.4.23 needs one"
            marked = (await ours.get("/mark")).version
            # Who is alone, or needs no more, writes none.
            for _ in range(5):
                last = await put(ours, "/a")
                await seen.until(lambda w, r=last: w.batches[-1].revision >= r)
                await ours.revision()
            assert (await ours.get("/mark")).version == marked
            await other.until(lambda w: w.batches[-1].revision >= revision)
            check_whole_revisions(seen.batches)


async def test_only_who_writes_alone_knows_the_revision_unasked(etcd: EtcdCluster) -> None:
    async with opened(etcd.settings("/known")) as store:
        await put(store, "/a")
        assert store.known_revision() == 0
