"""A job from its start to its end: events and time in, state and instructions out. Pure.

A job is a workload with `run: once`. The leader takes `advance` for what agents report and for time
that passed, stores the state, and then does what `instruct` says (`jobs_step.py` puts both into
the leader's tick). What is recorded counts: a replica that succeeded never runs again, whatever its
agent says later, and a failed stay counts once.

    Running --- the last replica succeeded ---------------------> Complete
            --- a replica failed more often than it may be
                tried again -----------------------------------> Failed
            --- it took longer than its deadline --------------> DeadlineExceeded

The end is final: a job that ended is not started again by a change of its spec. Each replica:

    Wanted --> Active --> Succeeded
      ^          | failed: `failures` + 1
      +- backoff-+

`TRANSITIONS` is the table of the phases; `docs/jobs.md` shows it to operators.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.domain.index_set import IndexSet
from orchestrator.scheduling.decisions import Cause
from polder.manifest.job import Job

BACKOFF_S = 10.0
BACKOFF_MAX_S = 300.0
RESTING_MAX = 100
"""Ended replicas of one job whose pods and logs are kept; the ones that ended first go."""
COUNTED_MAX = 2_000
"""Ends that are counted and whose stays still stand in a placement. The others wait their turn."""
FAILING_MAX = 5_000
"""Replicas of one job that have failed and not succeeded since. It fails when there are more."""
NEVER = float("inf")


class Phase(StrEnum):
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"

    @property
    def ended(self) -> bool:
        return self is not Phase.RUNNING


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The agent says that a stay ran to its end, and well."""

    index: int
    uid: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The agent says that a stay ended, and not well."""

    index: int
    uid: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """So long since the job started, on a clock that never jumps."""

    elapsed_s: float


Event = Succeeded | Failed | TimePassed

TRANSITIONS: Mapping[tuple[Phase, type[Event]], frozenset[Phase]] = {
    (Phase.RUNNING, Succeeded): frozenset({Phase.RUNNING, Phase.COMPLETE}),
    (Phase.RUNNING, Failed): frozenset({Phase.RUNNING, Phase.FAILED}),
    (Phase.RUNNING, TimePassed): frozenset(
        # Complete: the spec was changed to fewer completions than have succeeded.
        {Phase.RUNNING, Phase.COMPLETE, Phase.DEADLINE_EXCEEDED}
    ),
    **{
        (phase, event): frozenset({phase})
        for phase in Phase
        if phase.ended
        for event in (Succeeded, Failed, TimePassed)
    },
}


@dataclass(frozen=True, slots=True)
class JobState:
    """What the leader keeps of a job in `/jobs/<workload uid>`.

    `started_at` and `finished_at` are unix seconds, to be shown; durations count in `elapsed_s`,
    the seconds since the start by a steady clock. `failed_at_s` is the `elapsed_s` of each
    replica's last failure, from which its backoff counts, and `failures` counts those of a replica
    until it succeeds; `failed` is the sum of all that were. `counted` are the stays whose end is
    counted, as long as a placement holds them: after a restart nobody else knows that they ended.
    """

    phase: Phase = Phase.RUNNING
    started_at: float = 0.0
    elapsed_s: float = 0.0
    succeeded: IndexSet = IndexSet()
    failures: Mapping[int, int] = field(default_factory=dict)
    failed_at_s: Mapping[int, float] = field(default_factory=dict)
    failed: int = 0
    counted: frozenset[str] = frozenset()
    finished_at: float = 0.0
    finished_after_s: float = 0.0
    message: str = ""

    def to_body(self) -> dict[str, Any]:
        return {
            "phase": self.phase.value,
            "startedAt": self.started_at,
            "elapsedS": round(self.elapsed_s, 3),
            "succeeded": str(self.succeeded),
            "failures": {str(index): count for index, count in sorted(self.failures.items())},
            "failedAtS": {str(i): round(at, 3) for i, at in sorted(self.failed_at_s.items())},
            "failed": self.failed,
            "counted": sorted(self.counted),
            "finishedAt": self.finished_at,
            "finishedAfterS": round(self.finished_after_s, 3),
            "message": self.message,
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> "JobState":
        """Raises ValueError, TypeError or KeyError for what this version did not write."""
        return JobState(
            phase=Phase(body["phase"]),
            started_at=float(body["startedAt"]),
            elapsed_s=float(body["elapsedS"]),
            succeeded=IndexSet.parse(body["succeeded"]),
            failures={int(index): int(count) for index, count in body["failures"].items()},
            failed_at_s={int(index): float(at) for index, at in body["failedAtS"].items()},
            failed=int(body["failed"]),
            counted=frozenset(body["counted"]),
            finished_at=float(body["finishedAt"]),
            finished_after_s=float(body["finishedAfterS"]),
            message=str(body["message"]),
        )


def backoff_s(failures: int) -> float:
    """How long a replica waits after so many failures: 10 s, 20 s, 40 s ... five minutes."""
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(max(0, failures - 1), 30))


# --- events -------------------------------------------------------------------------------------


def advance(state: JobState, event: Event, rules: Job, now: float) -> JobState:
    """The state after the event. `now` (unix seconds) is only written down."""
    if isinstance(event, TimePassed):
        state = replace(state, elapsed_s=max(state.elapsed_s, event.elapsed_s))
    if state.phase.ended:
        return state
    match event:
        case Succeeded():
            after = _succeed(state, event, rules)
        case Failed():
            after = _fail(state, event, rules)
        case TimePassed():
            after = _pass(state, rules)
    assert after.phase in TRANSITIONS[(state.phase, type(event))]
    if after.phase.ended:
        after = replace(after, finished_at=now, finished_after_s=after.elapsed_s)
    return after


def _succeed(state: JobState, event: Succeeded, rules: Job) -> JobState:
    if event.uid in state.counted or event.index in state.succeeded:
        return state
    succeeded = state.succeeded.with_index(event.index)
    after = replace(
        state,
        succeeded=succeeded,
        failures={i: count for i, count in state.failures.items() if i != event.index},
        failed_at_s={i: at for i, at in state.failed_at_s.items() if i != event.index},
        counted=state.counted | {event.uid},
    )
    return _if_complete(after, rules)


def _if_complete(state: JobState, rules: Job) -> JobState:
    if state.succeeded.below(rules.completions) < rules.completions:
        return state
    message = f"{rules.completions} of {rules.completions} completed"
    return replace(state, phase=Phase.COMPLETE, message=message)


def _fail(state: JobState, event: Failed, rules: Job) -> JobState:
    if event.uid in state.counted or event.index in state.succeeded:
        return state
    if event.index >= rules.completions:
        return state  # not wanted any more: the plan stops it
    count = state.failures.get(event.index, 0) + 1
    after = replace(
        state,
        failures={**state.failures, event.index: count},
        failed_at_s={**state.failed_at_s, event.index: state.elapsed_s},
        failed=state.failed + 1,
        counted=state.counted | {event.uid},
    )
    if len(after.failures) > FAILING_MAX:
        return replace(after, phase=Phase.FAILED, message=f"{FAILING_MAX} replicas have failed")
    if count <= rules.retries:
        return after
    times = "once" if count == 1 else f"{count} times"
    why = f", at last with {event.reason}" if event.reason else ""
    return replace(after, phase=Phase.FAILED, message=f"replica {event.index} failed {times}{why}")


def _pass(state: JobState, rules: Job) -> JobState:
    after = _if_complete(state, rules)
    if not after.phase.ended and rules.deadline and state.elapsed_s >= rules.deadline:
        done = f"{state.succeeded.below(rules.completions)} of {rules.completions}"
        message = f"it took longer than {rules.deadline:g} s; {done} completed"
        return replace(after, phase=Phase.DEADLINE_EXCEEDED, message=message)
    return after


def forget_stays(state: JobState, present: Iterable[str]) -> JobState:
    """Counted stays that no placement holds are not reported any more."""
    kept = state.counted.intersection(present)
    return state if kept == state.counted else replace(state, counted=kept)


# --- instructions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stay:
    """A replica of the job on a node. `over`: its agent said that it ended.

    `leaving`: why an ended one cannot be kept where it is, such as a drain; empty: it can.
    """

    index: int
    uid: str
    epoch: int = 0
    over: bool = False
    leaving: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """A stay must stop, and why."""

    cause: Cause
    message: str


@dataclass(frozen=True, slots=True)
class Instructions:
    """`indexes` must have a running stay each. Stays in `resting` are over and stay as they are,
    for their logs. `remove`: the time to live is over, and the workload goes. `due_s`: time alone
    changes something in so long."""

    indexes: tuple[int, ...] = ()
    resting: frozenset[str] = frozenset()
    ending: Mapping[str, Ending] = field(default_factory=dict)
    remove: bool = False
    due_s: float = NEVER


def instruct(state: JobState, rules: Job, stays: Iterable[Stay]) -> Instructions:
    """What the job's state means for the stays that there are."""
    ordered = sorted(stays, key=lambda stay: (stay.index, stay.epoch, stay.uid))
    if state.phase.ended:
        return _after_the_end(state, rules, ordered)
    active = [stay for stay in ordered if not _is_over(state, stay)]
    wanted, due_s = _wanted(state, rules, {stay.index for stay in active})
    if rules.deadline:
        due_s = min(due_s, max(0.0, rules.deadline - state.elapsed_s))
    resting, ending = [], {}
    for stay in ordered:
        if stay.index in state.succeeded:
            if not (stay.over or stay.uid in state.counted):
                ending[stay.uid] = Ending(Cause.COMPLETED, "it has succeeded elsewhere")
            elif stay.leaving:
                ending[stay.uid] = Ending(Cause.COMPLETED, f"it is done, and {stay.leaving}")
            else:
                resting.append(stay)
        elif stay.uid in state.counted:
            if stay.index in wanted or stay.leaving:
                count = state.failures.get(stay.index, 0)
                again = f"it failed; attempt {count + 1} of {rules.retries + 1}"
                ending[stay.uid] = Ending(Cause.JOB_RETRY, again)
            else:
                resting.append(stay)
    kept = _bound(resting, ending)
    return Instructions(tuple(sorted(wanted)), kept, ending, due_s=due_s)


def _is_over(state: JobState, stay: Stay) -> bool:
    return stay.over or stay.index in state.succeeded or stay.uid in state.counted


def _wanted(state: JobState, rules: Job, active: set[int]) -> tuple[set[int], float]:
    """Those that run go on; then the lowest numbers that may start. And when the next may."""
    wanted = {index for index in active if index < rules.completions}
    if len(wanted) > rules.parallelism:
        wanted = set(sorted(wanted)[: rules.parallelism])
    due_s = NEVER
    for index in state.succeeded.missing(rules.completions):
        if len(wanted) >= rules.parallelism:
            break
        wait_s = _waits_s(state, index)
        if index not in wanted and wait_s <= 0:
            wanted.add(index)
        elif index not in wanted:
            due_s = min(due_s, wait_s)
    return wanted, due_s


def _waits_s(state: JobState, index: int) -> float:
    if index not in state.failed_at_s:
        return 0.0
    return state.failed_at_s[index] + backoff_s(state.failures.get(index, 0)) - state.elapsed_s


_AT_THE_END = {
    Phase.COMPLETE: (Cause.COMPLETED, "its job is complete"),
    Phase.FAILED: (Cause.JOB_FAILED, "its job failed"),
    Phase.DEADLINE_EXCEEDED: (Cause.DEADLINE_EXCEEDED, "its job took too long"),
}


def _after_the_end(state: JobState, rules: Job, stays: list[Stay]) -> Instructions:
    left_s = state.finished_after_s + rules.ttl - state.elapsed_s
    if left_s <= 0:
        text = f"its job ended {rules.ttl:g} s ago, its time to live"
        return Instructions(
            ending={stay.uid: Ending(Cause.COMPLETED, text) for stay in stays}, remove=True
        )
    resting, ending = [], {}
    for stay in stays:
        if not (stay.over or stay.uid in state.counted):
            ending[stay.uid] = Ending(*_AT_THE_END[state.phase])
        elif stay.leaving:
            ending[stay.uid] = Ending(Cause.COMPLETED, f"it is done, and {stay.leaving}")
        else:
            resting.append(stay)
    return Instructions(resting=_bound(resting, ending), ending=ending, due_s=left_s)


def _bound(resting: list[Stay], ending: dict[str, Ending]) -> frozenset[str]:
    """The youngest `RESTING_MAX`; the others are added to `ending`."""
    youngest = sorted(resting, key=lambda stay: (stay.epoch, stay.uid))
    for stay in youngest[:-RESTING_MAX]:
        text = f"it is done, and its job keeps the last {RESTING_MAX} only"
        ending[stay.uid] = Ending(Cause.COMPLETED, text)
    return frozenset(stay.uid for stay in youngest[-RESTING_MAX:])
