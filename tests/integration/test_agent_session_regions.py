"""How the session client finds members in several regions, keeps them, leaves and comes back."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agent.identity_store import IdentityStore
from polder.v1 import agent_pb2, common_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, Visit, eventually, write_identity
from tests.integration.test_agent_session_client import QUICK, Running

GONE = "127.0.0.1:1"


@pytest.fixture
def ca() -> Ca:
    return Ca()


@pytest.fixture
async def near(ca: Ca) -> AsyncIterator[Orchestrator]:
    made = await Orchestrator(ca).start()
    made.member = "near"
    yield made
    await made.stop()


@pytest.fixture
async def far(ca: Ca) -> AsyncIterator[Orchestrator]:
    made = await Orchestrator(ca).start()
    made.member = "far"
    yield made
    await made.stop()


def stored(state_dir: Path) -> list[str]:
    found: list[str] = json.loads((state_dir / "identity" / "endpoints.json").read_text())
    return found


def numbers(*orchestrators: Orchestrator) -> list[int]:
    visits = [visit for one in orchestrators for visit in one.visits if visit.received]
    return sorted(visit.hello.session_number for visit in visits)


def away(visit: Visit, reason: str, retry_ms: int = 0) -> None:
    visit.say(goodbye=agent_pb2.Goodbye(reason=reason, retry_after_ms=retry_ms))


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """Accepts connections, and never says a word."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in held:
            writer.transport.abort()
        server.close()


@asynccontextmanager
async def dropping() -> AsyncIterator[str]:
    """Packets to it are dropped: its queue of connections is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"


@asynccontextmanager
async def no_name() -> AsyncIterator[str]:
    yield "no-such-orchestrator.invalid:7443"


@pytest.mark.parametrize("dead", [black_hole, dropping, no_name])
async def test_a_dead_endpoint_costs_a_few_seconds(tmp_path, ca, near, dead) -> None:
    async with dead() as first:
        write_identity(tmp_path, ca, [first, near.endpoint])
        started = time.monotonic()
        async with Running(tmp_path) as running:
            await eventually(lambda: running.client.state.connected, 20)
            assert time.monotonic() - started < 6.0
            assert running.client.state.member == "near"


async def test_a_member_that_stops_is_left_for_the_next_at_once(tmp_path, ca, near, far) -> None:
    write_identity(tmp_path, ca, [near.endpoint, far.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.member == "near")
        started = time.monotonic()
        away(near.visits[0], "Shutdown")
        await eventually(lambda: running.client.state.member == "far")
        assert time.monotonic() - started < 2.0
        assert len(near.visits) == 1 and numbers(near, far) == [1, 2]


async def test_a_full_member_is_asked_again_when_it_said_unless_another_is_found(
    tmp_path, ca, near, far
) -> None:
    full = agent_pb2.Goodbye(reason="Overloaded", retry_after_ms=8000)
    near.greeting = agent_pb2.SessionResponse(goodbye=full)
    write_identity(tmp_path, ca, [near.endpoint, far.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.member == "far")
        assert len(near.visits) == 1
    far.greeting = near.greeting = agent_pb2.SessionResponse(
        goodbye=agent_pb2.Goodbye(reason="Overloaded", retry_after_ms=1500)
    )
    asked = len(near.visits)
    async with Running(tmp_path) as running:
        started = time.monotonic()
        await eventually(lambda: len(near.visits) == asked + 1 and near.visits[-1].over)
        near.greeting = None
        await eventually(lambda: running.client.state.member == "near")
        assert time.monotonic() - started >= 1.5


async def test_a_region_that_vanishes_and_comes_back_gets_its_agents_again(
    tmp_path, ca, near, far
) -> None:
    near.age_ms, far.age_ms = 0, 1000
    write_identity(tmp_path, ca, [near.endpoint, far.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.member == "near")
        port = near.port
        await near.stop()
        await eventually(lambda: running.client.state.member == "far")
        # Old sessions knock at the nearest in vain, and stay where they are.
        opened = len(far.visits)
        await eventually(lambda: len(far.visits) >= opened + 2, 15)
        assert running.client.state.connected
        before = len(running.states)
        await near.start(port)
        await eventually(lambda: running.client.state.member == "near", 15)
        assert all(state.connected for state in running.states[before:])
        await eventually(lambda: all(visit.over for visit in far.visits))
        # The new session stands before the old one is left, and speaks for the agent.
        running.client.publish_event(common_pb2.Event(reason="AfterReturning"))
        await eventually(lambda: near.visits[-1].of("events"))
        heard = [visit.hello.session_number for visit in near.visits]
        assert heard == sorted(set(heard)) and heard[-1] == max(numbers(near, far))


async def test_an_old_session_at_the_nearest_is_dialled_anew_without_a_gap(
    tmp_path, ca, near
) -> None:
    near.age_ms = 700
    write_identity(tmp_path, ca, [near.endpoint, GONE])
    async with Running(tmp_path) as running:
        await eventually(lambda: len(near.visits) >= 3, 15)
        await eventually(lambda: near.visits[1].over)
        assert all(state.connected for state in running.states)
        first, second = near.visits[:2]
        assert not first.received[-1].HasField("hello") and second.hello.session_number == 2


async def test_a_failed_renewal_of_an_old_session_leaves_it_alone(tmp_path, ca, near) -> None:
    near.age_ms = 600
    write_identity(tmp_path, ca, [near.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        near.greeting = agent_pb2.SessionResponse(
            goodbye=agent_pb2.Goodbye(reason="Overloaded", retry_after_ms=60_000)
        )
        await eventually(lambda: len(near.visits) >= 3, 15)
        assert not near.visits[0].over and running.client.state.connected
        beats = len(near.visits[0].of("heartbeat"))
        await eventually(lambda: len(near.visits[0].of("heartbeat")) > beats)
        near.greeting = None
        await eventually(lambda: near.visits[0].over, 15)
        assert all(state.connected for state in running.states)


async def test_what_sessions_say_is_kept_and_old_plans_do_not_overwrite_it(
    tmp_path, ca, near, far
) -> None:
    near.told = [near.endpoint, far.endpoint, "not an address"]
    write_identity(tmp_path, ca, [near.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: stored(tmp_path) == [near.endpoint, far.endpoint])
        running.client.use_endpoints([GONE])  # of a plan that was made long ago
        assert stored(tmp_path) == [near.endpoint, far.endpoint]
        endpoints = agent_pb2.Endpoints(endpoints=[far.endpoint, "10.0.0.9:7443"])
        near.visits[0].say(endpoints=endpoints)
        # The address over which this was heard works, whatever the list says.
        expected = [far.endpoint, "10.0.0.9:7443", near.endpoint]
        await eventually(lambda: stored(tmp_path) == expected)
        near.visits[0].say(endpoints=agent_pb2.Endpoints())
        await near.stop()
        await eventually(lambda: running.client.state.member == "far")
        far.visits[-1].say(endpoints=endpoints)
        await eventually(lambda: stored(tmp_path) == [far.endpoint, "10.0.0.9:7443"])
    # After a restart of the box the list on disk counts, not that of a plan.
    assert IdentityStore(tmp_path).load().endpoints == (far.endpoint, "10.0.0.9:7443")


async def test_a_plan_counts_while_no_session_ever_said(tmp_path, ca, near, far) -> None:
    """As with a member of the version before, which says nothing in its Welcome."""
    write_identity(tmp_path, ca, [near.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        running.client.use_endpoints([far.endpoint, near.endpoint])
        assert stored(tmp_path) == [far.endpoint, near.endpoint]
        assert running.client.state.member == "near"


async def test_the_session_that_is_left_has_no_say_any_more(tmp_path, ca, near) -> None:
    near.age_ms = 600
    near.told = [near.endpoint]
    write_identity(tmp_path, ca, [near.endpoint])
    async with Running(tmp_path, timing=QUICK) as running:
        await eventually(lambda: len(near.visits) == 2)
        near.age_ms = 0
        near.visits[0].say(endpoints=agent_pb2.Endpoints(endpoints=[GONE]))
        await eventually(lambda: near.visits[0].over)
        assert running.client.state.connected and stored(tmp_path)[0] == near.endpoint
