"""Agents are told where operators find the nodes of their site, and whom not to let in."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.identity.allowlist import BREAK_GLASS, revoke_identity
from orchestrator.records import IdentityRecord
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, region

LATER_MS = 4_000_000_000_000


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path) as made:
        yield made


async def enter(home: Region, node: str, site: str = "s1", *, local: bool = True) -> Agent:
    agent = await home.join(node, site)
    if local:
        agent.hello.inventory.local_endpoints[:] = [f"{node}.example:7446"]
    await (await agent.connect()).welcomed()
    await eventually(lambda: home.cache.node_status(node), f"{node} was seen")
    return agent


def told(agent: Agent) -> agent_pb2.SiteDirectory:
    """The newest; an empty one before the first."""
    found = [m.site_directory for m in agent.heard if m.HasField("site_directory")]
    return found[-1] if found else agent_pb2.SiteDirectory()


def names(agent: Agent) -> list[str]:
    return [node.node for node in told(agent).nodes]


async def test_nodes_of_the_site_alone_and_each_change_of_them(home: Region) -> None:
    a, b = await enter(home, "a"), await enter(home, "b")
    elsewhere = await enter(home, "z", "s2")
    await eventually(lambda: names(a) == names(b) == ["a", "b"], "both know both")
    assert list(told(a).nodes[1].local_endpoints) == ["b.example:7446"]
    assert names(elsewhere) == ["z"]
    moved = agent_pb2.NodeInventory()
    moved.CopyFrom(b.hello.inventory)
    moved.local_endpoints[:] = ["other.example:7446"]
    await b.say(inventory=moved)
    await eventually(
        lambda: list(told(a).nodes[1].local_endpoints) == ["other.example:7446"], "a is told"
    )
    await revoke_identity(home.store, "node", "b", "stolen", 5.0)
    await eventually(lambda: names(a) == ["a"], "nobody is led to a node that was revoked")
    for agent in (a, b, elsewhere):
        await agent.disconnect()


async def test_what_was_revoked_stays_so_when_its_operator_gets_another(home: Region) -> None:
    agent = await enter(home, "a")
    await eventually(lambda: names(agent), "it is told")
    assert not told(agent).revoked_serials
    ann = IdentityRecord("operator", "ann", serials={"aa": LATER_MS, "bb": LATER_MS})
    await home.store.txn([], [Put(keys.identity("operator", "ann"), ann.to_bytes())])
    await revoke_identity(home.store, "operator", "ann", "left", 5.0)
    await revoke_identity(home.store, BREAK_GLASS, "0123abcd", "used up", 5.0)
    await eventually(
        lambda: list(told(agent).revoked_serials) == ["0123abcd", "aa", "bb"], "all are told"
    )
    gone = home.cache.identity("operator", "ann")
    assert gone is not None
    again = replace(gone, serials={"cc": LATER_MS}, revoked_at_ms=0, former=gone.refused_serials)
    await home.store.txn([], [Put(keys.identity("operator", "ann"), again.to_bytes())])
    await eventually(lambda: home.cache.identity("operator", "ann") != gone, "it is known")
    second = await enter(home, "b")
    await eventually(lambda: names(agent) == ["a", "b"], "it is told again")
    assert list(told(second).revoked_serials) == ["0123abcd", "aa", "bb"]
    assert again.accepts("cc") and not again.accepts("aa")
    await agent.disconnect()
    await second.disconnect()


async def test_where_nobody_answers_operators_nothing_is_said(home: Region) -> None:
    agent = await enter(home, "a", local=False)
    other = await enter(home, "z", "s2")
    await eventually(lambda: names(other), "the other site is told")
    assert not any(message.HasField("site_directory") for message in agent.heard)
    await agent.disconnect()
    await other.disconnect()
