"""Rollouts over a real Store and real sessions; scripted agents say how it goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import orchestrator.leader as leader_module
from orchestrator.domain.rollout_state import Phase, RolloutState, Standing, from_dict
from orchestrator.election import Election
from orchestrator.leader import LeaderSettings
from orchestrator.leader_commit import Committer
from orchestrator.records import KeptRecord, StoredResource
from orchestrator.scheduling.steer import Batch, Steering, Tell, Write, steer
from orchestrator.store import keys
from orchestrator.store.port import MAX_VALUE_BYTES, Put
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, region, status_of

QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.1, lease_ttl_s=2.0)
UPDATE = {"provenAfter": "500ms", "progressDeadline": "30s"}
HASTY = {**UPDATE, "progressDeadline": "4s"}


def template(image: str, **more: Any) -> dict[str, Any]:
    resources = {"cpu": "100m", "memory": "64Mi"}
    return {"containers": [{"name": "app", "image": image, "resources": resources}], **more}


@dataclass
class Fleet:
    """Agents that keep saying how their replicas are: `fate` by image; the others run well."""

    home: Region
    agents: list[Agent]
    fate: dict[str, Callable[[agent_pb2.ReplicaStatus], None]] = field(default_factory=dict)
    crashes: dict[str, int] = field(default_factory=dict)

    async def keep_telling(self) -> None:
        while True:
            for agent in self.agents:
                update = agent_pb2.ReplicaStatusUpdate(
                    gone=[stop.replica_uid for stop in agent.plan.stops],
                    changed=[self.status(item) for item in agent.plan.assignments],
                )
                await agent.say(replica_status=update)
                await agent.beat()
            await asyncio.sleep(0.05)

    def status(self, item: plan_pb2.Assignment) -> agent_pb2.ReplicaStatus:
        found = status_of(item)
        for image, fate in self.fate.items():
            if image.encode() in item.template_json:
                fate(found)
        return found

    def never_comes(self, status: agent_pb2.ReplicaStatus) -> None:
        status.phase, status.ready = agent_pb2.REPLICA_PHASE_PENDING, False
        status.reason = "ImagePull"

    def crashes_again_and_again(self, status: agent_pb2.ReplicaStatus) -> None:
        uid = status.replica_uid
        self.crashes[uid] = self.crashes.get(uid, 0) + 1
        status.phase, status.ready = agent_pb2.REPLICA_PHASE_PENDING, False
        status.reason, status.restarts = "CrashLoop", self.crashes[uid]

    def images(self) -> list[str]:
        """What the plans say now."""
        return sorted(
            image
            for agent in self.agents
            for item in agent.plan.assignments
            for image in (f"app:{n}" for n in range(1, 40))
            if f'"{image}"'.encode() in item.template_json
        )


@asynccontextmanager
async def fleet(directory: Path, *sites: str) -> AsyncIterator[Fleet]:
    async with region(directory, leader_settings=QUICK) as home:
        agents = []
        for number, site in enumerate(sites, start=1):
            agent = await home.join(f"n{number}", site)
            agents.append(await (await agent.connect()).welcomed())
        await eventually(lambda: all(home.cache.node_status(a.node) for a in agents), "seen")
        made = Fleet(home, agents)
        for agent in agents:
            agent.report = _nothing  # type: ignore[method-assign]
        telling = asyncio.create_task(made.keep_telling())
        try:
            yield made
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            for agent in agents:
                await agent.disconnect()


async def _nothing(**_: Any) -> None:
    """The fleet tells instead."""


def recorded(home: Region, workload: StoredResource) -> RolloutState | None:
    record = home.cache.kept_at(keys.rollout(workload.uid))
    return from_dict(record.body) if record is not None else None


async def reaches(home: Region, workload: StoredResource, phase: Phase, newest: int) -> Any:
    def there() -> RolloutState | None:
        state = recorded(home, workload)
        fits = state is not None and (state.phase, state.newest) == (phase, newest)
        return state if fits else None

    try:
        return await eventually(there, f"revision {newest} is {phase}", 45.0)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {recorded(home, workload)}") from error


async def test_three_updates_and_a_bad_one_that_rolls_back(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1", "s2", "s3") as boxes:
        home = boxes.home
        boxes.fate["app:4"] = boxes.crashes_again_and_again
        web = await home.workload("web", template("app:1"), replicas=3, update=UPDATE)
        await reaches(home, web, Phase.PROVEN, 1)
        for number in (2, 3):
            await home.workload("web", template(f"app:{number}"), replicas=3, update=UPDATE)
            state = await reaches(home, web, Phase.PROVEN, number)
            assert (state.target, state.proven) == (number, number)
            assert boxes.images() == [f"app:{number}"] * 3
        await home.workload("web", template("app:4"), replicas=3, update=UPDATE)
        state = await reaches(home, web, Phase.ROLLED_BACK, 4)
        assert (state.target, state.proven) == (3, 3)
        assert state.past(4).standing is Standing.FAILED
        await eventually(lambda: boxes.images() == ["app:3"] * 3, "all are back")
        told = {"RolloutStarted", "RolloutProven", "RolloutFailed", "RolledBack"}
        await eventually(lambda: told <= set(home.reasons("Workload", "web")), "told")


async def test_a_bad_canary_stays_at_its_site(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1", "s2", "s3") as boxes:
        home = boxes.home
        boxes.fate["app:2"] = boxes.never_comes
        update = {**HASTY, "canary": {"sites": 1, "soak": "300ms"}}
        web = await home.workload("web", template("app:1"), perNode=1, update=update)
        await reaches(home, web, Phase.PROVEN, 1)
        await home.workload("web", template("app:2"), perNode=1, update=update)
        state = await reaches(home, web, Phase.ROLLING_BACK, 2)
        assert "ImagePull" in state.message
        assert all(b'"app:1"' in item.template_json for item in boxes.agents[1].plan.assignments)
        assert all(b'"app:1"' in item.template_json for item in boxes.agents[2].plan.assignments)
        await reaches(home, web, Phase.ROLLED_BACK, 2)
        await home.workload("web", template("app:3"), perNode=1, update=update)
        state = await reaches(home, web, Phase.PROVEN, 3)
        assert boxes.images() == ["app:3"] * 3
        assert "RolloutSoaking" in home.reasons("Workload", "web")


async def test_a_revision_that_fails_late_is_not_the_one_to_return_to(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1") as boxes:
        home = boxes.home
        slow = {**UPDATE, "provenAfter": "1h"}
        web = await home.workload("web", template("app:1"), update=UPDATE)
        await reaches(home, web, Phase.PROVEN, 1)
        await home.workload("web", template("app:2"), update=slow)
        await reaches(home, web, Phase.PROVING, 2)
        boxes.fate["app:2"] = boxes.crashes_again_and_again
        state = await reaches(home, web, Phase.ROLLED_BACK, 2)
        assert (state.target, state.proven, state.late) == (1, 1, True)


async def test_deletion_in_mid_rollout_leaves_no_record(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1", "s2") as boxes:
        home = boxes.home
        boxes.fate["app:2"] = boxes.never_comes
        web = await home.workload("web", template("app:1"), replicas=2, update=UPDATE)
        await reaches(home, web, Phase.PROVEN, 1)
        await home.workload("web", template("app:2"), replicas=2, update=UPDATE)
        await reaches(home, web, Phase.PROGRESSING, 2)
        await home.delete("Workload", "web")
        await eventually(lambda: not home.cache.resource("Workload", "default", "web"), "gone")
        for prefix in (keys.ROLLOUTS, keys.REVISIONS):
            assert not (await home.store.range(prefix)).entries


async def test_the_proven_revision_outlives_any_number_of_later_ones(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1") as boxes:
        home = boxes.home
        web = await home.workload("web", template("app:1"), update=HASTY)
        await reaches(home, web, Phase.PROVEN, 1)
        for number in range(2, 16):
            boxes.fate[f"app:{number}"] = boxes.never_comes
            await home.workload("web", template(f"app:{number}"), update=HASTY)
        await reaches(home, web, Phase.PROGRESSING, 15)
        home.leader._last_collection = None  # as if the time had come
        await eventually(lambda: home.leader._last_collection is not None, "collected")
        await eventually(lambda: home.cache.revision_of(web.uid, 2) is None, "old ones are gone")
        assert home.cache.revision_of(web.uid, 1) is not None
        state = await reaches(home, web, Phase.ROLLED_BACK, 15)
        assert state.target == 1 and boxes.images() == ["app:1"]


async def test_a_new_leader_goes_on_with_the_rollout(tmp_path: Path) -> None:
    update = {**UPDATE, "canary": {"sites": 1, "soak": "1h"}}
    async with fleet(tmp_path, "s1", "s2") as boxes:
        home = boxes.home
        web = await home.workload("web", template("app:1"), perNode=1, update=update)
        await reaches(home, web, Phase.PROVEN, 1)
        await home.workload("web", template("app:2"), perNode=1, update=update)
        await reaches(home, web, Phase.SOAKING, 2)
        term = home.leader.term
        await home.remove(keys.LEADER)
        await home.workload("other", template("app:9"))  # its commit finds out
        await eventually(lambda: home.leader.term > term, "leads again")
        await eventually(lambda: "app:9" in boxes.images(), "and works")
        # What was replaced stops when a plan says so, which may be the first one of the new term.
        await eventually(
            lambda: [i for i in boxes.images() if i != "app:9"] == ["app:1", "app:2"], "as it was"
        )
        state = recorded(home, web)
        assert state is not None and state.phase is Phase.SOAKING
        update["canary"] = {"sites": 1, "soak": "0s"}
        await home.workload("web", template("app:2"), perNode=1, update=update)
        await reaches(home, web, Phase.PROVEN, 2)


async def test_a_record_that_somebody_else_changed_is_read_again(tmp_path: Path) -> None:
    async with fleet(tmp_path, "s1") as boxes:
        home = boxes.home
        slow = {**UPDATE, "provenAfter": "1h"}
        web = await home.workload("web", template("app:1"), update=slow)
        state = await reaches(home, web, Phase.PROVING, 1)
        key = keys.rollout(web.uid)
        told = KeptRecord(key, {**replace(state, held_s=3599.0).to_dict(), "note": "from a newer"})
        await home.store.txn([], [Put(key, told.to_bytes())])
        state = await reaches(home, web, Phase.PROVEN, 1)
        assert state.proven == 1


async def test_a_stale_write_is_not_told_and_the_others_are(tmp_path: Path) -> None:
    async with region(tmp_path, leading=False) as home:
        term = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        committer = Committer(home.store, home.cache, home.fleet, time.time)
        told: list[Tell] = []
        fine, stale = Write("/rollouts/a", b"{}", 0), Write("/rollouts/b", b"{}", 7)
        a, b = (Tell("Workload", "default", name, False, "Proven", "it is") for name in "ab")
        batches = (Batch((fine,), (a,)), Batch((stale, Write("/rollouts/c", b"{}", 0)), (b,)))
        done = await committer.write(batches, term, told.extend)
        assert done.refused == ["/rollouts/b"] and done.revision and told == [a]
        assert [e.key for e in (await home.store.range(keys.ROLLOUTS)).entries] == ["/rollouts/a"]
        gone = Batch((Write("/rollouts/a", None, done.revision),))
        done = await committer.write((gone,), term, told.extend)
        assert not done.refused and not (await home.store.range(keys.ROLLOUTS)).entries


async def test_a_record_that_outgrew_the_store_does_not_stop_the_others(tmp_path: Path) -> None:
    async with region(tmp_path, leading=False) as home:
        term = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        committer = Committer(home.store, home.cache, home.fleet, time.time)
        large = Batch((Write("/jobs/a", b"x" * (MAX_VALUE_BYTES + 1), 0),))
        many = [Batch((Write(f"/jobs/b{n}", b"{}", 0),)) for n in range(200)]
        done = await committer.write((large, *many), term, lambda _: None)
        assert not done.refused
        assert len((await home.store.range(keys.JOBS)).entries) == 200


async def test_what_stands_is_told_although_another_write_of_the_tick_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was only seen, which no write goes with."""
    ours, theirs = "/rollouts/a", "/rollouts/b"
    seen = Tell("Node", "", "n1", True, "NodeSilent", "nothing is heard of it")
    done = Tell("Workload", "default", "sum", False, "JobComplete", "all of it")
    not_yet = Tell("Workload", "default", "web", True, "RolledBack", "no")
    asked: list[Any] = []

    def once(*args: Any) -> Steering:
        asked.append(args)
        if len(asked) > 1:
            return steer(*args)
        stands, stale = Batch((Write(ours, b"{}", 0),), (done,)), Write(theirs, b"{}", 7)
        return replace(steer(*args), batches=(Batch((stale,), (not_yet,)), stands), tells=(seen,))

    monkeypatch.setattr(leader_module, "steer", once)
    async with region(tmp_path, leader_settings=QUICK) as home:
        await eventually(lambda: len(asked) > 2, "goes on")
        assert home.reasons("Workload", "sum") == ["JobComplete"]
        assert home.reasons("Node", "n1") == ["NodeSilent"]
        assert home.reasons("Workload", "web") == []
