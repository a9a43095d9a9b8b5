"""The parts of a lease by themselves: what a voter refuses, what an opener says, what is counted.

Each of these rules stands behind another one, so that no run of whole desks needs it to be safe.
"""

from itertools import count

import pytest

from agent.domain.roster import Electorate
from agent.domain.site.group import STRETCH, Lineage, Opening
from agent.domain.site.holder import LEASE_S, Holder
from agent.domain.site.messages import (
    LeaseAnswer,
    LeaseRequest,
    Open,
    Prepare,
    Propose,
    Release,
    Seal,
)
from agent.domain.site.tenure import KILL_S, Tenure
from agent.domain.site.voter import LEASE_MAX_S, Voter
from polder.epochs import decided_at

KEY = ("w", "r-0")
M = Lineage(Electorate(decided_at(7), ("a", "b", "c")))
N = Lineage(Electorate(decided_at(9), ("a", "b", "d")), (M.group,))
FIRST = M.number + 1
ids = count(1)


def ask(voter: Voter, sender: str, ballot: int, step, now: float, group: int = M.number):  # type: ignore[no-untyped-def]
    return voter.handle(sender, LeaseRequest(next(ids), KEY, group, ballot, step), now)


def voter(lineage: Lineage = M) -> Voter:
    """Its group is open."""
    found = Voter()
    found.told = lineage
    opened = Open(lineage.group.voters, 0, 0.0, "", lineage.before)
    assert ask(found, "a", 0, opened, 0.0, lineage.number).granted
    return found


def held(by: str = "a", ballot: int = FIRST) -> Voter:
    found = voter()
    assert ask(found, by, ballot, Prepare(), 10.0).granted
    assert ask(found, by, ballot, Propose(LEASE_S), 10.0).granted
    return found


@pytest.mark.parametrize("step", [Prepare(), Propose(LEASE_S)])
def test_a_voter_has_one_lease_at_a_time(step: Prepare | Propose) -> None:
    found = held()
    refused = ask(found, "b", FIRST + 5, step, 10.0 + LEASE_S - 0.01)
    assert (refused.reason, refused.holder) == ("Held", "a")
    assert found.promised == FIRST
    assert ask(found, "b", FIRST + 5, step, 10.0 + LEASE_S).granted


def test_a_promise_that_came_to_nothing_keeps_no_holder_from_its_renewals() -> None:
    found = held()
    assert ask(found, "b", FIRST + 4, Prepare(), 20.0).granted  # a was not heard for a while
    assert ask(found, "a", FIRST + 2, Prepare(), 20.0).reason == "Promised"
    assert ask(found, "a", FIRST, Propose(LEASE_S), 20.0).granted
    assert found.promised == FIRST + 4


def test_a_ballot_below_what_was_accepted_gets_nothing() -> None:
    found = held("b", FIRST + 4)
    assert ask(found, "a", FIRST, Propose(LEASE_S), 20.0).reason == "Promised"


def test_an_epoch_is_not_used_for_two_tenures() -> None:
    found = held()
    ask(found, "a", FIRST, Release(), 11.0)
    assert ask(found, "a", FIRST, Prepare(), 12.0).reason == "Promised"
    assert ask(found, "a", M.number, Prepare(), 12.0).reason == "Promised"


def test_only_who_has_the_lease_gives_it_back_and_only_that_one() -> None:
    found = held()
    ask(found, "b", FIRST, Release(), 11.0)
    ask(found, "a", FIRST - 1, Release(), 11.0)
    assert ask(found, "b", FIRST + 5, Prepare(), 11.0).reason == "Held"
    ask(found, "a", FIRST, Release(), 11.0)
    assert ask(found, "b", FIRST + 5, Prepare(), 11.0).granted


def test_a_renewal_never_makes_it_shorter() -> None:
    found = held()
    assert ask(found, "a", FIRST, Propose(15.0), 11.0).granted
    assert ask(found, "a", FIRST, Propose(LEASE_S), 12.0).granted
    assert ask(found, "b", FIRST + 5, Prepare(), 25.9).reason == "Held"


def kept(found: Voter, now: float) -> Voter:
    """After a restart of the voter."""
    return Voter.kept(found.body(), now)


def until_free(found: Voter, now: float) -> float:
    """For how long another is refused yet."""
    answer = ask(found, "b", found.accepted + 5, Prepare(), now)
    return float(answer.remaining_s) if answer.reason == "Held" else 0.0


def test_what_was_granted_for_longer_does_not_last_over_its_end_and_a_restart() -> None:
    found = held()
    assert ask(found, "a", FIRST, Propose(15.0), 10.0).granted
    assert ask(found, "a", FIRST, Propose(LEASE_S), 21.9).granted
    assert until_free(kept(found, 30.0), 30.0) == 15.0, "what it granted first ends at 25"
    assert ask(found, "a", FIRST, Propose(LEASE_S), 22.1).granted
    assert until_free(kept(found, 30.0), 30.0) == LEASE_S


@pytest.mark.parametrize("later", [0, 5])
def test_a_holder_whose_switch_is_armed_anew_frees_it_from_what_was_granted_before(
    later: int,
) -> None:
    """As the next tenure of the same node after a restart for which the lease was renewed."""
    found = held()
    assert ask(found, "a", FIRST, Propose(15.0), 10.0).granted
    ballot = FIRST + later
    assert ask(found, "a", ballot, Propose(LEASE_S), 12.0).granted
    assert until_free(found, 12.0) == 13.0, "what ran before may run on"
    assert ask(found, "a", ballot, Propose(LEASE_S, bounded=True), 12.5).granted
    assert until_free(found, 12.5) == LEASE_S
    assert until_free(kept(found, 30.0), 30.0) == LEASE_S


def test_that_is_said_once_of_a_ballot_and_takes_back_nothing_when_it_comes_late() -> None:
    found = held()
    word = Propose(LEASE_S, bounded=True)
    for ballot in (FIRST, FIRST + 5):
        assert ask(found, "a", ballot, word, 11.0).granted
        assert ask(found, "a", ballot, Propose(15.0, bounded=True), 11.0).granted
        assert ask(found, "a", ballot, word, 11.5).granted
        assert until_free(found, 11.5) == 14.5
        found = kept(found, 11.5)
        assert ask(found, "a", ballot, word, 11.5).granted
        assert until_free(found, 11.5) == 15.0, "nor over a restart of the voter"
    assert ask(found, "a", FIRST, word, 11.5).reason == "Promised", "nor of an earlier ballot"


def test_it_frees_nobody_from_what_another_group_granted_that_ballot() -> None:
    """A holder that moved: what it says here may be older than its last lease there."""
    found = Voter()
    found.told = N
    opened = Open(N.group.voters, FIRST, 15.0, "a", N.before)
    assert ask(found, "a", 0, opened, 10.0, N.number).granted
    assert ask(found, "a", FIRST, Propose(LEASE_S, bounded=True), 11.0, N.number).granted
    assert ask(found, "b", N.number + 9, Prepare(), 24.9, N.number).reason == "Held"
    found = Voter()
    found.told = N
    assert ask(found, "a", 0, opened, 10.0, N.number).granted
    later = N.number + 9
    assert ask(found, "a", later, Propose(LEASE_S, bounded=True), 11.0, N.number).granted
    assert ask(found, "b", later + 1, Prepare(), 14.1, N.number).granted, "a later tenure may"


def test_nobody_gets_a_longer_one_than_a_voter_without_memory_waits_for() -> None:
    assert ask(voter(), "a", FIRST, Propose(LEASE_MAX_S + 1), 10.0).reason == "TooLong"


def test_what_is_kept_counts_anew_from_the_start() -> None:
    again = Voter.kept(held().body(), 12.0)
    assert ask(again, "b", FIRST + 5, Prepare(), 14.9).reason == "Held"
    assert again.body() == held().body()


def test_a_sealed_voter_votes_no_more_and_tells_what_follows() -> None:
    found = held()
    sealed = ask(found, "d", 0, Seal(N.number, N.group.voters, N.before), 11.0, N.number)
    assert (sealed.granted, sealed.accepted, sealed.holder) == (True, FIRST, "a")
    assert sealed.remaining_s == pytest.approx(LEASE_S - 1)
    for step in (Prepare(), Propose(LEASE_S)):
        refused = ask(found, "a", FIRST, step, 11.0)
        assert (refused.reason, refused.next) == ("Sealed", N.number)
        assert (refused.next_voters, refused.next_before) == (N.group.voters, N.before)
    assert ask(found, "a", 0, Open(M.group.voters, 0, 0.0), 11.0).reason == "Sealed"


def test_a_voter_without_memory_goes_by_its_plan() -> None:
    forgetful = Voter()
    assert ask(forgetful, "a", FIRST, Prepare(), 10.0).reason == "UnknownReplica"
    assert ask(forgetful, "a", 0, Open(M.group.voters, 0, 0.0), 10.0).reason == "UnknownReplica"
    forgetful.told = N
    for step in (Prepare(), Open(M.group.voters, 0, 0.0), Seal(M.number, M.group.voters)):
        refused = ask(forgetful, "a", FIRST, step, 10.0)
        assert (refused.reason, refused.next) == ("Sealed", N.number)


def test_a_group_that_is_opened_waits_for_what_runs_and_lets_that_go_on() -> None:
    found = voter()
    opened = Open(N.group.voters, FIRST, 2.0, "a", N.before)
    assert ask(found, "b", 0, opened, 10.0, N.number).granted
    later = N.number + 2
    assert ask(found, "b", later, Prepare(), 11.9, N.number).reason == "Held"
    assert ask(found, "a", FIRST, Propose(LEASE_S), 11.9, N.number).granted


def test_it_waits_for_what_it_granted_itself_and_the_opener_did_not_know() -> None:
    found = held()
    assert ask(found, "b", 0, Open(N.group.voters, 0, 0.0), 11.0, N.number).granted
    assert ask(found, "b", N.number + 2, Prepare(), 12.9, N.number).reason == "Held"
    assert ask(found, "b", N.number + 2, Prepare(), 13.0, N.number).granted


def seal_answer(ballot: int, holder: str, remaining_s: float) -> LeaseAnswer:
    return LeaseAnswer(1, KEY, N.number, True, "", ballot, ballot, holder, remaining_s)


def test_an_opener_seals_every_group_before_and_says_how_long_to_wait() -> None:
    opening = Opening(N)
    assert set(opening.seals()) == {"a", "b", "c"}
    opening.sealed_by("b", seal_answer(FIRST, "a", 2.0), 10.0)
    assert set(opening.seals()) == {"a", "c"}
    opening.sealed_by("c", seal_answer(0, "", 0.0), 10.0)
    assert opening.seals() == {}
    opened = opening.opens(["d"], 11.0)["d"]
    assert (opened.floor, opened.holder) == (FIRST, "a")
    assert opened.wait_s == pytest.approx((2.0 * STRETCH - 1.0) * STRETCH)
    assert opening.opens(["d"], 12.1)["d"].holder == ""


def test_of_two_that_may_run_none_goes_on() -> None:
    opening = Opening(N)
    opening.sealed_by("b", seal_answer(FIRST, "a", 2.0), 10.0)
    opening.sealed_by("c", seal_answer(FIRST + 4, "b", 1.0), 10.0)
    opened = opening.opens(["d"], 10.0)["d"]
    assert (opened.floor, opened.holder) == (FIRST + 4, "")
    assert opened.wait_s >= 2.0


def test_what_was_said_before_a_seal_does_not_count_against_it() -> None:
    opening = Opening(N)
    opening.sealed_by("b", seal_answer(FIRST, "a", 2.0), 10.0)
    opening.note("b", LeaseAnswer(2, KEY, N.number, False, "NotOpen"), 10.1)
    assert opening.opens(["d"], 10.1)["d"].holder == "a"


def test_a_tenure_is_counted_from_the_request_and_by_the_slower_clock() -> None:
    tenure = Tenure(FIRST, M)
    tenure.granted(M.group, "a", 10.0, LEASE_S, 10.0)
    assert tenure.until(set()) == 0.0
    tenure.granted(M.group, "b", 11.0, LEASE_S, 11.0)
    assert tenure.until(set()) == pytest.approx(10.0 + LEASE_S * 0.99 / 1.01 - KILL_S)
    tenure.granted(M.group, "c", 10.5, LEASE_S, 10.5)
    assert tenure.until(set()) == pytest.approx(10.5 + LEASE_S * 0.99 / 1.01 - KILL_S)
    assert tenure.until({"b", "c"}) == 0.0


def test_a_refusal_that_may_be_older_than_the_grant_is_no_broken_word() -> None:
    """The voter's own lease was over meanwhile; its refusal was under way for longer."""
    tenure = Tenure(FIRST, M)
    assert not tenure.binds("b", 10.0, 10.5)
    tenure.granted(M.group, "b", 10.2, LEASE_S, 10.4)
    assert not tenure.binds("b", 10.3, 10.5), "it was asked before it was known to have granted"
    assert tenure.binds("b", 10.4, 10.5)
    assert not tenure.binds("b", 10.4, 14.0), "it may have granted it to another by now"
    tenure.granted(M.group, "b", 10.1, LEASE_S, 10.8)
    assert tenure.binds("b", 10.5, 10.9), "a late word that moves nothing counts for nothing"


def test_a_holder_asks_only_with_what_its_own_voter_has_promised_and_counts_from_sending() -> None:
    draw = count(1)
    holder = Holder("a", KEY, lambda: next(draw), lambda *_: None, set())
    holder.planned(M, True, 0)
    asked = dict(holder.want(True, 10.0))
    grant = {name: LeaseAnswer(request.id, KEY, M.number, True) for name, request in asked.items()}
    assert holder.answered("b", grant["b"], 10.1) == []
    assert holder.answered("c", grant["c"], 10.1) == []
    proposed = dict(holder.answered("a", grant["a"], 10.2))
    assert {request.step for request in proposed.values()} == {Propose(LEASE_S)}
    for name in "ab":
        holder.answered(name, LeaseAnswer(proposed[name].id, KEY, M.number, True), 11.2)
    assert holder.until(11.2) == pytest.approx(10.2 + LEASE_S / STRETCH - KILL_S)
    again = LeaseAnswer(proposed["b"].id, KEY, M.number, True)
    assert holder.answered("b", again, 12.0) == []  # an answer is counted once
