"""When to probe a container next, and what the results so far mean. Called by the state machine.

`agent/probes.py` executes what is due and returns the result; nothing here waits or connects.

Quick start: until a readiness probe succeeds for the first time it is repeated after 0.1 s, growing
with the time since the start up to its period, so that a deploy is seen within a quarter of the
time that it took. Liveness keeps to its period: its failures count from the first.

Otherwise probes are due at whole seconds, as all that an idle agent does (`agent/steady_clock.py`).
"""

from dataclasses import dataclass, replace
from enum import Enum

from polder.manifest import Probe

QUICK_FIRST_S = 0.1
QUICK_SHARE = 0.25
MAX_MESSAGE = 256


class ProbeKind(Enum):
    READINESS = "readiness"
    LIVENESS = "liveness"


@dataclass(frozen=True, slots=True)
class ProbeState:
    """Of one probe of one run of a container. Times in seconds of the state machine's clock."""

    kind: ProbeKind
    started_at: float
    due_at: float
    passing: bool | None = None  # None: nothing is known yet
    successes: int = 0  # in a row
    failures: int = 0  # in a row
    runs: int = 0
    message: str = ""


def begin(kind: ProbeKind, probe: Probe, started_at: float, now: float) -> ProbeState:
    """Started or adopted now; of an adopted container the initial delay has usually passed. One
    that started in the future did so before the box's clock was set back."""
    started_at = min(started_at, now)
    return ProbeState(kind, started_at, max(now, started_at + probe.initial_delay))


def after(
    state: ProbeState, probe: Probe, passed: bool | None, message: str, now: float
) -> ProbeState:
    """The state after one result. None: the check could not be made; it counts for nothing."""
    if passed is None:
        return replace(state, due_at=_next(now, probe.period), message=message[:MAX_MESSAGE])
    successes = state.successes + 1 if passed else 0
    failures = 0 if passed else state.failures + 1
    passing = state.passing
    if successes >= probe.success_threshold:
        passing = True
    elif failures >= probe.failure_threshold:
        passing = False
    quick = state.kind is ProbeKind.READINESS and passing is not True and state.passing is not True
    return replace(
        state,
        passing=passing,
        successes=successes,
        failures=failures,
        runs=state.runs + 1,
        message="" if passed else message[:MAX_MESSAGE],
        due_at=now + _quick_s(now - state.started_at, probe) if quick else _next(now, probe.period),
    )


def _next(now: float, period_s: float) -> float:
    grid_s = min(1.0, period_s)
    return round((now + period_s) / grid_s) * grid_s


def _quick_s(elapsed_s: float, probe: Probe) -> float:
    return min(probe.period, max(QUICK_FIRST_S, QUICK_SHARE * elapsed_s))
