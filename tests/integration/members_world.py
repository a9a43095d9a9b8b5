"""Three whole orchestrators in one process over one etcd, and boxes that a test plays.

Used by test_members_*: whichever member leads, and wherever a box is connected, any is asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.server import Orchestrator
from polder.v1 import agent_pb2, agent_pb2_grpc, plan_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import Agent
from tests.integration.members_rig import etcd_settings, make_ca
from tests.integration.orchestrator_rig import Credentials, Rig, config_for, until

NAMES = ("m1", "m2", "m3")
HEARTBEAT_S = 0.5


class Box(Agent):
    """An agent: obeys its plans, beats, and gives logs and a shell of what it runs."""

    async def connect(self) -> "Box":
        self.hello.session_number += 1
        self.relays: list[Relayed] = []
        self._tasks: list[asyncio.Task[None]] = []
        await super().connect()
        await self.welcomed()
        self._tasks.append(asyncio.create_task(self._beat_on()))
        return self

    async def move(self, member: "Member") -> "Box":
        """Its next session is with another member."""
        await self.disconnect()
        self.region, self.heard = member.region, []
        return await self.connect()

    async def disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().disconnect()

    async def _beat_on(self) -> None:
        sequence = 0
        while True:
            sequence += 1
            await self.beat(sequence=sequence)
            await asyncio.sleep(HEARTBEAT_S)

    async def _read(self, call: Any) -> None:
        reading = asyncio.create_task(super()._read(call))
        seen = 0
        while not reading.done():
            for message in self.heard[seen:]:
                seen += 1
                if message.HasField("open_relay"):
                    self._open(message.open_relay)
            await asyncio.wait({reading}, timeout=0.02)

    def _open(self, asked: agent_pb2.OpenRelay) -> None:
        relayed = Relayed(self, asked)
        self.relays.append(relayed)
        self._tasks.append(asyncio.create_task(relayed.run()))

    async def _take_plan(self, signed: plan_pb2.SignedNodePlan) -> None:
        self.plan = plan_pb2.NodePlan.FromString(signed.node_plan)
        self.hello.plan_generation = self.plan.generation
        ack = agent_pb2.PlanAck(generation=self.plan.generation, accepted=True)
        await self.say(plan_ack=ack)
        if self.obedient:
            await self.report()


class Relayed:
    """One log (numbered lines until somebody leaves) or one shell (what comes in goes out)."""

    def __init__(self, box: Box, asked: agent_pb2.OpenRelay) -> None:
        self.box = box
        self.asked = asked
        self.over = asyncio.Event()
        self.lines = 0

    async def run(self) -> None:
        assert self.box._channel is not None
        stub: Any = agent_pb2_grpc.AgentServiceStub(self.box._channel)
        call = stub.Relay()
        try:
            opened = agent_pb2.RelayOpen(relay_id=self.asked.relay_id)
            await call.write(agent_pb2.RelayRequest(open=opened))
            if self.asked.HasField("logs"):
                leaving = asyncio.create_task(call.read())
                while not leaving.done():
                    self.lines += 1
                    line = b"line %d\n" % self.lines
                    await call.write(agent_pb2.RelayRequest(stdout=line))
                    await asyncio.wait({leaving}, timeout=0.05)
            else:
                await self._shell(call)
        except (Exception, asyncio.CancelledError):
            call.cancel()
        finally:
            self.over.set()

    async def _shell(self, call: Any) -> None:
        async for message in call:
            if message.close_stdin:
                end = agent_pb2.RelayEnd(exit_code=7)
                await call.write(agent_pb2.RelayRequest(end=end))
                return
            await call.write(agent_pb2.RelayRequest(stdout=message.stdin.upper()))


@dataclass
class Member(Rig):
    """One of the three; every operator of the installation can be asked of it."""

    name: str = ""

    @property
    def leads(self) -> bool:
        return self.orchestrator.leader.is_leading

    @property
    def sessions(self) -> int:
        return len(self.orchestrator.gateway.sessions)

    @property
    def region(self) -> Any:
        """As the scripted agent wants it."""
        port = int(self.config.listen.rpartition(":")[2])
        return SimpleNamespace(roots_der=self.authority.roots_der, port=port)

    def hears(self, other: "Member") -> bool:
        links = self.orchestrator.mesh.links.status()
        return any(link.member == other.name and link.reachable for link in links)


class World:
    """The members that run, and the first admin's certificate."""

    def __init__(self, folder: Path, cluster: EtcdCluster, prefix: str, **changes: Any) -> None:
        self._folder = folder
        self._changes = {
            **etcd_settings(cluster, prefix),
            "ca_dir": str(make_ca(folder / "ca")),
            "heartbeat_interval": HEARTBEAT_S,
            "silent_after": 3.0,
            "lost_after": 6.0,
            "session_age": 0.0,
            **changes,
        }
        self.members: dict[str, Member] = {}
        self._admin: Credentials | None = None

    async def start(self, name: str) -> Member:
        folder = self._folder / name
        config = config_for(folder, member=name, **self._changes)
        orchestrator = Orchestrator(config)
        await orchestrator.start()
        made = self.members[name] = Member(orchestrator, config, name=name)
        if self._admin is None:
            self._admin = made.admin_credentials()
        return made

    async def stop(self, member: Member) -> None:
        del self.members[member.name]
        await member.close()
        await member.orchestrator.stop()

    def ask(self, member: Member) -> Any:
        """Its operator API, as an admin."""
        assert self._admin is not None
        return member.operators(self._admin)

    @property
    def leader(self) -> Member:
        (found,) = [member for member in self.members.values() if member.leads]
        return found

    @property
    def others(self) -> list[Member]:
        return [member for member in self.members.values() if not member.leads]

    async def settled(self) -> None:
        """One leads, and everybody hears everybody."""
        await until(lambda: sum(m.leads for m in self.members.values()) == 1, "one leads", 30)
        for one in list(self.members.values()):
            for other in list(self.members.values()):
                if one is not other:
                    what = f"{one.name} hears {other.name}"
                    await until(lambda a=one, b=other: a.hears(b), what, 30)  # type: ignore[misc]

    async def box(self, name: str, member: Member, site: str = "ams-1") -> Box:
        """Joined and connected there."""
        admin = self.ask(member)
        member.admin = lambda: admin  # type: ignore[method-assign]
        credentials = await member.node(name, site)
        made = Box(member.region, name, credentials.key, list(credentials.chain_der))
        return await made.connect()


@asynccontextmanager
async def world(
    folder: Path, cluster: EtcdCluster, prefix: str, *names: str, **changes: Any
) -> AsyncIterator[World]:
    """Members that run, hear each other, and know of a site."""
    made = World(folder, cluster, prefix, **changes)
    async with AsyncExitStack() as stack:

        async def end() -> None:
            for member in list(made.members.values()):
                with contextlib.suppress(Exception):
                    await made.stop(member)

        stack.push_async_callback(end)
        for name in names or NAMES:
            await made.start(name)
        await made.settled()
        first = next(iter(made.members.values()))
        stub = made.ask(first)
        first.admin = lambda: stub  # type: ignore[method-assign]
        await first.site()
        yield made
