"""A schedule: the wall clock in, the runs to start out. Pure.

The leader asks `decide` in every tick (through `jobs_step.py`). The state says up to which time
everything is decided: `after`. All later times that have come by are decided together, so that
however long nobody looked, at most one run starts:

    on time (not older than startWithin)          the latest starts; earlier ones are missed
    too late, missed: RunOnce                     the latest starts; earlier ones are missed
    too late, missed: Skip                        all are missed
    the last run is not over, Forbid              skipped
    the last run is not over, Replace             the last run stops, the latest starts

The wall clock may jump. Forward: what it passed over is missed. Back by more than a few minutes:
deciding begins again from the new time, so that a schedule is not silent until the clock is where
it was; times that were started are remembered and not started again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from orchestrator.domain.cron import Calendar
from orchestrator.domain.jobs import NEVER
from polder.manifest.job import Schedule

REMEMBERED_MAX = 64
"""Times that were started; they are not started again though the clock goes back."""
BACK_MAX_S = 300.0
"""A clock that goes back by less is waited for, as is one that does by less than startWithin."""
RUNS_MAX = 10
"""Runs whose outcome is kept when they themselves are gone."""
ACTIVE_MAX = 100
"""Runs of one schedule that are under way at once."""
COUNTED_MAX = 100
NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class Run:
    """One start. `at` is the time of the schedule, unix seconds; `outcome` empty: not over."""

    name: str
    at: float
    outcome: str = ""
    finished_at: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """What the leader keeps of a schedule in `/jobs/<workload uid>`. Times are unix seconds.

    `calendar` is what `after` was counted by: a changed expression makes up for nothing.
    """

    after: float
    calendar: tuple[str, str]
    fired: tuple[float, ...] = ()
    runs: tuple[Run, ...] = ()

    def to_body(self) -> dict[str, Any]:
        return {
            "after": self.after,
            "calendar": list(self.calendar),
            "fired": list(self.fired),
            "runs": [
                {
                    "name": run.name,
                    "at": run.at,
                    "outcome": run.outcome,
                    "finishedAt": run.finished_at,
                    "message": run.message,
                }
                for run in self.runs
            ],
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> "ScheduleState":
        """Raises ValueError, TypeError or KeyError for what this version did not write."""
        cron, time_zone = body["calendar"]
        return ScheduleState(
            after=float(body["after"]),
            calendar=(str(cron), str(time_zone)),
            fired=tuple(float(at) for at in body["fired"]),
            runs=tuple(
                Run(
                    name=str(run["name"]),
                    at=float(run["at"]),
                    outcome=str(run["outcome"]),
                    finished_at=float(run["finishedAt"]),
                    message=str(run["message"]),
                )
                for run in body["runs"]
            ),
        )


@dataclass(frozen=True, slots=True)
class Note:
    """For operators, as an event."""

    warning: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`start`: the time for which a run starts now. `replace`: the active runs stop for it.
    `next_at`: when to look again, unix seconds."""

    state: ScheduleState
    start: float | None = None
    replace: bool = False
    notes: tuple[Note, ...] = ()
    next_at: float = NEVER


def decide(
    state: ScheduleState | None,
    rules: Schedule,
    now: float,
    *,
    since: float,
    active: int,
    held: bool = False,
) -> Decision:
    """`now`: the wall clock. `since`: when the schedule was written, of one that is new. `active`:
    runs that are not over. `held`: nothing may start now, because it is suspended or frozen."""
    calendar = Calendar(rules.cron, rules.time_zone)
    state = _adopted(state, rules, now, since)
    if held:
        return Decision(state)
    first = _next_after(calendar, state.after)
    if first is None or first > now:
        return Decision(state, next_at=NEVER if first is None else first)
    latest = calendar.latest(state.after, now)
    if latest is None:  # the calendar does not agree with itself: nothing starts twice for that
        latest = first
    decided = replace(state, after=latest)
    next_at = _next_after(calendar, latest)
    answer = Decision(decided, next_at=NEVER if next_at is None else next_at)
    if latest in state.fired:
        return answer
    late = now - latest > rules.start_within
    missed = latest if late and rules.missed == "Skip" else _before(calendar, first, latest)
    notes = () if missed is None else (_missed(calendar, first, missed),)
    if late and rules.missed == "Skip":
        return replace(answer, notes=notes)
    refusal = _refusal(rules, active)
    if refusal is not None:
        return replace(answer, notes=(*notes, refusal))
    return replace(
        answer,
        state=replace(decided, fired=(*decided.fired, latest)[-REMEMBERED_MAX:]),
        start=latest,
        replace=active > 0 and rules.concurrency == "Replace",
        notes=notes,
    )


@lru_cache(maxsize=20_000)
def _next_after(calendar: Calendar, at: float) -> float | None:
    """Asked in every tick, and mostly the same."""
    return calendar.next_after(at)


def _adopted(
    state: ScheduleState | None, rules: Schedule, now: float, since: float
) -> ScheduleState:
    """The state for these rules and this clock."""
    calendar = (rules.cron, rules.time_zone)
    if state is None:
        recent = now - rules.start_within <= since <= now
        return ScheduleState(since if recent else now, calendar)
    if state.calendar != calendar:
        return replace(state, after=now, calendar=calendar)
    if now < state.after - min(rules.start_within, BACK_MAX_S):
        return replace(state, after=now)
    return state


def _refusal(rules: Schedule, active: int) -> Note | None:
    if active and rules.concurrency == "Forbid":
        # Of the same words each time, so that repeats count up instead of filling the events.
        return Note(True, "RunSkipped", "a run is skipped: the last one is not over")
    if active >= ACTIVE_MAX and rules.concurrency == "Allow":
        return Note(True, "RunSkipped", f"a run is skipped: {ACTIVE_MAX} are not over")
    return None


def _before(calendar: Calendar, first: float, latest: float) -> float | None:
    """The last time that was passed over for `latest`."""
    return calendar.latest(first - 1, latest - 1) if first < latest else None


def _missed(calendar: Calendar, first: float, last: float) -> Note:
    """Counts what was passed over, as far as that is worth while."""
    count, at = 1, first
    while count <= COUNTED_MAX:
        following = calendar.next_after(at)
        if following is None or following > last:
            break
        count, at = count + 1, following
    if count == 1:
        return Note(True, "RunsMissed", f"the run of {moment(last)} was missed")
    shown = f"more than {COUNTED_MAX}" if count > COUNTED_MAX else str(count)
    text = f"{shown} runs from {moment(first)} to {moment(last)} were missed"
    return Note(True, "RunsMissed", text)


def with_outcomes(state: ScheduleState, outcomes: Mapping[str, Run]) -> ScheduleState:
    """What became of runs, by name; what is known already stays."""
    runs = tuple(outcomes.get(run.name, run) if not run.outcome else run for run in state.runs)[
        -RUNS_MAX:
    ]
    return state if runs == state.runs else replace(state, runs=runs)


def started(state: ScheduleState, run: Run) -> ScheduleState:
    return replace(state, runs=(*state.runs, run)[-RUNS_MAX:])


def surplus(ended: Sequence[tuple[Run, str]], rules: Schedule) -> list[str]:
    """Of the runs that are over, those beyond the limits of the history, oldest first. Each comes
    with its outcome, and is given by its name."""
    ordered = sorted(ended, key=lambda item: (item[0].at, item[0].name))
    good = [run.name for run, outcome in ordered if outcome == "Complete"]
    bad = [run.name for run, outcome in ordered if outcome != "Complete"]
    return [
        *good[: max(0, len(good) - rules.keep_succeeded)],
        *bad[: max(0, len(bad) - rules.keep_failed)],
    ]


def run_name(schedule: str, at: float) -> str:
    """`backup-202611220300`, by UTC; a long name is cut, and stays one schedule's own."""
    tail = datetime.fromtimestamp(at, UTC).strftime("-%Y%m%d%H%M")
    if len(schedule) + len(tail) <= NAME_MAX:
        return schedule + tail
    mark = "-" + blake2b(schedule.encode(), digest_size=4).hexdigest()
    return schedule[: NAME_MAX - len(tail) - len(mark)] + mark + tail


def moment(at: float) -> str:
    """`2026-11-22 03:00 UTC`"""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
