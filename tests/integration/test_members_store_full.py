"""Members over a full etcd: reads, sessions and leading go on, and writes say what is wrong."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.port import Delete, Put, StoreFull
from polder.v1 import operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import etcd_settings, make_ca
from tests.integration.orchestrator_rig import (
    apply_request,
    manifest,
    ref,
    refusal,
    running,
    until,
)
from tests.integration.test_members_store_away import applied, connected, leads

pytestmark = [pytest.mark.etcd, pytest.mark.long]
QUOTA_BYTES = 3 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path / "etcd", flags=(f"--quota-backend-bytes={QUOTA_BYTES}",))
    made.start()
    yield made
    made.stop()


async def fill(cluster: EtcdCluster) -> list[str]:
    """Until it refuses; gives the keys. A neighbour in the same etcd does it."""
    store = await open_etcd(cluster.settings("/neighbour"))
    keys: list[str] = []
    try:
        while True:
            assert len(keys) < 100
            await store.txn([], [Put(f"/junk/{len(keys)}", b"x" * 200_000)])
            keys.append(f"/junk/{len(keys)}")
    except StoreFull:
        return keys
    finally:
        await store.close()


async def make_room(cluster: EtcdCluster, keys: list[str]) -> None:
    """As docs/operating.md says: delete, compact, defragment, disarm."""
    store = await open_etcd(cluster.settings("/neighbour"))
    for key in keys:
        await store.txn([], [Delete(key)])
    await store.compact(await store.revision())
    await store.close()
    ask = cluster.members[0].api.ask
    await asyncio.to_thread(ask, "maintenance/defragment", {})
    alarms = await asyncio.to_thread(ask, "maintenance/alarm", {"action": "GET"})
    for alarm in alarms["alarms"]:
        await asyncio.to_thread(ask, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})


async def test_a_full_etcd_stops_writes_and_nothing_else(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    settings = {**etcd_settings(cluster, "/full"), "ca_dir": str(make_ca(tmp_path / "ca"))}
    async with running(tmp_path / "a", **settings, member="a") as a:
        await until(lambda: leads(a), "a leads")
        await a.site()
        credentials, admin = await a.node("n1"), a.admin_credentials()
        async with connected(a, "n1", credentials) as ended:
            junk = await fill(cluster)
            stub = a.operators(admin)
            refused = await refusal(stub.Apply(apply_request(manifest("Namespace", "no"))))
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.reason == "StoreFull"
            assert (await stub.Get(operator_pb2.GetRequest(ref=ref("Site", "ams-1")))).resource
            # A member that starts meanwhile serves as well.
            other = {**settings, "member": "b", "region": "north"}
            async with running(tmp_path / "b", **other) as b:
                await b.operators(admin).Get(operator_pb2.GetRequest(ref=ref("Site", "ams-1")))
                assert not b.orchestrator.parts.registry.is_present
                await asyncio.sleep(12)  # longer than any lease
                assert leads(a)
                assert a.orchestrator.parts.registry.is_present
                assert not ended.done(), ended.result()
                await make_room(cluster, junk)
                await applied(stub, "yes")
                await until(lambda: b.orchestrator.parts.registry.is_present, "b is registered", 20)
                assert not a.orchestrator.failed.is_set()
                assert not b.orchestrator.failed.is_set()
