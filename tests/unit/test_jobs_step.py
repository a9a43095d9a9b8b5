"""Jobs in the leader's tick: what is written, placed, stopped and told, with real records."""

import pytest

from orchestrator.domain import jobs, jobs_step
from orchestrator.domain.jobs import Phase
from orchestrator.records import KeptRecord
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put
from tests.unit.jobs_world import JobsWorld


def test_a_job_runs_its_completions_two_at_a_time() -> None:
    world = JobsWorld()
    world.job(job={"completions": 3, "parallelism": 2})
    world.settle()
    assert world.running() == ["job-0", "job-1"]
    assert all(item.once for _, item in world.placed())
    world.end("job-0")
    world.settle()
    assert world.running() == ["job-1", "job-2"]
    world.end("job-1")
    world.end("job-2")
    world.settle()
    assert world.running() == []
    assert world.state().phase is Phase.COMPLETE
    assert world.told("JobComplete") == ["3 of 3 completed"]
    assert len(world.placed()) == 3  # their logs can be read
    assert world.stops == []


def test_a_success_is_written_before_the_plan_that_counts_on_it() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2})
    world.settle()
    world.end("job-0")
    world.store.refuse = lambda ops: ops[0].key.startswith(keys.JOBS)
    world.tick()
    assert world.running() == []
    assert 0 not in world.state().succeeded
    world.store.refuse = lambda ops: False
    world.settle()
    assert list(world.state().succeeded) == [0]
    assert world.running() == ["job-1"]


def test_a_failed_replica_is_tried_again_after_its_backoff() -> None:
    world = JobsWorld()
    world.job(job={"retries": 1})
    world.settle()
    first = world.end("job-0", ok=False, reason="OutOfMemory")
    world.settle()
    assert world.running() == []
    assert [item.replica_uid for _, item in world.placed()] == [first]
    assert world.told("ReplicaFailed") == [
        "replica job-0 failed (OutOfMemory); attempt 2 of 2 in 10 s"
    ]
    world.pass_s(9.0)
    world.settle()
    assert world.running() == []
    world.pass_s(1.5)
    world.settle()
    assert world.running() == ["job-0"]
    assert world.stops == [("job-0", "JobRetry")]
    second = world.end("job-0", ok=False)
    assert second != first
    world.settle()
    assert world.state().phase is Phase.FAILED
    assert world.told("JobFailed") == ["replica 0 failed 2 times, at last with Error"]
    assert [item.replica_uid for _, item in world.placed()] == [second]


def test_a_wall_clock_that_jumps_changes_no_backoff_and_no_deadline() -> None:
    world = JobsWorld()
    world.job(job={"deadline": "1h"})
    world.settle()
    world.end("job-0", ok=False)
    world.settle()
    world.pass_s(1.0, wall=86_400.0)
    world.settle()
    assert world.running() == []
    world.pass_s(10.0, wall=-2 * 86_400.0)
    world.settle()
    assert world.running() == ["job-0"]
    assert world.state().phase is Phase.RUNNING


def test_a_job_that_takes_too_long_fails_and_stops() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2, "parallelism": 2, "deadline": "60s"})
    world.settle()
    world.end("job-1")
    world.run(65)
    world.settle()
    assert world.state().phase is Phase.DEADLINE_EXCEEDED
    assert world.stops == [("job-0", "DeadlineExceeded")]
    assert world.told("JobDeadlineExceeded") == ["it took longer than 60 s; 1 of 2 completed"]


def test_the_deadline_goes_on_under_another_leader() -> None:
    world = JobsWorld()
    world.job(job={"deadline": "10m"})
    world.settle()
    world.run(400)
    world.lead()
    world.run(150)
    assert world.state().phase is Phase.RUNNING
    world.run(120)  # at most one interval of saving was lost
    assert world.state().phase is Phase.DEADLINE_EXCEEDED


def test_a_lost_node_is_no_failure() -> None:
    world = JobsWorld()
    world.job(job={"retries": 0})
    world.settle()
    ((node, _),) = world.placed()
    world.silent.add(node)
    world.run(60)
    assert world.state().failed == 0
    assert world.state().phase is Phase.RUNNING
    ((other, _),) = world.placed()
    assert other != node
    assert ("job-0", "NodeLost") in world.stops
    world.end("job-0", node=other)
    world.settle()
    assert world.state().phase is Phase.COMPLETE


def test_a_success_that_was_reported_wins_over_the_loss_of_its_node() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2})
    world.settle()
    ((node, _),) = world.placed()
    world.end("job-0")
    world.silent.add(node)
    world.pass_s(60.0)
    world.run(60)
    assert list(world.state().succeeded) == [0]
    assert world.running().count("job-0") == 0


def test_another_leader_counts_nothing_twice_and_loses_nothing() -> None:
    world = JobsWorld()
    world.job(job={"completions": 3, "parallelism": 3, "retries": 1})
    world.settle()
    world.end("job-0")
    world.end("job-1", ok=False)
    world.settle()
    world.lead()
    world.settle()
    state = world.state()
    assert list(state.succeeded) == [0]
    assert state.failures == {1: 1}
    assert world.running() == ["job-2"]


def test_a_leader_that_hears_nothing_yet_neither_stops_nor_repeats_what_ended() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2})
    world.settle()
    world.end("job-0")
    world.settle()
    kept = sorted(item.replica_uid for _, item in world.placed())
    world.lead(agents_report=False)
    for _ in range(5):
        world.tick(agents=False)
    assert sorted(item.replica_uid for _, item in world.placed()) == kept
    assert world.stops == []


def test_an_edit_of_the_template_leaves_alone_what_runs() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2})
    world.settle()
    template = {"containers": [{"name": "main", "image": "job:2"}]}
    world.job(job={"completions": 2}, template=template)
    world.settle()
    assert [item.revision for _, item in world.placed()] == [1]
    world.end("job-0")
    world.settle()
    assert sorted(item.revision for _, item in world.placed()) == [1, 2]


def test_a_job_that_ended_goes_after_its_time_to_live() -> None:
    world = JobsWorld()
    world.job(job={"ttl": "100s"})
    world.settle()
    world.end("job-0")
    world.settle()
    world.run(95)
    assert world.workload() is not None
    world.run(15)
    world.settle()
    assert world.workload() is None
    assert world.stops == [("job-0", "Completed")]
    assert world.placed() == []
    assert world.mirror.kept(keys.JOBS) == []


def test_ttl_of_zero_still_records_the_end_first() -> None:
    world = JobsWorld()
    world.job(job={"ttl": "0s"})
    world.settle()
    world.end("job-0")
    world.tick()
    assert world.state().phase is Phase.COMPLETE
    assert not world.workload().deletion_requested_at_ms  # type: ignore[union-attr]
    world.settle()
    assert world.workload() is None


def test_a_drain_moves_what_runs_without_running_it_twice_and_takes_what_ended() -> None:
    world = JobsWorld("n1", "n2")
    world.job(job={"completions": 4, "parallelism": 2})
    world.settle()
    done = world.end("job-0")
    world.settle()
    for node in world.nodes:
        world.operator.change("Node", "", node, draining=True)
        ran = len(world.running())
        world.tick()
        assert len({item.replica for _, item in world.placed()}) <= len(world.placed())
        world.settle()
        assert len(world.running()) <= ran
        names = [item.replica for _, item in world.placed() if item.replica_uid != done]
        assert len(names) == len(set(names))
        assert not [item for name, item in world.placed() if name == node]
        world.operator.change("Node", "", node, draining=None)
    world.settle()
    assert world.state().failed == 0
    assert ("job-0", "Completed") in world.stops


def test_deleting_a_job_stops_it() -> None:
    world = JobsWorld()
    world.job(job={"completions": 2, "parallelism": 2})
    world.settle()
    world.operator.delete("Workload", "default", "job")
    world.settle()
    assert world.workload() is None
    assert (
        world.stops == [("job-1", "WorkloadDeleted"), ("job-0", "WorkloadDeleted")]
        or len(world.stops) == 2
    )
    assert world.mirror.kept(keys.JOBS) == []


def test_fewer_completions_stop_what_is_too_many_and_more_go_on() -> None:
    world = JobsWorld()
    world.job(job={"completions": 3, "parallelism": 3})
    world.settle()
    world.job(job={"completions": 2, "parallelism": 3})
    world.settle()
    assert world.running() == ["job-0", "job-1"]
    world.job(job={"completions": 4, "parallelism": 3})
    world.settle()
    assert world.running() == ["job-0", "job-1", "job-2"]


def test_a_record_of_another_version_starts_nothing_anew() -> None:
    world = JobsWorld()
    record = world.job(job={"completions": 2})
    world.settle()
    world.end("job-0")
    key = keys.job(record.uid)
    strange = KeptRecord(key, {"job": {"version": 9}})
    world.store.transact([], [Put(key, strange.to_bytes())])
    world.settle()
    assert len(world.placed()) == 1
    assert world.mirror.kept_at(key).body == strange.body  # type: ignore[union-attr]


def test_a_quiet_job_writes_nothing() -> None:
    world = JobsWorld()
    world.job()
    world.settle()
    revision = world.store.revision_now
    world.run(120)
    assert world.store.revision_now == revision


def test_the_time_of_many_jobs_is_written_little_by_little() -> None:
    world = JobsWorld()
    count = 2 * jobs_step.SAVED_AT_ONCE_MAX + 5
    for number in range(count):
        world.job(f"j{number}", job={"deadline": "5m"})
    world.settle()
    before = {key: record.store_revision for key, record in jobs_of(world).items()}
    world.pass_s(20)
    assert [len(world.tick().batches) for _ in range(4)] == [20, 20, 5, 0]
    after = jobs_of(world)
    assert all(after[key].store_revision > revision for key, revision in before.items())


def jobs_of(world: JobsWorld) -> dict[str, KeptRecord]:
    return {record.key: record for record in world.mirror.kept(keys.JOBS)}


@pytest.mark.parametrize("ended", [True, False])
def test_the_state_goes_with_the_workload_and_not_before(ended: bool) -> None:
    world = JobsWorld()
    record = world.job()
    world.settle()
    if ended:
        world.end("job-0")
        world.settle()
    assert world.mirror.kept_at(keys.job(record.uid)) is not None
    # The record vanishes, as from a store that was restored: its replica runs on.
    world.store.transact([], [Delete(
        keys.spec("Workload", "default", "job"))])  # fmt: skip
    world.settle()
    assert len(world.placed()) == 1
    assert world.mirror.kept_at(keys.job(record.uid)) is not None


def test_a_site_that_may_not_have_it_any_more_is_left_without_running_twice() -> None:
    world = JobsWorld("n1", "n2")
    for site, country in (("nl", "NL"), ("de", "DE")):
        world.operator.apply("Site", "", site, {"provider": "telco", "country": country})
    for node, site in (("n1", "nl"), ("n2", "de")):
        world.operator.change("Node", "", node, site=site)
    world.job(sovereignty={"residency": ["NL", "DE"]})
    world.settle()
    ((node, before),) = world.placed()
    left, other = ("NL", "n2") if node == "n1" else ("DE", "n1")
    world.job(sovereignty={"residency": ["DE" if left == "NL" else "NL"]})
    world.settle()
    ((now, after),) = world.placed()
    assert now == other and not after.replaces
    assert after.replica_uid != before.replica_uid
    assert world.stops == [("job-0", "NonCompliant")]


def test_ends_are_counted_in_bounded_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_step, "COUNTED_MAX", 3)
    world = JobsWorld()
    world.job(job={"completions": 8, "parallelism": 8, "ttl": "1h"})
    world.settle()
    monkeypatch.setattr(jobs, "RESTING_MAX", 2)
    for number in range(8):
        world.end(f"job-{number}")
    world.tick()
    assert len(world.state().succeeded) == 3
    world.settle()
    assert world.state().phase is Phase.COMPLETE
    assert len(world.placed()) == 2


def test_an_end_is_told_once_whatever_else_of_its_tick_is_refused() -> None:
    world = JobsWorld()
    world.job("first")
    second = world.job("second")
    world.settle()
    world.end("first-0")
    world.end("second-0")

    def others_write() -> None:
        key = keys.job(second.uid)
        kept = world.mirror.kept_at(key)
        assert kept is not None
        world.store.transact([], [Put(key, kept.to_bytes())])

    world.tick(meddle=others_write)
    assert world.state("first").phase is Phase.COMPLETE
    assert world.state("second").phase is not Phase.COMPLETE
    assert [tell.name for tell in world.tells if tell.reason == "JobComplete"] == ["first"]
    world.settle()
    told = [tell.name for tell in world.tells if tell.reason == "JobComplete"]
    assert told == ["first", "second"]
