"""Logs through a line between two members that breaks or hangs, and through a renewed one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway.relays import NodeUnreachable
from polder.v1 import agent_pb2, agent_pb2_grpc
from tests.integration.gateway_harness import Agent, eventually
from tests.integration.mesh_harness import Member, members
from tests.integration.test_mesh_members import beating, connected

LOGS = agent_pb2.OpenRelay(logs=agent_pb2.LogOptions(replica_uid="u"))


async def talking(agent: Agent) -> None:
    """Says a line ten times a second to whoever asks next."""
    asked = await eventually(
        lambda: [m.open_relay for m in agent.heard if m.HasField("open_relay")], "asked"
    )
    assert agent._channel is not None
    stub: Any = agent_pb2_grpc.AgentServiceStub(agent._channel)
    call = stub.Relay()
    opened = agent_pb2.RelayOpen(relay_id=asked[-1].relay_id)
    await call.write(agent_pb2.RelayRequest(open=opened))
    while not call.done():
        await call.write(agent_pb2.RelayRequest(stdout=b"line\n"))
        await asyncio.sleep(0.1)


async def read_to_its_end(home: Member, agent: Agent, begun: asyncio.Event) -> NodeUnreachable:
    speaking = asyncio.create_task(talking(agent))
    with pytest.raises(NodeUnreachable) as caught:
        async with home.mesh.forwarding.open("n1", LOGS) as relay:
            async for _ in relay:
                begun.set()
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    return caught.value


@pytest.mark.parametrize("how", ["cut", "hang"])
async def test_a_line_that_breaks_or_hangs_ends_the_log(tmp_path: Path, how: str) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        agent = await connected(b, a)
        beats = asyncio.create_task(beating(agent))
        begun = asyncio.Event()
        reading = asyncio.create_task(read_to_its_end(a, agent, begun))
        await asyncio.wait_for(begun.wait(), 10)
        assert b.proxy is not None
        getattr(b.proxy, how)()
        error = await asyncio.wait_for(reading, 20)
        assert error.reason == "ConnectionLost" and "member b" in error.message
        await eventually(lambda: not a.hears(b), "the link is given up", 20)
        # Asked again: named at once, and not waited for.
        with pytest.raises(NodeUnreachable) as caught:
            async with asyncio.timeout(5):
                async with a.mesh.forwarding.open("n1", LOGS):
                    pass
        assert "member b" in caught.value.message
        b.proxy.mend()
        await eventually(lambda: a.hears(b) and a.owner("n1") == "b", "heard again", 20)
        agent.heard.clear()
        speaking = asyncio.create_task(talking(agent))
        async with a.mesh.forwarding.open("n1", LOGS) as relay:
            assert (await anext(aiter(relay))).stdout == b"line\n"
        speaking.cancel()
        beats.cancel()
        await asyncio.gather(speaking, beats, return_exceptions=True)
        await agent.disconnect()


async def test_a_log_outlives_the_certificate_that_its_line_began_with(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        agent = await connected(b, a)
        beats = asyncio.create_task(beating(agent))
        speaking = asyncio.create_task(talking(agent))
        async with a.mesh.forwarding.open("n1", LOGS) as relay:
            assert (await anext(aiter(relay))).stdout == b"line\n"
            before = a.mesh.links.stub("b")
            a.member.renew()
            await eventually(
                lambda: a.mesh.links.stub("b") not in (before, None), "a new line", within_s=15
            )
            for _ in range(20):
                assert (await anext(aiter(relay))).stdout == b"line\n"
        beats.cancel()
        speaking.cancel()
        await asyncio.gather(speaking, beats, return_exceptions=True)
        await agent.disconnect()
