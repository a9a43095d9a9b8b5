"""Leading over three real etcd members: how long nobody leads, and what a former leader can do."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from orchestrator.election import TTL_S, Deposed, Election, Term
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.port import Put, StoreUnavailable
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_server import EtcdCluster, EtcdMember

pytestmark = [pytest.mark.etcd, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"), 3)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def opened(
    cluster: EtcdCluster, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[], "asyncio.Task[EtcdStore]"]]:
    """Opens Stores of a prefix that this test alone has."""
    made: list[EtcdStore] = []
    prefix = f"/{abs(hash(request.node.name)) % 10**9}"

    async def open_one() -> EtcdStore:
        made.append(await open_etcd(cluster.settings(prefix)))
        return made[-1]

    yield lambda: asyncio.create_task(open_one())
    for store in made:
        await store.close()


@asynccontextmanager
async def led(store: EtcdStore) -> AsyncIterator[tuple[Term, "asyncio.Task[None]"]]:
    """A leader named a. The task holds its term; cancel it, and the leader has vanished."""
    election = Election(store, "a", time.monotonic)
    term = await election.campaign()
    holding = asyncio.create_task(election.hold(term))
    try:
        yield term, holding
    finally:
        holding.cancel()
        await asyncio.wait({holding})


async def etcds_leader(cluster: EtcdCluster, store: EtcdStore) -> EtcdMember:
    return cluster.member_at(next(m.endpoint for m in await store.members() if m.is_leader))


def back(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.start_member(member)
    for one in cluster.members:
        one.wait_until_healthy()


@pytest.mark.parametrize("with_etcds_leader", [False, True])
async def test_a_leader_that_vanishes_is_followed_soon(
    cluster: EtcdCluster,
    opened: Callable[[], "asyncio.Task[EtcdStore]"],
    with_etcds_leader: bool,
    record_property: Callable[[str, object], None],
) -> None:
    store, others = await opened(), await opened()
    lost: EtcdMember | None = None
    async with led(store) as (term, holding):
        waiting = asyncio.create_task(Election(others, "b", time.monotonic).campaign())
        await asyncio.sleep(TTL_S / 2)
        assert not waiting.done()
        if with_etcds_leader:
            lost = await etcds_leader(cluster, others)
            lost.kill()
        holding.cancel()
        started = time.monotonic()
        later = await asyncio.wait_for(waiting, 60)
        took_s = time.monotonic() - started
    if lost is not None:
        back(cluster, lost)
    assert later.number > term.number
    record_property("failover_s", took_s)
    # Measured: 5.9 s, and 8.5 s with etcd's leader. What is beyond is the machine's load.
    assert took_s < (15 if with_etcds_leader else 11)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_leader_goes_on_without_its_etcd_member(
    cluster: EtcdCluster, opened: Callable[[], "asyncio.Task[EtcdStore]"], how: str
) -> None:
    store = await opened()
    async with led(store) as (term, holding):
        await asyncio.sleep(TTL_S / 4)
        lost = cluster.member_at(store._client.endpoint)
        getattr(lost, how)()
        try:
            await asyncio.sleep(2.5 * TTL_S)
            assert not holding.done(), holding
            entry = await store.get(keys.LEADER)
            assert entry is not None
            assert entry.mod_revision == term.number
        finally:
            if how == "freeze":
                lost.thaw()
            else:
                back(cluster, lost)


async def test_a_paused_leader_writes_nothing_more(
    opened: Callable[[], "asyncio.Task[EtcdStore]"],
) -> None:
    store, others = await opened(), await opened()
    paused = Election(store, "a", time.monotonic)
    term = await paused.campaign()
    key = keys.placement("n")
    assert (await store.txn([term.fence], [Put(key, b"in its term")])).committed
    later = await asyncio.wait_for(Election(others, "b", time.monotonic).campaign(), 30)
    # It continues, and does not know yet.
    assert not (await store.txn([term.fence], [Put(key, b"too late")])).committed
    assert (await others.txn([later.fence], [Put(key, b"the new one's")])).committed
    with pytest.raises(Deposed):
        await asyncio.wait_for(paused.hold(term), 30)
    entry = await store.get(key)
    assert entry is not None
    assert entry.value == b"the new one's"


async def test_a_leader_that_is_cut_off_steps_down_in_time(
    cluster: EtcdCluster, opened: Callable[[], "asyncio.Task[EtcdStore]"]
) -> None:
    """Before another can lead, whatever is on its way."""
    others = await opened()
    endpoint = cluster.members[0]
    async with Proxy(endpoint.client_port) as proxy:
        settings = replace(others._client.settings, endpoints=(proxy.endpoint,))
        store = await open_etcd(settings)
        async with led(store) as (_, holding):
            waiting = asyncio.create_task(Election(others, "b", time.monotonic).campaign())
            await asyncio.sleep(TTL_S / 2)
            proxy.mute()
            await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
            assert holding.done()
            assert isinstance(holding.exception(), Deposed)
            await asyncio.wait_for(waiting, 30)
        await proxy.restore()
        await store.close()


async def test_a_term_whose_beginning_was_not_heard_of_is_taken_up(
    opened: Callable[[], "asyncio.Task[EtcdStore]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened()
    election = Election(store, "a", time.monotonic)
    await election.campaign()
    # From here on only the lease tells that it is ours.
    real = store.txn
    lost: list[bool] = []

    async def txn(*arguments: object) -> object:
        result = await real(*arguments)  # type: ignore[arg-type]
        if not lost:
            lost.append(True)
            raise StoreUnavailable("the answer was lost")
        return result

    monkeypatch.setattr(store, "txn", txn)
    async with asyncio.timeout(TTL_S / 2):
        term = await election.campaign()
    entry = await store.get(keys.LEADER)
    assert entry is not None
    assert (entry.mod_revision, entry.lease) == (term.number, term.lease)
