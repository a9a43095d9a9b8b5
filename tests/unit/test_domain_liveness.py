"""Liveness, by table: silence counts from the last word, and never from before anybody listened."""

import pytest

from orchestrator.domain.liveness import Liveness, liveness

LIVE, SILENT, LOST, NEVER = Liveness.LIVE, Liveness.SILENT, Liveness.LOST, Liveness.NEVER_SEEN


@pytest.mark.parametrize(
    ("last_seen", "ever_seen", "listening_since", "now", "expected"),
    [
        (100.0, True, 0.0, 100.0, LIVE),
        (100.0, True, 0.0, 110.0, LIVE),
        (100.0, True, 0.0, 110.1, SILENT),
        (100.0, True, 0.0, 130.0, SILENT),
        (100.0, True, 0.0, 130.1, LOST),
        (100.0, True, 120.0, 140.0, SILENT),  # a new leader waits a full period
        (100.0, True, 120.0, 150.1, LOST),
        (0.0, True, 1000.0, 1000.0, SILENT),  # the orchestrator has just started
        (0.0, True, 1000.0, 1030.0, SILENT),
        (0.0, True, 1000.0, 1030.1, LOST),
        (0.0, False, 1000.0, 9999.0, NEVER),
        (100.0, False, 0.0, 101.0, LIVE),
        (100.0, True, 0.0, 50.0, LIVE),  # the clock was set back
    ],
)
def test_liveness(
    last_seen: float, ever_seen: bool, listening_since: float, now: float, expected: Liveness
) -> None:
    assert liveness(last_seen, ever_seen, listening_since, now).state is expected
