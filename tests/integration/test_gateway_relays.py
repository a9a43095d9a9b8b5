"""Logs and exec through a relay, over real gRPC: order, backpressure, and every way to end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway.relays import MAX_RELAYS_PER_NODE, NodeUnreachable, RelayBroker
from polder.v1 import agent_pb2, agent_pb2_grpc
from tests.integration.gateway_harness import Agent, Region, eventually, region

LOGS = agent_pb2.OpenRelay(relay_id="ignored", logs=agent_pb2.LogOptions(replica_uid="u"))


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path) as made:
        yield made


@pytest.fixture
async def agent(home: Region) -> AsyncIterator[Agent]:
    made = await (await (await home.join("n1")).connect()).welcomed()
    yield made
    await made.disconnect()


async def answer(agent: Agent, heard: int = 0) -> Any:
    """The agent's relay call, opened with the id that it was asked for."""
    asked = await eventually(
        lambda: [m.open_relay for m in agent.heard if m.HasField("open_relay")][heard:], "asked"
    )
    assert agent._channel is not None
    call = agent_pb2_grpc.AgentServiceStub(agent._channel).Relay()
    opened = agent_pb2.RelayOpen(relay_id=asked[0].relay_id)
    await call.write(agent_pb2.RelayRequest(open=opened))
    return call


async def test_bytes_come_in_order_and_the_end_ends(home: Region, agent: Agent) -> None:
    async def node() -> None:
        call = await answer(agent)
        for number in range(100):
            await call.write(agent_pb2.RelayRequest(stdout=b"%d" % number))
        end = agent_pb2.RelayEnd(exit_code=3)
        await call.write(agent_pb2.RelayRequest(end=end))
        await call.done_writing()
        assert (await call.code()).name == "OK"

    playing = asyncio.create_task(node())
    async with home.gateway.relays.open("n1", LOGS) as relay:
        heard = [message async for message in relay]
    assert [m.stdout for m in heard[:-1]] == [b"%d" % n for n in range(100)]
    assert heard[-1].end.exit_code == 3
    await playing
    assert home.gateway.relays.active == 0


async def test_stdin_reaches_the_node_and_leaving_ends_its_call(home: Region, agent: Agent) -> None:
    calls: list[Any] = []

    async def node() -> bytes:
        calls.append(await answer(agent))
        got = b""
        async for message in calls[0]:
            got += message.stdin
        return got

    playing = asyncio.create_task(node())
    async with home.gateway.relays.open("n1", LOGS) as relay:
        for part in (b"one ", b"two"):
            await relay.send(agent_pb2.RelayResponse(stdin=part))
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(playing, 5) == b"one two"


async def test_a_slow_reader_holds_the_node_back_and_nothing_else(
    home: Region, agent: Agent
) -> None:
    written = 0

    async def node() -> None:
        nonlocal written
        call = await answer(agent)
        while True:
            await call.write(agent_pb2.RelayRequest(stdout=b"x" * 65536))
            written += 65536

    playing = asyncio.create_task(node())
    async with home.gateway.relays.open("n1", LOGS) as relay:
        await anext(aiter(relay))
        before = -1
        while before != written:  # until flow control holds it
            before = written
            await asyncio.sleep(0.3)
        assert written < 8 << 20
        await agent.beat(sequence=42)
        seen = home.fleet.get("n1")
        assert seen is not None
        await eventually(lambda: seen.heartbeat and seen.heartbeat.sequence == 42, "heartbeat")
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)


async def test_a_node_that_goes_away_is_an_error_and_not_an_end(home: Region, agent: Agent) -> None:
    async def node() -> Any:
        call = await answer(agent)
        await call.write(agent_pb2.RelayRequest(stdout=b"half"))
        return call

    playing = asyncio.create_task(node())
    async with home.gateway.relays.open("n1", LOGS) as relay:
        assert (await anext(aiter(relay))).stdout == b"half"
        (await playing).cancel()
        with pytest.raises(NodeUnreachable) as caught:
            await anext(aiter(relay))
        assert caught.value.reason == "ConnectionLost"


async def test_nobody_there(home: Region) -> None:
    with pytest.raises(NodeUnreachable) as caught:
        async with home.gateway.relays.open("n9", LOGS):
            pass
    assert caught.value.reason == "NotConnected"


async def test_a_node_that_does_not_answer(home: Region, agent: Agent) -> None:
    broker = RelayBroker(home.gateway.sessions, open_timeout_s=0.2)
    with pytest.raises(NodeUnreachable) as caught:
        async with broker.open("n1", LOGS):
            pass
    assert caught.value.reason == "NoAnswer" and broker.active == 0


async def test_relays_are_bounded_per_node(home: Region, agent: Agent) -> None:
    broker = RelayBroker(home.gateway.sessions, open_timeout_s=1.0)
    many = [
        asyncio.create_task(broker.open("n1", LOGS).__aenter__())
        for _ in range(MAX_RELAYS_PER_NODE)
    ]
    await eventually(lambda: broker.active == MAX_RELAYS_PER_NODE, "all are waiting")
    with pytest.raises(NodeUnreachable) as caught:
        await broker.open("n1", LOGS).__aenter__()
    assert caught.value.reason == "TooManyRelays"
    await asyncio.gather(*many, return_exceptions=True)
    assert broker.active == 0


async def test_a_node_cannot_take_anothers_relay(home: Region, agent: Agent) -> None:
    thief = await (await (await home.join("n2")).connect()).welcomed()

    async def operator() -> None:
        async with home.gateway.relays.open("n1", LOGS):
            raise AssertionError("the thief was let in")

    waiting = asyncio.create_task(operator())
    asked = await eventually(
        lambda: [m.open_relay for m in agent.heard if m.HasField("open_relay")], "asked"
    )
    assert thief._channel is not None
    for relay_id in (asked[0].relay_id, "made-up"):
        call = agent_pb2_grpc.AgentServiceStub(thief._channel).Relay()
        opened = agent_pb2.RelayOpen(relay_id=relay_id)
        await call.write(agent_pb2.RelayRequest(open=opened))
        assert (await call.code()).name == "NOT_FOUND"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await thief.disconnect()
