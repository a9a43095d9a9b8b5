"""Voters that break their word: what proves it, what follows, and what proves nothing."""

import pytest

from agent.domain.roster import Electorate
from agent.domain.site.messages import Claim, Claims, PeerSaid
from agent.domain.site.trust import Finding, Trust, who_lied
from polder import epochs
from tests.unit.site_lab import KEY, Lab, group, lab, planned

ABC = group("a", "b", "c", exclusive=True)
FIRST_S = 30.0  # voters that remember nothing grant nothing for twenty seconds
GONE_S = 5.0  # what a dead voter granted is over


def held_by_a(*names: str) -> Lab:
    site = lab(group(*names, exclusive=True))
    site.start()
    site.run(FIRST_S)
    assert list(site.runs()) == ["a"]
    return site


def claims_later(site: Lab, node: str, *granted_by: str) -> None:
    """A peer comes with a later ballot than the one that runs at a."""
    (runs,) = site.boxes["a"].running.values()
    claim = Claim(KEY, "s-other", runs.epoch + 1, ready=True, granted_by=granted_by)
    site.feed("a", PeerSaid(node, Claims((claim,))))


def told(site: Lab, reason: str) -> list[str]:
    return [tell.message for tell in site.boxes["a"].tells if tell.reason == reason]


@pytest.mark.parametrize(
    ("claimant", "ours", "theirs", "lied"),
    [
        ("b", "b", "", ["b"]),  # nobody holds without its own vote, and it had given that away
        ("b", "bc", "bc", ["b"]),
        ("b", "c", "bc", ["c"]),
        ("b", "c", "", []),  # it does not say: it may have been in another group
        ("b", "cd", "bde", ["d"]),
        ("b", "cd", "", []),  # one of the two
        ("b", "cd", "bcd", []),  # both, or the one who says so
        ("b", "cd", "be", []),  # not those that it was granted by, at any rate
    ],
)
def test_who_granted_both_lied(claimant: str, ours: str, theirs: str, lied: list[str]) -> None:
    assert who_lied(claimant, list(ours), list(theirs)) == lied


def test_if_so_many_lied_that_no_majority_is_left_the_fault_is_likely_here() -> None:
    voters = Electorate(1, tuple("abcde"))
    trust = Trust()
    assert trust.lied("b", "x", voters) is Finding.LIED
    assert trust.lied("b", "x", voters) is Finding.KNOWN
    assert trust.lied("c", "y", voters) is Finding.LIED
    assert "b x; c y" in trust.text()
    assert trust.lied("d", "z", voters) is Finding.DOUBTED
    assert not trust.excluded and not trust.text() and not trust.body()


def test_two_that_hold_it_the_earlier_one_stops_and_who_granted_both_is_excluded() -> None:
    site = held_by_a("a", "b", "c")
    site.kill("b")
    site.run(GONE_S)
    claims_later(site, "b", "b", "c")
    assert not site.runs(), "whoever is right, one of two has to stop at once"
    assert len(told(site, "HeldTwice")) == 1
    assert [text[:2] for text in told(site, "VoterLied")] == ["c "]
    assert "c granted web-0 to b as well" in site.boxes["a"].conditions["VotersExcluded"]
    site.run(30)
    assert "a" not in site.runs(), "c does not count: there is no majority without it"
    site.start("b")
    site.run(30)
    assert len(site.runs()) == 1, "with an honest one there is"


def test_an_exclusion_outlives_the_agent_and_ends_when_no_plan_names_the_voter() -> None:
    site = held_by_a("a", "b", "c")
    site.kill("b")
    site.run(GONE_S)
    claims_later(site, "b", "b", "c")
    site.stop_agent("a")
    site.boxes["a"].conditions.clear()
    site.start("a", same_boot=True)
    assert "c granted" in site.boxes["a"].conditions["VotersExcluded"]
    site.give("a", planned("a", group("a", "b", exclusive=True), generation=2))
    assert site.boxes["a"].conditions["VotersExcluded"] == ""


@pytest.mark.parametrize(("granted_by", "lied"), [("bde", ["d"]), ("", []), ("bcd", [])])
def test_of_five_only_who_granted_both_is_excluded(granted_by: str, lied: list[str]) -> None:
    """The others of this node's own majority are honest, and so may be all of them."""
    site = held_by_a("a", "b", "c", "d", "e")
    site.kill("b")
    site.kill("e")
    site.run(GONE_S)
    claims_later(site, "b", *granted_by)
    assert not site.runs()
    assert [text[0] for text in told(site, "VoterLied")] == lied
    site.run(30)
    assert len(site.runs()) == 1
    if lied:
        assert list(site.runs()) == ["c"], "to a there is no majority left; c may believe d yet"


def test_a_plan_tells_of_another_holder_as_well_as_that_one_itself() -> None:
    """The two may not hear each other, and the orchestrator hears both."""
    site = held_by_a("a", "b", "c")
    site.kill("b")
    site.run(GONE_S)
    (runs,) = site.boxes["a"].running.values()
    later = planned("a", ABC, primary="b", uid="s-other", epoch=runs.epoch + 1, generation=2)
    site.give("a", later)
    assert not site.runs()
    assert [text[:2] for text in told(site, "VoterLied")] == ["c "]


def test_a_plan_with_another_group_accuses_nobody() -> None:
    """An operator's fence, say: others may have granted it."""
    site = held_by_a("a", "b", "c")
    site.kill("b")
    site.run(GONE_S)
    (runs,) = site.boxes["a"].running.values()
    forced = group("b", "a", "c", exclusive=True, forced=True)
    later = planned("a", forced, primary="b", uid="s-other", epoch=runs.epoch + 1, generation=2)
    site.give("a", later)
    assert not site.runs()
    assert told(site, "HeldTwice") and not told(site, "VoterLied")


def test_what_a_leader_decided_later_is_no_ballot() -> None:
    site = held_by_a("a", "b", "c")
    (runs,) = site.boxes["a"].running.values()
    decided = epochs.decided_at(epochs.revision_of(runs.epoch) + 1)
    site.feed("a", PeerSaid("b", Claims((Claim(KEY, "p2", decided, ready=False),))))
    assert list(site.runs()) == ["a"] and not told(site, "HeldTwice")
