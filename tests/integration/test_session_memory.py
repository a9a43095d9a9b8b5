"""What a session holds while it is open, and that nothing of it is left when it has ended."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.gateway.outbox import Outbox
from orchestrator.gateway.settings import GatewaySettings
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, region

TURNS = 30
NOT_OURS = {"asyncio.events.TimerHandle", "_contextvars.Context", "logging.LogRecord"}
"""asyncio keeps timeouts that were called off until they would have been due, pytest what a test
logged, at whatever level tests before it have left the root logger."""


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, GatewaySettings("m1", "eu", "test")) as made:
        yield made


def objects() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())


async def come_and_go(home: Region, agent: Agent) -> None:
    await (await agent.connect()).welcomed()
    await agent.disconnect()
    await eventually(lambda: not len(home.gateway.sessions) and not home.calls.total, "it is gone")
    agent.heard.clear()


async def test_nothing_is_left_of_sessions_that_ended(home: Region) -> None:
    agent = await home.join("n1")
    for _ in range(5):
        await come_and_go(home, agent)
    before = objects()
    for _ in range(TURNS):
        await come_and_go(home, agent)
    grown = {kind: more for kind, more in (objects() - before).items() if more >= TURNS}
    assert grown.keys() <= NOT_OURS


async def test_an_open_session_keeps_neither_its_hello_nor_what_was_sent(home: Region) -> None:
    agent = await home.join("n1")
    before = objects()
    await (await agent.connect()).welcomed()
    await agent.beat()
    await eventually(lambda: home.fleet.observe("n1").heartbeat, "it is heard")
    await eventually(lambda: home.cache.node_status("n1"), "its inventory is written")
    agent.heard.clear()
    kept = objects() - before
    assert kept["polder.v1.agent_pb2.Hello"] == 0
    assert kept["polder.v1.agent_pb2.SessionResponse"] <= 1, "the last one, at this agent"
    await agent.disconnect()


async def test_a_writer_that_is_cancelled_leaves_an_outbox_that_can_be_taken_from() -> None:
    outbox = Outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait({taking})
    message = agent_pb2.SessionResponse()
    outbox.put(message)
    assert await outbox.take() is message
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(message)
    outbox.close()
    assert await taking is None, "what waits is dropped"
