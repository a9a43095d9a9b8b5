"""The etcd Store: the conformance suite, and what only a store of several members must stand."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.settings import EtcdSettings
from orchestrator.store.port import Store
from tests.integration.etcd_server import EtcdCluster
from tests.integration.store_conformance import StoreConformance, StoreFactory

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
