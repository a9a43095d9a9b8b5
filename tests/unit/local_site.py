"""A site of three nodes as edgectl hears it, without a connection: for tests of --site-endpoint.

`node-a` runs `one-0` (exclusive) and `page-0`, `node-b` and `node-c` stand by.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgectl.errors import CallError
from edgectl.site.link import Link
from polder.v1 import agent_pb2, common_pb2, local_pb2, plan_pb2

NOW = 1_800_000_000_000
TEMPLATE = json.dumps(
    {"containers": [{"name": "web", "ports": [{"containerPort": 80, "hostPort": 18080}]}]}
).encode()
NODES = ("node-a", "node-b", "node-c")


def status(name: str, **fields: Any) -> agent_pb2.ReplicaStatus:
    """Of a replica that runs well; `fields` change that."""
    given: dict[str, Any] = {
        "namespace": "shop",
        "workload": name.rpartition("-")[0],
        "workload_uid": f"uid-{name}",
        "replica": name,
        "replica_uid": f"stay-{name}",
        "phase": agent_pb2.REPLICA_PHASE_RUNNING,
        "ready": True,
        "revision": 3,
        "epoch": 7 << 16,
        "started_at_ms": NOW - 720_000,
        "containers": [
            agent_pb2.ContainerStatus(
                name="web", id="c1", state="running", ready=True, started_at_ms=NOW - 720_000
            )
        ],
    }
    return agent_pb2.ReplicaStatus(**{**given, **fields})


def runs(name: str, **fields: Any) -> local_pb2.LocalReplica:
    """`fields` of the LocalReplica, or of its status."""
    own = {
        k: fields.pop(k)
        for k in list(fields)
        if k in local_pb2.LocalReplica.DESCRIPTOR.fields_by_name
    }
    exclusive = name.startswith("one")
    given: dict[str, Any] = {
        "role": "Runs",
        "exclusive": exclusive,
        "members": NODES,
        "holder": "node-a",
        "holder_epoch": 7 << 16,
        "holder_ready": True,
        "lease_left_ms": 2_500 if exclusive else -1,
        "template_json": TEMPLATE,
    }
    return local_pb2.LocalReplica(status=status(name, **fields), **{**given, **own})


def stands_by(name: str, reason: str = "", **own: Any) -> local_pb2.LocalReplica:
    said = agent_pb2.ReplicaStatus(
        namespace="shop", workload=name.rpartition("-")[0], workload_uid=f"uid-{name}", replica=name
    )
    standby = agent_pb2.StandbyStatus(replica=name, able=not reason, reason=reason)
    given: dict[str, Any] = {
        "role": "Standby",
        "exclusive": name.startswith("one"),
        "members": NODES,
        "holder": "node-a",
        "holder_epoch": 7 << 16,
        "holder_ready": True,
        "lease_left_ms": -1,
        "template_json": TEMPLATE,
    }
    return local_pb2.LocalReplica(status=said, standby=standby, **{**given, **own})


def override(what: str = "stopped", value: str = "true", **fields: Any) -> plan_pb2.Override:
    given: dict[str, Any] = {
        "id": "o1",
        "workload_uid": "uid-one-0",
        "namespace": "shop",
        "replica": "one-0",
        "stamp": 1,
        "node": "node-a",
        "by": "operator/ann",
        "reason": "disk full",
        "at_ms": NOW - 60_000,
    }
    if what == "frozen":
        given |= {"workload_uid": "", "namespace": "", "replica": ""}
    return plan_pb2.Override(field=what, value=value, **{**given, **fields})


@dataclass
class FakeNode:
    """What one node says. `down`: why it cannot be reached."""

    name: str
    replicas: list[local_pb2.LocalReplica] = field(default_factory=list)
    overrides: list[plan_pb2.Override] = field(default_factory=list)
    events: list[common_pb2.Event] = field(default_factory=list)
    journal: list[agent_pb2.JournalEntry] = field(default_factory=list)
    down: CallError | None = None
    site: str = "ams"
    isolated_ms: int = 300_000
    autonomy_left_ms: int = 6 * 86_400_000
    warnings: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    changes: list[local_pb2.ChangeRequest] = field(default_factory=list)
    opened: list[local_pb2.ReachRequest] = field(default_factory=list)
    refuses: CallError | None = None
    offset_ms: int = 0
    says: list[agent_pb2.RelayRequest] = field(default_factory=list)
    breaks: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.endpoints = self.endpoints or (f"{self.name}:7446",)


class FakeLink:
    def __init__(self, world: "FakeSite", node: FakeNode, endpoint: str) -> None:
        self._world, self._node = world, node
        self.node, self.site, self.endpoint = node.name, node.site, endpoint
        self.by, self.warnings = "operator/ann", node.warnings
        self.roles: tuple[str, ...] = ("admin",)
        self.offset_ms = node.offset_ms
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def show(self, namespace: str) -> local_pb2.ShowResponse:
        if self._node.down:
            raise self._node.down
        if namespace not in ("", "shop"):
            raise CallError("not for ann", code="PERMISSION_DENIED", reason="NotAllowed")
        return self._world.shown(self._node)

    def recall(self, request: local_pb2.RecallRequest) -> local_pb2.RecallResponse:
        return local_pb2.RecallResponse(
            events=self._node.events, journal=self._node.journal, now_ms=NOW
        )

    def change(self, request: local_pb2.ChangeRequest) -> local_pb2.ChangeResponse:
        if self._node.refuses:
            raise self._node.refuses
        self._node.changes.append(request)
        return local_pb2.ChangeResponse(message=f"{request.verb} it is")

    def reach(self, requests: Iterable[local_pb2.ReachRequest]) -> Iterator[agent_pb2.RelayRequest]:
        self._node.opened.append(next(iter(requests)))
        yield from self._node.says
        if self._node.breaks:
            self._node.breaks()
            raise unreachable(self.endpoint)


class FakeSite:
    """Its `open` is what `edgectl.site.link.opener` gives."""

    def __init__(self, *nodes: FakeNode) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.links: list[FakeLink] = []
        self.asked: list[str] = []

    def open(self, endpoints: Sequence[str]) -> Link:
        self.asked.extend(endpoints)
        failure = unreachable(" or ".join(endpoints))
        for endpoint in endpoints:
            for node in self.nodes.values():
                if endpoint in node.endpoints and not node.down:
                    self.links.append(FakeLink(self, node, endpoint))
                    return self.links[-1]
                if endpoint in node.endpoints and node.down:
                    failure = node.down
        raise failure

    def shown(self, node: FakeNode) -> local_pb2.ShowResponse:
        return local_pb2.ShowResponse(
            node=node.name,
            site=node.site,
            agent_version="0.1",
            now_ms=NOW,
            plan_generation=12,
            plan_issued_at_ms=NOW - 3_600_000,
            isolated_ms=node.isolated_ms,
            autonomy_left_ms=node.autonomy_left_ms,
            peers=[
                local_pb2.LocalPeer(
                    node=peer.name, shares=True, heard=not peer.down, local_endpoints=peer.endpoints
                )
                for peer in self.nodes.values()
                if peer is not node
            ],
            replicas=node.replicas,
            overrides=node.overrides,
            arch="arm64",
            usage=agent_pb2.Usage(cpu_millis=500, memory_bytes=1 << 30),
            allocatable=agent_pb2.Resources(
                cpu_millis=4_000, memory_bytes=4 << 30, devices={"polder.eu/gpu": 1}
            ),
        )


def unreachable(endpoint: str) -> CallError:
    return CallError(f"{endpoint}: connection refused", code="UNAVAILABLE")


def whole() -> FakeSite:
    """All is well, but for the uplink."""
    return FakeSite(
        FakeNode("node-a", [runs("one-0"), runs("page-0")]),
        FakeNode("node-b", [stands_by("one-0"), stands_by("page-0")]),
        FakeNode("node-c", [stands_by("one-0", "NoRoom"), stands_by("page-0")]),
    )
