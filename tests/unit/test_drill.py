"""The drill's rules: who may begin one, when a member plays dead, what is measured."""

from dataclasses import replace

import pytest

from orchestrator.domain.drill import (
    DURATION_MAX_S,
    GRACE_S,
    LEAD_IN_S,
    Drill,
    Installation,
    Playing,
    Report,
    drills_in,
    follow,
    objection,
    read,
)
from orchestrator.domain.drill_measure import Measure, NodeMarks, percentile, restarted
from orchestrator.records import KeptRecord

NOW = 1_000_000.0
DRILL = Drill("eu", "d1", "operator/ann", "", int(NOW * 1000), 60.0, ("a1", "a2"), "a1")
WORLD = Installation({"a1": "eu", "a2": "eu", "b1": "us"}, frozenset({"a1", "a2", "b1"}), {})


def dead_times(state: Playing) -> tuple[float, float]:
    return state.since, state.until


# --- the record -----------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_went() -> None:
    ended = replace(DRILL.ended(NOW + 9, "operator/bob"), report=Report(nodes=3, not_back=("n1",)))
    for drill in (DRILL, ended):
        raw = drill.record().to_bytes()
        assert read(KeptRecord.from_bytes("/drills/eu", raw, 7)) == drill
    assert DRILL.runs and not ended.runs


@pytest.mark.parametrize("body", [{}, {"id": "x"}, {**DRILL.record().body, "duration_s": "long"}])
def test_what_is_not_understood_makes_nobody_play_dead(body: dict[str, object]) -> None:
    assert read(KeptRecord("/drills/eu", body)) is None
    assert drills_in([KeptRecord("/drills/eu", body)]) == {}


def test_no_record_can_silence_a_region_for_longer_than_the_longest_drill() -> None:
    body = {**DRILL.record().body, "duration_s": 1e9}
    drill = read(KeptRecord("/drills/eu", body))
    assert drill is not None and drill.duration_s == DURATION_MAX_S


# --- may it begin? --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "duration_s", "world", "code"),
    [
        ("eu", 60.0, WORLD, ""),
        ("eu", 9.9, WORLD, "BadDuration"),
        ("eu", 3601.0, WORLD, "BadDuration"),
        ("mars", 60.0, WORLD, "UnknownRegion"),
        ("eu", 60.0, replace(WORLD, present=frozenset({"a1", "a2"})), "NoOtherRegion"),
        ("eu", 60.0, replace(WORLD, present=frozenset({"b1"})), "AlreadyLost"),
        ("eu", 60.0, replace(WORLD, drills={"us": replace(DRILL, region="us")}), "DrillRuns"),
        ("eu", 60.0, replace(WORLD, drills={"eu": DRILL.ended(NOW)}), ""),
    ],
)
def test_objections(region: str, duration_s: float, world: Installation, code: str) -> None:
    found = objection(region, duration_s, "", world, NOW + 1)
    assert (found.code if found else "") == code


def test_a_drill_that_nobody_ended_bars_others_only_for_a_while() -> None:
    world = replace(WORLD, drills={"us": replace(DRILL, region="us")})
    assert objection("eu", 60.0, "", world, DRILL.over_at + GRACE_S - 1) is not None
    assert objection("eu", 60.0, "", world, DRILL.over_at + GRACE_S + 1) is None
    # Unless this member sees it run: the clock of who began it may be an hour behind.
    seen = replace(world, running=frozenset({DRILL.id}))
    assert objection("eu", 60.0, "", seen, DRILL.over_at + 3600) is not None


# --- a member of the region -----------------------------------------------------------------------


def test_a_member_falls_silent_after_the_lead_in_and_comes_back_by_its_own_clock() -> None:
    idle = follow(Playing(), None, NOW, 50.0)
    state = follow(idle, DRILL, NOW, 100.0)
    assert dead_times(state) == (100.0 + LEAD_IN_S, 100.0 + LEAD_IN_S + 60)
    assert not state.dead(100.5) and state.dead(101.0) and state.dead(160.9)
    assert not state.dead(161.0)  # although the record still says that it runs
    assert follow(state, DRILL, NOW + 500, 600.0) == state
    assert [state.next_at(at) for at in (100.0, 101.0, 161.0)] == [101.0, 161.0, None]


def test_the_clock_of_a_member_does_not_matter_to_one_that_saw_it_begin() -> None:
    idle = follow(Playing(), None, NOW, 50.0)
    for skew_s in (-3600.0, 3600.0):
        state = follow(idle, DRILL, NOW + skew_s, 100.0)
        assert state.until - state.since == 60.0


@pytest.mark.parametrize(
    ("skew_s", "left_s"), [(20.0, 41.0), (-3600.0, 60.0), (3600.0, 0.0), (0.0, 60.0)]
)
def test_a_member_that_starts_meanwhile_takes_it_up_for_what_is_left(
    skew_s: float, left_s: float
) -> None:
    state = follow(Playing(), DRILL, NOW + skew_s, 100.0)
    assert dead_times(state) == (100.0, pytest.approx(100.0 + left_s))


@pytest.mark.parametrize("record", [None, DRILL.ended(NOW + 20)])
def test_it_ends_when_the_record_says_so(record: Drill | None) -> None:
    state = follow(follow(Playing(), None, NOW, 0.0), DRILL, NOW, 100.0)
    state = follow(state, record, NOW + 20, 120.0)
    assert not state.dead(120.0)
    # And the record that comes back, say from a member that was behind, does not begin it anew.
    assert not follow(state, DRILL, NOW + 21, 121.0).dead(122.0)


def test_the_next_drill_is_another() -> None:
    state = follow(follow(Playing(), None, NOW, 0.0), DRILL, NOW, 100.0)
    state = follow(state, DRILL.ended(NOW + 60), NOW + 60, 161.0)
    assert follow(state, replace(DRILL, id="d2"), NOW + 99, 200.0).dead(202.0)


def test_one_that_ends_before_it_began_never_falls_silent() -> None:
    state = follow(follow(Playing(), None, NOW, 0.0), DRILL, NOW, 100.0)
    state = follow(state, DRILL.ended(NOW + 0.5), NOW + 0.5, 100.5)
    assert not any(state.dead(at) for at in (100.6, 101.0, 130.0))


# --- measuring ------------------------------------------------------------------------------------


def marks(**replicas: str) -> NodeMarks:
    return NodeMarks({uid: (("app", identity, 5),) for uid, identity in replicas.items()})


def test_a_report() -> None:
    measure = Measure(DRILL, 10.0, {f"n{i}": marks() for i in range(4)})
    assert not measure.present(["a2", "b1"], 12.0)
    assert measure.present(["b1"], 20.5) and not measure.present(["b1"], 30.0)
    assert not measure.led_by("a1", 11.0)
    assert measure.led_by("b1", 19.0) and not measure.led_by("b2", 25.0)
    assert measure.wrote(10.25) and not measure.wrote(11.0)
    assert not measure.node_at("n0", "a2", 11.0)  # still there
    assert not measure.node_at("other", "b1", 11.0)
    assert [measure.node_at(f"n{i}", "b1", 12.0 + i) for i in range(3)] == [True] * 3
    assert not measure.node_at("n0", "b1", 50.0)
    report = measure.report(1, "b1")
    assert report == Report(
        nodes=4,
        nodes_back=3,
        not_back=("n3",),
        reconnect_p50_s=3.0,
        reconnect_p99_s=4.0,
        reconnect_last_s=4.0,
        detected_s=10.5,
        had_leader=True,
        leader="b1",
        leader_s=9.0,
        write_s=0.25,
        restarts=1,
        measured_by="b1",
    )


def test_what_did_not_happen_is_minus_one() -> None:
    report = Measure(replace(DRILL, leader="b1"), 0.0, {"n": marks()}).report(0, "b1")
    assert not report.had_leader and report.not_back == ("n",)
    times = (report.leader_s, report.detected_s, report.write_s, report.reconnect_last_s)
    assert times == (-1.0,) * 4


def test_restarts() -> None:
    before = marks(r1="a", r2="b", r3="c", r4="d")
    assert restarted(before, before) == 0
    assert restarted(before, marks(r1="a", r2="x", r3="c", r4="d", r5="new")) == 1
    assert restarted(before, marks(r1="a", r3="c")) == 2  # r2 and r4 are gone
    assert restarted(before, marks(r1="a", r3="c"), excused=["r4"]) == 1
    later = NodeMarks({"r1": (("app", "a", 6),)})
    assert restarted(marks(r1="a"), later) == 1


def test_percentiles_are_of_the_nearest_rank() -> None:
    times = [float(n) for n in range(1, 101)]
    assert [percentile(times, share) for share in (0, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([], 50) == -1.0 and percentile([7.0], 99) == 7.0
