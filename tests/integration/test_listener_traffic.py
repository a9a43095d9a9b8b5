"""What an idle agent costs on the wire: thousands of it are most of what a member does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from grpc import aio

from agent.channel import NO_PROBES
from orchestrator.fleet import NodeObservation
from orchestrator.identity.member import SERVER_NAME
from polder.v1 import agent_pb2, agent_pb2_grpc
from tests.integration.gateway_harness import good_inventory
from tests.integration.orchestrator_rig import Rig, running, until

BEATS = 10
QUIET_S = 1.0
ROUNDS = 10
"""In one of them nothing else is left to say: what a beat cost, each of them would cost."""


class Wire:
    """Passes bytes on between an agent and a member, and counts what the member sends."""

    def __init__(self) -> None:
        self.port = 0
        self.sent = 0
        self.sent_at = 0.0

    def is_quiet(self, since: float = 0.0) -> bool:
        return time.monotonic() - max(since, self.sent_at) > QUIET_S

    async def pass_on(
        self, rig: Rig, near: asyncio.StreamReader, back: asyncio.StreamWriter
    ) -> None:
        host, _, port = rig.config.listen.rpartition(":")
        far, forth = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter, mine: bool) -> None:
            with suppress(ConnectionError):
                while data := await source.read(1 << 16):
                    if mine:
                        self.sent, self.sent_at = self.sent + len(data), time.monotonic()
                    to.write(data)
                    await to.drain()
            to.close()

        await asyncio.gather(copy(near, forth, False), copy(far, back, True))


def is_heard(seen: NodeObservation, number: int) -> bool:
    return seen.heartbeat is not None and seen.heartbeat.sequence == number


@asynccontextmanager
async def wire_to(rig: Rig) -> AsyncIterator[Wire]:
    wire = Wire()
    server = await asyncio.start_server(lambda r, w: wire.pass_on(rig, r, w), "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    yield wire
    server.close()


async def test_a_member_sends_nothing_for_a_heartbeat(tmp_path: Path) -> None:
    async with running(tmp_path) as rig, wire_to(rig) as wire:
        await rig.site()
        credentials = await rig.node("n1")
        options = [*NO_PROBES, ("grpc.ssl_target_name_override", SERVER_NAME)]
        tls = credentials.channel_credentials(rig.roots_pem)
        async with aio.secure_channel(f"127.0.0.1:{wire.port}", tls, options) as channel:
            call: Any = agent_pb2_grpc.AgentServiceStub(channel).Session()
            hello = agent_pb2.Hello(
                agent_version="test", instance_id="i", boot_id="b", inventory=good_inventory()
            )
            await call.write(agent_pb2.SessionRequest(hello=hello))
            assert (await call.read()).HasField("welcome")
            seen = rig.orchestrator.parts.fleet.observe("n1")
            for round_ in range(ROUNDS):
                await until(wire.is_quiet, "it has said all")
                before = wire.sent
                for number in range(round_ * BEATS + 1, (round_ + 1) * BEATS + 1):
                    beat = agent_pb2.Heartbeat(sequence=number)
                    await call.write(agent_pb2.SessionRequest(heartbeat=beat))
                    await until(partial(is_heard, seen, number), f"beat {number} is heard")
                looked_at = time.monotonic()
                await until(lambda at=looked_at: wire.is_quiet(at), "it is quiet again")  # type: ignore[misc]
                if wire.sent == before:
                    break
            else:
                raise AssertionError("something was sent for every ten beats")
            call.cancel()
