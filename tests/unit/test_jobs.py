"""The machine of a job: its table of transitions, what counts, when it tries again and ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.index_set import IndexSet
from orchestrator.domain.jobs import (
    COUNTED_MAX,
    FAILING_MAX,
    RESTING_MAX,
    TRANSITIONS,
    Event,
    Failed,
    JobState,
    Phase,
    Stay,
    Succeeded,
    TimePassed,
    advance,
    backoff_s,
    forget_stays,
    instruct,
)
from orchestrator.scheduling.decisions import Cause
from orchestrator.store.port import MAX_VALUE_BYTES
from polder.manifest.job import Job

NOW = 1_800_000_000.0


def after(state: JobState, rules: Job, *events: Event) -> JobState:
    for event in events:
        state = advance(state, event, rules, NOW)
    return state


def begun() -> JobState:
    return JobState(started_at=NOW)


def stay(index: int, uid: str = "", **more: object) -> Stay:
    return Stay(index, uid or f"u{index}", **more)  # type: ignore[arg-type]


# --- the table ----------------------------------------------------------------------------------


def test_the_table_has_a_line_for_every_phase_and_event() -> None:
    assert set(TRANSITIONS) == {
        (phase, event) for phase in Phase for event in (Succeeded, Failed, TimePassed)
    }


def test_the_end_is_final() -> None:
    for (phase, _), targets in TRANSITIONS.items():
        if phase.ended:
            assert targets == {phase}


@pytest.mark.parametrize(
    ("rules", "events", "phase"),
    [
        (Job(completions=2), [Succeeded(0, "a")], Phase.RUNNING),
        (Job(completions=1), [Succeeded(0, "a")], Phase.COMPLETE),
        (Job(retries=1), [Failed(0, "a")], Phase.RUNNING),
        (Job(retries=0), [Failed(0, "a")], Phase.FAILED),
        (Job(deadline=10), [TimePassed(9.9)], Phase.RUNNING),
        (Job(deadline=10), [TimePassed(10)], Phase.DEADLINE_EXCEEDED),
        (Job(), [TimePassed(1e9)], Phase.RUNNING),
        (Job(deadline=10), [TimePassed(10), Succeeded(0, "a")], Phase.DEADLINE_EXCEEDED),
        (Job(retries=0, deadline=1), [Failed(0, "a"), TimePassed(5)], Phase.FAILED),
        (Job(retries=0), [Succeeded(0, "a"), Failed(0, "a")], Phase.COMPLETE),
    ],
)
def test_each_way_through_the_table(rules: Job, events: list[Event], phase: Phase) -> None:
    state = begun()
    for event in events:
        before = state.phase
        state = advance(state, event, rules, NOW)
        assert state.phase in TRANSITIONS[(before, type(event))]
    assert state.phase is phase
    assert bool(state.finished_at) == phase.ended


def test_fewer_completions_than_have_succeeded_complete_the_job() -> None:
    state = after(begun(), Job(completions=3), Succeeded(0, "a"))
    assert after(state, Job(completions=1), TimePassed(1)).phase is Phase.COMPLETE


# --- what counts --------------------------------------------------------------------------------


def test_a_success_that_is_told_twice_counts_once() -> None:
    rules = Job(completions=3)
    state = after(begun(), rules, Succeeded(1, "a"), Succeeded(1, "a"), Succeeded(1, "b"))
    assert list(state.succeeded) == [1]
    assert state.phase is Phase.RUNNING


def test_a_failure_that_is_told_twice_counts_once() -> None:
    rules = Job(completions=2, retries=1)
    state = after(begun(), rules, Failed(1, "a"), Failed(1, "a"), Failed(1, "a"))
    assert state.failures == {1: 1}
    assert after(state, rules, Failed(1, "b")).phase is Phase.FAILED


def test_a_recorded_success_outlives_a_later_failure_of_the_same_stay() -> None:
    state = after(begun(), Job(completions=2), Succeeded(0, "a"), Failed(0, "a"), Failed(0, "b"))
    assert state.failed == 0
    assert 0 in state.succeeded


def test_a_stay_that_failed_does_not_succeed_afterwards() -> None:
    state = after(begun(), Job(completions=2), Failed(0, "a"), Succeeded(0, "a"))
    assert list(state.succeeded) == []
    assert state.failures == {0: 1}


def test_counted_stays_are_forgotten_with_their_placement() -> None:
    state = after(begun(), Job(completions=2), Failed(0, "a"), Failed(1, "b"))
    assert forget_stays(state, ["b", "c"]).counted == {"b"}


def test_a_failure_says_which_replica_how_often_and_why() -> None:
    rules = Job(completions=2, retries=1)
    state = after(begun(), rules, Failed(1, "a", "Error"), Failed(1, "b", "OutOfMemory"))
    assert state.message == "replica 1 failed 2 times, at last with OutOfMemory"


def test_a_replica_that_succeeds_has_no_failures_left_but_they_are_summed() -> None:
    state = after(begun(), Job(completions=2), Failed(0, "a"), Failed(1, "b"), Succeeded(0, "c"))
    assert state.failures == {1: 1}
    assert state.failed_at_s.keys() == {1}
    assert state.failed == 2


def test_the_record_stays_small_enough_for_the_store() -> None:
    """A job of very many replicas that all fail, or end in every other place."""
    rules = Job(completions=100_000, parallelism=100_000, retries=1000)
    odd = IndexSet(tuple((number, number) for number in range(1, 100_000, 2)))
    failing = dict.fromkeys(range(90000, 90000 + 2 * FAILING_MAX, 2), 999)
    state = JobState(
        succeeded=odd,
        failures=failing,
        failed_at_s=dict.fromkeys(failing, 123456.789),
        counted=frozenset(f"{number:032x}" for number in range(COUNTED_MAX)),
    )
    assert len(json.dumps(state.to_body())) < MAX_VALUE_BYTES / 1.5
    after_one_more = advance(state, Failed(0, "one more"), rules, NOW)
    assert after_one_more.phase is Phase.FAILED
    assert after_one_more.message == f"{FAILING_MAX} replicas have failed"


# --- instructions -------------------------------------------------------------------------------


def test_the_lowest_numbers_first_and_not_more_than_parallelism() -> None:
    assert instruct(begun(), Job(completions=5, parallelism=2), []).indexes == (0, 1)


def test_those_that_run_go_on() -> None:
    rules = Job(completions=9, parallelism=2)
    state = after(begun(), rules, Succeeded(1, "u1"))
    found = instruct(state, rules, [stay(1, over=True), stay(7)])
    assert found.indexes == (0, 7)
    assert found.resting == {"u1"}


def test_less_parallelism_stops_the_last_ones() -> None:
    rules = Job(completions=9, parallelism=1)
    assert instruct(begun(), rules, [stay(3), stay(4)]).indexes == (3,)


def test_a_failed_replica_waits_and_leaves_its_place_to_others() -> None:
    rules = Job(completions=3, parallelism=1)
    state = after(begun(), rules, Failed(0, "u0"))
    found = instruct(state, rules, [stay(0, over=True)])
    assert found.indexes == (1,)
    assert found.resting == {"u0"}  # its log can be read meanwhile


def test_after_the_backoff_the_failed_stay_ends_and_the_index_is_wanted_again() -> None:
    rules = Job(retries=2)
    state = after(begun(), rules, Failed(0, "u0"))
    waiting = instruct(state, rules, [stay(0, over=True)])
    assert waiting.indexes == () and waiting.due_s == 10.0
    state = after(state, rules, TimePassed(10.0))
    again = instruct(state, rules, [stay(0, over=True)])
    assert again.indexes == (0,)
    assert again.ending["u0"].cause is Cause.JOB_RETRY
    assert again.ending["u0"].message == "it failed; attempt 2 of 3"
    # With its new stay there, nothing more is due.
    assert instruct(state, rules, [stay(0, "v0")]).indexes == (0,)


def test_the_backoff_doubles_up_to_five_minutes() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 6, 1000)] == [10.0, 20.0, 40.0, 300.0, 300.0]


def test_after_a_restart_of_the_leader_ended_stays_are_known_without_their_agents() -> None:
    """Nothing is observed yet: neither may a finished stay stop nor its number run again."""
    rules = Job(completions=2, parallelism=2, retries=3)
    state = after(begun(), rules, Succeeded(0, "u0"), Failed(1, "u1"))
    state = JobState.from_body(state.to_body())
    found = instruct(state, rules, [stay(0), stay(1)])
    assert found.indexes == ()
    assert found.resting == {"u0", "u1"}
    assert not found.ending


def test_a_second_stay_of_what_has_succeeded_ends() -> None:
    rules = Job(completions=2)
    state = after(begun(), rules, Succeeded(0, "u0"))
    found = instruct(state, rules, [stay(0, "u0", over=True), stay(0, "twin")])
    assert found.resting == {"u0"}
    assert found.ending["twin"].cause is Cause.COMPLETED


@pytest.mark.parametrize(
    ("rules", "event", "cause"),
    [
        (Job(completions=2, retries=0), Failed(0, "u0"), Cause.JOB_FAILED),
        (Job(completions=2, deadline=5), TimePassed(5), Cause.DEADLINE_EXCEEDED),
    ],
)
def test_a_job_that_fails_stops_what_still_runs(rules: Job, event: Event, cause: Cause) -> None:
    state = after(begun(), rules, event)
    found = instruct(state, rules, [stay(0, over=isinstance(event, Failed)), stay(1)])
    assert found.indexes == ()
    assert found.ending["u1"].cause is cause
    assert ("u0" in found.resting) == isinstance(event, Failed)


def test_logs_stay_until_the_time_to_live_is_over() -> None:
    rules = Job(ttl=100)
    state = after(begun(), rules, TimePassed(7), Succeeded(0, "u0"))
    kept = instruct(state, rules, [stay(0, over=True)])
    assert kept.resting == {"u0"} and kept.due_s == 100.0 and not kept.remove
    gone = instruct(after(state, rules, TimePassed(107)), rules, [stay(0, over=True)])
    assert gone.remove
    assert gone.ending["u0"].cause is Cause.COMPLETED


def test_what_ended_leaves_a_node_that_is_drained() -> None:
    rules = Job(completions=2)
    state = after(begun(), rules, Succeeded(0, "u0"))
    found = instruct(state, rules, [stay(0, over=True, leaving="node n is being drained")])
    assert found.ending["u0"].message == "it is done, and node n is being drained"


def test_a_job_keeps_the_logs_of_its_last_replicas_only() -> None:
    count = RESTING_MAX + 5
    rules = Job(completions=count + 1, parallelism=count)
    state = after(begun(), rules, *[Succeeded(index, f"u{index}") for index in range(count)])
    found = instruct(state, rules, [stay(i, epoch=i, over=True) for i in range(count)])
    assert set(found.ending) == {f"u{index}" for index in range(5)}
    assert len(found.resting) == RESTING_MAX


# --- properties ---------------------------------------------------------------------------------


def test_a_state_is_read_as_it_was_written() -> None:
    rules = Job(completions=50, retries=1)
    state = after(
        begun(), rules, Succeeded(3, "a"), Succeeded(4, "b"), Succeeded(9, "c"), Failed(1, "d"),
        TimePassed(2.5), Failed(1, "e"),
    )  # fmt: skip
    assert JobState.from_body(state.to_body()) == state
    assert state.to_body()["succeeded"] == "3-4,9"


@given(st.lists(st.integers(0, 40)))
def test_an_index_set_is_a_set(indexes: list[int]) -> None:
    found = IndexSet.of(indexes)
    assert list(found) == sorted(set(indexes))
    assert len(found) == len(set(indexes))
    assert IndexSet.parse(str(found)) == found
    assert list(found.missing(30)) == [i for i in range(30) if i not in set(indexes)]
    assert found.below(20) == len({i for i in indexes if i < 20})
    assert all(b[0] > a[1] + 1 for a, b in zip(found.ranges, found.ranges[1:], strict=False))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_happens_successes_stay_and_attempts_are_bounded(data: st.DataObject) -> None:
    """A fleet that does anything: reports late, twice, out of order; forgets; restarts leaders."""
    rules = Job(
        completions=data.draw(st.integers(1, 6), "completions"),
        parallelism=data.draw(st.integers(1, 4), "parallelism"),
        retries=data.draw(st.integers(0, 2), "retries"),
        deadline=data.draw(st.sampled_from([0.0, 900.0]), "deadline"),
        ttl=10_000.0,
    )
    state, stays, epoch, elapsed = begun(), {}, 0, 0.0
    attempts: dict[int, int] = {}
    reports: list[Event] = []
    for _ in range(60):
        orders = instruct(state, rules, stays.values())
        for uid in orders.ending:
            del stays[uid]
        running = {s.index for s in stays.values() if s.uid not in orders.resting}
        for uid in [s.uid for s in stays.values() if s.uid not in orders.resting]:
            if stays[uid].index not in orders.indexes:
                del stays[uid]
        assert len(orders.indexes) <= rules.parallelism
        assert not any(index in state.succeeded for index in orders.indexes)
        for index in orders.indexes:
            if index not in running:
                epoch += 1
                attempts[index] = attempts.get(index, 0) + 1
                stays[f"s{epoch}"] = Stay(index, f"s{epoch}", epoch)
        active = [s for s in stays.values() if s.uid not in orders.resting]
        assert len(active) <= rules.parallelism
        match data.draw(st.sampled_from(["ok", "fail", "time", "again", "restart"])):
            case "ok" if active:
                ended = data.draw(st.sampled_from(active))
                reports.append(Succeeded(ended.index, ended.uid))
                stays[ended.uid] = replace(ended, over=True)
            case "fail" if active:
                ended = data.draw(st.sampled_from(active))
                reports.append(Failed(ended.index, ended.uid, "Error"))
                stays[ended.uid] = replace(ended, over=True)
            case "restart":
                state = JobState.from_body(state.to_body())
                stays = {uid: replace(s, over=s.over and uid not in state.counted)
                         for uid, s in stays.items()}  # fmt: skip
            case "time":
                elapsed += data.draw(st.sampled_from([1.0, 30.0, 300.0]))
        told = reports[-1:] if not data.draw(st.booleans()) else list(reversed(reports))
        before, was = set(state.succeeded), state.phase
        for event in [*told, TimePassed(elapsed)]:
            state = advance(state, event, rules, NOW)
        state = forget_stays(state, stays)
        reports = [event for event in reports if getattr(event, "uid", "") in stays]
        assert before <= set(state.succeeded)
        assert not was.ended or state.phase is was
        failures = state.failures.values()
        assert all(count <= rules.retries + 1 for count in failures)
        assert all(count <= rules.retries + 1 for count in attempts.values())
    if state.phase is Phase.COMPLETE:
        assert state.succeeded.below(rules.completions) == rules.completions


def test_the_table_in_the_guide_is_the_one_in_the_code() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text()
    rows = [
        f"| {phase.value} | {event.__name__} | {', '.join(p.value for p in Phase if p in after)} |"
        for (phase, event), after in TRANSITIONS.items()
    ]
    assert [row for row in rows if row not in guide] == []
