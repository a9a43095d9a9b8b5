"""A gateway and a leader over a real SQLite Store and real mTLS, and a scripted agent.

Used by test_gateway_* and test_leader_*. The operator's side is written straight to the Store.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio, ssl_channel_credentials

from orchestrator.authz import Listener
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.events import EventRecorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.service import AgentGateway
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.identity.authority import (
    Authority,
    LeafRequest,
    create_region,
    create_root,
    load_authority,
)
from orchestrator.identity.join_tokens import JoinTokens
from orchestrator.identity.member import SERVER_NAME, MemberIdentity
from orchestrator.identity.nodes import JoinSettings, NodeIdentities
from orchestrator.identity.peers import Peers
from orchestrator.identity.pem import pem_of
from orchestrator.leader import Leader, LeaderSettings
from orchestrator.metrics import Metrics
from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.rpc import FrontDoor
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put, Store
from orchestrator.store.sqlite import open_sqlite
from polder.identity import MemberId, NodeId
from polder.manifest import PodTemplate, decode, digest
from polder.override_proofs import signed
from polder.overrides import from_message, to_message
from polder.signing import verify_plan
from polder.v1 import agent_pb2, agent_pb2_grpc, plan_pb2

TRUST_DOMAIN = "test.polder.eu"
HELLO_TEMPLATE: dict[str, Any] = {
    "containers": [
        {"name": "app", "image": "hello:1", "resources": {"cpu": "100m", "memory": "64Mi"}}
    ]
}


async def eventually(condition: Callable[[], Any], what: str, within_s: float = 30.0) -> Any:
    """The condition's first true value. Fails after the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)
    return found


def good_inventory() -> agent_pb2.NodeInventory:
    def amounts() -> agent_pb2.Resources:
        return agent_pb2.Resources(cpu_millis=4000, memory_bytes=4 << 30, disk_bytes=10 << 30)

    return agent_pb2.NodeInventory(
        arch="arm64", os="Debian", kernel="6.1", capacity=amounts(), allocatable=amounts()
    )


@dataclass
class Region:
    """One member, its parts in the open."""

    store: Store
    cache: Cache
    fleet: Fleet
    events: EventRecorder
    nodes: NodeIdentities
    tokens: JoinTokens
    calls: LiveCalls
    member: MemberIdentity
    gateway: AgentGateway
    leader: Leader
    roots_der: list[bytes]
    authority: Authority
    port: int = 0
    operator_writes: int = 0

    # --- the operator's side ---------------------------------------------------------------------

    async def put(self, kind: str, name: str, spec: dict[str, Any], **facts: Any) -> StoredResource:
        """Create or change a resource, as the operator API would."""
        namespace = "default" if kind in ("Workload", "Secret") else ""
        before = self.cache.resource(kind, namespace, name)
        resource = before or StoredResource(kind, namespace, name, str(uuid.uuid4()), {})
        resource = replace(resource, spec=spec, generation=resource.generation + 1, **facts)
        ops: list[Put] = []
        if kind == "Workload":
            template = TemplateRevision(
                resource.uid,
                resource.template_revision + 1,
                spec["template"],
                digest(decode(PodTemplate, spec["template"])),
                int(time.time() * 1000),
            )
            known = self.cache.revision_of(resource.uid, resource.template_revision)
            if known is None or known.digest != template.digest:
                resource = replace(resource, template_revision=template.number)
                key = keys.revision(resource.uid, template.number)
                ops.append(Put(key, template.to_bytes()))
        ops.append(Put(keys.spec(kind, namespace, name), resource.to_bytes()))
        result = await self.store.txn([], ops)
        await self.cache.wait_for(result.revision)
        return resource

    async def workload(
        self, name: str, template: dict[str, Any] | None = None, **spec: Any
    ) -> StoredResource:
        return await self.put("Workload", name, {"template": template or HELLO_TEMPLATE, **spec})

    async def delete(self, kind: str, name: str) -> None:
        """Write the tombstone."""
        namespace = "default" if kind in ("Workload", "Secret") else ""
        resource = self.cache.resource(kind, namespace, name)
        assert resource is not None
        resource = replace(resource, deletion_requested_at_ms=int(time.time() * 1000))
        key = keys.spec(kind, namespace, name)
        await self.store.txn([], [Put(key, resource.to_bytes())])

    async def remove(self, key: str) -> None:
        await self.store.txn([], [Delete(key)])

    def reasons(self, kind: str, name: str) -> list[str]:
        namespace = "default" if kind in ("Workload", "Replica") else ""
        return [e.reason for e in self.events.list(kind=kind, namespace=namespace, name=name)]

    async def told(self, kind: str, name: str, *reasons: str) -> None:
        """An event is told when what it follows from stands: the mirror may be quicker."""
        wanted = set(reasons)
        await eventually(lambda: wanted <= set(self.reasons(kind, name)), f"told: {reasons}")

    # --- nodes -----------------------------------------------------------------------------------

    def signed(self, said: plan_pb2.Override, by: str = "", site: str = "s1") -> plan_pb2.Override:
        """A decision with the proof of the node that it names, or of another one."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = NodeId(TRUST_DOMAIN, site, by or said.node)
        request = LeafRequest(identity, key.public_key(), 3_600.0)
        chain = self.authority.issue(request, time.time()).chain_der
        return to_message(signed(from_message(said), site, key, chain))

    async def join(self, node: str, site: str = "s1") -> "Agent":
        if self.cache.resource("Site", "", site) is None:
            await self.put("Site", site, {"provider": "p", "country": "NL", "region": "eu"})
        token = await self.tokens.create(site, node, 600.0, "operator/test")
        key = ec.generate_private_key(ec.SECP256R1())
        request = agent_pb2.JoinRequest(token_secret=token.secret, node=node, csr=csr_of(key))
        response = await self.nodes.join(request)
        await eventually(lambda: self.cache.resource("Node", "", node), f"{node} joined")
        return Agent(self, node, key, list(response.certificate_chain))


def csr_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class Agent:
    """A scripted agent: says what it is told to, remembers what it hears, obeys when asked."""

    region: Region
    node: str
    key: ec.EllipticCurvePrivateKey
    chain: list[bytes]
    hello: agent_pb2.Hello = field(default_factory=agent_pb2.Hello)
    heard: list[agent_pb2.SessionResponse] = field(default_factory=list)
    plan: plan_pb2.NodePlan = field(default_factory=plan_pb2.NodePlan)
    obedient: bool = True
    error: aio.AioRpcError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.hello = agent_pb2.Hello(
            agent_version="test",
            instance_id=uuid.uuid4().hex,
            boot_id="boot",
            inventory=good_inventory(),
        )
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._channel: aio.Channel | None = None
        self._reading: asyncio.Task[None] | None = None

    def channel(self) -> aio.Channel:
        key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        credentials = ssl_channel_credentials(
            pem_of(self.region.roots_der), key_pem, pem_of(self.chain)
        )
        # A subchannel of its own, so that two sessions of one node are two connections.
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return aio.secure_channel(f"127.0.0.1:{self.region.port}", credentials, options)

    async def connect(self) -> "Agent":
        """Open a session and say Hello; does not wait for the answer."""
        self.ended.clear()
        self.error = None
        self._channel = self.channel()
        self._call = agent_pb2_grpc.AgentServiceStub(self._channel).Session()
        self._reading = asyncio.create_task(self._read(self._call))
        await self.say(hello=self.hello)
        return self

    async def say(self, **message: Any) -> None:
        async with self._writing:  # a call takes one write at a time
            await self._call.write(agent_pb2.SessionRequest(**message))

    async def beat(self, **facts: Any) -> None:
        await self.say(heartbeat=agent_pb2.Heartbeat(**facts))

    async def welcomed(self) -> "Agent":
        await eventually(lambda: self.kinds().count("welcome"), f"{self.node} is welcomed")
        return self

    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("message") for message in self.heard]

    def goodbye(self) -> str:
        """The reason of the last goodbye, or empty."""
        found = [m.goodbye.reason for m in self.heard if m.HasField("goodbye")]
        return found[-1] if found else ""

    def runs(self) -> list[str]:
        return sorted(item.replica for item in self.plan.assignments)

    async def disconnect(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._reading is not None:
            await asyncio.wait({self._reading})
        if self._channel is not None:
            await self._channel.close()

    async def _read(self, call: Any) -> None:
        try:
            async for message in call:
                self.heard.append(message)
                if message.HasField("plan"):
                    await self._take_plan(message.plan)
        except aio.AioRpcError as error:
            self.error = error
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            pass  # the call ended between hearing and answering
        finally:
            self.ended.set()

    async def _take_plan(self, signed: plan_pb2.SignedNodePlan) -> None:
        signer = verify_plan(
            signed.node_plan,
            signed.signature,
            signed.certificate_chain,
            self.region.roots_der,
            time.time(),
            TRUST_DOMAIN,
        )
        assert signer == self.region.member.member_id
        plan = plan_pb2.NodePlan.FromString(signed.node_plan)
        assert plan.generation == signed.generation and plan.node == self.node
        assert plan.assignment_count == len(plan.assignments)
        assert plan.stop_count == len(plan.stops)
        self.plan = plan
        if self.obedient:
            await self.say(plan_ack=agent_pb2.PlanAck(generation=plan.generation, accepted=True))
            await self.report()

    async def report(self, *, ready: bool = True) -> None:
        """Everything runs as planned, and what was to stop is gone."""
        update = agent_pb2.ReplicaStatusUpdate(gone=[stop.replica_uid for stop in self.plan.stops])
        for item in self.plan.assignments:
            update.changed.append(status_of(item, ready=ready))
        await self.say(replica_status=update)


def status_of(item: plan_pb2.Assignment, *, ready: bool = True) -> agent_pb2.ReplicaStatus:
    return agent_pb2.ReplicaStatus(
        namespace=item.namespace,
        workload=item.workload,
        workload_uid=item.workload_uid,
        replica=item.replica,
        replica_uid=item.replica_uid,
        phase=agent_pb2.REPLICA_PHASE_RUNNING,
        ready=ready,
        revision=item.revision,
        epoch=item.epoch,
    )


@asynccontextmanager
async def region(
    directory: Path,
    gateway_settings: GatewaySettings | None = None,
    leader_settings: LeaderSettings | None = None,
    *,
    leading: bool = True,
) -> AsyncIterator[Region]:
    """A member that serves and, unless told otherwise, leads."""
    clock = time.time
    if not (directory / "ca").exists():
        create_root(directory / "ca", TRUST_DOMAIN, clock())
        create_region(directory / "ca", "eu", clock())
    authority = load_authority(directory / "ca", "eu")
    store = await open_sqlite(directory / "store.db")
    cache = Cache(store, clock)
    fleet = Fleet(clock())
    events = EventRecorder(store, clock)
    member = MemberIdentity(authority, MemberId(TRUST_DOMAIN, "eu", "m1"), clock)
    nodes = NodeIdentities(
        store, cache, authority, events, clock, JoinSettings(("127.0.0.1:1",), "m1")
    )
    tokens = JoinTokens(store, cache, authority, clock, ("127.0.0.1:2",))
    calls = LiveCalls(cache, clock)
    gateway = AgentGateway(
        store,
        cache,
        fleet,
        events,
        nodes,
        lambda: member.current,
        ("127.0.0.1:1",),
        clock,
        gateway_settings or GatewaySettings("m1", "eu", "test", heartbeat_s=5.0),
    )
    leader = Leader(
        store, cache, fleet, events, clock, leader_settings or LeaderSettings("m1", poll_s=0.2)
    )
    peers = Peers(store, cache, TRUST_DOMAIN, clock)
    door = FrontDoor(Listener.MTLS, peers, calls, Metrics("test", "m1", "eu"))
    server = aio.server(interceptors=[door])
    agent_pb2_grpc.add_AgentServiceServicer_to_server(gateway, server)
    port = server.add_secure_port("127.0.0.1:0", member.server_credentials(client_certificate=True))
    await cache.start()
    await events.start()
    await server.start()
    tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(calls.run())]
    if leading:
        tasks.append(asyncio.create_task(leader.run()))
    try:
        yield Region(
            store, cache, fleet, events, nodes, tokens, calls, member, gateway, leader,
            list(authority.roots_der), authority, port,
        )  # fmt: skip
    finally:
        await server.stop(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await events.stop()
        await cache.stop()
        await store.close()
