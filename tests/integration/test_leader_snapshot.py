"""What the leader's snapshot says of a node, from what the Store and its agent say."""

from pathlib import Path

from orchestrator.cache import Cache
from orchestrator.fleet import Fleet
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Put
from orchestrator.store.sqlite import open_sqlite
from polder.v1 import agent_pb2

NOW = 1_000.0


def heartbeat(*conditions: str) -> agent_pb2.Heartbeat:
    return agent_pb2.Heartbeat(
        conditions=[agent_pb2.NodeCondition(type=name, status=True) for name in conditions]
    )


async def test_a_runtime_that_is_down_and_up_again_reaches_the_scheduler(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "polder.db")
    node = StoredResource("Node", "", "n1", "u", {"site": "s"})
    await store.txn((), (Put(keys.spec("Node", "", "n1"), node.to_bytes()),))
    cache, fleet = Cache(store, lambda: NOW), Fleet(NOW)
    await cache.start()
    try:
        builder = SnapshotBuilder(cache, fleet)
        seen = fleet.heard("n1", NOW)
        for conditions, expected in (((), False), (("RuntimeDown",), True), (("Other",), False)):
            seen.heartbeat = heartbeat(*conditions)
            (found,) = builder.build(NOW, NOW).nodes
            assert found.not_ready is expected
    finally:
        await cache.stop()
        await store.close()
