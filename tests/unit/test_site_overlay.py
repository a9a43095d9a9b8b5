"""The effective plan: what the site decided, laid over what the orchestrator did."""

from dataclasses import replace

import pytest

from agent.domain.plan import Hold
from agent.domain.site.messages import Stay
from agent.domain.site.overlay import overlay, source_of
from tests.unit.site_lab import E1, KEY, assigned, group, planned

AB = group("a", "b")
MINE = planned("a", AB)
ROLE = planned("b", AB)


def test_without_decisions_it_is_the_plan_itself() -> None:
    assert overlay(MINE, ()) is MINE and overlay(ROLE, ()) is ROLE
    assert overlay(MINE, [Stay(KEY, "p1", E1)]) is MINE, "nor if they say the same"


def test_a_risen_epoch_is_all_that_changes() -> None:
    laid = overlay(MINE, [Stay(KEY, "p1", E1 + 2)])
    assert laid.assignments == {"p1": replace(MINE.assignments["p1"], epoch=E1 + 2)}
    assert not laid.held and laid.stops == MINE.stops


def test_a_newer_plan_has_the_higher_epoch() -> None:
    later = planned("a", AB, epoch=E1 + 100)
    assert overlay(later, [Stay(KEY, "p1", E1 + 2)]).assignments["p1"].epoch == E1 + 100


def test_but_the_epoch_of_a_lease_is_its_ballot() -> None:
    later = planned("a", AB, epoch=E1 + 100)
    laid = overlay(later, [Stay(KEY, "p1", E1 + 2, leased=True)])
    assert laid.assignments["p1"].epoch == E1 + 2


def test_a_role_becomes_an_assignment() -> None:
    laid = overlay(ROLE, [Stay(KEY, "s1", E1 + 1, "p1")])
    made = laid.assignments["s1"]
    assert (made.replica_uid, made.epoch, made.takes_over) == ("s1", E1 + 1, "p1")
    assert made.template == ROLE.roles[KEY].assignment.template
    assert made.replaces == ""


def test_a_takeover_starts_what_was_fetched_whatever_the_registry_does() -> None:
    role = ROLE.roles[KEY]
    template = role.assignment.template
    assert template is not None
    always = replace(template.containers[0], image_pull_policy="Always")
    pulled = replace(role.assignment, template=replace(template, containers=(always,)))
    plan = replace(ROLE, roles={KEY: replace(role, assignment=pulled)})
    made = overlay(plan, [Stay(KEY, "s1", E1 + 1, "p1")]).assignments["s1"]
    assert made.template is not None
    assert [c.image_pull_policy for c in made.template.containers] == ["IfNotPresent"]
    assert made.digest == pulled.digest, "adopted by a plan it is no other template"


def test_a_new_stay_beside_an_assignment_that_stopped() -> None:
    stays = [
        Stay(KEY, "p1", E1, stop="Superseded", message="b runs it"),
        Stay(KEY, "s1", E1 + 2, "s0"),
    ]
    laid = overlay(MINE, stays)
    assert set(laid.assignments) == {"p1", "s1"}
    assert laid.held == {"p1": Hold("Superseded", "b runs it")}
    assert not laid.stops, "an assigned replica is never reported as gone"


@pytest.mark.parametrize("plan", [MINE, ROLE])
def test_what_waits_is_visible_and_held(plan: object) -> None:
    uid = "p1" if plan is MINE else "s1"
    laid = overlay(plan, [Stay(KEY, uid, E1, "", "Listening", "it waits", waits=True)])  # type: ignore[arg-type]
    assert laid.held == {uid: Hold("Listening", "it waits", waits=True)}
    assert uid in laid.assignments


def test_a_stay_of_the_site_that_stops_is_a_stop() -> None:
    laid = overlay(ROLE, [Stay(KEY, "s1", E1 + 1, "p1", "Superseded", "a runs it")])
    stop = laid.stops["s1"]
    assert (stop.namespace, stop.replica) == ("ns", KEY[1])
    assert (stop.cause, stop.message) == ("Superseded", "a runs it")
    assert not laid.assignments and not laid.held


def test_the_plans_stop_counts_whatever_the_site_wanted() -> None:
    plan = planned("b", AB, stops=["s1"])
    assert overlay(plan, [Stay(KEY, "s1", E1 + 1, "p1")]) is plan


def test_a_stay_of_which_the_plan_knows_nothing_is_left_to_run_as_an_orphan() -> None:
    plan = replace(ROLE, roles={})
    assert overlay(plan, [Stay(KEY, "s1", E1 + 1, "p1")]) is plan


def test_a_mere_vote_gives_nothing_to_run() -> None:
    witness = planned("w", group("a", witnesses=("w",)))
    assert source_of(witness, KEY) is None


def test_of_several_assignments_the_newest_says_what_runs() -> None:
    newer = assigned(AB, "p2", E1 + 5)
    plan = replace(MINE, assignments={**MINE.assignments, "p2": newer})
    assert source_of(plan, KEY) is newer
