"""The count of isolation survives restarts, power cuts and clocks that jump."""

from typing import Any

import pytest

from agent.site.alone import SAVE_EVERY_S, Alone, save_every_s
from tests.unit.site_lab import group, planned

DAY = 86_400.0
YEAR = 365 * DAY


def saved(alone_s: float, *, at: float = 1000.0, wall: float = 2e9) -> dict[str, Any]:
    return {"alone_s": alone_s, "boot_id": "b1", "at": at, "wall": wall}


def test_a_box_that_just_joined_was_never_alone() -> None:
    assert Alone.read({}, "b1", 50.0, 2e9).for_s(60.0) == 10.0


def test_within_a_boot_the_steady_clock_counts_whatever_the_wall_clock_says() -> None:
    alone = Alone.read(saved(100.0), "b1", 1500.0, 2e9 - YEAR)
    assert alone.for_s(1500.0) == 600.0


@pytest.mark.parametrize(("off_s", "counted_s"), [(DAY, DAY + 100), (-YEAR, 100), (0, 100)])
def test_over_a_power_cut_time_counts_if_the_clock_knows_of_it(
    off_s: float, counted_s: float
) -> None:
    alone = Alone.read(saved(100.0), "b2", 5.0, 2e9 + off_s)
    assert alone.for_s(5.0) == pytest.approx(counted_s)


def test_hearing_one_ends_it_and_that_is_saved_at_once() -> None:
    alone = Alone.read(saved(DAY), "b1", 1000.0, 2e9)
    assert alone.to_save(1000.0, 2e9) is not None
    assert alone.to_save(1000.0 + SAVE_EVERY_S / 2, 2e9) is None
    alone.heard(1400.0)
    body = alone.to_save(1400.0, 2e9)
    assert body is not None and body["alone_s"] == 0.0


def test_it_is_saved_now_and_then_and_read_as_it_was() -> None:
    alone = Alone("b1", 0.0)
    writes = 0
    body = None
    for now in range(0, 3601, 5):
        fresh = alone.to_save(float(now), 2e9 + now)
        writes, body = writes + (fresh is not None), fresh or body
    assert writes <= 8 and body is not None
    again = Alone.read(body, "b2", 1.0, 2e9 + 3600)
    assert again.for_s(1.0) == pytest.approx(3600)


def test_damage_is_as_if_nothing_had_been_saved() -> None:
    assert Alone.read({"alone_s": "x"}, "b1", 5.0, 2e9).for_s(5.0) == 0.0


def test_before_the_agent_ends_it_is_saved_however_fresh_that_is() -> None:
    alone = Alone("b1", 0.0)
    assert alone.to_save(1.0, 2e9) is not None
    alone.heard(500.0)
    assert alone.to_save(500.0, 2e9 + 500) is None
    body = alone.to_save(500.0, 2e9 + 500, every_s=0.0)
    assert body is not None
    assert Alone.read(body, "b1", 504.0, 2e9 + 504).for_s(504.0) == 4.0


@pytest.mark.parametrize(("stop_after_s", "every_s"), [(0.0, SAVE_EVERY_S), (300.0, 100.0)])
def test_where_a_replica_stops_after_a_while_alone_it_is_saved_more_often(
    stop_after_s: float, every_s: float
) -> None:
    """What was heard since counts as time alone after a crash: that must not stop the replica."""
    who = group("a", "b", exclusive=True, stop_after_s=stop_after_s)
    assert save_every_s(planned("a", who)) == save_every_s(planned("b", who)) == every_s
    assert save_every_s(None) == SAVE_EVERY_S
