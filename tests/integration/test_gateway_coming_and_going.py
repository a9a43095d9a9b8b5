"""What agents are told of where members are; how many may come at once; how they are sent away."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.gateway.settings import GatewaySettings
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, good_inventory, region

SETTINGS = GatewaySettings("m1", "eu", "test", session_age_s=100.0)
PLACES = {"eu": (52.0, 5.0), "north": (60.0, 11.0), "south": (38.0, -9.0)}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, SETTINGS) as made:
        yield made


async def put_member(home: Region, name: str, where: str, *, present: bool = False) -> None:
    address = f"{name}.example:7443"
    record = MemberRecord(name, where, "1.0.0", (address,), (f"{name}:7444",), "", PLACES[where])
    ops = [Put(keys.member(name), record.to_bytes())]
    if present:
        there = PresenceRecord(name, where, "1.0.0", "i", 0)
        ops.append(Put(keys.present(name), there.to_bytes()))
    result = await home.store.txn([], ops)
    await home.cache.wait_for(result.revision)


def told(agent: Agent) -> list[list[str]]:
    return [list(m.endpoints.endpoints) for m in agent.heard if m.HasField("endpoints")]


def welcome(agent: Agent) -> agent_pb2.Welcome:
    return [m.welcome for m in agent.heard if m.HasField("welcome")][-1]


async def test_all_members_are_told_nearest_first_everywhere(home: Region) -> None:
    n1 = await (await (await home.join("n1")).connect()).welcomed()
    assert list(welcome(n1).endpoints) == ["127.0.0.1:1"], "nobody has a record yet"
    assert 75_000 <= welcome(n1).session_age_max_ms <= 125_000
    for name, where in (("m1", "eu"), ("m2", "north"), ("m3", "south")):
        await put_member(home, name, where)
    expected = ["m1.example:7443", "m2.example:7443", "m3.example:7443"]
    await eventually(lambda: told(n1) and told(n1)[-1] == expected, "all were told")
    site = {"provider": "p", "country": "PT", "region": "south"}
    await home.put("Site", "lisbon", site)
    n2 = await home.join("n2", "lisbon")
    await (await n2.connect()).welcomed()
    assert list(welcome(n2).endpoints) == [expected[2], expected[0], expected[1]]
    await eventually(lambda: home.cache.node_status("n2"), "seen")
    await home.workload("hello", perNode=1)
    await eventually(lambda: n1.runs() and n2.runs(), "both have plans")
    assert list(n1.plan.endpoints) == expected
    assert list(n2.plan.endpoints) == list(welcome(n2).endpoints)
    token = await home.tokens.create("lisbon", "", 60.0, "operator/test")
    assert token.endpoints == ("m3:7444", "m1:7444", "m2:7444")


async def test_only_those_whose_list_changed_are_told_and_the_plan_stays(home: Region) -> None:
    for name, where in (("m1", "eu"), ("m2", "north")):
        await put_member(home, name, where)
    await home.put("Site", "oslo", {"provider": "p", "country": "NO", "region": "north"})
    here = await (await (await home.join("n1")).connect()).welcomed()
    there = await (await (await home.join("n2", "oslo")).connect()).welcomed()
    await eventually(lambda: home.cache.node_status("n2"), "seen")
    await home.workload("hello", perNode=1)
    await eventually(lambda: here.runs() and there.runs(), "planned")
    generation = here.plan.generation
    # Oslo moves: it concerns nobody else.
    await home.put("Site", "oslo", {"provider": "p", "country": "NO", "region": "eu"})
    await eventually(lambda: told(there), "told")
    assert told(there) == [["m1.example:7443", "m2.example:7443"]]
    # A member that starts again writes its record anew: nothing has changed.
    await put_member(home, "m2", "north")
    await put_member(home, "m3", "south")
    await eventually(lambda: told(here) and len(told(there)) == 2, "told of the third")
    assert told(here) == [["m1.example:7443", "m2.example:7443", "m3.example:7443"]]
    assert here.plan.generation == generation


async def test_those_beyond_the_rate_wait_in_line_and_then_are_told_when_to_come(
    tmp_path: Path,
) -> None:
    slow = replace(SETTINGS, accept_rate=0.5, greeting_max=3)
    async with region(tmp_path, slow) as home:
        agents = [await home.join(f"n{n}") for n in range(8)]
        started = time.monotonic()
        for agent in agents:
            await agent.connect()
        await eventually(lambda: sum(bool(a.heard) for a in agents) >= 5, "who is sent away knows")
        came_s = time.monotonic() - started  # whose turn came meanwhile left a place in the line
        await eventually(lambda: all(a.heard for a in agents), "everybody has an answer", 30)
        inside = [agent for agent in agents if "welcome" in agent.kinds()]
        away = [agent for agent in agents if agent.goodbye() == "Overloaded"]
        assert len(inside) + len(away) == 8 and 2 <= len(inside) <= 4 + int(came_s / 2)
        assert time.monotonic() - started > 2.0, "some waited for their turn"
        waits = [
            m.goodbye.retry_after_ms for agent in away for m in agent.heard if m.HasField("goodbye")
        ]
        assert min(waits) >= 1000 and len(set(waits)) == len(waits), "each has a time of its own"
        assert len(home.gateway.sessions) == len(inside)


async def test_a_member_that_is_late_itself_begins_fewer_sessions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with region(tmp_path, replace(SETTINGS, accept_rate=20.0)) as home:
        agents = [await home.join(f"n{n}") for n in range(12)]
        await asyncio.sleep(0)  # the loop has begun to feel how late it is
        time.sleep(1.0)  # noqa: ASYNC251 - that is the point
        await eventually(lambda: "too busy" in caplog.text, "it has felt it")
        started = time.monotonic()
        for agent in agents:
            await agent.connect()
        await eventually(lambda: len(home.gateway.sessions) == 12, "all are in")
        assert time.monotonic() - started > 0.7, "at 20 a second they take half of that"


async def test_an_agent_that_gives_up_in_line_leaves_nothing_behind(tmp_path: Path) -> None:
    slow = replace(SETTINGS, accept_rate=1.0, greeting_max=50)
    async with region(tmp_path, slow) as home:
        agents = [await home.join(f"n{n}") for n in range(3)]
        for agent in agents:
            await agent.connect()
        await eventually(lambda: home.gateway._greeting >= 1, "somebody waits")
        for agent in agents:
            await agent.disconnect()
        await eventually(lambda: home.gateway._greeting == 0, "nobody is in line")
        await eventually(lambda: len(home.gateway.sessions) == 0, "nobody has a session")


@pytest.mark.parametrize("others", [True, False])
async def test_a_member_that_stops_sends_its_agents_to_the_others(
    home: Region, others: bool
) -> None:
    await put_member(home, "m1", "eu", present=True)
    await put_member(home, "m2", "north", present=others)
    agents = [await (await (await home.join(f"n{n}")).connect()).welcomed() for n in range(12)]
    await home.gateway.shutdown(3.0)
    await eventually(lambda: {agent.goodbye() for agent in agents} == {"Shutdown"}, "all were told")
    waits = {
        m.goodbye.retry_after_ms for agent in agents for m in agent.heard if m.HasField("goodbye")
    }
    assert waits == {0} if others else min(waits) >= 200
    late = await (await home.join("late")).connect()
    await eventually(lambda: late.goodbye() == "Shutdown", "nobody is let in any more")
    assert not home.gateway.sessions.get("late")


async def test_two_sessions_of_one_agent_overlap_without_a_word(home: Region) -> None:
    """A session that takes over for an older one of the same process is nobody's trouble."""
    agent = await home.join("n1")
    agent.hello.session_number = 1
    await (await agent.connect()).welcomed()
    next_one = replace(agent, heard=[], ended=asyncio.Event())
    next_one.hello = agent_pb2.Hello(
        agent_version="test",
        instance_id=agent.hello.instance_id,
        inventory=good_inventory(),
        session_number=2,
    )
    await (await next_one.connect()).welcomed()
    await asyncio.wait_for(agent.ended.wait(), 5)
    assert agent.goodbye() == "Superseded"
    assert "SessionSuperseded" not in home.reasons("Node", "n1")
    seen = home.fleet.get("n1")
    assert seen is not None and seen.connected
