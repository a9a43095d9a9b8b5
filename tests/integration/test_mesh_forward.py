"""Logs and exec through another member, over real gRPC: order, backpressure, every way to end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import aio

from orchestrator.fleet import Fleet
from orchestrator.gateway.relays import MAX_RELAYS_PER_NODE, NodeUnreachable, RelayBroker
from orchestrator.mesh import forward
from orchestrator.mesh.forward import Forwarding
from orchestrator.mesh.service import MemberService, add_member_service
from polder.v1 import agent_pb2, member_pb2, member_pb2_grpc
from tests.integration.gateway_harness import eventually

LOGS = agent_pb2.OpenRelay(relay_id="ignored", logs=agent_pb2.LogOptions(replica_uid="u"))


@dataclass
class Nodes:
    """The agents that are connected to a member: `play` answers what they are asked."""

    here: set[str] = field(default_factory=set)
    play: Callable[[str, agent_pb2.OpenRelay], None] = lambda *_: None

    def ask(self, node: str, message: agent_pb2.SessionResponse) -> None:
        if node not in self.here:
            raise NodeUnreachable("NotConnected", f"node {node} is not connected")
        self.play(node, message.open_relay)


class Member:
    """One that forwards, with agents that a test plays and a port that others call."""

    def __init__(self, name: str, stubs: dict[str, Any]) -> None:
        self.name = name
        self.nodes = Nodes()
        self.broker = RelayBroker(self.nodes)
        self.fleet = Fleet(started_at=0.0)
        self.forwarding = Forwarding(name, self.broker, self.fleet, stubs.get)
        self.server: Any = aio.server()
        telling: Any = None
        add_member_service(MemberService(name, telling, self.forwarding), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def sees(self, node: str, member: str, *, connected: bool = True) -> None:
        seen = self.fleet.observe(node)
        seen.member, seen.connected = member, connected
        self.fleet.touch(node)


class Agent:
    """Answers one relay of node n1 by hand."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.opened = asyncio.Event()
        self.heard: list[agent_pb2.RelayResponse] = []
        self.written = 0
        self.over = asyncio.Event()
        self._said: asyncio.Queue[agent_pb2.RelayRequest | None] = asyncio.Queue(1)
        self._task: asyncio.Task[None] | None = None
        member.nodes.here.add("n1")
        member.nodes.play = self._asked

    def _asked(self, node: str, request: agent_pb2.OpenRelay) -> None:
        self._task = asyncio.create_task(self._serve(node, request.relay_id))

    async def _serve(self, node: str, relay_id: str) -> None:
        opened = agent_pb2.RelayOpen(relay_id=relay_id)
        self.opened.set()
        try:
            async for response in self.member.broker.serve(node, opened, self._requests()):
                self.heard.append(response)
        finally:
            self.over.set()

    async def _requests(self) -> AsyncIterator[agent_pb2.RelayRequest]:
        while (message := await self._said.get()) is not None:
            yield message

    async def say(self, **message: Any) -> None:
        await self._said.put(agent_pb2.RelayRequest(**message))
        self.written += len(message.get("stdout", b""))

    async def vanish(self) -> None:
        await self._said.put(None)


@dataclass
class Mesh:
    m1: Member
    m2: Member
    m3: Member
    stubs: dict[str, Any]


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    stubs: dict[str, Any] = {}
    members = [Member(name, stubs) for name in ("m1", "m2", "m3")]
    channels = []
    for member in members:
        await member.server.start()
        channels.append(aio.insecure_channel(f"127.0.0.1:{member.port}"))
        stubs[member.name] = member_pb2_grpc.MemberServiceStub(channels[-1])
        member.sees("n1", "m2")
    yield Mesh(members[0], members[1], members[2], stubs)
    for channel in channels:
        await channel.close(None)
    for member in members:
        await member.server.stop(None)


async def unreachable(opened: Any) -> NodeUnreachable:
    with pytest.raises(NodeUnreachable) as caught:
        async with opened as relay:
            async for _ in relay:
                pass
    return caught.value


async def test_a_member_without_the_session_gets_what_the_node_says(mesh: Mesh) -> None:
    agent = Agent(mesh.m2)

    async def node() -> None:
        await agent.opened.wait()
        for number in range(100):
            await agent.say(stdout=b"%d" % number)
        await agent.say(end=agent_pb2.RelayEnd(exit_code=3))

    playing = asyncio.create_task(node())
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        assert mesh.m1.forwarding.active == 1
        heard = [message async for message in relay]
        await relay.send(agent_pb2.RelayResponse(stdin=b"too late"))
    assert [m.stdout for m in heard[:-1]] == [b"%d" % n for n in range(100)]
    assert heard[-1].end.exit_code == 3
    await playing
    await eventually(lambda: not mesh.m2.broker.active, "forgotten")
    assert not mesh.m1.forwarding.active


async def test_stdin_reaches_the_node_and_leaving_ends_its_call(mesh: Mesh) -> None:
    agent = Agent(mesh.m2)
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        for part in (b"one ", b"two"):
            await relay.send(agent_pb2.RelayResponse(stdin=part))
        await eventually(lambda: len(agent.heard) == 2, "both parts")
    assert b"".join(m.stdin for m in agent.heard) == b"one two"
    await asyncio.wait_for(agent.over.wait(), 10)
    await eventually(lambda: not mesh.m2.broker.active, "forgotten")


async def test_an_operator_that_is_cut_off_in_the_middle_ends_it_too(mesh: Mesh) -> None:
    """As when its certificate is revoked: the task of its call is cancelled."""
    agent = Agent(mesh.m2)

    async def reads() -> None:
        async with mesh.m1.forwarding.open("n1", LOGS) as relay:
            async for _ in relay:
                pass

    reading = asyncio.create_task(reads())
    await asyncio.wait_for(agent.opened.wait(), 10)
    await agent.say(stdout=b"x")
    reading.cancel()
    await asyncio.wait_for(agent.over.wait(), 10)
    await asyncio.wait({reading})
    assert not mesh.m1.forwarding.active


async def test_a_slow_reader_holds_the_node_back(mesh: Mesh) -> None:
    agent = Agent(mesh.m2)

    async def node() -> None:
        await agent.opened.wait()
        while True:
            await agent.say(stdout=b"x" * 65536)

    playing = asyncio.create_task(node())
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        await anext(aiter(relay))
        before = -1
        while before != agent.written:  # until flow control holds it
            before = agent.written
            await asyncio.sleep(0.5)
        assert agent.written < 16 << 20
    playing.cancel()


async def test_a_node_that_goes_away_is_an_error_and_not_an_end(mesh: Mesh) -> None:
    agent = Agent(mesh.m2)

    async def node() -> None:
        await agent.opened.wait()
        await agent.say(stdout=b"half")
        await agent.vanish()

    playing = asyncio.create_task(node())
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "ConnectionLost" and "n1" in error.message
    await playing


async def test_a_member_that_dies_in_the_middle_is_named(mesh: Mesh) -> None:
    agent = Agent(mesh.m2)
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        await agent.say(stdout=b"half")
        assert (await anext(aiter(relay))).stdout == b"half"
        await mesh.m2.server.stop(None)
        with pytest.raises(NodeUnreachable) as caught:
            await anext(aiter(relay))
        await relay.send(agent_pb2.RelayResponse(stdin=b"into the void"))
    assert caught.value.reason == "ConnectionLost" and "m2" in caught.value.message
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NoAnswer" and "m2" in error.message


async def test_a_connection_that_is_closed_here_ends_nobody_else(mesh: Mesh) -> None:
    """gRPC calls that a cancellation: the operator would wait for an answer for ever."""
    agent = Agent(mesh.m2)
    channel = aio.insecure_channel(f"127.0.0.1:{mesh.m2.port}")
    mesh.stubs["m2"] = member_pb2_grpc.MemberServiceStub(channel)
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        await agent.say(stdout=b"half")
        assert (await anext(aiter(relay))).stdout == b"half"
        asyncio.get_running_loop().call_later(0.1, asyncio.ensure_future, channel.close(None))
        with pytest.raises(NodeUnreachable) as caught:
            await anext(aiter(relay))
        await relay.send(agent_pb2.RelayResponse(stdin=b"into the void"))
    assert caught.value.reason == "ConnectionLost" and "m2" in caught.value.message
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert "m2" in error.message


async def test_what_the_asked_member_refuses_is_told_as_it_is(mesh: Mesh) -> None:
    Agent(mesh.m2)
    opened = [mesh.m2.broker.open("n1", LOGS) for _ in range(MAX_RELAYS_PER_NODE)]
    for relay in opened:
        mesh.m2.broker.register(relay)
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "TooManyRelays" and "n1" in error.message


async def test_a_node_that_does_not_answer_is_not_waited_for_long(mesh: Mesh) -> None:
    mesh.m2.nodes.here.add("n1")  # and opens nothing
    mesh.m2.broker._open_timeout_s = 0.2
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NoAnswer"
    await eventually(lambda: not mesh.m2.broker.active, "forgotten")


async def test_a_member_that_does_not_answer_is_not_waited_for_long(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "OPEN_TIMEOUT_S", 0.3)
    Agent(mesh.m2).member.nodes.play = lambda *_: None
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NoAnswer" and "m2" in error.message


async def test_a_member_that_cannot_be_reached_is_named(mesh: Mesh) -> None:
    del mesh.stubs["m2"]
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NoAnswer" and "m2" in error.message


async def test_an_asked_member_asks_no_third_one(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m2 believes the node to be at m3, and m3 has it: m1, which still believes in m2, is told."""
    monkeypatch.setattr(forward, "_MOVED_WITHIN_S", 0.2)
    agent = Agent(mesh.m3)
    mesh.m2.sees("n1", "m3")
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NotConnected" and not agent.opened.is_set()


@pytest.mark.parametrize("to", ["m1", "m3"])
async def test_a_node_that_has_just_moved_is_found(mesh: Mesh, to: str) -> None:
    agent = Agent(getattr(mesh, to))
    asyncio.get_running_loop().call_later(0.2, mesh.m1.sees, "n1", to)
    async with mesh.m1.forwarding.open("n1", LOGS) as relay:
        await agent.say(stdout=b"here")
        assert (await anext(aiter(relay))).stdout == b"here"


async def test_a_node_that_is_nowhere_is_refused_at_once(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_MOVED_WITHIN_S", 600.0)  # it is not waited for
    mesh.m1.sees("n1", "m2", connected=False)
    error = await asyncio.wait_for(unreachable(mesh.m1.forwarding.open("n1", LOGS)), 30)
    assert error.reason == "NotConnected"
    error = await asyncio.wait_for(unreachable(mesh.m1.forwarding.open("n9", LOGS)), 30)
    assert error.reason == "NotConnected"


async def test_a_member_that_may_have_the_node_and_cannot_be_heard_is_named(mesh: Mesh) -> None:
    mesh.m1.sees("n1", "m2", connected=False)
    mesh.m1.fleet.cannot_ask({"m2": "cannot be reached since 12:00:00 UTC"})
    error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
    assert error.reason == "NotConnected" and "m2 cannot be reached since" in error.message


async def test_one_connection_is_not_asked_for_more_streams_than_it_carries(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "FORWARDS_MAX", 1)
    Agent(mesh.m2)
    async with mesh.m1.forwarding.open("n1", LOGS):
        error = await unreachable(mesh.m1.forwarding.open("n1", LOGS))
        assert error.reason == "TooManyRelays" and "m2" in error.message


async def test_a_forward_begins_with_its_open(mesh: Mesh) -> None:
    call = mesh.stubs["m2"].Forward()
    await call.write(member_pb2.ForwardRequest(input=agent_pb2.RelayResponse(stdin=b"x")))
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNKNOWN  # the front door would say why
    assert mesh.m2.broker.active == 0
