"""Jobs with the real leader over SQLite and sessions over mTLS; agents say what the test says."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain import jobs
from orchestrator.domain.jobs import JobState
from orchestrator.domain.jobs_step import JOB
from orchestrator.domain.liveness import Periods
from orchestrator.leader import LeaderSettings
from orchestrator.records import StoredResource
from orchestrator.store import keys
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, region, status_of

QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.2, lease_ttl_s=2.0)
SUCCEEDED = agent_pb2.REPLICA_PHASE_SUCCEEDED
FAILED = agent_pb2.REPLICA_PHASE_FAILED
Phase = agent_pb2.ReplicaPhase.ValueType


async def box(home: Region, node: str) -> Agent:
    agent = await (await (await home.join(node)).connect()).welcomed()
    await eventually(lambda: home.cache.node_status(node), "seen")
    return agent


async def job(home: Region, name: str = "sum", **spec: Any) -> StoredResource:
    return await home.workload(name, run="once", job=spec)


async def end(agent: Agent, replica: str, phase: Phase = SUCCEEDED, reason: str = "") -> str:
    """The agent says that its newest stay of the replica ended. Returns the stay's uid."""
    item = max((a for a in agent.plan.assignments if a.replica == replica), key=lambda a: a.epoch)
    await say(agent, item.replica_uid, phase, reason)
    return str(item.replica_uid)


async def say(agent: Agent, uid: str, phase: Phase, reason: str = "") -> None:
    (item,) = (a for a in agent.plan.assignments if a.replica_uid == uid)
    status = status_of(item, ready=False)
    status.phase, status.reason = phase, reason
    await agent.say(replica_status=agent_pb2.ReplicaStatusUpdate(changed=[status]))


def state(home: Region, record: StoredResource) -> JobState:
    kept = home.cache.kept_at(keys.job(record.uid))
    return JobState.from_body(kept.body[JOB]) if kept is not None else JobState()


def outcome(home: Region, record: StoredResource) -> str:
    found = state(home, record).phase
    return found.value if found.ended else ""


async def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await box(home, "n1")
        agent.obedient = False  # it must not say that what ended runs
        record = await job(home, completions=3, parallelism=2)
        await eventually(lambda: agent.runs() == ["sum-0", "sum-1"], "two at once")
        assert all(item.run_once for item in agent.plan.assignments)
        await end(agent, "sum-1")
        await eventually(lambda: "sum-2" in agent.runs(), "the third")
        await end(agent, "sum-0")
        await end(agent, "sum-2")
        await eventually(lambda: outcome(home, record) == "Complete", "complete")
        assert not agent.plan.stops  # the pods stay, for their logs
        await home.told("Workload", "sum", "JobComplete")
        await agent.disconnect()


async def test_a_failed_replica_is_a_new_stay_each_time_and_then_the_job_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BACKOFF_S", 0.2)
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await box(home, "n1")
        agent.obedient = False
        record = await job(home, completions=2, parallelism=2, retries=1)
        await eventually(lambda: agent.runs() == ["sum-0", "sum-1"], "placed")
        first = await end(agent, "sum-0", FAILED, "Error")
        for _ in range(3):  # again and again
            await say(agent, first, FAILED, "Error")
        await eventually(
            lambda: (
                [s.cause for s in agent.plan.stops if s.replica_uid == first] == ["JobRetry"]
                and agent.runs() == ["sum-0", "sum-1"]
            ),
            "tried again",
        )
        assert state(home, record).failures == {0: 1}
        second = await end(agent, "sum-0", FAILED, "OutOfMemory")
        assert second != first
        await eventually(lambda: outcome(home, record) == "Failed", "failed")
        await eventually(
            lambda: "JobFailed" in [s.cause for s in agent.plan.stops], "the other one stops"
        )
        assert [item.replica_uid for item in agent.plan.assignments] == [second]
        assert state(home, record).message == "replica 0 failed 2 times, at last with OutOfMemory"
        await agent.disconnect()


async def test_a_restart_of_the_orchestrator_forgets_nothing_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await box(home, "n1")
        agent.obedient = False
        record = await job(home, completions=3, parallelism=1)
        await eventually(lambda: agent.runs() == ["sum-0"], "the first")
        done = await end(agent, "sum-0")
        await eventually(lambda: "sum-1" in agent.runs(), "the second")
        await agent.disconnect()
    async with region(tmp_path, leader_settings=QUICK) as home:
        await eventually(lambda: home.leader.stats.ticks > 3, "leads again")
        placed = home.cache.placement("n1").assignments
        assert {item.replica for item in placed} == {"sum-0", "sum-1"}
        assert done in {item.replica_uid for item in placed}
        assert list(state(home, record).succeeded) == [0]
        agent.region, agent.heard = home, []
        agent.hello.plan_generation = agent.plan.generation
        await (await agent.connect()).welcomed()
        await say(agent, done, SUCCEEDED)  # once more, to whoever leads now
        await end(agent, "sum-1")
        await eventually(lambda: "sum-2" in agent.runs(), "the third")
        assert list(state(home, record).succeeded) == [0, 1]
        await end(agent, "sum-2")
        await eventually(lambda: outcome(home, record) == "Complete", "complete")
        await agent.disconnect()


async def test_a_job_goes_after_its_time_to_live(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await box(home, "n1")
        agent.obedient = False
        record = await job(home, ttl="1s")
        await eventually(lambda: agent.runs() == ["sum-0"], "placed")
        uid = await end(agent, "sum-0")
        await eventually(lambda: outcome(home, record) == "Complete", "complete")
        await eventually(lambda: [s.cause for s in agent.plan.stops] == ["Completed"], "stops")
        update = agent_pb2.ReplicaStatusUpdate(gone=[uid])
        await agent.say(replica_status=update)
        await eventually(lambda: not home.cache.resource("Workload", "default", "sum"), "gone")
        await eventually(lambda: not home.cache.kept(keys.JOBS), "and its record")
        assert not [r for r in home.cache.revisions() if r.workload_uid == record.uid]
        await agent.disconnect()


class Clock:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s

    def go_to_the_next_minute(self) -> None:
        self.ahead_s += 60.5 - self() % 60


async def test_a_schedule_fires_once_under_two_members(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await box(home, "n1")
        clock = Clock()
        home.leader._clock = clock  # the leader's wall clock, and nobody else's
        spec = {"cron": "* * * * *", "concurrency": "Allow"}
        record = await home.workload("tick", run="once", schedule=spec)
        await eventually(lambda: home.cache.kept_at(keys.job(record.uid)), "adopted")

        def runs() -> list[str]:
            found = [r.name for r in home.cache.resources("Workload") if r.uid != record.uid]
            return sorted(found)

        clock.go_to_the_next_minute()
        await eventually(lambda: len(runs()) == 1, "the first run")
        await eventually(lambda: agent.runs() == [f"{runs()[0]}-0"], "runs")
        # Another member takes over in the same minute.
        await home.remove(keys.LEADER)
        term = home.leader.term
        await eventually(lambda: home.leader.term > term, "leads anew", 20)
        ticks = home.leader.stats.ticks
        await eventually(lambda: home.leader.stats.ticks > ticks + 2, "looks")
        assert len(runs()) == 1
        # A day forward, and back: at most one run for each.
        for jump, most in ((86_400.0, 2), (-86_400.0, 3)):
            clock.ahead_s += jump
            ticks = home.leader.stats.ticks
            await eventually(lambda: home.leader.stats.ticks > ticks + 3, "looks")  # noqa: B023
            assert len(runs()) <= most
        before = len(runs())
        clock.go_to_the_next_minute()
        await eventually(lambda: len(runs()) == before + 1, "and goes on")
        await home.delete("Workload", "tick")
        await eventually(
            lambda: not list(home.cache.resources("Workload")), "deleted with its runs", 20
        )
        await agent.disconnect()


async def test_a_lost_node_is_no_failure_of_the_job(tmp_path: Path) -> None:
    settings = replace(QUICK, periods=Periods(silent_after_s=1.0, lost_after_s=2.0))
    async with region(tmp_path, leader_settings=settings) as home:
        first = await box(home, "n1")
        living = asyncio.create_task(_beat(first))
        record = await job(home, retries=0)
        await eventually(lambda: first.runs() == ["sum-0"], "placed")
        second = await box(home, "n2")
        second.obedient = False  # it would say that it runs after it was said to have ended
        beating = asyncio.create_task(_beat(second))
        living.cancel()
        await first.disconnect()
        await eventually(lambda: second.runs() == ["sum-0"], "moved")
        assert state(home, record).failed == 0
        await end(second, "sum-0")
        await eventually(lambda: outcome(home, record) == "Complete", "complete")
        beating.cancel()
        await second.disconnect()


async def _beat(agent: Agent) -> None:
    while True:
        await agent.beat()
        await asyncio.sleep(0.1)
