"""Several members in one process over one SQLite Store, with real mTLS between them. Used by
test_mesh_*.

What a member's lease would do is done by hand: `leave` takes its presence away.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio

from orchestrator.authz import Listener
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.domain.liveness import Periods
from orchestrator.events import EventRecorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.service import AgentGateway
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.identity.authority import create_region, create_root, load_authority
from orchestrator.identity.join_tokens import JoinTokens
from orchestrator.identity.member import MemberIdentity
from orchestrator.identity.nodes import JoinSettings, NodeIdentities
from orchestrator.identity.peers import Peers
from orchestrator.leader import Leader, LeaderSettings
from orchestrator.mesh.link import LinkStatus
from orchestrator.mesh.mesh import Mesh
from orchestrator.mesh.service import add_member_service
from orchestrator.mesh.voice import Hearsay, Voice
from orchestrator.metrics import Metrics
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.rpc import FrontDoor
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put, Store
from orchestrator.store.sqlite import open_sqlite
from polder.identity import MemberId
from polder.v1 import agent_pb2_grpc
from tests.integration.gateway_harness import TRUST_DOMAIN, Agent, Region, eventually

PERIODS = Periods(silent_after_s=1.0, lost_after_s=2.0)
HEARTBEAT_S = 0.3


@dataclass
class Member(Region):
    """One of several."""

    name: str = ""
    mesh: Any = None
    server: Any = None
    proxy: "Line | None" = None

    def link(self, other: "Member") -> LinkStatus:
        return next(s for s in self.mesh.links.status() if s.member == other.name)

    def hears(self, other: "Member") -> bool:
        return any(s.member == other.name and s.reachable for s in self.mesh.links.status())

    def liveness(self, node: str) -> str:
        known = self.cache.node_status(node) is not None
        led_since = self.leader.led_since
        return str(self.fleet.liveness(node, known, PERIODS, led_since).state.value)

    def owner(self, node: str) -> str:
        """Of its session; empty: nobody that this member hears has one."""
        seen = self.fleet.get(node)
        return seen.member if seen is not None and seen.connected else ""

    async def come(self) -> None:
        """Be present, as by a lease."""
        record = PresenceRecord(self.name, "eu", "1.0", uuid.uuid4().hex, int(time.time() * 1000))
        await self.store.txn([], [Put(keys.present(self.name), record.to_bytes())])

    async def leave(self) -> None:
        await self.store.txn([], [Delete(keys.present(self.name))])

    async def move(self, agent: Agent) -> Agent:
        """The agent's next session is with this member."""
        agent.region = self
        agent.heard.clear()
        agent.hello.session_number += 1
        await agent.connect()
        return await agent.welcomed()


class Line:
    """The way to one member: what others dial. It can be cut, and be left hanging."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0
        self.refuses = False

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()

    def cut(self) -> None:
        """Connections end, and new ones are refused."""
        self.refuses = True
        for task in list(self._tasks):
            task.cancel()

    def hang(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._open.clear()

    def mend(self) -> None:
        self.refuses = False
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.refuses:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
            finally:
                back.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def members(
    directory: Path, *names: str, leads: str = "", **settings: Any
) -> AsyncIterator[list[Member]]:
    """Members that follow each other, each reached over a `Line`. `leads`: the one that leads."""
    create_root(directory / "ca", TRUST_DOMAIN, time.time())
    create_region(directory / "ca", "eu", time.time())
    async with AsyncExitStack() as stack:
        store = await open_sqlite(directory / "store.db")
        stack.push_async_callback(store.close)
        found = [
            await stack.enter_async_context(
                member(directory, store, name, leading=name == leads, **settings)
            )
            for name in names
        ]
        for one in found:
            for other in found:
                if one is not other:
                    await eventually(
                        lambda one=one, other=other: one.hears(other),  # type: ignore[misc]
                        f"{one.name} hears {other.name}",
                    )
        yield found


@asynccontextmanager
async def member(
    directory: Path,
    store: Store,
    name: str,
    *,
    leading: bool = False,
    clock_off_s: float = 0.0,
    heartbeat_s: float = HEARTBEAT_S,
    life_s: float = 86_400.0,
) -> AsyncIterator[Member]:
    def clock() -> float:
        return time.time() + clock_off_s

    authority = load_authority(directory / "ca", "eu")
    cache, fleet = Cache(store, clock), Fleet(clock())
    events = EventRecorder(store, clock)
    identity = MemberIdentity(
        authority, MemberId(TRUST_DOMAIN, "eu", name), time.time, life_s=life_s
    )
    settings = GatewaySettings(name, "eu", "test", heartbeat_s=heartbeat_s, periods=PERIODS)
    nodes = NodeIdentities(
        store, cache, authority, events, time.time, JoinSettings(("127.0.0.1:1",), name)
    )
    gateway = AgentGateway(
        store, cache, fleet, events, nodes, lambda: identity.current,
        ("127.0.0.1:1",), clock, settings,
    )  # fmt: skip
    leader = Leader(
        store, cache, fleet, events, clock, LeaderSettings(name, poll_s=0.2, periods=PERIODS)
    )
    voice = Voice(leader, Hearsay(clock), cache)
    leader.on_end = voice.keep_last_words
    mesh = Mesh(
        fleet, cache, identity, gateway.sessions, gateway.superseding, gateway.relays, voice,
        events, clock,
        version="1.0", instance_id=uuid.uuid4().hex, heartbeat_s=heartbeat_s,
    )  # fmt: skip
    calls = LiveCalls(cache, time.time)
    door = FrontDoor(
        Listener.MTLS, Peers(store, cache, TRUST_DOMAIN, time.time), calls, Metrics("t", name, "eu")
    )
    server = aio.server(interceptors=[door])
    agent_pb2_grpc.add_AgentServiceServicer_to_server(gateway, server)
    add_member_service(mesh.service, server)
    port = server.add_secure_port(
        "127.0.0.1:0", identity.server_credentials(client_certificate=True)
    )
    await cache.start()
    await events.start()
    await server.start()
    line = Line(port)
    await line.start()
    works = [gateway.run(), calls.run(), mesh.run(), *([leader.run()] if leading else [])]
    tasks = [asyncio.create_task(work) for work in works]
    made = Member(
        store, cache, fleet, events, nodes,
        JoinTokens(store, cache, authority, time.time, ("127.0.0.1:2",)),
        calls, identity, gateway, leader, list(authority.roots_der), authority, port,
        name=name, mesh=mesh, server=server, proxy=line,
    )  # fmt: skip
    record = MemberRecord(name, "eu", "1.0", (), (), f"127.0.0.1:{line.port}")
    await store.txn([], [Put(keys.member(name), record.to_bytes())])
    await made.come()
    try:
        yield made
    finally:
        await _end(made, line, tasks)
        await events.stop()
        await cache.stop()


async def _end(made: Member, line: Line, tasks: list[asyncio.Task[None]]) -> None:
    made.mesh.telling.end()
    await made.server.stop(0)
    await line.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
