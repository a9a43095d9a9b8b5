"""Schedules in the leader's tick: runs as records of their own, what becomes of them, what goes."""

import pytest

from orchestrator.domain.jobs_runs import SCHEDULED_AT, SCHEDULED_BY
from orchestrator.records import TemplateRevision
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put
from polder.manifest import KINDS, decode
from tests.unit.jobs_world import JobsWorld

# The world's clock begins at midnight.
FIRST = "job-202611220001"
SECOND = "job-202611220002"
THIRD = "job-202611220003"


def scheduled(world: JobsWorld, **schedule: object) -> None:
    job = {"retries": 0, "ttl": "1h"}
    world.job(job=job, schedule={"cron": "* * * * *", **schedule})


def begun(**schedule: object) -> JobsWorld:
    world = JobsWorld()
    scheduled(world, **schedule)
    world.settle()
    return world


def end_run(world: JobsWorld, name: str, *, ok: bool = True) -> None:
    world.end(f"{name}-0", ok=ok)
    world.settle()


def test_the_schedule_itself_has_no_replicas() -> None:
    world = begun()
    assert world.placed() == []
    assert world.workloads() == ["job"]


def test_a_run_is_a_workload_of_its_own() -> None:
    world = begun()
    world.run(65)
    assert world.workloads() == ["job", FIRST]
    assert world.running() == [f"{FIRST}-0"]
    run = world.workload(FIRST)
    assert run is not None
    assert run.labels[SCHEDULED_BY] == "job"
    assert run.annotations[SCHEDULED_AT] == "2026-11-22T00:01:00+00:00"
    assert "schedule" not in run.spec and run.spec["run"] == "once"
    assert decode(KINDS["Workload"].spec_class, run.spec, "spec")
    revision = world.mirror.revision_of(run.uid, 1)
    assert isinstance(revision, TemplateRevision) and revision.template == run.spec["template"]
    assert world.told("RunStarted") == [f"started {FIRST} for 2026-11-22 00:01 UTC"]


def test_the_time_is_used_up_in_the_same_transaction() -> None:
    world = begun()
    spec = keys.spec("Workload", "default", FIRST)
    world.store.refuse = lambda ops: any(op.key == spec for op in ops)
    world.run(62)
    assert world.workloads() == ["job"]
    assert world.schedule().fired == ()
    world.store.refuse = lambda ops: False
    world.settle()
    assert world.workloads() == ["job", FIRST]
    assert len(world.schedule().fired) == 1


def test_another_leader_starts_no_time_again() -> None:
    world = begun()
    world.run(62)
    uid = world.workload(FIRST).uid  # type: ignore[union-attr]
    world.lead()
    world.settle()
    assert world.workload(FIRST).uid == uid  # type: ignore[union-attr]
    assert world.workloads() == ["job", FIRST]


def test_a_name_that_is_taken_counts_as_started() -> None:
    world = begun()
    other = world.operator.apply(
        "Workload", "default", FIRST, {"template": {"containers": [{"name": "a", "image": "a:1"}]}}
    )
    world.run(62)
    assert world.workload(FIRST).uid == other.uid  # type: ignore[union-attr]
    assert len(world.told("RunExists")) == 1
    assert len(world.schedule().fired) == 1
    world.operator.delete("Workload", "default", FIRST)
    world.run(20)
    assert world.workload(FIRST) is None


def test_forbid_skips_while_the_last_run_is_not_over() -> None:
    world = begun()
    world.run(125)
    assert world.workloads() == ["job", FIRST]
    assert len(world.told("RunSkipped")) == 1
    end_run(world, FIRST)
    world.run(60)
    assert world.workloads() == ["job", FIRST, THIRD]


def test_replace_stops_the_last_run() -> None:
    world = begun(concurrency="Replace")
    world.run(125)
    world.settle()
    assert world.workloads() == ["job", SECOND]
    assert world.running() == [f"{SECOND}-0"]
    assert world.stops == [(f"{FIRST}-0", "Replaced")]
    outcomes = {run.name: run.outcome for run in world.schedule().runs}
    assert outcomes == {FIRST: "Replaced", SECOND: ""}


def test_allow_runs_them_side_by_side() -> None:
    world = begun(concurrency="Allow")
    world.run(185)
    assert world.running() == [f"{name}-0" for name in (FIRST, SECOND, THIRD)]


def test_what_became_of_runs_is_remembered_when_they_are_gone() -> None:
    world = begun(keepSucceeded=1, keepFailed=0)
    world.run(62)
    end_run(world, FIRST)
    world.run(60)
    end_run(world, SECOND, ok=False)
    world.run(60)
    end_run(world, THIRD)
    assert world.workloads() == ["job", THIRD]
    outcomes = [(run.name, run.outcome) for run in world.schedule().runs]
    assert outcomes == [(FIRST, "Complete"), (SECOND, "Failed"), (THIRD, "Complete")]
    assert {cause for _, cause in world.stops} == {"Completed"}


def test_a_run_that_an_operator_deletes_is_not_started_again() -> None:
    world = begun()
    world.run(62)
    world.operator.delete("Workload", "default", FIRST)
    world.settle()
    assert world.workloads() == ["job"]
    assert world.schedule().runs[0].outcome == "Deleted"


def test_deleting_the_schedule_deletes_its_runs() -> None:
    world = begun(concurrency="Allow")
    world.run(125)
    world.operator.delete("Workload", "default", "job")
    world.settle()
    assert world.workloads() == []
    assert world.placed() == []
    assert world.mirror.kept(keys.JOBS) == []


def test_a_schedule_that_is_deleted_first_deletes_its_runs_when_a_write_is_refused() -> None:
    world = begun()
    world.run(62)
    world.operator.delete("Workload", "default", "job")
    spec = keys.spec("Workload", "default", FIRST)
    world.store.refuse = lambda ops: ops[0].key == spec
    world.tick()
    assert world.workload() is not None  # or its runs would have lost their schedule
    world.store.refuse = lambda ops: False
    world.settle()
    assert world.workloads() == []


def test_a_run_uses_the_template_of_its_time() -> None:
    world = begun()
    world.run(62)
    template = {"containers": [{"name": "main", "image": "job:2"}]}
    world.job(job={"retries": 0}, schedule={"cron": "* * * * *"}, template=template)
    end_run(world, FIRST)
    world.run(60)
    images = [
        world.workload(name).spec["template"]["containers"][0]["image"]  # type: ignore[union-attr]
        for name in (FIRST, SECOND)
    ]
    assert images == ["job:1", "job:2"]


@pytest.mark.parametrize(("missed", "runs"), [("Skip", []), ("RunOnce", ["job-202611220900"])])
def test_an_outage_of_all_leaders(missed: str, runs: list[str]) -> None:
    world = begun(cron="0 * * * *", missed=missed)
    world.pass_s(9.5 * 3600)
    world.lead()
    world.settle()
    assert world.workloads() == ["job", *runs]
    assert len(world.told("RunsMissed")) == 1


def test_suspended_starts_nothing() -> None:
    world = begun(suspended=True)
    world.run(130)
    assert world.workloads() == ["job"]
    scheduled(world)
    world.settle()
    assert world.workloads() == ["job", SECOND]


def test_frozen_starts_nothing_removes_nothing_and_counts_what_ends() -> None:
    world = begun()
    world.run(62)
    freeze = keys.freeze("")
    world.store.transact([], [Put(freeze, b'{"by":"operator/ann","atMs":1,"reason":""}')])
    world.end(f"{FIRST}-0")
    world.run(7200, every=60)
    assert world.workloads() == ["job", FIRST]
    assert world.state(FIRST).phase.value == "Complete"
    world.store.transact([], [Delete(freeze)])
    world.settle()
    assert FIRST not in world.workloads()


def test_a_clock_that_jumps_starts_at_most_one_run_per_jump() -> None:
    world = begun(concurrency="Allow", missed="RunOnce")
    world.run(62)
    for jump in (86_400.0, -86_400.0, 86_400.0, -2 * 86_400.0):
        before = len(world.schedule().fired)
        world.pass_s(1.0, wall=jump)
        world.settle()
        assert len(world.schedule().fired) - before <= 1
    fired = world.schedule().fired
    assert len(fired) == len(set(fired))


def test_a_job_that_becomes_a_schedule_and_back() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2})
    world.settle()
    assert world.running() == ["job-0"]
    world.job(job={"completions": 2}, schedule={"cron": "* * * * *"})
    world.settle()
    assert world.running() == []
    world.job(job={"completions": 2})
    world.settle()
    assert world.running() == ["job-0"]


def test_a_workload_that_runs_always_forgets_that_it_was_a_job() -> None:
    world = JobsWorld()
    world.job()
    world.settle()
    world.end("job-0")
    world.settle()
    spec = {"template": {"containers": [{"name": "main", "image": "job:1"}]}}
    world.operator.apply("Workload", "default", "job", spec)
    world.run(30)
    assert world.mirror.kept(keys.JOBS) == []


def test_the_next_look_is_when_the_next_run_is_due() -> None:
    world = begun(cron="0 0 * * *")
    world.pass_s(86_400.0 - 30.0)
    assert 29.0 <= world.tick().due_s <= 30.0


def test_a_schedule_that_cannot_be_read_is_told_of_and_harms_nobody() -> None:
    world = JobsWorld()
    world.job("other")
    world.job(schedule={"cron": "61 * * * *"})  # as from a version that knew more
    world.run(65)
    assert world.running() == ["other-0"]
    assert len(world.told("ScheduleUnreadable")) == 1
