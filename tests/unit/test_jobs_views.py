"""What operators see of jobs and schedules, in status, tables and describe; what apply refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest

from edgectl import columns, conditions, describing
from edgectl.resources import Item
from orchestrator.api.index import WorkloadPlacement
from orchestrator.api.job_checks import ended_warnings, not_schedulable
from orchestrator.api.job_story import ahead_of_job
from orchestrator.api.job_views import with_job
from orchestrator.api.views import LeaderView, Status
from orchestrator.api.workload_view import Said, workload_status
from orchestrator.domain.jobs import Failed, JobState, Succeeded, TimePassed, advance
from orchestrator.domain.jobs_step import JOB, SCHEDULE
from orchestrator.domain.schedules import Run, ScheduleState
from orchestrator.records import KeptRecord, StoredResource
from orchestrator.store import keys
from polder.v1 import common_pb2

NOW = 1_795_305_600.0  # 2026-11-22 00:00 UTC
NOW_MS = int(NOW * 1000)
SPEC: dict[str, Any] = {
    "run": "once",
    "template": {"containers": [{"name": "a", "image": "a"}]},
    "job": {"completions": 3, "parallelism": 2, "retries": 1},
}


def record(**spec: Any) -> StoredResource:
    return StoredResource("Workload", "default", "job", "u", {**SPEC, **spec}, template_revision=1)


def status(workload: StoredResource, body: dict[str, Any] | None, **more: Any) -> Status:
    said = Said(wants=2, leader=LeaderView("leader/m", NOW_MS, True))
    base = workload_status(workload, WorkloadPlacement(), [], said, NOW_MS)
    kept = KeptRecord(keys.job("u"), body) if body is not None else None
    return with_job({**base, **more}, workload, kept, [], said.leader, NOW_MS)


def job_body(*events: Any) -> dict[str, Any]:
    workload, state = record(), JobState(started_at=NOW - 60)
    for event in events:
        state = advance(state, event, workload.decoded.job_rules, NOW - 5)
    return {JOB: state.to_body()}


def shown(workload: StoredResource, found: Status) -> Item:
    metadata = common_pb2.Metadata(name="job", namespace="default", created_at_ms=NOW_MS - 90_000)
    wire = common_pb2.Resource(
        kind="Workload",
        metadata=metadata,
        spec_json=json.dumps(workload.spec).encode(),
        status_json=json.dumps(found).encode(),
    )
    return Item(wire, NOW_MS)


def conditions_of(found: Status) -> dict[str, bool | None]:
    return {c["type"]: c["status"] for c in found["conditions"]}


def test_a_job_that_runs() -> None:
    found = status(record(), job_body(Succeeded(0, "a"), Failed(1, "b")), running=1)
    assert found["phase"] == "Running"
    assert found["job"]["succeeded"] == 1
    assert found["job"]["failed"] == 1
    assert found["job"]["retrying"] == [{"replica": "job-1", "failures": 1}]
    assert found["job"]["outcome"] == ""
    assert conditions_of(found) == {"Placed": False, "Complete": False, "Failed": False}
    assert found["message"] == "1 of 3 completed"


def test_a_job_that_waits_for_a_retry() -> None:
    found = status(record(), job_body(Failed(1, "b")))
    assert (found["phase"], found["reason"]) == ("Pending", "BackOff")


def test_a_job_that_nobody_has_looked_at() -> None:
    found = status(record(), None)
    assert found["phase"] == "Pending"
    assert found["job"]["startedAt"] == 0


def test_a_job_that_failed_says_why_and_when() -> None:
    found = status(
        record(), job_body(TimePassed(55), Failed(1, "b"), Failed(1, "c", "OutOfMemory"))
    )
    assert found["phase"] == "Failed"
    assert found["message"] == "replica 1 failed 2 times, at last with OutOfMemory"
    assert found["job"]["finishedAt"] == NOW_MS - 5_000
    assert conditions_of(found) == {"Complete": False, "Failed": True}
    item = shown(record(), found)
    assert columns.row(item, wide=False, namespaces=False)[1:3] == ["0/3 done", "Failed"]
    text = "\n".join(describing.description(item))
    assert "Failed: replica 1 failed 2 times, at last with OutOfMemory" in text
    assert "0 of 3 succeeded, 0 active, 2 failed attempts" in text, "not 2 failed of 3"
    assert "for 24h after its end; then it is deleted (job.ttl)" in text
    assert conditions.parse("failed")(item).met
    assert conditions.parse("condition=Failed")(item).met
    verdict = conditions.parse("complete")(item)
    assert verdict.hopeless and not verdict.met
    assert conditions.parse("ready")(item).hopeless


def test_a_job_that_is_complete() -> None:
    found = status(record(), job_body(*[Succeeded(n, f"u{n}") for n in range(3)]))
    item = shown(record(), found)
    assert columns.row(item, wide=False, namespaces=False)[1:3] == ["3/3 done", "Complete"]
    assert conditions.parse("complete")(item).met
    assert conditions.parse("condition=Complete")(item).met
    assert conditions.parse("ready")(item).met
    assert conditions.parse("failed")(item).hopeless


def test_a_job_on_its_way_is_waited_for() -> None:
    item = shown(record(), status(record(), job_body(Succeeded(0, "a"))))
    for word in ("complete", "failed", "ready"):
        verdict = conditions.parse(word)(item)
        assert not verdict.met and not verdict.hopeless
        assert verdict.why == "1/3 done"


def test_what_is_no_job_is_not_waited_for() -> None:
    item = shown(StoredResource("Workload", "default", "web", "u", {}), {"phase": "Running"})
    verdict = conditions.parse("complete")(item)
    assert verdict.hopeless and verdict.why == "it is not a job"


def test_a_job_that_is_deleted_says_so() -> None:
    workload = replace(record(), deletion_requested_at_ms=1)
    assert status(workload, job_body())["phase"] == "Deleting"


def test_a_record_of_another_version_is_not_taken_for_nothing() -> None:
    found = status(record(), {JOB: {"version": 9}})
    assert (found["phase"], found["reason"]) == ("Unknown", "RecordUnreadable")


def schedule_body() -> dict[str, Any]:
    runs = (
        Run("job-202611212200", NOW - 7200, "Complete", NOW - 7100, "3 of 3 completed"),
        Run("job-202611212300", NOW - 3600),
    )
    state = ScheduleState(NOW - 3600, ("0 * * * *", "UTC"), (NOW - 7200, NOW - 3600), runs)
    return {SCHEDULE: state.to_body()}


def test_a_schedule_shows_its_runs_and_the_next() -> None:
    workload = record(schedule={"cron": "0 * * * *"})
    found = status(workload, schedule_body())
    assert found["phase"] == "Scheduled"
    assert found["message"] == "next run at 2026-11-22 01:00 UTC"
    assert found["schedule"]["nextAt"] == NOW_MS + 3_600_000
    assert found["schedule"]["lastAt"] == NOW_MS - 3_600_000
    assert found["schedule"]["active"] == ["job-202611212300"]
    item = shown(workload, found)
    assert columns.row(item, wide=False, namespaces=False)[1:3] == ["1 run", "Scheduled"]
    text = "\n".join(describing.description(item))
    assert "0 * * * * (UTC)" in text
    assert "job-202611212300  Running" in text
    assert "3 of 3 completed" in text
    assert conditions.parse("ready")(item).met


def test_a_suspended_schedule_has_no_next_run() -> None:
    workload = record(schedule={"cron": "0 * * * *", "suspended": True})
    found = status(workload, schedule_body())
    assert (found["phase"], found["schedule"]["nextAt"]) == ("Suspended", 0)
    assert "none: it is suspended" in "\n".join(describing.description(shown(workload, found)))


# --- apply --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "path", "words"),
    [
        ({"cron": "0 0 30 2 *"}, "spec.schedule.cron", "never fires"),
        ({"cron": "61 * * * *"}, "spec.schedule.cron", "cannot be understood"),
        (
            {"cron": "0 0 * * *", "timeZone": "Europe/Amsterdm"},
            "spec.schedule.timeZone",
            "did you mean Europe/Amsterdam?",
        ),
    ],
)
def test_apply_refuses_with_path_reason_and_hint(
    schedule: dict[str, str], path: str, words: str
) -> None:
    ((where, text),) = not_schedulable(record(schedule=schedule).decoded, None, NOW)
    assert where == path
    assert words in text


def test_apply_lets_good_schedules_pass() -> None:
    workload = record(schedule={"cron": "0 3 * * 1-5", "timeZone": "Europe/Amsterdam"})
    assert not_schedulable(workload.decoded, workload, NOW) == []


def test_a_workload_does_not_become_a_job() -> None:
    always = {key: value for key, value in SPEC.items() if key not in ("run", "job")}
    before = replace(record(), spec=always)
    ((where, text),) = not_schedulable(record().decoded, before, NOW)
    assert where == "spec.run" and "fixed: always" in text
    ((where, text),) = not_schedulable(before.decoded, record(), NOW)
    assert where == "spec.run" and "fixed: once" in text


def test_a_change_of_a_job_that_is_over_is_warned_of() -> None:
    over = KeptRecord(keys.job("u"), job_body(Failed(1, "b"), Failed(1, "c")))
    changed = record(job={"completions": 9})
    (text,) = ended_warnings(record(), changed, over)
    assert text.startswith("the job job is over (Failed) and does not run again")
    assert ended_warnings(record(), record(), over) == []
    assert ended_warnings(None, changed, None) == []
    assert ended_warnings(record(), changed, KeptRecord(keys.job("u"), job_body())) == []


# --- what comes next ----------------------------------------------------------------------------


def ahead(body: dict[str, Any], replica: str = "", **spec: Any) -> list[str]:
    kept = KeptRecord(keys.job("u"), body)
    return [item.message for item in ahead_of_job(record(**spec), kept, "leader/m", NOW, replica)]


def test_what_comes_next_for_a_job_and_its_replicas() -> None:
    running = job_body(Succeeded(0, "a"), Failed(1, "b"))
    assert ahead(running) == []
    deadline = {"completions": 3, "retries": 1, "deadline": "1h"}
    assert ahead(running, job=deadline) == ["the job fails if it takes longer than 60m"]
    assert ahead(running, "job-0") == ["it is done, and does not run again"]
    assert ahead(running, "job-1") == ["attempt 2 of 2 begins 10s after it failed"]
    assert ahead(running, "job-2") == []
    over = job_body(Failed(1, "b"), Failed(1, "c"))
    gone = "it is deleted, with its logs, 24h after its end (job.ttl)"
    assert ahead(over) == ahead(over, "job-1") == [gone]


def test_what_comes_next_for_a_schedule() -> None:
    nightly = {"cron": "0 3 * * *"}
    assert ahead(schedule_body(), schedule=nightly) == ["a run starts at 2026-11-22 03:00 UTC"]
    suspended = {**nightly, "suspended": True}
    assert ahead(schedule_body(), schedule=suspended) == [
        "no run starts while schedule.suspended is true"
    ]
    gone = {"cron": "0 0 30 2 *"}  # what was written around apply
    assert ahead(schedule_body(), schedule=gone) == [
        "no run starts: '0 0 30 2 *' in UTC never fires again"
    ]
