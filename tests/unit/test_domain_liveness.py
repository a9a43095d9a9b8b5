"""Liveness, by table: silence counts from the last word, and never from before anybody listened."""

import pytest

from orchestrator.domain.liveness import Liveness, Periods, liveness
from orchestrator.fleet import Fleet

LIVE, SILENT, LOST, NEVER = Liveness.LIVE, Liveness.SILENT, Liveness.LOST, Liveness.NEVER_SEEN
DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("silence_s", "ever_seen", "listened_s", "expected"),
    [
        (0.0, True, 100.0, LIVE),
        (8.5, True, 100.0, LIVE),
        (8.6, True, 100.0, SILENT),
        (30.0, True, 100.0, SILENT),
        (30.1, True, 100.0, LOST),
        (40.0, True, 20.0, SILENT),  # a new leader waits a full period
        (40.0, True, 30.1, LOST),
        (None, True, 0.0, SILENT),  # the orchestrator has just started
        (None, True, 30.0, SILENT),
        (None, True, 30.1, LOST),
        (None, False, 9999.0, NEVER),
        (1.0, False, 100.0, LIVE),
    ],
)
def test_liveness(
    silence_s: float | None, ever_seen: bool, listened_s: float, expected: Liveness
) -> None:
    assert liveness(silence_s, ever_seen, listened_s) is expected


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_wall_clock_that_jumps_by_a_day_changes_nothing(jump_s: float) -> None:
    steady = 50.0
    fleet = Fleet(1_000.0, lambda: steady)
    fleet.heard("n1", 1_000.0)
    steady = 55.0
    fleet.heard("n2", 1_005.0 + jump_s)
    steady = 61.0
    found = {name: fleet.liveness(name, ever_seen=True) for name in ("n1", "n2")}
    assert [(f.state, f.silence_s) for f in found.values()] == [(SILENT, 11.0), (LIVE, 6.0)]
    assert found["n2"].since == 1_005.0 + jump_s  # what people are shown is the wall's


def test_a_new_leader_and_a_restarted_process_wait_out_a_full_period() -> None:
    steady = 0.0
    fleet = Fleet(1_000.0, lambda: steady)
    steady = 100.0
    periods = Periods(1.0, 5.0)
    assert fleet.liveness("n1", True, periods).state is LOST
    assert fleet.liveness("n1", True, periods, listening_since=99.0).state is SILENT
    assert Fleet(1_000.0, lambda: steady).liveness("n1", True, periods).state is SILENT
