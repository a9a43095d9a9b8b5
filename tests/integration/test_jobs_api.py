"""Jobs as operators meet them over the API: refusals, foresight, status, watching for the end."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.inventory import stored_form
from orchestrator.records import NodeStatusRecord, StoredResource
from orchestrator.store import keys
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.orchestrator_rig import (
    Rig,
    apply_request,
    ref,
    refusal,
    running,
    until,
    workload,
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as found:
        await found.site()
        record = StoredResource("Node", "", "n1", "uid-n1", {"site": "ams-1"})
        amounts = agent_pb2.Resources(cpu_millis=4000, memory_bytes=4 << 30, disk_bytes=10 << 30)
        inventory = agent_pb2.NodeInventory(arch="arm64", capacity=amounts, allocatable=amounts)
        status = NodeStatusRecord("n1", "t", "b", stored_form(inventory), int(time.time() * 1000))
        await found.put(keys.spec("Node", "", "n1"), record.to_bytes())
        await found.put(keys.node_status("n1"), status.to_bytes())
        fleet = found.orchestrator.parts.fleet
        seen = fleet.heard("n1", time.time())
        seen.connected = seen.complete = True
        seen.heard_at = fleet.steady() + 3600.0  # it stays live without beating
        fleet.touch("n1")
        yield found


def job(name: str = "sum", **spec: Any) -> dict[str, Any]:
    return workload(name, namespace="default", run="once", **spec)


async def status(rig: Rig, name: str = "sum") -> dict[str, Any]:
    request = operator_pb2.GetRequest(ref=ref("Workload", name, "default"))
    found: dict[str, Any] = json.loads((await rig.admin().Get(request)).resource.status_json)
    return found


def report(rig: Rig, replica: str, phase: "agent_pb2.ReplicaPhase.ValueType") -> None:
    """Its agent says so."""
    parts = rig.orchestrator.parts
    (item,) = (a for a in parts.cache.placement("n1").assignments if a.replica == replica)
    parts.fleet.observe("n1").replicas[item.replica_uid] = agent_pb2.ReplicaStatus(
        replica=replica, replica_uid=item.replica_uid, revision=item.revision, phase=phase
    )
    parts.fleet.touch("n1")


def placed(rig: Rig) -> list[str]:
    return [a.replica for a in rig.orchestrator.parts.cache.placement("n1").assignments]


async def test_schedules_that_make_no_sense_are_refused_with_their_path(rig: Rig) -> None:
    for schedule, path, words in (
        ({"cron": "0 0 30 2 *"}, "spec.schedule.cron", "never fires"),
        ({"cron": "0 25 * * *"}, "spec.schedule.cron", "Bad hour"),
        ({"cron": "* * * * *", "timeZone": "Mars/Base"}, "spec.schedule.timeZone", "no time zone"),
    ):
        refused = await refusal(rig.apply(job(schedule=schedule)))
        assert refused.reason == "InvalidManifest"
        (violation,) = refused.detail.violations
        assert violation.path == path and words in violation.message
    refused = await refusal(rig.apply(job(schedule={"cron": "at noon"})))
    assert refused.detail.violations[0].path == "spec.schedule.cron"


async def test_a_job_over_the_api(rig: Rig) -> None:
    await rig.apply(job(job={"completions": 2}))
    await until(lambda: placed(rig) == ["sum-0"], "placed")
    report(rig, "sum-0", agent_pb2.REPLICA_PHASE_SUCCEEDED)
    await until(lambda: placed(rig) == ["sum-0", "sum-1"], "the second")
    found = await status(rig)
    assert found["job"]["succeeded"] == 1 and found["phase"] in ("Pending", "Running")
    assert found["message"].startswith("1 of 2 completed") or found["reason"]

    request = operator_pb2.WatchRequest(kind="Workload", namespace="default", name="sum")
    call = rig.admin().Watch(request)
    seen: list[str] = []
    async for change in call:
        if change.type == operator_pb2.WATCH_TYPE_SYNCED:
            report(rig, "sum-1", agent_pb2.REPLICA_PHASE_SUCCEEDED)
            continue
        seen.append(json.loads(change.resource.status_json)["job"]["outcome"])
        if seen[-1]:
            break
    call.cancel()
    assert seen[-1] == "Complete"
    assert (await status(rig))["phase"] == "Complete"
    answer = await rig.apply(job(job={"completions": 3}))
    assert "is over (Complete) and does not run again" in answer.results[0].warnings[0]
    request = operator_pb2.StoryRequest(ref=ref("Replica", "sum-0", "default"))
    story = await rig.admin().Story(request)
    assert "it is done, and does not run again" in [item.message for item in story.next]


async def test_plan_sees_jobs_as_the_leader_does(rig: Rig) -> None:
    def plan(*documents: dict[str, Any]) -> Any:
        request = operator_pb2.PlanRequest(documents=apply_request(*documents).documents)
        return rig.admin().Plan(request)

    def counted(answer: Any) -> list[tuple[int, int]]:
        return [(total.action, total.replicas) for total in answer.totals]

    place = operator_pb2.CHANGE_ACTION_PLACE
    new = await plan(job(job={"completions": 9, "parallelism": 4}))
    assert counted(new) == [(place, 4)]
    assert counted(await plan(job(schedule={"cron": "0 3 * * *"}))) == []
    await rig.apply(job())
    await until(lambda: placed(rig) == ["sum-0"], "placed")
    report(rig, "sum-0", agent_pb2.REPLICA_PHASE_SUCCEEDED)
    await until(
        lambda: any(r.reason == "JobComplete" for r in rig.orchestrator.parts.events.list()),
        "complete",
    )
    assert counted(await plan(job(image="app:2"))) == []  # what is over does not run again


async def test_a_job_does_not_become_a_server(rig: Rig) -> None:
    await rig.apply(job())
    refused = await refusal(rig.apply(workload("sum", namespace="default")))
    assert refused.detail.violations[0].path == "spec.run"


async def test_a_schedule_over_the_api(rig: Rig) -> None:
    await rig.apply(job(schedule={"cron": "0 3 * * *", "timeZone": "Europe/Amsterdam"}))
    parts = rig.orchestrator.parts
    await until(lambda: bool(parts.cache.kept(keys.JOBS)), "adopted")
    found = await status(rig)
    assert found["phase"] == "Scheduled"
    assert found["schedule"]["nextAt"] > time.time() * 1000
    assert placed(rig) == []
    request = operator_pb2.ListRequest(kind="Replica", namespace="default")
    assert not (await rig.admin().List(request)).resources
    story = await rig.admin().Story(
        operator_pb2.StoryRequest(ref=ref("Workload", "sum", "default"))
    )
    assert [item.reason for item in story.next] == ["NextRun"]
