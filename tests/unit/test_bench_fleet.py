"""The pure parts of `bench fleet`: slopes, rates, sockets, and what is applied."""

import random

import pytest

from bench import fleet_world
from bench.fleet_crew import Turn
from bench.fleet_fall import failover_times, thinned
from bench.fleet_measure import Traffic, between, parse_sockets, peak_per_s, slope
from bench.fleet_members import PLACES

LINE = (
    "0      0      127.1.2.1:7443 127.0.0.1:{port} bbr wscale:10,10 rto:204 mss:32768 "
    "bytes_sent:{sent} bytes_acked:{sent} bytes_received:{received} segs_out:{out} segs_in:{into} "
    "data_segs_out:1 data_segs_in:1 send 180224000000bps"
)


def test_a_straight_line_has_its_slope_and_no_error() -> None:
    found = slope([(x / 10, 100 + 2.5 * x / 10) for x in range(50)])
    assert found.per_unit == pytest.approx(2.5)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert not found.is_zero


def test_noise_around_a_level_is_no_slope() -> None:
    dice = random.Random(7)
    found = slope([(x / 12, 300 + dice.gauss(0, 2)) for x in range(120)])
    assert found.is_zero


def test_neighbours_that_resemble_each_other_widen_the_error() -> None:
    """Steps, as an allocator makes them, are no independent samples."""
    steps = [(x / 12, 300 + 5 * (x // 20 % 2)) for x in range(120)]
    mixed = steps.copy()
    random.Random(3).shuffle(mixed)
    shuffled = [(x, y) for (x, _), (_, y) in zip(steps, mixed, strict=True)]
    assert slope(steps).error > 2 * slope(shuffled).error


@pytest.mark.parametrize("points", [[(0.0, 1.0), (1.0, 2.0)], [(1.0, 1.0)] * 5])
def test_a_slope_needs_points_at_several_moments(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="point"):
        slope(points)


def test_the_peak_is_of_any_window_and_not_of_whole_seconds() -> None:
    assert peak_per_s([0.0, 0.9, 1.1, 1.2, 1.3, 5.0]) == 4
    assert peak_per_s([3.0, 2.0, 1.0]) == 1
    assert peak_per_s([]) == 0


def test_bytes_on_the_wire_are_those_of_connections_that_were_there_both_times() -> None:
    first = LINE.format(port=1, sent=100, received=50, out=4, into=6)
    second = LINE.format(port=2, sent=1, received=1, out=1, into=1)
    later = LINE.format(port=1, sent=400, received=150, out=9, into=11)
    found = between(parse_sockets(f"{first}\n{second}"), parse_sockets(f"{later}\n\n"))
    assert found == Traffic(connections=1, payload_bytes=400, packets=10)
    assert found.wire_bytes == 400 + 10 * 52


def test_a_node_is_back_with_its_first_session_elsewhere() -> None:
    turns = [
        Turn(9.0, "a", True, "lost"),
        Turn(10.1, "a", False, "lost"),
        Turn(10.2, "b", False, "lost"),
        Turn(11.0, "a", True, "other"),
        Turn(11.5, "a", False, "other"),
        Turn(12.0, "a", True, "other"),
        Turn(13.0, "b", True, "other"),
    ]
    assert failover_times(turns, "lost", 10.0) == pytest.approx([1.0, 3.0])


def test_every_node_has_a_site_and_every_region_has_sites() -> None:
    where = fleet_world.sites(PLACES[:3], 500)
    assert len(where) == 10
    assert {place for _, place in where} == set(PLACES[:3])
    assert len({name for name, _ in fleet_world.sites(PLACES[:5], 20)}) == 5
    names = [m["metadata"]["name"] for m in fleet_world.manifests(where)]
    assert names[1:] == [name for name, _ in where]


def test_workloads_have_the_replicas_that_were_asked_for() -> None:
    sizes = [m["spec"]["replicas"] for m in fleet_world.workloads(2_500)]
    assert sizes == [1000, 1000, 500]
    assert len({m["metadata"]["name"] for m in fleet_world.workloads(100_000)}) == 100


def test_a_long_list_is_thinned_evenly() -> None:
    points = [(float(n), 0.0) for n in range(120)]
    assert len(thinned(points, 60)) == 60
    assert thinned(points[:3], 60) == points[:3]
