"""Operators at any of several members: what they read is current or says its age; what they write
is made once; a store that is slow, full or away costs no session. With a real etcd."""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from orchestrator.freshness import READ_S
from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.port import Put, StoreFull, StoreUnusable
from polder.errors import parse_detail
from polder.metadata import AGE_KEY, MEMBER_KEY, REPEATED_KEY, REQUEST_KEY
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import good_inventory
from tests.integration.members_rig import etcd_settings, make_ca
from tests.integration.orchestrator_rig import Rig, apply_request, manifest, ref, running, until

pytestmark = pytest.mark.etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("ca"))


@asynccontextmanager
async def members(
    cluster: EtcdCluster, ca: Path, folder: Path, prefix: str, *names: str, at: str = ""
) -> AsyncIterator[list[Rig]]:
    """In this process, one after the other; `at`: where the last of them finds etcd."""
    async with AsyncExitStack() as stack:
        rigs = []
        for name in names:
            settings = {**etcd_settings(cluster, prefix), "ca_dir": str(ca), "member": name}
            if at and name == names[-1]:
                settings["store"] = f"etcd:{at}"
            rigs.append(await stack.enter_async_context(running(folder / name, **settings)))
        yield rigs


def config(name: str, value: str) -> dict[str, Any]:
    return manifest("Config", name, namespace="default", spec={"data": {"value": value}})


async def answered(call: Any) -> tuple[Any, dict[str, str]]:
    """The answer, and its trailing metadata."""
    answer = await call
    return answer, dict(await call.trailing_metadata())


async def refused(call: Any) -> tuple[aio.AioRpcError, str, dict[str, Any]]:
    try:
        await call
    except aio.AioRpcError as error:
        detail = parse_detail(list(error.trailing_metadata()))
        return error, detail.hint if detail is not None else "", dict(error.trailing_metadata())
    raise AssertionError("it was not refused")


def get(stub: Any, name: str) -> Any:
    return stub.Get(operator_pb2.GetRequest(ref=ref("Config", name, "default")))


# --- reads ------------------------------------------------------------------------------------


async def test_what_one_member_acknowledged_every_other_shows(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with members(etcd, ca, tmp_path, "/fresh", "a", "b", "c") as rigs:
        admin = rigs[0].admin_credentials()
        stubs = [rig.operators(admin) for rig in rigs]
        for turn in range(30):
            writer, reader = stubs[turn % 3], stubs[(turn + 1 + turn % 2) % 3]
            await writer.Apply(apply_request(config("c", f"v{turn}")))
            answer, metadata = await answered(get(reader, "c"))
            assert answer.resource.metadata.generation == turn + 1
            assert AGE_KEY not in metadata and metadata[MEMBER_KEY] in "abc"
        await stubs[0].Delete(operator_pb2.DeleteRequest(ref=ref("Config", "c", "default")))
        error, _, metadata = await refused(get(stubs[1], "c"))
        assert error.code() is grpc.StatusCode.NOT_FOUND and metadata[MEMBER_KEY] == "b"


async def test_a_watch_of_another_member_begins_with_what_is_acknowledged(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with members(etcd, ca, tmp_path, "/watch", "a", "b") as (a, b):
        admin = a.admin_credentials()
        writer, reader = a.operators(admin), b.operators(admin)
        for turn in range(10):
            await writer.Apply(apply_request(config("c", f"v{turn}")))
            request = operator_pb2.WatchRequest(kind="Config", namespace="default", name="c")
            call = reader.Watch(request)
            first = await anext(aiter(call))
            assert first.resource.metadata.generation == turn + 1
            assert dict(await call.initial_metadata())[MEMBER_KEY] == "b"
            call.cancel()


async def test_a_member_without_its_store_says_how_old_it_is_and_writes_nothing(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with (
        Proxy(etcd.members[0].client_port) as proxy,
        members(etcd, ca, tmp_path, "/away", "a", "b", at=proxy.endpoint) as (a, b),
    ):
        admin = a.admin_credentials()
        near, cut_off = a.operators(admin), b.operators(admin)
        await near.Apply(apply_request(config("c", "old")))
        assert AGE_KEY not in (await answered(get(cut_off, "c")))[1]
        await proxy.cut()
        await near.Apply(apply_request(config("c", "new")))
        begun = time.monotonic()
        answer, metadata = await answered(get(cut_off, "c"))
        assert time.monotonic() - begun < READ_S + 5.0
        assert answer.resource.metadata.generation == 1
        assert metadata[MEMBER_KEY] == "b" and int(metadata[AGE_KEY]) > 0
        again, took_s = 0, READ_S
        for _ in range(5):
            begun = time.monotonic()
            again = int((await answered(get(cut_off, "c")))[1][AGE_KEY])
            took_s = min(took_s, time.monotonic() - begun)
        assert took_s < 1.5, "it waits less when the last question failed"
        assert again > int(metadata[AGE_KEY])
        code, out, err = await edgectl(a, b, "get", "configs", "-o", "json")
        assert code == 0 and json.loads(out)["items"][0]["metadata"]["generation"] == 1
        (line,) = err.splitlines()
        assert re.fullmatch(r"warning: answers are \d+ s old: member b cannot read its store", line)
        error, _, metadata = await refused(get(cut_off, "is-not-there"))
        assert error.code() is grpc.StatusCode.NOT_FOUND and int(metadata[AGE_KEY]) > 0
        error, hint, _ = await refused(cut_off.Apply(apply_request(config("c", "no"))))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "member b cannot read its store: nothing was written" in str(error.details())
        assert "another member" in hint
        await proxy.restore()
        await until_current(cut_off, "c", generation=2)


async def edgectl(admins: Rig, at: Rig, *words: str) -> tuple[int, str, str]:
    """The program itself, as an operator whose context has one member."""
    context = admins.config.data_path / "admin.yaml"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edgectl", "--config", str(context)),
        *("--endpoint", at.config.listen, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def until_current(stub: Any, name: str, *, generation: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        answer, metadata = await answered(get(stub, name))
        if AGE_KEY not in metadata:
            assert answer.resource.metadata.generation == generation
            return
        assert time.monotonic() < deadline


# --- writes -----------------------------------------------------------------------------------


def call_id(name: str, *, again: bool = False) -> Any:
    return ((REQUEST_KEY, name), *([(REPEATED_KEY, "1")] if again else []))


async def test_a_request_is_made_once_at_whatever_members(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with members(etcd, ca, tmp_path, "/once", "a", "b") as (a, b):
        admin = a.admin_credentials()
        first, second = a.operators(admin), b.operators(admin)
        wanted = apply_request(config("c", "ours"), expected=-1)
        made = await first.Apply(wanted, metadata=call_id("1"))
        told = await second.Apply(wanted, metadata=call_id("1", again=True))
        assert told.results[0].outcome == operator_pb2.APPLY_OUTCOME_CREATED
        assert told.results[0].resource.metadata == made.results[0].resource.metadata
        # Somebody else is next; neither a repetition nor a late first try undoes that.
        await second.Apply(apply_request(config("c", "theirs")))
        told = await second.Apply(wanted, metadata=call_id("1", again=True))
        assert told.results[0].outcome == operator_pb2.APPLY_OUTCOME_CREATED
        assert told.results[0].resource.metadata.generation == 1
        late = apply_request(config("c", "ours"))
        await first.Apply(late, metadata=call_id("1"))
        answer = await get(first, "c")
        assert answer.resource.metadata.generation == 2 and b"theirs" in answer.resource.spec_json


async def test_an_id_that_was_used_for_something_else_opens_no_door(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with members(etcd, ca, tmp_path, "/other", "a") as (a,):
        stub = a.admin()
        await stub.Apply(apply_request(config("c", "v")), metadata=call_id("1"))
        other = apply_request(config("d", "v"))
        told = await stub.Apply(other, metadata=call_id("1", again=True))
        assert told.results[0].outcome == operator_pb2.APPLY_OUTCOME_CREATED
        assert (await get(stub, "d")).resource
        wrong = apply_request(manifest("Site", "s", spec={"provider": "nobody", "country": "NL"}))
        error, _, _ = await refused(stub.Apply(wrong, metadata=call_id("1", again=True)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        for name in ("c", "d"):
            request = operator_pb2.DeleteRequest(ref=ref("Config", name, "default"))
            assert (await stub.Delete(request, metadata=call_id("2", again=True))).finished
        error, _, _ = await refused(get(stub, "d"))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_large_request_goes_on_where_it_stopped(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    """Of three transactions the first stands when the member dies."""
    async with members(etcd, ca, tmp_path, "/large", "a", "b") as (a, b):
        admin = a.admin_credentials()
        first, second = a.operators(admin), b.operators(admin)
        wanted = apply_request(*(config(f"c{n:03d}", "v") for n in range(100)))
        inner = a.orchestrator.parts.writes._inner
        sent, count = inner.txn, 0

        async def txn(*given: Any) -> Any:
            nonlocal count
            count += 1
            if count == 2:
                raise StoreUnusable("it dies here")
            return await sent(*given)

        inner.txn = txn  # type: ignore[method-assign]
        await refused(first.Apply(wanted, metadata=call_id("large")))
        inner.txn = sent  # type: ignore[method-assign]
        await second.Apply(apply_request(config("c000", "theirs")))
        told = await second.Apply(wanted, metadata=call_id("large", again=True))
        created = operator_pb2.APPLY_OUTCOME_CREATED
        assert [one.outcome for one in told.results] == [created] * 100
        names = [one.resource.metadata.name for one in told.results]
        assert names == [f"c{n:03d}" for n in range(100)]
        assert b"theirs" in (await get(second, "c000")).resource.spec_json
        assert (await get(first, "c099")).resource.metadata.generation == 1


async def test_a_repeated_delete_has_deleted(etcd: EtcdCluster, ca: Path, tmp_path: Path) -> None:
    async with members(etcd, ca, tmp_path, "/deleted", "a", "b") as (a, b):
        admin = a.admin_credentials()
        first, second = a.operators(admin), b.operators(admin)
        await first.Apply(apply_request(config("c", "v")))
        request = operator_pb2.DeleteRequest(ref=ref("Config", "c", "default"))
        await first.Delete(request, metadata=call_id("d"))
        assert (await second.Delete(request, metadata=call_id("d", again=True))).finished
        await second.Apply(apply_request(config("c", "new")))
        await first.Delete(request, metadata=call_id("d"))  # the first try, come late
        assert (await get(second, "c")).resource.metadata.generation == 1
        # One that found nothing stays without effect, too.
        other = operator_pb2.DeleteRequest(ref=ref("Config", "other", "default"))
        error, _, _ = await refused(second.Delete(other, metadata=call_id("e", again=True)))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        await first.Apply(apply_request(config("other", "v")))
        error, _, _ = await refused(first.Delete(other, metadata=call_id("e")))
        assert error.code() is grpc.StatusCode.ABORTED
        assert (await get(second, "other")).resource


async def test_a_write_whose_answer_is_lost_is_told_as_made(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    """etcd hears the member, the member does not hear etcd; then it does again."""
    async with (
        Proxy(etcd.members[0].client_port) as proxy,
        members(etcd, ca, tmp_path, "/lost-answer", "a", at=proxy.endpoint) as (a,),
    ):
        stub = a.admin()
        store = await open_etcd(etcd.settings("/lost-answer"))
        try:
            for turn in range(3):
                inner = a.orchestrator.parts.writes._inner
                sent = inner.txn

                async def txn(*given: Any, mute: Any = proxy.mute, sent: Any = sent) -> Any:
                    mute()
                    return await sent(*given)

                inner.txn = txn  # type: ignore[method-assign]
                call = asyncio.ensure_future(stub.Apply(apply_request(config("c", f"v{turn}"))))
                key = "/specs/Config/default/c"
                deadline = time.monotonic() + 10
                while (entry := await store.get(key)) is None or entry.version != turn + 1:
                    assert time.monotonic() < deadline
                inner.txn = sent  # type: ignore[method-assign]
                await proxy.restore()
                (result,) = (await call).results
                assert result.resource.metadata.generation == turn + 1
                assert result.outcome == (
                    operator_pb2.APPLY_OUTCOME_CONFIGURED
                    if turn
                    else operator_pb2.APPLY_OUTCOME_CREATED
                )
            entry = await store.get(key)
            assert entry is not None and entry.version == 3, "nothing was written twice"
        finally:
            await store.close()


# --- a store that is slow, or full --------------------------------------------------------------


@asynccontextmanager
async def session(rig: Rig, name: str) -> AsyncIterator[Any]:
    """Of an agent, as the fleet sees it."""
    stub = rig.agents(await rig.node(name))
    call = stub.Session()
    hello = agent_pb2.Hello(instance_id="i", inventory=good_inventory())
    await call.write(agent_pb2.SessionRequest(hello=hello))
    assert (await call.read()).HasField("welcome")
    yield call
    assert not call.done(), "the session was closed"
    call.cancel()


async def test_a_store_that_answers_after_five_seconds(
    etcd: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    async with (
        Proxy(etcd.members[0].client_port) as proxy,
        members(etcd, ca, tmp_path, "/slow", "a", at=proxy.endpoint) as (a,),
    ):
        stub = a.admin()
        await a.site()
        await a.apply(config("c", "v1"))
        async with session(a, "box"):
            proxy.delay_s = 5.0
            begun = time.monotonic()
            answer, metadata = await answered(get(stub, "c"))
            assert answer.resource.metadata.generation == 1
            assert time.monotonic() - begun < proxy.delay_s and int(metadata[AGE_KEY]) >= 0
            begun = time.monotonic()
            error, hint, _ = await refused(stub.Apply(apply_request(config("c", "v2")), timeout=30))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and hint
            assert time.monotonic() - begun < 20.0
            proxy.delay_s = 0.0
            await proxy.restore()
            deadline = time.monotonic() + 30
            while True:
                try:
                    await a.apply(config("c", "v3"))
                    break
                except aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert time.monotonic() < deadline
            answer = await get(stub, "c")
            assert b"v3" in answer.resource.spec_json


async def test_a_full_store(ca: Path, tmp_path: Path) -> None:
    """Refused with what helps; nothing ends, nothing spins, and it goes on by itself."""
    cluster = EtcdCluster(tmp_path, flags=("--quota-backend-bytes=6000000",))
    cluster.start()
    try:
        async with members(cluster, ca, tmp_path, "/full", "a") as (a,):
            stub = a.admin()
            await a.site()
            await a.apply(config("c", "v1"))
            await until(lambda: a.orchestrator.leader.is_leading, "it leads")
            async with session(a, "box"):
                await _fill(cluster)
                error, hint, _ = await refused(stub.Apply(apply_request(config("c", "v2"))))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "nothing was written" in str(error.details())
                for word in ("compact", "defrag", "alarm disarm"):
                    assert word in hint
                answer, metadata = await answered(get(stub, "c"))
                assert AGE_KEY not in metadata and answer.resource.metadata.generation == 1
                failed = a.orchestrator.parts.metrics.store_errors
                before, begun = failed._value.get(), time.monotonic()
                await asyncio.sleep(4.0)  # what it does by itself meanwhile
                rate = (failed._value.get() - before) / (time.monotonic() - begun)
                assert rate < 5.0, f"{rate} failed writes a second"
                assert a.orchestrator.leader.is_leading
                await _make_room(cluster)
                await a.apply(config("c", "v3"))
                assert (await get(stub, "c")).resource.metadata.generation == 2
                assert a.orchestrator.leader.is_leading
    finally:
        cluster.stop()


async def _fill(cluster: EtcdCluster) -> None:
    store = await open_etcd(cluster.settings("/filler"))
    try:
        with pytest.raises(StoreFull):
            for number in range(200):
                await store.txn([], [Put(f"/f/{number}", b"v" * 200_000)])
    finally:
        await store.close()


async def _make_room(cluster: EtcdCluster) -> None:
    """As docs/operating.md tells it: delete, compact, defragment, disarm."""
    store = await open_etcd(cluster.settings("/filler"))
    try:
        link = await store._client.link()
        await link.kv.DeleteRange(pb.DeleteRangeRequest(key=b"/filler//", range_end=b"/filler/0"))
        revision = await store.revision()
        await link.kv.Compact(pb.CompactionRequest(revision=revision, physical=True))
        await link.maintenance.Defragment(pb.DefragmentRequest())
        raised = await link.maintenance.Alarm(pb.AlarmRequest(action=pb.AlarmRequest.GET))
        for one in raised.alarms:
            disarm = pb.AlarmRequest(
                action=pb.AlarmRequest.DEACTIVATE, memberID=one.memberID, alarm=one.alarm
            )
            await link.maintenance.Alarm(disarm)
    finally:
        await store.close()
