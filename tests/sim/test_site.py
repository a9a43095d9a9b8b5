"""The simulation of a site over some seeds, and whether it would notice what it is there for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.domain.site import operators
from agent.domain.site.claims import Heard
from agent.domain.site.machine import SiteMachine
from agent.domain.site.overrides import Decisions
from agent.domain.site.tenure import Tenure
from tests.sim import site
from tests.sim.__main__ import main
from tests.sim.site_box import Switch
from tests.sim.site_story import Kind
from tests.sim.site_world import Violation

# Each found a bug, or a gap in the simulation that hid one. All of them were of the plain kind.
KEPT = {
    34: "a lease that came back after its stay had stopped was renewed for ever, and nothing ran",
    253: "two that cannot hear each other took over from each other every second",
    485: "without a runtime the machine asked for one tick after the other",
    939: "a replica that went and came back within its lease took up the same ballot again",
    1394: "a group that plans of different age could not bring together was asked for too much",
    2021: "a box that lost its power started at once what another one ran meanwhile",
    2031: "a voter that had promised it to itself refused the holder for ever",
    3133: "an agent that restarted did not tell the switch of its longer lease",
    3677: "the holder lost its majority, was heard, and nobody else asked who had one",
    3894: "one with an older plan was not told who else runs it, and both ran on",
    4854: "two took it over by plans of different age, and neither was told of the other",
    10366: "the node to which it was moved never got its plan, and nobody took it over",
    11191: "what stopped after too long alone did not come back with the orchestrator",
}
KEPT_OF_OTHERS = {
    394: ("operators", "a refusal that was late was taken for a broken word"),
}


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_seeds_hold(first: int) -> None:
    for seed in range(first, first + 10):
        site.check(seed)


@pytest.mark.parametrize("seed", KEPT)
def test_what_was_found_stays_mended(seed: int) -> None:
    site.check(seed, "plain")


@pytest.mark.parametrize("seed", KEPT_OF_OTHERS)
def test_what_other_kinds_found_stays_mended(seed: int) -> None:
    site.check(seed, KEPT_OF_OTHERS[seed][0])


def test_lost_disks_suspended_boxes_wrong_clocks_and_weeks_away_are_borne() -> None:
    for seed in range(10):
        site.check(seed, "hard")


def test_what_operators_decide_is_done_everywhere_and_not_forgotten() -> None:
    # 227: a claim was outbid that overtook the operator's word; 40694: plans of different age
    for seed in (*range(12), 227, 40694):
        site.check(seed, "operators")


def test_operators_and_lost_disks_together_are_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(site.MAKERS, "operators", (SiteMachine, Kind(operators=0.3, hard=0.12)))
    for seed in range(8):
        site.check(seed, "operators")


def test_it_notices_a_node_that_forgets_what_operators_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Decisions, "read", lambda *_: None)
    with pytest.raises(Violation, match="forgets"):
        _tries(range(40), "operators")


def test_it_notices_a_node_that_starts_what_operators_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operators, "why_stopped", lambda *_: "")
    with pytest.raises(Violation, match="is stopped"):
        _tries(range(40), "operators")


def test_a_voter_that_grants_twice_is_found_and_nobody_else_accused() -> None:
    stories = [site.check(seed, "liar") for seed in range(24)]
    told = [line for story in stories for line in story.world.story if "VoterLied" in line]
    assert told, "else nothing was shown"


def test_the_desk_of_leases_holds_alone_when_all_want_it_all_the_time() -> None:
    for seed in range(20):
        site.check(seed, "desk")


def _tries(seeds: range, only: str = "desk") -> None:
    for seed in seeds:
        site.check(seed, only)


def test_it_notices_a_holder_that_believes_in_its_lease_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Callable[..., float] = Tenure.until
    monkeypatch.setattr(Tenure, "until", lambda self, excluded: real(self, excluded) + 3.0)
    with pytest.raises(Violation, match="two of r"):
        _tries(range(40))


def test_it_notices_a_switch_that_does_not_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Switch, "_kill", lambda *_: None)
    with pytest.raises(Violation, match="two of r"):
        _tries(range(40))


def test_it_notices_that_somebody_yields_to_one_that_does_not_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Callable[..., Any] = Heard.contender

    def ready(self: Heard, now: float) -> Any:
        return replace(real(self, now), ready=True)

    monkeypatch.setattr(Heard, "contender", ready)
    with pytest.raises(Violation, match="yields"):
        _tries(range(200), "plain")


def test_a_failing_seed_is_told_with_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Switch, "_kill", lambda *_: None)
    monkeypatch.setattr("tests.sim.site_story.Story.tell", _fails)
    assert main(["site", "--seeds", "1", "--seed", "3", "--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert "seed 3 FAILED: something" in shown
    assert "replay: python -m tests.sim site --only site --seed 3 --seeds 1 --story" in shown


def _fails(story: object) -> None:
    raise Violation("something")
