"""What a member's metrics count when most nodes are connected to others."""

from typing import cast

from orchestrator.cache import Cache
from orchestrator.fleet import Fleet, Peer
from orchestrator.mesh.newer import SessionName
from orchestrator.metrics import Metrics
from orchestrator.store.port import Store
from polder.v1 import agent_pb2


def test_sessions_are_this_members_and_nodes_are_everybodys() -> None:
    fleet = Fleet(0.0, lambda: 1_000.0)
    there, silent = Peer("b"), Peer("c")
    there.heard_at, silent.heard_at = 999.0, 999.0
    silent.silent = {"n3": 900.0}
    for name, peer in (("n1", None), ("n2", there), ("n3", silent)):
        seen = fleet.observe(name)
        seen.belong(peer, SessionName("i", 1, name), peer.name if peer else "a")
        seen.heard_at = 998.0 if peer is None else None
        seen.heartbeat = agent_pb2.Heartbeat(replicas_running=4)
    metrics = Metrics("1", "a", "eu")
    metrics.observe_fleet(fleet, Cache(cast(Store, None), lambda: 0.0), 10.0)
    value = metrics.registry.get_sample_value
    assert value("polder_sessions") == 1
    assert value("polder_nodes_heard") == 2
    assert value("polder_node_replicas_running", {"node": "n1"}) == 4
    assert value("polder_node_replicas_running", {"node": "n2"}) is None
