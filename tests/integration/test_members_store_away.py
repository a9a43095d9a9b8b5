"""A member that loses its Store: sessions stay, nothing is written, and it comes back by itself."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from orchestrator.store import keys
from polder.metadata import AGE_KEY
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import good_inventory
from tests.integration.members_rig import etcd_settings, make_ca
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    apply_request,
    manifest,
    ref,
    running,
    until,
    workload,
)

pytestmark = [pytest.mark.etcd, pytest.mark.long]
# A node that is taken for lost is so within each of these tests, and then its replica moves.
IMPATIENT = {"heartbeat_interval": "1s", "silent_after": "3s", "lost_after": "6s"}
_prefixes = (f"/away{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def proxy(cluster: EtcdCluster) -> AsyncIterator[Proxy]:
    async with Proxy(cluster.members[0].client_port) as made:
        yield made


@asynccontextmanager
async def two(
    cluster: EtcdCluster, ca: Path, folder: Path, proxy: Proxy, *, both_behind: bool = False
) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two members, of which the first leads, and reaches etcd through the proxy alone."""
    common = {**etcd_settings(cluster, next(_prefixes)), "ca_dir": str(ca), **IMPATIENT}
    behind = {**common, "store": f"etcd:{proxy.endpoint}", "member": "a"}
    async with running(folder / "a", **behind) as a:
        await until(lambda: a.orchestrator.leader.is_leading, "a leads")
        other = {**(behind if both_behind else common), "member": "b", "region": "north"}
        async with running(folder / "b", **other) as b:
            yield a, b


@asynccontextmanager
async def two_nodes(a: Rig, b: Rig) -> AsyncIterator[list["asyncio.Task[str]"]]:
    """One agent at each member, and a replica that runs on one of them and could on the other.
    The tasks end with the reason why their session ended."""
    await a.site()
    first, second = await a.node("n1"), await a.node("n2")
    await b.orchestrator.parts.cache.wait_for(a.orchestrator.parts.cache.revision)
    async with connected(a, "n1", first) as one, connected(b, "n2", second) as other:
        await a.apply(workload("w", namespace="default"))
        await until(lambda: bool(plans(b)), "the replica has a place")
        yield [one, other]


@asynccontextmanager
async def connected(
    rig: Rig, node: str, credentials: Credentials
) -> AsyncIterator["asyncio.Task[str]"]:
    call = rig.agents(credentials).Session()
    hello = agent_pb2.Hello(
        agent_version="test", instance_id="i", boot_id="b", inventory=good_inventory()
    )
    await call.write(agent_pb2.SessionRequest(hello=hello))

    async def beat() -> str:
        try:
            while True:
                await call.write(agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat()))
                await asyncio.sleep(1)
        except (aio.AioRpcError, asyncio.InvalidStateError) as error:
            return repr(error)

    def seen() -> bool:
        found = rig.orchestrator.parts.fleet.get(node)
        return found is not None and found.connected

    ended = asyncio.create_task(beat())
    await until(seen, f"{node} is connected")
    try:
        yield ended
    finally:
        ended.cancel()
        call.cancel()


async def failure(call: Any) -> aio.AioRpcError:
    """Of a call that must fail, and not take for ever to."""
    started = time.monotonic()
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert time.monotonic() - started < 30
    return caught.value


async def applied(stub: Any, name: str, timeout_s: float = 40.0) -> None:
    """As edgectl does: again until it is taken."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            await stub.Apply(apply_request(manifest("Namespace", name)))
            return
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def age_ms(stub: Any) -> int:
    """Of what a read shows; 0: it is current."""
    call = stub.Get(operator_pb2.GetRequest(ref=ref("Namespace", "default")))
    await call
    found = dict(await call.trailing_metadata())
    return int(found.get(AGE_KEY, 0))


def plans(rig: Rig) -> dict[str, int]:
    """Generations of what is placed, by node: they grow when anything moves."""
    return {p.node: p.generation for p in rig.orchestrator.parts.cache.placements()}


@pytest.mark.parametrize("how", ["cut", "mute"])
async def test_the_leader_loses_its_store_and_another_takes_over(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy, how: str
) -> None:
    async with two(cluster, ca, tmp_path, proxy) as (a, b), two_nodes(a, b) as sessions:
        before = plans(b)
        if how == "cut":
            await proxy.cut()
        else:
            proxy.mute()
        await until(lambda: not a.orchestrator.leader.is_leading, "a steps down", 20)
        await until(lambda: b.orchestrator.leader.is_leading, "b leads", 20)
        admin = a.admin_credentials()
        await applied(b.operators(admin), "through-b")
        refused = await failure(
            a.operators(admin).Apply(apply_request(manifest("Namespace", "through-a")))
        )
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert await age_ms(a.operators(admin)) > 0
        assert not any(one.done() for one in sessions), sessions
        await proxy.restore()
        parts = a.orchestrator.parts
        await until(lambda: parts.cache.healthy, "a reads its store again", 40)
        await until(lambda: parts.registry.is_present, "a is present again", 40)
        await applied(a.operators(admin), "again-through-a")
        assert await age_ms(a.operators(admin)) == 0
        assert parts.cache.resource("Namespace", "", "through-b") is not None
        assert not any(one.done() for one in sessions), sessions
        assert plans(b) == before
        assert not a.orchestrator.failed.is_set()


async def test_who_cannot_read_it_says_so_soon(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy
) -> None:
    """Writers within ten seconds at all members together, watchers and /readyz as well."""
    async with two(cluster, ca, tmp_path, proxy, both_behind=True) as (a, b):
        admin = a.admin_credentials()
        watch = b.operators(admin).Watch(operator_pb2.WatchRequest(kind="Namespace"))
        while (await watch.read()).type != operator_pb2.WATCH_TYPE_SYNCED:
            pass
        assert a.orchestrator._trouble() == b.orchestrator._trouble() == ""
        proxy.mute()
        begun = time.monotonic()
        for rig in (a, b):
            refused = await failure(
                rig.operators(admin).Apply(apply_request(manifest("Namespace", "nowhere")))
            )
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begun < 10.0
        assert "has not answered for" in a.orchestrator._trouble()
        with pytest.raises(aio.AioRpcError, match="hears of no changes"):
            async with asyncio.timeout(20):
                await watch.read()
        await proxy.restore()
        await until(lambda: not a.orchestrator._trouble(), "a is ready again", 40)


async def test_everybody_loses_it_and_it_comes_back(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy
) -> None:
    async with two(cluster, ca, tmp_path, proxy) as (a, b), two_nodes(a, b) as sessions:
        before = plans(b)
        cluster.members[0].freeze()
        try:
            await until(lambda: not a.orchestrator.leader.is_leading, "nobody leads", 20)
            admin = a.admin_credentials()
            assert await age_ms(b.operators(admin)) > 0
            await asyncio.sleep(10)
        finally:
            cluster.members[0].thaw()
        await until(lambda: leads(a) != leads(b), "one leads again", 40)
        for number, rig in enumerate((a, b)):
            await applied(rig.operators(admin), f"after-{number}")
            parts = rig.orchestrator.parts
            await until(lambda p=parts: p.registry.is_present, "it is present again", 40)  # type: ignore[misc]
        assert not any(one.done() for one in sessions), sessions
        assert not a.orchestrator.failed.is_set()
        assert not b.orchestrator.failed.is_set()
        assert plans(b) == before


async def test_its_agents_hear_that_it_is_cut_off_and_that_it_is_back(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy
) -> None:
    async with two(cluster, ca, tmp_path, proxy) as (a, b):
        await a.site()
        credentials = await a.node("n1")
        heard: list[bool] = []
        call = a.agents(credentials).Session()
        hello = agent_pb2.Hello(instance_id="i", boot_id="b", inventory=good_inventory())
        await call.write(agent_pb2.SessionRequest(hello=hello))
        tasks = [asyncio.create_task(standings(call, heard)), asyncio.create_task(beats(call))]
        await until(lambda: heard == [False], "the Welcome says that all is well", 20)
        await proxy.cut()
        await until(lambda: heard == [False, True], "its agents are told", 40)
        assert not b.orchestrator.gateway.standing.for_welcome().cut_off
        await proxy.restore()
        await until(lambda: heard == [False, True, False], "and that it is back", 40)
        for task in tasks:
            task.cancel()
        call.cancel()


async def beats(call: Any) -> None:
    while True:
        await call.write(agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat()))
        await asyncio.sleep(1)


async def standings(call: Any, heard: list[bool]) -> None:
    """What the member says of itself."""
    while isinstance(message := await call.read(), agent_pb2.SessionResponse):
        if message.HasField("welcome"):
            heard.append(message.welcome.standing.cut_off)
        elif message.HasField("standing"):
            heard.append(message.standing.cut_off)


def leads(rig: Rig) -> bool:
    return rig.orchestrator.leader.is_leading


@pytest.mark.parametrize("both_behind", [False, True])
async def test_a_store_that_answers_late(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy, both_behind: bool
) -> None:
    pair = two(cluster, ca, tmp_path, proxy, both_behind=both_behind)
    async with pair as (a, b), two_nodes(a, b) as sessions:
        before = plans(b)
        proxy.delay_s = 5.0
        admin = a.admin_credentials()
        await asyncio.sleep(30)
        # It is slow or it refuses; and says so.
        assert await age_ms(a.operators(admin)) >= 0
        assert a.orchestrator.parts.cache.present("a") is not None
        if not both_behind:
            await until(lambda: leads(b), "a member whose store is quick leads", 30)
        assert not any(one.done() for one in sessions), sessions
        proxy.delay_s = 0.0
        parts = a.orchestrator.parts
        await applied(a.operators(admin), "quick-again")
        await until(lambda: parts.cache.healthy and parts.registry.is_present, "all is well", 40)
        await until(lambda: leads(a) != leads(b), "one leads", 40)
        assert not any(one.done() for one in sessions), sessions
        assert plans(b) == before
        assert not a.orchestrator.failed.is_set()


async def test_a_way_to_the_store_that_flaps(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, proxy: Proxy
) -> None:
    """Two seconds there, two seconds gone, for a while: nothing moves, nothing ends."""
    async with two(cluster, ca, tmp_path, proxy) as (a, b), two_nodes(a, b) as sessions:
        before = plans(b)
        for _ in range(6):
            await proxy.cut()
            await asyncio.sleep(2)
            await proxy.restore()
            await asyncio.sleep(2)
        await applied(a.operators(a.admin_credentials()), "after")
        parts = a.orchestrator.parts
        await until(lambda: parts.cache.healthy and parts.registry.is_present, "all is well", 40)
        assert not any(one.done() for one in sessions), sessions
        assert plans(b) == before
        entry = await b.orchestrator.parts.store.get(keys.LEADER)
        assert entry is not None
