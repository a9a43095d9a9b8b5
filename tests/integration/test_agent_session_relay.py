"""Relays of logs and exec over a real connection."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from agent import relay
from agent.identity_store import IdentityStore
from agent.relay import RelayHub
from agent.runtime.port import NotFound
from agent.session import SessionClient
from agent.session_stream import Timing
from polder.v1 import agent_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually, write_identity
from tests.integration.test_agent_session_client import FakeNode


class Shell:
    """Echoes what is typed until stdin is closed, then ends with 7."""

    def __init__(self) -> None:
        self.typed: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.size = (0, 0)
        self.closed = False
        self.exit_code = 7

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        while (data := await self.typed.get()) is not None:
            yield "stdout", b"got " + data
        yield "stderr", b"bye"

    async def write(self, data: bytes) -> None:
        self.typed.put_nowait(data)

    async def close_stdin(self) -> None:
        self.typed.put_nowait(None)

    async def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)

    async def close(self) -> None:
        self.closed = True


class Sources:
    def __init__(self) -> None:
        self.shells: list[Shell] = []
        self.produced = 0
        self.lines: list[tuple[str, bytes]] | None = [("stdout", b"a\n"), ("stderr", b"b\n")]
        self.released = 0

    async def logs(self, options: agent_pb2.LogOptions) -> AsyncGenerator[tuple[str, bytes], None]:
        if options.replica_uid == "none":
            raise NotFound("ReplicaNotFound", "no such replica here")
        try:
            if self.lines is not None:
                for line in self.lines:
                    yield line
                return
            while True:  # a container that never stops writing
                self.produced += 1
                yield "stdout", b"x" * 65536
                await asyncio.sleep(0)
        finally:
            self.released += 1

    async def exec(self, options: agent_pb2.ExecOptions) -> Shell:
        shell = Shell()
        self.shells.append(shell)
        return shell


@pytest.fixture
async def server():
    orchestrator = await Orchestrator(Ca()).start()
    yield orchestrator
    await orchestrator.stop()


@pytest.fixture
def sources() -> Sources:
    return Sources()


@pytest.fixture
async def hub(tmp_path, server, sources):
    write_identity(tmp_path, server.ca, [server.endpoint])
    hub = RelayHub(sources, limit=3)
    client = SessionClient(IdentityStore(tmp_path), FakeNode(), hub, timing=Timing(welcome_max_s=5))
    task = asyncio.create_task(client.run())
    await eventually(lambda: client.state.connected)
    yield hub
    await client.stop()
    await asyncio.wait_for(task, 5)
    await hub.close()


def logs(server: Orchestrator, relay_id: str, uid: str = "u") -> None:
    options = agent_pb2.LogOptions(replica_uid=uid, tail_lines=-1)
    server.visits[0].say(open_relay=agent_pb2.OpenRelay(relay_id=relay_id, logs=options))


def ended(server: Orchestrator, relay_id: str) -> agent_pb2.RelayEnd | None:
    heard = server.relays.get(relay_id, [])
    return heard[-1].end if heard and heard[-1].HasField("end") else None


async def test_logs_come_in_order_and_end(server, sources, hub) -> None:
    logs(server, "r1")
    await eventually(lambda: ended(server, "r1") is not None)
    heard = server.relays["r1"]
    assert [(r.stdout, r.stderr) for r in heard[:-1]] == [(b"a\n", b""), (b"", b"b\n")]
    assert heard[-1].end == agent_pb2.RelayEnd()
    await eventually(lambda: len(hub) == 0)


async def test_what_cannot_be_done_is_said(server, sources, hub) -> None:
    logs(server, "r1", "none")
    server.visits[0].say(open_relay=agent_pb2.OpenRelay(relay_id="r2"))
    await eventually(lambda: ended(server, "r1") and ended(server, "r2"))
    assert ended(server, "r1").reason == "ReplicaNotFound"
    assert ended(server, "r2").reason == "Unsupported"


async def test_exec_carries_both_directions_and_the_exit_code(server, sources, hub) -> None:
    async def type_into(context, relay_id: str) -> None:
        size = agent_pb2.TerminalSize(columns=80, rows=25)
        await context.write(agent_pb2.RelayResponse(stdin=b"hi"))
        await context.write(agent_pb2.RelayResponse(resize=size))
        await context.write(agent_pb2.RelayResponse(close_stdin=True))

    server.relay_script = type_into
    options = agent_pb2.ExecOptions(replica_uid="u", command=["sh"], stdin=True, tty=True)
    server.visits[0].say(open_relay=agent_pb2.OpenRelay(relay_id="e1", exec=options))
    await eventually(lambda: ended(server, "e1") is not None)
    assert [r.stdout or r.stderr for r in server.relays["e1"][:-1]] == [b"got hi", b"bye"]
    assert ended(server, "e1").exit_code == 7
    assert sources.shells[0].size == (80, 25)
    await eventually(lambda: sources.shells[0].closed)


async def test_a_slow_reader_stops_the_writer_and_not_the_heartbeats(server, sources, hub) -> None:
    sources.lines = None
    never = asyncio.Event()

    async def read_nothing(context, relay_id: str) -> None:
        await never.wait()

    server.relay_script = read_nothing
    logs(server, "slow")
    await eventually(lambda: sources.produced > 0)
    settled = -1
    while settled != sources.produced:
        settled = sources.produced
        before = len(server.visits[0].of("heartbeat"))
        await eventually(lambda n=before: len(server.visits[0].of("heartbeat")) >= n + 3)
    assert settled * 65536 < 64 << 20


async def test_an_operator_who_leaves_frees_the_relay(server, sources, hub) -> None:
    sources.lines = None

    async def leave(context, relay_id: str) -> None:
        await context.abort(relay.grpc.StatusCode.CANCELLED, "the operator has gone")

    server.relay_script = leave
    logs(server, "left")
    await eventually(lambda: sources.released == 1 and len(hub) == 0)

    options = agent_pb2.ExecOptions(replica_uid="u", command=["sh"], stdin=True)
    server.visits[0].say(open_relay=agent_pb2.OpenRelay(relay_id="e1", exec=options))
    await eventually(lambda: sources.shells and sources.shells[0].closed)


async def test_only_so_many_at_once(server, sources, hub) -> None:
    options = agent_pb2.ExecOptions(replica_uid="u", command=["sh"], stdin=True)
    for i in range(4):
        server.visits[0].say(open_relay=agent_pb2.OpenRelay(relay_id=f"e{i}", exec=options))
    await eventually(lambda: ended(server, "e3") is not None)
    assert ended(server, "e3").reason == "TooManyRelays"
    assert len(sources.shells) == 3
