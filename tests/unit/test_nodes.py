"""The life of a node: its table, flapping, and many silent at once."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.holds import HoldKind, Scope
from orchestrator.domain.liveness import FLAP_WINDOW_S, SILENT_AFTER_S, Liveness
from orchestrator.domain.nodes import TRANSITIONS, NodeMemory, Word, first, remark, step
from orchestrator.domain.silence import TRANSITIONS as DOUBTS
from orchestrator.domain.silence import Doubt, Quiet, Sign, judge
from orchestrator.scheduling.decisions import Cause
from tests.unit.guard_world import GuardedWorld
from tests.unit.scheduling_world import box

LIVE, SILENT, LOST = Liveness.LIVE, Liveness.SILENT, Liveness.LOST
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "node-lifecycle.md"


# --- the tables -----------------------------------------------------------------------------------


def test_every_state_knows_every_word() -> None:
    assert set(TRANSITIONS) == set(product(Liveness, Word))
    assert set(DOUBTS) == set(product(Doubt, Sign))


def test_the_document_has_the_table_of_the_code() -> None:
    text = DOCUMENT.read_text()
    for (state, word), (after, effects) in TRANSITIONS.items():
        told = ", ".join(effect.value for effect in effects) or "-"
        assert f"| {state.value} | {word.value} | {after.value} | {told} |" in text
    for (doubt, sign), next_doubt in DOUBTS.items():
        assert f"| {doubt.value} | {sign.value} | {next_doubt.value} |" in text


@pytest.mark.parametrize("state", list(Liveness))
def test_a_doubted_node_is_never_lost(state: Liveness) -> None:
    assert TRANSITIONS[state, Word.DOUBTED][0] is SILENT


def test_what_happened_before_anybody_watched_is_not_told() -> None:
    for word in Word:
        memory = first(word, 0.0)
        assert step("n", memory, word, 1.0)[1] == ()


def test_falls_and_returns_are_told_once_each() -> None:
    memory = NodeMemory(LIVE)
    said = []
    for at, word in enumerate(
        (Word.HEARD, Word.QUIET, Word.QUIET, Word.GONE, Word.GONE, Word.HEARD, Word.HEARD)
    ):
        memory, told = step("n", memory, word, float(at))
        said += [announce.reason for announce in told]
    assert said == ["NodeSilent", "NodeLost", "NodeReady"]


# --- flapping -------------------------------------------------------------------------------------


def test_a_flapping_node_is_one_event_per_episode() -> None:
    memory = NodeMemory(LIVE)
    said, steady = [], 0.0
    for _ in range(20):
        for word, lasts_s in ((Word.QUIET, 15.0), (Word.HEARD, 15.0)):
            steady += lasts_s
            memory, told = step("n", memory, word, steady)
            said += [announce.reason for announce in told]
    assert said == ["NodeSilent", "NodeReady", "NodeSilent", "NodeReady", "NodeFlapping"]
    assert "20 times in the last 10 minutes" in remark(memory, steady)
    fell = steady - 15.0
    memory, told = step("n", memory, Word.HEARD, fell + FLAP_WINDOW_S)
    assert told == () and memory.flapping
    memory, told = step("n", memory, Word.HEARD, fell + FLAP_WINDOW_S + 1)
    assert [announce.reason for announce in told] == ["NodeReady"]
    assert not memory.flapping and remark(memory, steady) == ""
    assert step("n", memory, Word.QUIET, steady + 2 * FLAP_WINDOW_S)[1][0].reason == "NodeSilent"


def test_an_episode_that_ends_in_silence_is_told_as_a_loss() -> None:
    memory, steady = NodeMemory(LIVE), 0.0
    for word in (Word.QUIET, Word.HEARD) * 3:
        steady += 20.0
        memory, _ = step("n", memory, word, steady)
    memory, _ = step("n", memory, Word.QUIET, steady)
    memory, told = step("n", memory, Word.GONE, steady + 30.0)
    assert told == ()
    memory, told = step("n", memory, Word.GONE, steady + FLAP_WINDOW_S + 30.0)
    assert [announce.reason for announce in told] == ["NodeLost"] and not memory.flapping


# --- many silent at once --------------------------------------------------------------------------


def running(count: int, **sites: int) -> GuardedWorld:
    """`count` replicas over these sites."""
    made = GuardedWorld().sites(**sites)
    made.want("app", count=count)
    made.settle()
    return made


def test_a_single_silent_node_is_lost_and_left() -> None:
    home = running(10, a=5)
    home.fall_silent("a-0")
    there = list(home.world.where().values()).count("a-0")
    assert there and home.run(120) == there
    assert home.state("a-0") is LOST and "a-0" not in home.world.where().values()
    assert not home.holds and home.reasons()[-2:] == ["NodeSilent", "NodeLost"]


def test_most_of_a_site_silent_stops_evictions_there_for_ten_minutes() -> None:
    home = running(40, a=10, b=30)
    dark = [f"a-{n}" for n in range(7)]
    home.fall_silent(*dark, "b-0")
    home.run(120)
    assert home.state("b-0") is LOST  # elsewhere nodes are lost as ever
    assert {home.state(name) for name in dark} == {SILENT}
    (hold,) = home.holds
    assert (hold.kind, hold.scope, hold.name) == (HoldKind.SILENCE, Scope.SITE, "a")
    assert (hold.silent, hold.nodes) == (7, 10) and hold.until_ms
    explained = [e for e in home.tick().explanations if e.code == "NodeSuspect"]
    assert explained and "7 of 10 of site a: evictions wait until" in explained[0].message
    assert f"edgectl approve {hold.id}" in explained[0].message
    placement = home.world.placements["a-0"]
    twice = placement.assignments * 2  # as while it is updated there
    home.world.placements["a-0"] = replace(placement, assignments=twice)
    again = [e for e in home.tick().explanations if e.code == "NodeSuspect"]
    assert [e.replicas for e in again] == [e.replicas for e in explained]
    home.world.placements["a-0"] = placement
    home.run(600)
    assert {home.state(name) for name in dark} == {LOST} and not home.holds
    assert home.reasons().count("MassSilence") == 1


def test_most_of_a_region_is_told_once_and_not_for_each_of_its_sites() -> None:
    home = running(30, a=4, b=4, c=4)
    for site in ("d", "e"):
        home.add(*(box(f"{site}-{n}", site, region="west") for n in range(8)))
    home.fall_silent(*(n for n in home.world.nodes if n.startswith(("a-", "b-"))))
    home.run(60)
    (hold,) = home.holds
    assert (hold.scope, hold.name, hold.silent, hold.nodes) == (Scope.REGION, "eu", 8, 12)
    home.speak(*(f"a-{n}" for n in range(4)))
    home.run(10)
    (hold,) = home.holds
    assert (hold.scope, hold.name) == (Scope.SITE, "b") and home.state("b-0") is SILENT
    home.approve(hold)
    home.run(40)  # what the region's end gave them is over too
    assert home.state("b-0") is LOST


def test_who_approves_for_a_region_approves_for_its_sites() -> None:
    home = running(30, a=4, b=4, c=4)
    home.fall_silent(*(n for n in home.world.nodes if n.startswith(("a-", "b-"))))
    home.run(60)
    (hold,) = home.holds
    home.approve(hold)
    home.tick()
    assert {home.state("a-0"), home.state("b-3")} == {LOST}


def test_half_of_a_site_is_not_most_of_it() -> None:
    home = running(8, a=4, b=4)
    home.fall_silent("a-0", "a-1")
    home.run(60)
    assert home.state("a-0") is LOST and not home.holds


def test_two_boxes_are_too_few_to_tell() -> None:
    home = running(8, a=2, b=4)
    home.fall_silent("a-0", "a-1")
    home.run(60)
    assert home.state("a-0") is LOST and not home.holds


def test_a_short_silence_of_many_is_not_told() -> None:
    home = running(8, a=4, b=4)
    home.fall_silent("a-0", "a-1", "a-2")
    home.run(25)
    home.speak("a-0", "a-1", "a-2")
    home.run(60)
    assert "MassSilence" not in home.reasons() and not home.holds


def test_approval_lets_evictions_go_on() -> None:
    home = running(8, a=4, b=4)
    home.fall_silent("a-0", "a-1", "a-2")
    home.run(60)
    (hold,) = home.holds
    assert home.state("a-0") is SILENT
    home.approve(hold)
    home.tick()
    assert home.state("a-0") is LOST
    home.new_leader()
    home.run(60)
    assert home.state("a-0") is LOST  # the approval is in the Store
    home.speak("a-0", "a-1", "a-2")
    home.run(10)
    assert not home.holds  # and is over with the silence


def test_when_everything_is_silent_nothing_moves_however_long() -> None:
    home = running(8, a=1, b=1)
    home.fall_silent("a-0", "b-0")
    assert home.run(7_200, step=10.0) == 0
    (hold,) = home.holds
    assert hold.scope is Scope.EVERYTHING and not hold.until_ms


def test_those_that_are_heard_later_get_a_full_period_more() -> None:
    """A thousand agents do not come back in the same second."""
    home = running(30, a=10, b=1, c=1, d=1, e=1)
    everybody = list(home.world.nodes)
    home.fall_silent(*everybody)
    home.run(300)
    home.speak(*(n for n in everybody if n.startswith("a-")))
    home.run(25)
    assert {home.state(n) for n in ("b-0", "c-0", "d-0", "e-0")} == {SILENT}
    home.speak("b-0", "c-0", "d-0")
    home.run(20)
    assert home.state("e-0") is LOST and home.state("b-0") is LIVE


def test_a_site_counts_its_ten_minutes_only_while_others_are_heard() -> None:
    home = running(30, a=5, b=6, c=6)
    home.fall_silent(*home.world.nodes)
    home.run(1_000, step=5.0)
    home.speak(*(n for n in home.world.nodes if not n.startswith("a-")))
    home.run(300)
    assert home.state("a-0") is SILENT
    (hold,) = home.holds
    assert hold.name == "a"
    home.run(360)
    assert home.state("a-0") is LOST


def test_a_restart_suspects_nobody_and_moves_nothing() -> None:
    home = running(20, a=5, b=5)
    home.restart()
    assert home.run(9) == 0
    home.speak(*home.world.nodes)
    assert home.run(60) == 0
    assert not home.holds and home.reasons() == []


def test_nodes_that_died_one_by_one_are_no_news() -> None:
    home = running(6, a=5, b=3)
    for name in ("a-0", "a-1"):
        home.fall_silent(name)
        home.run(700, step=5.0)
        assert home.state(name) is LOST
    home.fall_silent("a-2")
    home.run(60)
    assert home.state("a-2") is LOST and not home.holds


NODES = [f"{site}-{number}" for site in "abc" for number in range(4)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(NODES), max_size=12), st.booleans(), st.integers(3, 60)),
        max_size=9,
    )
)
def test_nobody_is_evicted_where_most_are_silent(
    story: list[tuple[set[str], bool, int]],
) -> None:
    """Within the first ten minutes, before a suspicion can end by time."""
    home = running(12, a=4, b=4, c=4)

    def quiet(prefix: str) -> tuple[int, int]:
        members = [name for name in NODES if name.startswith(prefix)]
        silent = [n for n in members if home.steady - home.heard[n] > SILENT_AFTER_S]
        return len(silent), len(members)

    for names, falls, seconds in story:
        if falls:
            home.fall_silent(*names)
        else:
            home.speak(*names)
        end = home.steady + seconds
        while home.steady < end:
            home.steady += 3.0
            for name in set(NODES) - home.silent:
                home.heard[name] = home.steady
            lost = [stop for stop in home.tick().stop if stop.cause is Cause.NODE_LOST]
            for stop in lost:
                for prefix in (stop.node[0], ""):
                    silent, there = quiet(prefix)
                    assert 2 * silent <= there, (stop.node, silent, there)


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_jump_of_the_wall_clock_neither_starts_nor_ends_a_suspicion(jump_s: float) -> None:
    home = running(8, a=4, b=4)
    home.jump = jump_s
    assert home.run(60) == 0 and not home.holds
    home.fall_silent("a-0", "a-1", "a-2")
    home.run(60)
    home.jump = 0.0
    home.run(300)
    assert home.state("a-0") is SILENT
    home.run(310)
    assert home.state("a-0") is LOST


def test_sites_that_declare_no_region_are_no_region_together() -> None:
    def quiet(number: int, site: str) -> Quiet:
        return Quiet(f"n{number}", site, "", quiet=True, lost=True)

    heard = [Quiet(f"h{number}", f"t{number}", "", quiet=False, lost=False) for number in range(2)]
    scattered = [quiet(number, f"s{number}") for number in range(3)]
    assert not judge([*scattered, *heard], {}, {}, 0.0, 0.0).doubted
    together = [quiet(number, "s") for number in range(3)]
    assert len(judge([*together, *heard], {}, {}, 0.0, 0.0).doubted) == 3
