"""Exclusive replicas through a real gateway, leader and Store: moved, lost, and fenced for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.domain.fences import Fence, fenced_uids
from orchestrator.domain.liveness import Periods
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.leader import LeaderSettings
from orchestrator.scheduling.leftovers import SETTLE_S
from orchestrator.store import keys
from orchestrator.store.port import Put
from tests.integration.gateway_harness import Agent, Region, eventually, region
from tests.integration.test_site_plans import reachable

PERIODS = Periods(silent_after_s=4.0, lost_after_s=6.0)  # on a machine that has much else to do
SETTINGS = GatewaySettings("m1", "eu", "test", heartbeat_s=5.0, periods=PERIODS)
HERE = ("a", "b", "c")
WITHIN_S = 60.0


@dataclass
class Home:
    """Three nodes at one site and one at another; `alive` are heard."""

    region: Region
    agents: dict[str, Agent]
    alive: set[str]

    async def beat(self) -> None:
        while True:
            for name in list(self.alive):
                await self.agents[name].beat()
            await asyncio.sleep(0.2)

    def having(self) -> list[str]:
        return [p.node for p in self.region.cache.placements() if p.assignments]

    async def holder(self, *but: str) -> str:
        """Who has the only replica, once everybody knows."""

        def found() -> str:
            having = self.having()
            known = [name for name, agent in self.agents.items() if agent.plan.assignments]
            return having[0] if having == known and len(having) == 1 else ""

        await eventually(lambda: found() not in ("", *but), "one has it", WITHIN_S)
        return found()

    async def holder_on_record(self, but: str) -> str:
        """The only one, another than that."""
        await eventually(
            lambda: len(home := self.having()) == 1 and but not in home, "another has it", WITHIN_S
        )
        return self.having()[0]

    def told(self) -> dict[str, str]:
        found = self.region.leader.explanations.get(("default", "db"), ())
        return {explanation.code: explanation.message for explanation in found}

    async def drain(self, *names: str) -> None:
        for name in names:
            record = self.region.cache.resource("Node", "", name)
            assert record is not None
            await self.region.put("Node", name, {**record.spec, "draining": True})


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    leader = LeaderSettings("m1", poll_s=0.2, idle_plan_every_s=0.5, periods=PERIODS)
    async with region(tmp_path, SETTINGS, leader) as made:
        agents = {}
        for name in (*HERE, "far"):
            site = "s1" if name in HERE else "s2"
            agent = agents[name] = await made.join(name, site)
            reachable(agent.hello.inventory, name, site)
            await (await agent.connect()).welcomed()
        await eventually(
            lambda: all(map(made.cache.node_status, agents)), "all were seen", WITHIN_S
        )
        await made.put("Node", "far", {"site": "s2", "unschedulable": True})
        await made.workload("db", replicas=1, failover={"exclusive": True, "standbys": 1})
        found = Home(made, agents, set(agents))
        beating = asyncio.create_task(found.beat())
        yield found
        beating.cancel()
        for agent in agents.values():
            await agent.disconnect()


async def test_it_is_handed_over_in_its_site_and_stops_before_it_goes_to_another(
    home: Home,
) -> None:
    holder = await home.holder()
    group = home.agents[holder].plan.assignments[0].group
    assert group.exclusive and {*group.members, *group.witnesses} == set(HERE)
    await home.drain(holder)
    after = await home.holder(holder)
    assert after == group.members[1], "its standby"
    assert home.agents[after].plan.assignments[0].group.number == group.number
    await eventually(
        lambda: not home.region.cache.placement(holder).stops, "it is gone there", WITHIN_S
    )
    await home.region.put("Node", "far", {"site": "s2"})
    silent = (set(HERE) - {after, holder}).pop()
    home.agents[silent].obedient = False  # it has an older plan, and says nothing
    home.agents[holder].obedient = False
    await home.drain(*HERE)
    await eventually(lambda: home.region.cache.placement(after).stops, "it stops", WITHIN_S)
    await eventually(
        lambda: "might take it over" in home.told().get("ExclusiveWaits", ""), "waits", WITHIN_S
    )
    assert not home.having()
    for name in (holder, silent):
        agent = home.agents[name]
        agent.obedient = True
        await agent.say(plan_ack={"generation": agent.plan.generation, "accepted": True})
        await agent.report()
    assert await home.holder() == "far"
    moved = home.agents["far"].plan.assignments[0].group
    assert list(moved.members) == ["far"] and not moved.before


async def test_what_is_silent_is_not_replaced_until_somebody_vouches(home: Home) -> None:
    holder = await home.holder()
    (held,) = home.agents[holder].plan.assignments
    home.alive.discard(holder)
    await home.agents[holder].disconnect()
    await eventually(lambda: "ExclusiveWaits" in home.told(), "it is lost", WITHIN_S)
    assert home.having() == [holder]
    vouched = Fence(held.workload_uid, "db-0", (held.replica_uid,), "operator/ann", 1).record()
    await home.region.store.txn([], [Put(vouched.key, vouched.to_bytes())])
    taker = await home.holder_on_record(but=holder)
    group = home.region.cache.placement(taker).assignments[0].group
    assert group is not None and group.forced and not group.before
    assert home.region.cache.placement(holder).stops
    assert fenced_uids(home.region.cache.kept(keys.FENCES)) == {held.replica_uid}
    # When it comes back it is told to stop, and the word about it is swept.
    agent = home.agents[holder]
    agent.hello.plan_generation = agent.plan.generation
    agent.heard.clear()
    await (await agent.connect()).welcomed()
    home.alive.add(holder)
    await eventually(
        lambda: not home.region.cache.kept(keys.FENCES),
        "nothing is left to vouch for",
        WITHIN_S + SETTLE_S,
    )
