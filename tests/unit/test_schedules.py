"""Schedules: what starts when, whatever the wall clock does."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.schedules import (
    NAME_MAX,
    REMEMBERED_MAX,
    Decision,
    Run,
    ScheduleState,
    decide,
    run_name,
    started,
    surplus,
    with_outcomes,
)
from polder.manifest.job import Schedule

DAY = 86_400.0
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
MINUTELY = Schedule(cron="* * * * *")
DAILY = Schedule(cron="0 3 * * *")


def at(clock: str, day: int = 0) -> float:
    hours, minutes = clock.split(":")
    return MIDNIGHT + day * DAY + int(hours) * 3600 + int(minutes) * 60


class Player:
    """Asks `decide` as the leader does, and notes what starts."""

    def __init__(self, rules: Schedule, now: float) -> None:
        self.rules = rules
        self.now = now
        self.since = now
        self.state: ScheduleState | None = None
        self.starts: list[float] = []
        self.notes: list[str] = []
        self.look()

    def look(self, now: float | None = None, *, active: int = 0, held: bool = False) -> Decision:
        self.now = self.now if now is None else now
        made = decide(self.state, self.rules, self.now, since=self.since, active=active, held=held)
        self.state = ScheduleState.from_body(made.state.to_body())
        self.notes += [note.reason for note in made.notes]
        if made.start is not None:
            self.starts.append(made.start)
        return made

    def run(self, until: float, step: float = 5.0) -> None:
        while self.now < until:
            self.look(self.now + step)


def test_it_starts_each_time_once() -> None:
    player = Player(MINUTELY, at("10:00") + 30)
    player.run(at("10:03") + 10)
    assert player.starts == [at("10:01"), at("10:02"), at("10:03")]
    assert not player.notes


def test_a_new_schedule_makes_up_for_nothing_from_before() -> None:
    player = Player(Schedule(cron="0 3 * * *", missed="RunOnce"), at("10:00"))
    assert player.look(at("10:00") + 1).next_at == at("3:00", 1)
    assert not player.starts


def test_a_time_between_writing_and_the_first_look_is_not_lost() -> None:
    made = decide(None, MINUTELY, at("10:01") + 2, since=at("10:00") + 58, active=0)
    assert made.start == at("10:01")


@pytest.mark.parametrize(("missed", "starts"), [("Skip", []), ("RunOnce", [at("9:00")])])
def test_after_an_outage_nothing_or_the_latest(missed: str, starts: list[float]) -> None:
    player = Player(Schedule(cron="0 * * * *", missed=missed), at("3:30"))
    player.look(at("9:30"))
    player.run(at("9:50"))
    assert player.starts == starts
    assert player.notes == ["RunsMissed"]
    player.run(at("10:01"))
    assert player.starts == [*starts, at("10:00")]


def test_a_run_that_is_late_within_start_within_starts() -> None:
    player = Player(Schedule(cron="0 3 * * *", start_within=600), at("2:00"))
    player.look(at("3:09"))
    assert player.starts == [at("3:00")]


def test_suspended_starts_nothing_and_then_no_burst() -> None:
    player = Player(MINUTELY, at("10:00"))
    for minute in range(5):
        player.look(at(f"10:0{minute}") + 5, held=True)
    assert not player.starts
    player.look(at("10:05") + 5)
    assert player.starts == [at("10:05")]
    assert player.notes == ["RunsMissed"]


def test_while_the_last_run_is_not_over() -> None:
    for concurrency, starts, note in (
        ("Forbid", 0, ["RunSkipped"]),
        ("Allow", 1, []),
        ("Replace", 1, []),
    ):
        player = Player(Schedule(cron="* * * * *", concurrency=concurrency), at("10:00"))
        made = player.look(at("10:01") + 1, active=1)
        assert len(player.starts) == starts
        assert made.replace == (concurrency == "Replace")
        assert player.notes == note
        player.look(at("10:01") + 50, active=0)  # its time has been used
        assert len(player.starts) == starts


def test_runs_that_never_end_are_bounded() -> None:
    player = Player(Schedule(cron="* * * * *", concurrency="Allow"), at("10:00"))
    player.look(at("10:01"), active=100)
    assert not player.starts and player.notes == ["RunSkipped"]


def test_another_expression_makes_up_for_nothing() -> None:
    player = Player(Schedule(cron="0 3 * * *", missed="RunOnce"), at("2:00"))
    player.run(at("3:01"))
    player.rules = Schedule(cron="0 10 * * *", missed="RunOnce")
    player.look(at("15:00"))
    assert player.starts == [at("3:00")]
    player.look(at("10:00", 1) + 1)
    assert player.starts == [at("3:00"), at("10:00", 1)]


# --- the clock jumps ----------------------------------------------------------------------------


@pytest.mark.parametrize("missed", ["Skip", "RunOnce"])
def test_a_clock_that_goes_a_day_forward_and_back(missed: str) -> None:
    """No time twice, no burst, and no day of silence."""
    player = Player(Schedule(cron="* * * * *", missed=missed), at("10:00") + 1)
    player.run(at("10:03") + 1)
    player.now += DAY
    player.run(at("10:06", 1) + 1)
    there = player.starts[3:]
    assert 3 <= len(there) <= 4
    player.now -= DAY
    player.run(at("10:09") + 1)
    back = [start for start in player.starts if start not in there][3:]
    assert back == [at("10:07"), at("10:08"), at("10:09")]
    # When the day comes that was seen already, its runs are not started again.
    player.now = at("10:02", 1) + 1
    player.run(at("10:08", 1) + 1)
    assert len(player.starts) == len(set(player.starts))
    assert player.starts[-1] == at("10:08", 1)


def test_a_clock_that_goes_a_day_back_is_not_waited_for() -> None:
    player = Player(MINUTELY, at("00:00") + 1)
    player.run(at("2:00") + 1)  # more than is remembered
    player.now -= DAY
    count = len(player.starts)
    player.run(at("00:10", 0) + 1 - DAY + 2 * 3600)
    assert len(player.starts) == count + 10


def test_a_clock_that_goes_back_a_little_is_waited_for() -> None:
    player = Player(MINUTELY, at("10:00") + 1)
    player.run(at("10:05") + 3)
    player.now -= 40.0
    player.run(at("10:06") + 3)
    assert player.starts == [at(f"10:0{minute}") for minute in range(1, 7)]


def test_a_daily_run_is_not_repeated_when_its_day_comes_again() -> None:
    player = Player(DAILY, at("2:00"))
    player.run(at("4:00"), step=60)
    player.now -= DAY / 2
    player.run(at("4:00"), step=60)
    assert player.starts == [at("3:00")]
    player.run(at("4:00", 1), step=60)
    assert player.starts == [at("3:00"), at("3:00", 1)]


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_no_double_fire_and_no_burst_whatever_the_clock_does(data: st.DataObject) -> None:
    rules = Schedule(
        cron=data.draw(st.sampled_from(["*/20 * * * *", "0 * * * *", "30 2,14 * * *"]), "cron"),
        time_zone=data.draw(st.sampled_from(["UTC", "Europe/Amsterdam"]), "zone"),
        missed=data.draw(st.sampled_from(["Skip", "RunOnce"]), "missed"),
        start_within=data.draw(st.sampled_from([1.0, 60.0, 3600.0]), "startWithin"),
    )
    player = Player(rules, at("12:00"))
    steady, starts_at = 0.0, []
    looked = 0
    for _ in range(data.draw(st.integers(5, 40), "moves")):
        step = data.draw(st.sampled_from([1.0, 30.0, 600.0, 3600.0]), "step")
        jump = data.draw(st.sampled_from([0.0] * 6 + [DAY, -DAY, 300.0, -30.0, -7200.0]), "jump")
        held = data.draw(st.booleans(), "held") and data.draw(st.booleans(), "held too")
        steady += step
        before = len(player.starts)
        player.look(player.now + step + jump, held=held)
        looked += 1
        assert len(player.starts) - before <= 1
        assert not (held and len(player.starts) > before)
        if len(player.starts) > before:
            starts_at.append(steady)
            assert player.starts[-1] <= player.now
            late = player.now - player.starts[-1]
            assert late <= rules.start_within or rules.missed == "RunOnce"
    assert looked < REMEMBERED_MAX
    assert len(player.starts) == len(set(player.starts))


@given(st.integers(-2, 2), st.integers(0, 1439))
@settings(max_examples=60, deadline=None)
def test_after_any_jump_it_starts_again_within_the_hour(days: int, minutes: int) -> None:
    player = Player(Schedule(cron="0 * * * *"), at("10:30"))
    player.run(at("11:30"), step=60)
    player.now += days * DAY + minutes * 60
    assert player.state is not None
    known = set(player.state.fired)
    count = len(player.starts)
    player.run(player.now + 3600 + 60, step=60)
    passed = [t for t in known if player.now - 3660 < t <= player.now]
    assert len(player.starts) > count or passed


# --- names and history --------------------------------------------------------------------------


def test_a_run_is_named_after_its_time_in_utc() -> None:
    assert run_name("backup", at("3:00")) == "backup-202611220300"


def test_long_names_are_cut_and_stay_apart() -> None:
    names = {run_name("a" * 60 + tail, at("3:00")) for tail in ("x", "y", "zz", "zzz")}
    assert len(names) == 4
    assert all(len(name) == NAME_MAX and name.endswith("-202611220300") for name in names)
    assert run_name("a" * 50, at("3:00")) == "a" * 50 + "-202611220300"


def test_history_limits_take_the_oldest_of_each_kind() -> None:
    runs = [(Run(f"r{n}", float(n)), "Complete" if n % 2 else "Failed") for n in (5, 1, 2, 3, 4, 6)]
    assert surplus(runs, Schedule(cron="", keep_succeeded=2, keep_failed=1)) == ["r1", "r2", "r4"]
    assert surplus(runs, Schedule(cron="")) == []


def test_an_outcome_is_written_once() -> None:
    state = ScheduleState(0.0, ("", ""))
    state = started(state, Run("a", 1.0))
    state = with_outcomes(state, {"a": Run("a", 1.0, "Complete", 2.0)})
    again = with_outcomes(state, {"a": Run("a", 1.0, "Deleted", 9.0)})
    assert again == state and state.runs[0].outcome == "Complete"
