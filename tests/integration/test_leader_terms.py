"""Leading over a real Store: one leads, a deposed one writes nothing, a restart takes over."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.liveness import Periods
from orchestrator.election import Deposed, Election
from orchestrator.fleet import Fleet
from orchestrator.leader import Leader, LeaderSettings
from orchestrator.leader_commit import Committer
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import NodePlacement, TemplateRevision
from orchestrator.scheduling.plan import plan
from orchestrator.store import keys
from orchestrator.store.port import Put, Store, StoreUnavailable
from orchestrator.store.sqlite import open_sqlite
from tests.integration.gateway_harness import Agent, Region, eventually, region

QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.2, lease_ttl_s=2.0)
HELD_S = 3.0  # and renewed three times before a busy machine could lose it


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_sqlite(tmp_path / "election.db")
    yield opened
    await opened.close()


# --- elections ------------------------------------------------------------------------------------


async def test_one_leads_and_the_other_waits_for_the_lease(store: Store) -> None:
    first, second = (Election(store, name, time.monotonic, 60.0) for name in ("a", "b"))
    term = await first.campaign()
    waiting = asyncio.create_task(second.campaign())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await first.resign(term)
    later = await asyncio.wait_for(waiting, 30)
    assert later.number > term.number


async def test_a_dead_leaders_lease_runs_out(store: Store) -> None:
    first, second = (Election(store, name, time.monotonic, 0.5) for name in ("a", "b"))
    term = await first.campaign()
    later = await asyncio.wait_for(second.campaign(), 10)
    assert later.number > term.number
    with pytest.raises(Deposed):
        await asyncio.wait_for(first.hold(term), 30)


async def test_a_restarted_member_takes_over_its_own_term_at_once(store: Store) -> None:
    term = await Election(store, "a", time.monotonic, 60.0).campaign()
    started = time.monotonic()
    again = await Election(store, "a", time.monotonic, 60.0).campaign()
    assert time.monotonic() - started < 30.0, "and does not wait for its lease"
    assert again.number > term.number
    entry = await store.get(keys.LEADER)
    assert entry is not None and entry.mod_revision == again.number
    result = await store.txn([term.fence], [Put("/x", b"")])
    assert not result.committed


async def test_two_processes_of_one_name_do_not_depose_each_other_for_ever(store: Store) -> None:
    old, new = (Election(store, "a", time.monotonic, 60.0) for _ in range(2))
    await old.campaign()
    term = await new.campaign()
    waiting = asyncio.create_task(old.campaign())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert (await store.txn([term.fence], [Put("/x", b"")])).committed
    waiting.cancel()


async def test_a_leader_that_holds_keeps_its_lease(store: Store) -> None:
    election = Election(store, "a", time.monotonic, HELD_S)
    term = await election.campaign()
    ends_at = time.monotonic() + HELD_S + 1.0
    holding = asyncio.create_task(election.hold(term))
    await eventually(lambda: time.monotonic() > ends_at or holding.done(), "it had run out")
    assert not holding.done()
    assert (await store.txn([term.fence], [Put("/x", b"")])).committed
    holding.cancel()


# --- fencing --------------------------------------------------------------------------------------


async def test_a_deposed_leaders_write_fails(tmp_path: Path) -> None:
    async with region(tmp_path, leading=False) as home:
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello", replicas=2)
        old = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        builder = SnapshotBuilder(home.cache, home.fleet)
        committer = Committer(home.store, home.cache, home.fleet, time.time)
        snapshot = builder.build(time.time(), time.time())
        decided = plan(snapshot, time.time())
        assert len(decided.place) == 2
        new = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        with pytest.raises(Deposed):
            await committer.commit(decided, snapshot, old)
        assert await home.store.get(keys.placement("n1")) is None
        done = await committer.commit(decided, snapshot, new)
        assert len(done.place) == 2 and done.revision
        await agent.disconnect()


async def test_a_stale_part_refuses_alone(tmp_path: Path) -> None:
    async with region(tmp_path, leading=False) as home:
        agents = [await (await (await home.join(n)).connect()).welcomed() for n in ("n1", "n2")]
        await eventually(lambda: all(home.cache.node_status(a.node) for a in agents), "seen")
        await home.workload("hello", perNode=1)
        term = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        snapshot = SnapshotBuilder(home.cache, home.fleet).build(time.time(), time.time())
        decided = plan(snapshot, time.time())
        await home.store.txn([], [Put(keys.placement("n1"), NodePlacement("n1", 5).to_bytes())])
        committer = Committer(home.store, home.cache, home.fleet, time.time)
        done = await committer.commit(decided, snapshot, term)
        assert done.refused == ["n1"] and [p.node for p in done.place] == ["n2"]
        for agent in agents:
            await agent.disconnect()


# --- the loop -------------------------------------------------------------------------------------


async def test_a_lost_nodes_replicas_move_and_come_back_as_stops(tmp_path: Path) -> None:
    settings = replace(QUICK, periods=Periods(silent_after_s=1.0, lost_after_s=2.0))
    async with region(tmp_path, leader_settings=settings) as home:
        first = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        beating = asyncio.create_task(_beat(first))
        await home.workload("hello")
        await eventually(lambda: first.runs() == ["hello-0"], "planned")
        second = await (await (await home.join("n2")).connect()).welcomed()
        also_beating = asyncio.create_task(_beat(second))
        await eventually(lambda: home.cache.node_status("n2"), "seen")
        beating.cancel()
        await first.disconnect()
        await eventually(lambda: second.runs() == ["hello-0"], "moved")
        older = first.plan.assignments[0]
        newer = second.plan.assignments[0]
        assert newer.epoch > older.epoch and newer.replica_uid != older.replica_uid
        first.hello.plan_generation = first.plan.generation
        await first.connect()
        await eventually(lambda: not first.runs(), "the returned node is told to stop")
        await eventually(lambda: not home.cache.placement("n1").stops, "and its stop is pruned")
        assert second.runs() == ["hello-0"]
        await home.told("Replica", "hello-0", "NodeLost")
        also_beating.cancel()
        for agent in (first, second):
            await agent.disconnect()


async def _beat(agent: Agent) -> None:
    while True:
        await agent.beat()
        await asyncio.sleep(0.1)


async def test_a_deleted_node_leaves_nothing_behind(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello")
        await eventually(lambda: agent.runs() == ["hello-0"], "planned")
        await home.delete("Node", "n1")
        await asyncio.wait_for(agent.ended.wait(), 10)
        await agent.disconnect()
        # Not of the stream that ended: what the agent wrote then would hide why it did.
        await agent.connect()
        await asyncio.wait_for(agent.ended.wait(), 10)
        assert agent.error is not None and agent.error.code().name == "UNAUTHENTICATED"
        for prefix in (
            keys.PLACEMENTS,
            keys.IDENTITIES,
            keys.NODE_STATUS,
            keys.spec_prefix("Node"),
        ):
            assert not (await home.store.range(prefix)).entries, prefix
        assert home.fleet.get("n1") is None or not home.fleet.get("n1").connected  # type: ignore[union-attr]
        await eventually(
            lambda: home.leader.explanations.get(("default", "hello")), "the replica has no place"
        )
        await agent.disconnect()


async def test_explanations_say_why_and_go_when_it_is_solved(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello", placement={"arch": ["amd64"]})
        (why,) = await eventually(
            lambda: home.leader.explanations.get(("default", "hello")), "explained"
        )
        assert why.code == "Unschedulable" and why.replicas == ("hello-0",)
        assert [(r.code, r.nodes) for r in why.reasons] == [("WrongArchitecture", 1)]
        assert home.leader.desired[("default", "hello")] == 1
        assert home.reasons("Workload", "hello") == ["Unschedulable"]
        await home.workload("hello")
        await eventually(lambda: agent.runs() == ["hello-0"], "placed")
        await eventually(lambda: not home.leader.explanations, "solved")
        await agent.disconnect()


async def test_old_revisions_are_collected_but_never_one_in_use(tmp_path: Path) -> None:
    settings = replace(QUICK, collect_every_s=0.0)
    async with region(tmp_path, leader_settings=settings) as home:
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello")
        await eventually(lambda: agent.runs() == ["hello-0"], "planned")
        agent.obedient = False
        workload = home.cache.resource("Workload", "default", "hello")
        assert workload is not None
        template = {"containers": [{"name": "app", "image": "x"}]}
        revisions = [
            Put(
                keys.revision(workload.uid, number),
                TemplateRevision(workload.uid, number, template, "d", 0).to_bytes(),
            )
            for number in range(2, 31)
        ]
        await home.store.txn([], revisions)
        await home.workload("other")
        wanted = {1, *range(21, 31)}

        def kept() -> set[int]:
            return {r.number for r in home.cache.revisions() if r.workload_uid == workload.uid}

        await eventually(lambda: kept() == wanted, "collected")
        await agent.disconnect()


async def test_a_failing_tick_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        await eventually(lambda: home.leader.stats.ticks, "leads")
        build = SnapshotBuilder.build
        failures = 0

        def broken(self: SnapshotBuilder, *moment: float) -> Any:
            nonlocal failures
            failures += 1
            if failures <= 2:
                raise ZeroDivisionError("a bug")
            if failures == 3:
                raise StoreUnavailable("away")
            return build(self, *moment)

        monkeypatch.setattr(SnapshotBuilder, "build", broken)
        ticks = home.leader.stats.ticks
        await eventually(lambda: home.leader.stats.ticks > ticks, "works again")
        assert home.leader.stats.failures == 2 and home.leader.is_leading
        assert home.reasons("Member", "m1") == ["LeaderTickFailed"]


async def test_a_leader_that_lost_its_key_stands_again(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        await eventually(lambda: home.leader.is_leading, "leads")
        term = home.leader.term
        await home.remove(keys.LEADER)
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello")  # its commit finds out
        await eventually(lambda: home.leader.term > term, "leads again")
        await eventually(lambda: agent.runs() == ["hello-0"], "and works")
        await agent.disconnect()


async def test_a_standby_publishes_nothing_and_takes_over(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        await eventually(lambda: home.leader.is_leading, "leads")
        standby = _standby(home)
        task = asyncio.create_task(standby.run())
        await home.workload("hello")
        await eventually(lambda: home.leader.explanations, "the leader explains")
        assert not standby.is_leading and standby.explanations == {} and standby.term == 0
        blocked = home.leader._election
        blocked._may_take_over = False
        await home.store.txn([], [Put(keys.LEADER, b"m2")])  # as if m2 had written it
        await eventually(lambda: standby.is_leading, "takes over")
        await eventually(lambda: not home.leader.is_leading, "the old one notices")
        assert standby.led_since > home.leader.led_since
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _standby(home: Region) -> Leader:
    fleet = Fleet(time.time())
    settings = replace(QUICK, member="m2")
    return Leader(home.store, home.cache, fleet, home.events, time.time, settings)
