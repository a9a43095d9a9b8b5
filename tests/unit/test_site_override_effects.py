"""What operators' decisions do at a site: stopped, moved, frozen; exclusive and not."""

from dataclasses import replace

import pytest

from agent.domain.plan import STOPPED_LOCALLY
from agent.domain.roster import Group
from agent.domain.site.case import Standing
from agent.domain.site.messages import OperatorDecided, Overrides, PeerSaid, RunsHere
from agent.domain.site.operators import RESERVED_S
from agent.domain.site.refusing import find
from agent.domain.view import Phase
from polder.overrides import FROZEN, PLACED_ON, STOPPED, Override
from tests.unit.site_lab import E1, KEY, Lab, assigned, group, lab, planned, view

ABC = group("a", "b", "c")
ONE = group("a", "b", "c", exclusive=True)
FIRST_S = 30.0  # voters that remember nothing grant nothing for twenty seconds
EITHER = pytest.mark.parametrize("who", [ABC, ONE], ids=["plain", "exclusive"])


def healthy(who: Group) -> Lab:
    site = lab(who)
    site.start()
    site.run(FIRST_S)
    assert site.runs() == {"a": ["p1"]}
    return site


def overlaps(site: Lab, seconds: float) -> list[dict[str, list[str]]]:
    """Moments at which more than one stay ran."""
    found = []
    for _ in range(round(seconds / 0.05)):
        site.run(0.05)
        runs = site.runs()
        if sum(len(uids) for uids in runs.values()) > 1:
            found.append(runs)
    return found


# ---- stopped ----


@EITHER
def test_what_is_stopped_runs_nowhere_and_stays_visible(who: Group) -> None:
    site = healthy(who)
    answer = site.decide("b", STOPPED)
    assert answer.override is not None and answer.override.stands
    site.run(60)
    assert site.runs() == {}
    effective = site.boxes["a"].effective
    assert effective is not None and effective.held["p1"].cause == STOPPED_LOCALLY
    assert "operator/ann stopped it at b" in effective.held["p1"].message
    assert all(b.machine.standings()[KEY] is Standing.STOPPED for b in site.boxes.values())


@EITHER
def test_what_was_stopped_starts_again_as_the_same_stay(who: Group) -> None:
    site = healthy(who)
    site.decide("a", STOPPED)
    site.run(30)
    assert site.decide("c", STOPPED, "").refusal is None
    site.run(10)
    assert site.runs() == {"a": ["p1"]}
    assert "TakenOver" not in [reason for box in site.boxes.values() for reason in box.told()]


@EITHER
def test_what_is_stopped_stays_so_through_a_cold_boot(who: Group) -> None:
    site = healthy(who)
    site.decide("a", STOPPED)
    site.run(5)
    for name in site.boxes:
        site.kill(name)
    site.run(10)
    began: list[dict[str, list[str]]] = []
    site.start()
    for _ in range(600):
        site.run(0.1)
        began += [runs] if (runs := site.runs()) else []
    assert not began


@EITHER
def test_a_node_that_was_away_learns_of_it_before_it_starts_anything(who: Group) -> None:
    site = healthy(who)
    site.kill("a")
    site.run(FIRST_S)
    (holder,) = site.runs()
    site.decide("c", STOPPED)
    site.run(5)
    assert site.runs() == {}
    site.start("a")
    site.run(60)
    assert site.runs() == {} and holder == "b"


@EITHER
def test_nobody_takes_over_what_is_stopped(who: Group) -> None:
    site = healthy(who)
    site.decide("a", STOPPED)
    site.run(5)
    site.kill("a")
    site.run(60)
    assert site.runs() == {}
    site.decide("b", STOPPED, "")
    site.run(30)
    assert list(site.runs()) == ["b"]


def test_both_of_two_stop() -> None:
    site = healthy(ABC)
    for other in ("b", "c"):
        site.part("a", other)
    site.run(20)
    assert sorted(site.runs()) == ["a", "b"]
    site.decide("a", STOPPED)
    site.run(5)
    assert list(site.runs()) == ["b"]  # it has not heard of it
    site.mend()
    site.run(5)
    assert site.runs() == {}


def test_an_exclusive_one_gives_its_lease_back() -> None:
    site = healthy(ONE)
    site.decide("a", STOPPED)
    site.run(3)
    site.decide("a", STOPPED, "")
    began_at = site.now
    while not site.runs():
        site.run(0.05)
    assert site.now - began_at < 1.0  # nobody had to wait for an old lease
    assert site.boxes["a"].running["p1"].epoch > E1


def test_a_replica_without_standbys_is_stopped_as_well() -> None:
    alone = replace(planned("a", group("a")), assignments={"p1": assigned(None)})
    site = Lab({"a": alone})
    site.start()
    site.run(5)
    assert site.runs() == {"a": ["p1"]}
    site.decide("a", STOPPED)
    assert site.runs() == {}
    site.decide("a", STOPPED, "")
    assert site.runs() == {"a": ["p1"]}


def test_a_stay_that_no_plan_names_is_stopped_as_well() -> None:
    site = healthy(ABC)
    site.give("a", replace(planned("a", ABC, generation=2, roster=["b"]), assignments={}))
    site.run(5)
    assert site.runs() == {"a": ["p1"]}  # an orphan
    assert site.decide("a", STOPPED).refusal is None
    assert site.runs() == {}


def test_what_a_plan_says_is_in_force_before_anything_of_it_starts() -> None:
    stopped = Override(STOPPED, "true", *KEY[:1], "ns", KEY[1], "x", 7, "b", "operator/ann")
    plan = replace(planned("a", group("a")), overrides=(stopped,))
    site = Lab({"a": plan})
    site.start()
    assert site.boxes["a"].effective is not None and "p1" in site.boxes["a"].effective.held
    site.run(30)
    assert site.runs() == {}


# ---- placedOn ----


@EITHER
def test_it_is_moved_though_its_holder_lives(who: Group) -> None:
    site = healthy(who)
    assert site.decide("a", PLACED_ON, "c").refusal is None
    doubles = overlaps(site, 15)
    assert list(site.runs()) == ["c"]
    assert bool(doubles) != who.exclusive  # without a gap, or never two
    site.run(120)
    assert list(site.runs()) == ["c"]


@EITHER
def test_it_is_moved_back_to_the_primary(who: Group) -> None:
    site = healthy(who)
    site.decide("a", PLACED_ON, "b")
    site.run(10)
    assert list(site.runs()) == ["b"]
    assert site.decide("b", PLACED_ON, "a").refusal is None
    site.run(10)
    assert list(site.runs()) == ["a"]


def test_the_next_one_holds_an_exclusive_one_within_a_moment() -> None:
    site = healthy(ONE)
    site.decide("b", PLACED_ON, "b")
    moved_at = site.now
    while "b" not in site.runs():
        site.run(0.05)
        assert len(site.runs()) <= 1
    assert site.now - moved_at < 1.0


@EITHER
def test_it_is_told_who_moved_it(who: Group) -> None:
    site = healthy(who)
    site.decide("a", PLACED_ON, "c")
    site.run(10)
    (told,) = [tell.message for tell in site.boxes["c"].tells if tell.reason == "TakenOver"]
    assert told.endswith(": operator/ann moved it here at a")


def test_of_a_free_lease_it_is_told_who_had_it() -> None:
    site = healthy(ONE)
    site.kill("a")
    site.run(10)
    (told,) = [tell.message for tell in site.boxes["b"].tells if tell.reason == "TakenOver"]
    assert told.endswith(": its lease was free, a had it")


def test_a_holder_does_not_stop_for_one_that_cannot_take_it_over() -> None:
    site = healthy(ONE)
    for other in ("a", "c"):
        site.part("b", other)
    site.run(5)
    assert site.decide("b", PLACED_ON, "b").refusal is not None  # it reaches no majority
    site.mend()
    site.run(5)
    site.set_unable("c", "NoRoom")
    site.run(1)
    refused = site.decide("a", PLACED_ON, "c").refusal
    assert refused is not None and refused.reason == "NodeUnable" and "NoRoom" in refused.message
    site.run(60)
    assert site.runs() == {"a": ["p1"]}


def test_if_it_becomes_unable_meanwhile_others_take_it_after_a_while() -> None:
    site = healthy(ONE)
    site.decide("a", PLACED_ON, "c")
    site.boxes["c"].writable = False  # it says that it is able, and comes to nothing
    site.run(2)
    assert site.runs() == {}
    site.run(RESERVED_S + 10)
    assert len(site.runs()) == 1 and "c" not in site.runs()


def test_if_it_dies_meanwhile_others_take_it_at_once() -> None:
    site = healthy(ONE)
    site.decide("a", PLACED_ON, "c")
    site.kill("c")
    site.run(12)
    assert len(site.runs()) == 1 and "c" not in site.runs()


@EITHER
def test_a_move_is_done_once(who: Group) -> None:
    """Who takes it over from where it was moved keeps it when that node is back."""
    site = healthy(who)
    site.decide("a", PLACED_ON, "c")
    site.run(10)
    site.kill("c")
    site.run(15)
    (holder,) = site.runs()
    assert holder != "c"
    site.start("c")
    site.run(60)
    assert list(site.runs()) == [holder] or not who.exclusive
    assert len(site.runs()) == 1


def test_a_move_that_somebody_was_faster_than_is_of_the_past() -> None:
    site = healthy(ONE)
    site.part("a", "b")
    site.part("a", "c")
    site.run(20)
    assert list(site.runs()) == ["b"]
    answer = site.decide("a", PLACED_ON, "a", id="late")
    assert answer.refusal is not None  # it does not reach a majority
    site.mend()
    site.run(20)
    assert list(site.runs()) == ["b"]


# ---- frozen ----


@EITHER
def test_a_frozen_site_takes_nothing_over_until_it_goes_on(who: Group) -> None:
    site = healthy(who)
    site.decide("c", FROZEN)
    assert "operator/ann froze the site at c" in site.boxes["a"].conditions["Frozen"]
    site.kill("a")
    site.run(120)
    assert site.runs() == {}
    assert {a.reason for a in site.boxes["b"].machine.abilities()} == {"Frozen"}
    site.decide("b", FROZEN, "")
    assert site.boxes["c"].conditions["Frozen"] == ""
    site.run(20)
    assert len(site.runs()) == 1


def test_leases_are_renewed_at_a_frozen_site() -> None:
    site = healthy(ONE)
    site.decide("a", FROZEN)
    site.run(60)
    assert site.runs() == {"a": ["p1"]}


def test_what_lost_its_lease_stops_at_a_frozen_site() -> None:
    site = healthy(ONE)
    site.decide("a", FROZEN)
    site.part("a", "b")
    site.part("a", "c")
    site.run(5)
    assert site.runs() == {}


def test_of_two_neither_yields_at_a_frozen_site() -> None:
    site = healthy(ABC)
    site.decide("a", FROZEN)
    site.part("a", "b")
    site.part("a", "c")
    site.decide("b", FROZEN, "")  # only part of the site goes on
    site.run(20)
    assert sorted(site.runs()) == ["a", "b"]
    site.decide("b", FROZEN)
    site.mend()
    site.run(30)
    assert sorted(site.runs()) == ["a", "b"]
    site.decide("c", FROZEN, "")
    site.run(10)
    assert len(site.runs()) == 1


def test_a_frozen_site_comes_back_from_a_cold_boot_as_it_was() -> None:
    for who in (ABC, ONE):
        site = healthy(who)
        site.decide("a", PLACED_ON, "b")
        site.run(10)
        site.decide("a", FROZEN)
        for name in site.boxes:
            site.kill(name)
        site.run(5)
        site.start()
        site.run(30)
        assert list(site.runs()) == ["b"]


def test_a_node_that_its_plan_lets_no_longer_hold_it_takes_nothing_over_by_an_old_word() -> None:
    site = healthy(ABC)
    site.part("a", "c")
    site.part("b", "c")
    site.give("c", planned("c", group("a", "b"), roster=["a", "b"], generation=2))
    site.decide("a", PLACED_ON, "b")
    site.run(10)
    assert list(site.runs()) == ["b"]
    base = site.boxes["b"].machine.overrides()[0].base_epoch
    word = Override(PLACED_ON, "c", KEY[0], "ns", KEY[1], "x", 9, "z", base_epoch=base + 99)
    site.feed("c", PeerSaid("b", Overrides((word,))))
    site.run(10)
    assert list(site.runs()) == ["b"]


def test_what_an_operator_wanted_is_no_warning() -> None:
    for who in (ABC, ONE):
        site = healthy(who)
        site.decide("b", STOPPED)
        site.run(5)
        told = [tell for tell in site.boxes["a"].tells if tell.reason == STOPPED_LOCALLY]
        assert len(told) == 1 and not told[0].warning and "operator/ann" in told[0].message


# ---- refusals ----


def reason(site: Lab, node: str, what: str, value: str = "true") -> str:
    refusal = site.decide(node, what, value).refusal
    return refusal.reason if refusal is not None else ""


@EITHER
def test_what_cannot_be_done_is_refused_by_who_is_asked(who: Group) -> None:
    site = healthy(who)
    assert reason(site, "b", STOPPED, "") == "NotStopped"
    assert reason(site, "b", PLACED_ON, "") == "NotPlaced"
    assert reason(site, "b", FROZEN, "") == "NotFrozen"
    assert reason(site, "b", PLACED_ON, "d") == "NotAMember"
    for node in "abc":
        assert reason(site, node, PLACED_ON, "a") == "AlreadyThere"
    site.set_unable("b", "ImageMissing")
    site.run(1)
    assert reason(site, "a", PLACED_ON, "b") == reason(site, "b", PLACED_ON, "b") == "NodeUnable"
    site.set_unable("b", "")
    site.kill("c")
    site.run(5)
    assert reason(site, "a", PLACED_ON, "c") == "NodeSilent"
    assert reason(site, "a", FROZEN) == ""
    assert reason(site, "a", PLACED_ON, "b") == "Frozen"
    assert reason(site, "a", STOPPED) == "" and reason(site, "a", FROZEN, "") == ""
    site.run(5)
    assert reason(site, "a", PLACED_ON, "b") == "StoppedLocally"
    assert reason(site, "a", STOPPED, "") == ""
    site.run(5)
    assert site.runs() == {"a": ["p1"]}


def test_a_job_that_has_ended_is_not_stopped() -> None:
    once = replace(assigned(None), run_once=True)
    site = Lab({"a": replace(planned("a", group("a")), assignments={"p1": once})})
    site.start()
    ended = view("p1", phase=Phase.SUCCEEDED, ready=False)
    site.feed("a", RunsHere((ended,), settled=True))
    assert reason(site, "a", STOPPED) == "Ended"


def test_a_replica_of_another_namespace_is_unknown() -> None:
    """The caller's role was looked up for the namespace that it named."""
    site = healthy(ABC)
    for namespace, replica in (("other", KEY[1]), ("ns", "web-7")):
        wanted = Override(STOPPED, "true", KEY[0], namespace, replica, f"{namespace}{replica}")
        site.feed("a", OperatorDecided(wanted))
        refusal = site.boxes["a"].answers[-1].refusal
        assert refusal is not None and refusal.reason == "UnknownReplica"


def test_the_later_of_two_workloads_that_had_a_name_is_meant() -> None:
    plan = planned("a", ABC)
    gone = view("p0", epoch=E1 - 5, workload_uid="old")
    assert find(plan, [gone], "ns", KEY[1]) == KEY
    assert find(plan, [gone], "ns", "web-9") is None and find(None, [], "ns", KEY[1]) is None
    assert find(None, [gone, view("p9", workload_uid="new")], "ns", KEY[1]) == ("new", KEY[1])


def test_a_primary_that_came_back_late_takes_nothing_over_at_a_frozen_site() -> None:
    site = healthy(ONE)
    site.kill("a")
    site.run(10)
    assert list(site.runs()) == ["b"]
    site.start("a")
    site.run(FIRST_S)
    site.decide("a", FROZEN)
    site.kill("b")
    site.run(60)
    assert site.runs() == {}
    site.start("b")
    site.run(FIRST_S)
    assert list(site.runs()) == ["b"]


@EITHER
def test_it_is_moved_back_to_a_node_that_goes_by_an_older_plan(who: Group) -> None:
    """That one takes itself for the primary, and so has no role of which to say that it can."""
    site = healthy(who)
    site.decide("a", PLACED_ON, "b")
    site.run(10)
    (uid,) = site.boxes["b"].running
    epoch = site.boxes["b"].running[uid].epoch
    for node in ("b", "c"):
        site.give(node, planned(node, who, primary="b", uid=uid, epoch=epoch, generation=2))
    site.run(5)
    assert site.runs() == {"b": [uid]}
    assert site.decide("b", PLACED_ON, "a").refusal is None
    site.run(15)
    assert list(site.runs()) == ["a"]
