"""Leases by example: who gets one, who loses it, how soon, and what stands in the way."""

from itertools import count

import pytest

from agent.domain.site.lease import LEASE_MAX_S, LEASE_S, LeaseDesk
from agent.domain.site.lease_record import JOINED
from agent.domain.site.messages import (
    Beat,
    Booted,
    Claim,
    Claims,
    LeaseAnswer,
    LeaseRequest,
    PeerSaid,
    PlanInUse,
    Propose,
    Send,
)
from agent.domain.site.silence import Silence
from agent.domain.site.voter import NONE
from tests.unit.lease_world import KEY, Word, World, after, group, plan_of

THREE = group(7, "ab", "c")


def held_by(world: World, name: str):  # type: ignore[no-untyped-def]
    return lambda: world.holder() == name


def site(found=THREE, names: str = "abc", drift: float = 0.0) -> World:  # type: ignore[no-untyped-def]
    """All are up and have known leases for a while."""
    world = World(names, drift)
    world.plan(names, found)
    world.boot(names)
    world.run(LEASE_MAX_S + 1)
    return world


def test_the_first_lease_of_a_new_replica_comes_at_once_and_is_kept() -> None:
    world = site()
    world.want("a")
    assert world.run(0.2, held_by(world, "a"))
    world.run(60)
    assert world.holder() == "a"
    assert len(world.epochs) == 1
    assert world.epochs[0] > THREE.number


def test_a_rival_gets_nothing_and_disturbs_nobody() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.want("b")
    world.run(60)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


def test_a_standby_has_it_when_the_lease_of_the_dead_holder_ends() -> None:
    world = site(drift=0.01)
    world.want("a")
    world.run(5, held_by(world, "a"))
    world.run(5)
    world.crash("a")
    died = world.t
    world.want("b")
    assert world.run(10, held_by(world, "b"))
    assert world.t - died < LEASE_S * 1.05 + 0.3


def test_released_it_is_had_by_the_next_at_once() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.want("b")
    world.run(1)
    world.stop("a")
    assert world.run(0.1, held_by(world, "b"))


def test_a_witness_never_holds_and_is_told_why() -> None:
    world = site()
    world.want("c")
    assert not world.run(10, lambda: world.holder() is not None)
    desk = world.boxes["c"].desk
    assert desk is not None
    assert desk.hindrance(KEY, world.now("c")) == "NotMember"


def test_a_holder_alone_loses_it_and_one_with_a_witness_does_not() -> None:
    world = site()
    world.want("ab")
    world.run(1, lambda: world.holder() is not None)
    holder = world.holder()
    assert holder is not None
    other = "b" if holder == "a" else "a"
    world.crash(other)
    world.run(30)
    assert world.holder() == holder
    world.crash("c")
    world.run(LEASE_S + 0.1)
    assert world.holder() is None


def test_a_candidate_that_died_blocks_nobody() -> None:
    """It had promises of all, and the grant of one besides its own."""
    world = site()
    proposals = []

    def one_only(word: Word) -> bool:
        if isinstance(word.said, LeaseRequest) and isinstance(word.said.step, Propose):
            proposals.append(word)
            return word.to == "c"
        return True

    world.filter = one_only
    world.want("a")
    world.run(5, lambda: bool(proposals))
    world.run(0.01)
    world.crash("a")
    world.filter = lambda word: True
    world.want("b")
    assert world.run(LEASE_S * 1.05 + 0.3, held_by(world, "b"))


def test_two_that_try_at_once_come_to_an_end() -> None:
    world = site(group(7, "abcde"), "abcde")
    world.want("abcde")
    assert world.run(3, lambda: world.holder() is not None)
    world.run(30)
    assert len(world.epochs) == 1


def test_of_two_voters_nobody_takes_over_and_it_is_said_beforehand() -> None:
    world = site(group(7, "ab"), "ab")
    world.want("a")
    world.run(1, held_by(world, "a"))
    a, b = world.boxes["a"].desk, world.boxes["b"].desk
    assert a is not None
    assert b is not None
    assert a.hindrance(KEY, world.now("a")) == ""
    assert b.hindrance(KEY, world.now("b")) == "NoVoters"
    world.crash("a")
    world.want("b")
    assert not world.run(30, held_by(world, "b"))


def test_one_voter_alone_holds_for_ever() -> None:
    world = site(group(7, "a"), "a")
    world.want("a")
    assert world.run(0.1, held_by(world, "a"))
    world.run(30)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


def test_a_planned_restart_keeps_it() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    desk = world.boxes["a"].desk
    assert desk is not None
    world.act("a", desk.restarting(world.now("a")))
    assert world.run(0.2, lambda: world.boxes["a"].armed > world.now("a") + 14)
    world.crash("a", node=False)
    world.want("b")
    world.run(12)
    assert world.holder() == "a"
    world.boot("a", same_boot=True)
    world.want("a")
    world.run(60)
    assert world.holder() == "a"
    assert {box for _, box, *_ in (line.split() for line in world.log)} == {"a"}


def restarted() -> World:
    """a holds it, and its agent is back from a planned restart; its switch is armed for 15 s."""
    world = site(drift=0.01)
    world.want("a")
    world.run(1, held_by(world, "a"))
    desk = world.boxes["a"].desk
    assert desk is not None
    world.act("a", desk.restarting(world.now("a")))
    assert world.run(0.2, lambda: world.boxes["a"].armed > world.now("a") + 14)
    world.crash("a", node=False)
    world.boot("a", same_boot=True)
    world.want("a")
    assert world.run(1, lambda: len(world.epochs) == 2)
    assert world.boxes["a"].armed > world.now("a") + 13
    return world


@pytest.mark.parametrize("armed", [True, False])
def test_a_crash_after_a_planned_restart_is_like_any_other_once_the_switch_has_its_end(
    armed: bool,
) -> None:
    world = restarted()
    if armed:
        world.bound("a")
        world.run(0.2)
    world.crash("a", node=False)
    world.want("b")
    assert world.run(4, held_by(world, "b")) == armed
    assert world.run(15, held_by(world, "b")), "and then in any case"


def test_to_free_voters_before_the_switch_is_armed_would_make_two() -> None:
    """That the world would see it."""
    world = restarted()
    box = world.boxes["a"]
    assert box.desk is not None
    world.act("a", box.desk.bounded(KEY, box.epoch, world.now("a")))
    world.run(0.2)
    world.crash("a", node=False)
    world.want("b")
    with pytest.raises(AssertionError, match=r"b begins at .* while .'a'. runs"):
        world.run(15, held_by(world, "b"))


def test_a_killed_agent_that_is_back_soon_has_it_again() -> None:
    world = site()
    world.want("a")
    world.run(5, held_by(world, "a"))
    world.crash("a", node=False)
    world.want("b")
    world.run(0.5)
    world.boot("a", same_boot=True)
    world.want("a")
    world.run(0.2)
    assert world.holder() == "a"
    assert world.boxes["a"].armed > world.now("a") + 2.5


def test_the_whole_site_comes_back_from_a_power_cut() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    for name in "abc":
        world.crash(name)
    world.boot("abc")
    world.want("ab")
    assert world.run(LEASE_S + 1, lambda: world.holder() is not None)
    assert world.epochs[-1] > world.epochs[0]


def test_a_voter_that_lost_its_disk_waits_as_long_as_a_lease_may_last() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.crash("a")
    world.crash("c")
    world.boxes["c"].disk = {}
    world.boot("c")
    booted = world.t
    world.want("b")
    assert world.run(60, held_by(world, "b"))
    assert LEASE_MAX_S <= world.t - booted < LEASE_MAX_S * 1.05 + 1


def test_an_answer_waits_for_the_disk_and_a_disk_that_fails_grants_nothing() -> None:
    world = site()
    world.want("a")
    a = world.boxes["a"]
    while not a.saving:
        world._tick(world.t + 0.1)
        world.deliver(0) if world.words else None
        while world.boxes["b"].saving:
            world.save("b")
        while world.boxes["c"].saving:
            world.save("c")
    assert world.holder() is None
    for _ in range(40):
        while a.saving:
            world.save("a", ok=False)
        world.deliver(0) if world.words else world._tick(world.t + 0.1)
    assert world.holder() is None
    assert world.run(5, held_by(world, "a"))


# ---- groups that change ----


def test_a_holder_takes_its_tenure_into_the_next_group() -> None:
    world = site(THREE, "abcd")
    world.want("a")
    world.run(1, held_by(world, "a"))
    later = after(THREE, 9, "ab", "d")
    world.plan("abcd", later, 2)
    world.run(10)
    assert (world.holder(), len(world.epochs)) == ("a", 1)
    world.crash("a")
    world.want("b")
    assert world.run(LEASE_S + 1, held_by(world, "b"))
    assert world.epochs[-1] > later.number


def test_a_group_without_one_of_the_old_voters_waits_for_the_holder_it_does_not_know() -> None:
    """c knows the holder; of those who vote next nobody does."""
    world = site(THREE, "abcdef")
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.plan("def", after(THREE, 9, "d", "ef"), 2)
    world.want("d")
    world.run(20)
    assert world.holder() == "a"
    world.crash("a")
    assert world.run(LEASE_S + 2, held_by(world, "d"))


def test_it_is_not_opened_while_the_old_voters_are_not_heard_unless_forced() -> None:
    later = after(THREE, 9, "de", "f")
    world = site(THREE, "abcdef")
    world.want("a")
    world.run(1, held_by(world, "a"))
    for name in "abc":
        world.crash(name)
    world.plan("def", later, 2)
    world.want("d")
    assert not world.run(30, held_by(world, "d"))
    world.plan("def", group(11, "de", "f", forced=True), 3)
    assert world.run(3, held_by(world, "d"))


def test_a_change_with_members_down_waits_for_no_more_than_majorities() -> None:
    world = site(THREE, "abcde")
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.crash("c")
    world.crash("e")
    world.plan("abd", after(THREE, 9, "abd", "e"), 2)
    world.run(10)
    desk = world.boxes["a"].desk
    assert desk is not None
    assert (world.holder(), len(world.epochs)) == ("a", 1)
    record = desk._records[KEY]
    assert record.voter.lineage is not None
    assert record.voter.lineage.number == after(THREE, 9, "abd").number


def test_one_after_the_other_all_voters_but_the_holder_are_replaced() -> None:
    """Of the first group no majority is left then; it was sealed when the second was opened."""
    world = site(THREE, "abcdefg")
    world.want("a")
    world.run(1, held_by(world, "a"))
    found, generation = THREE, 1
    for dies, voters in (("c", "abd"), ("b", "ade"), ("d", "aef"), ("e", "afg")):
        world.crash(dies)
        generation += 1
        found = after(found, 9 + generation, voters[:2], voters[2])
        world.plan(voters, found, generation)
        world.run(10)
        assert (world.holder(), len(world.epochs)) == ("a", 1), voters
    world.crash("a")
    world.want("f")
    assert world.run(LEASE_S + 1, held_by(world, "f"))


def test_a_change_to_a_group_that_cannot_vote_yet_does_not_cost_the_old_one() -> None:
    world = site(THREE, "abcde")
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.crash("d")
    world.crash("e")
    world.plan("abc", after(THREE, 9, "a", "de"), 2)
    world.run(20)
    assert (world.holder(), len(world.epochs)) == ("a", 1)
    world.boot("de")
    world.plan("de", after(THREE, 9, "a", "de"), 2)
    world.run(30)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


def test_a_delayed_plan_with_an_older_group_follows_to_the_newer() -> None:
    """b never hears of the plan that c and d act on, and still takes over there."""
    later = after(THREE, 9, "ab", "d")
    world = site(THREE, "abcd")
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.plan("ad", later, 2)
    world.run(5)
    world.crash("a")
    world.want("b")
    assert world.run(LEASE_S + 2, held_by(world, "b"))
    assert world.epochs[-1] > later.number


def test_what_one_sealed_and_died_of_another_finishes() -> None:
    later = after(THREE, 9, "ab", "d")
    world = site(THREE, "abcd")
    world.want("a")
    world.run(1, held_by(world, "a"))

    def sealed() -> bool:
        voters = (world.boxes[n].desk._records[KEY].voter for n in "bc")  # type: ignore[union-attr]
        return all(v.sealed is not None for v in voters)

    world.plan("d", later, 2)
    world.plan("a", later, 2)
    assert world.run(5, sealed)
    world.crash("a")
    world.words.clear()
    world.want("b")
    assert world.run(LEASE_S + 5, held_by(world, "b"))


def test_older_groups_that_nobody_obeyed_are_sealed_too() -> None:
    """The leader changed its mind twice while the site was cut off from it."""
    second = after(THREE, 9, "de", "f")
    third = after(second, 11, "ab", "d")
    world = site(THREE, "abcdef")
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.plan("abd", third, 3)
    world.run(5)
    assert (world.holder(), len(world.epochs)) == ("a", 1)
    world.plan("ef", second, 2)
    world.want("e")
    world.run(30)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


def test_an_older_plan_brings_no_forgotten_group_back() -> None:
    """Those who are in no plan any more forgot the replica; one was asleep all that time."""
    world = site(THREE, "abcdef")
    later = after(THREE, 9, "d", "ef")
    world.crash("b")
    world.plan("acdef", later, 2)
    world.want("d")
    world.run(5, held_by(world, "d"))
    for name in "ac":
        desk = world.boxes[name].desk
        assert desk is not None
        desk._records.clear()
    world.boot("b")
    world.want("b")
    world.run(20)
    assert world.holder() == "d"


# ---- alone, and lied to ----


def test_after_stop_after_it_is_not_renewed_and_comes_back_only_when_that_is_sure() -> None:
    found = group(7, "ab", "c", stop_after_s=60.0)
    world = site(found)
    world.want("a")
    world.run(1, held_by(world, "a"))
    for name in "abc":
        desk = world.boxes[name].desk
        assert desk is not None
        desk.alone_since = world.now(name) - 30
    world.run(25)
    assert world.holder() == "a"
    world.run(10)
    assert world.holder() is None
    a = world.boxes["a"].desk
    assert a is not None
    assert a.hindrance(KEY, world.now("a")) == "Isolated"
    world.crash("a")
    world.boot("a")
    world.want("ab")
    for name in "abc":
        desk = world.boxes[name].desk
        assert desk is not None
        desk.alone_since = None
    world.run(10)
    assert world.holder() is None
    assert world.run(10, lambda: world.holder() is not None)


def test_while_one_of_the_group_hears_an_orchestrator_it_goes_on() -> None:
    world = site(group(7, "ab", "c", stop_after_s=60.0))
    world.want("a")
    for name in "ac":
        desk = world.boxes[name].desk
        assert desk is not None
        desk.alone_since = world.now(name) - 300
    world.run(30)
    assert world.holder() == "a"


def test_a_peer_that_was_silent_confirms_nothing_for_the_time_before() -> None:
    found = group(7, "ab", "c", stop_after_s=60.0)
    silence = Silence("a")
    silence.alone(0.0, 100.0)
    for now in range(80, 100):
        silence.heard("b", now)
        silence.beat("b", Beat(), now)
    assert silence.confirmed(found, 100.0)
    silence.heard("b", 110.0)
    silence.beat("b", Beat(), 110.0)
    assert not silence.confirmed(found, 110.0)


@pytest.mark.parametrize("how", ["promises", "claims"])
def test_a_voter_that_grants_it_twice_is_told_of_and_does_not_count(how: str) -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.crash("b")
    if how == "promises":
        liar = world.boxes["c"].desk
        assert liar is not None
        voter = liar._records[KEY].voter
        voter.accepted = voter.promised = (world.epochs[-1] // 3 + 1) * 3 + 1  # b's
        voter.lease = NONE
    else:
        world.run(LEASE_S + 0.5)
        claim = Claim(KEY, "u", world.epochs[-1] + 1, ready=True, granted_by=("b", "c"))
        world.event("a", PeerSaid("b", Claims((claim,))))
    world.run(LEASE_S + 0.5)
    told = [tell for tell in world.boxes["a"].told if tell.reason == "VoterLied"]
    assert len(told) == 1
    assert told[0].message.startswith("c ")
    assert world.holder() is None


def test_who_claims_what_it_granted_is_the_one_that_lied() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    claim = Claim(KEY, "u", world.epochs[-1] + 1, ready=True)
    world.event("a", PeerSaid("b", Claims((claim,))))
    world.run(LEASE_S + 0.5)
    told = [tell for tell in world.boxes["a"].told if tell.reason == "VoterLied"]
    assert [tell.message[:2] for tell in told] == ["b "]
    assert world.holder() == "a"


def test_kept_leases_that_cannot_be_read_are_told_and_nothing_is_granted() -> None:
    desk = LeaseDesk("c", count(1))
    told = desk.handle(Booted("c", {"lease": {"starts": 3}, "lease.w-1.plant-0": {"key": 5}}), 0.0)
    assert "LeasesForgotten" in str(told)


def test_answers_to_a_former_start_are_not_counted() -> None:
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    ids = set()
    for _ in range(2):
        desk = LeaseDesk("a", count(1))
        world.boxes["a"].desk = desk
        world.event("a", Booted("a", dict(world.boxes["a"].disk), True))
        world.save("a")
        world.boxes["a"].saving.clear()
        world.event("a", PlanInUse(plan_of("a", THREE)))
        sent = desk.want({KEY}, world.now("a"))
        found = {
            i.said.id for i in sent if isinstance(i, Send) and isinstance(i.said, LeaseRequest)
        }
        assert found
        assert not found & ids
        ids |= found


@pytest.mark.parametrize("restarted", [False, True])
def test_a_bid_that_fails_gives_nothing_back_of_what_an_earlier_start_has(restarted: bool) -> None:
    """a comes back after a planned restart, and c's grant does not reach it; b is at its heels.
    The world sees to it that a's switch has ended the replica before b begins."""
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    desk = world.boxes["a"].desk
    assert desk is not None
    world.cut.add(("a", "b"))
    world.act("a", desk.restarting(world.now("a")))
    world.run(0.2)
    world.crash("a", node=False)
    world.run(4)  # what b granted is over
    world.boot("a", same_boot=True)
    granted = []

    def lose_the_grant(word: Word) -> bool:
        if word.sender == "c" and isinstance(word.said, LeaseAnswer) and word.said.holder == "a":
            granted.extend([word] if word.said.accepted > world.epochs[-1] else [])
            return not granted
        return True

    world.filter = lose_the_grant
    world.want("a")
    assert world.run(5, lambda: bool(granted))
    world.want("b")
    world.run(2)
    world.crash("a", node=False)
    if restarted:
        world.crash("c")
        world.boot("c")
    world.run(20)
    assert world.holder() == "b"


def test_a_voter_that_promised_it_in_vain_counts_again_for_the_holder() -> None:
    """c was not heard for a while, and promised it to b, which got no more than that."""
    world = site()
    world.want("a")
    world.run(1, held_by(world, "a"))
    world.cut |= {("a", "c"), ("c", "a")}
    world.run(LEASE_S + 1)
    world.want("b")
    world.run(2)
    world.want("b", wants=False)
    world.cut.clear()
    world.run(5)
    world.crash("b")
    world.run(30)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


def newcomers(found=THREE, names: str = "abc") -> World:  # type: ignore[no-untyped-def]
    """All have just joined."""
    world = World(names)
    world.plan(names, found)
    for box in world.boxes.values():
        box.disk["lease"] = JOINED
    world.boot(names)
    return world


def test_newcomers_need_not_wait_for_the_first_lease_of_a_replica() -> None:
    world = newcomers()
    world.want("a")
    assert world.run(0.5, held_by(world, "a"))
    for name in "bc":  # what they granted they remember
        world.crash(name)
        world.boot(name)
    world.want("b")
    world.run(60)
    assert (world.holder(), len(world.epochs)) == ("a", 1)


@pytest.mark.parametrize(
    "found", [after(group(5, "abc"), 7, "ab", "c"), group(7, "ab", "c", forced=True)]
)
def test_newcomers_wait_where_somebody_may_have_voted_before(found: object) -> None:
    """Another node of their name, in a group before; or one that nobody can ask any more."""
    world = newcomers(found)
    world.want("a")
    assert not world.run(LEASE_MAX_S - 1, held_by(world, "a"))
    assert world.run(5, held_by(world, "a"))


def test_a_newcomer_whose_memory_is_damaged_is_none() -> None:
    world = World("abc")
    world.plan("abc", THREE)
    for name in "abc":
        desk = world.boxes[name].desk = LeaseDesk(name, count(1))
        assert not desk.alone_since
        world.event(name, Booted(name, {"lease": JOINED}, False, 0.0, True))
        world.event(name, PlanInUse(plan_of(name, THREE)))
    world.want("a")
    assert not world.run(LEASE_MAX_S - 1, held_by(world, "a"))
    assert world.run(5, held_by(world, "a"))


def test_what_is_left_of_a_damaged_memory_is_not_all_that_was_granted() -> None:
    """One line of several may be lost; the others look whole."""
    world = site()
    world.cut |= {("b", "a"), ("a", "b"), ("b", "c"), ("c", "b")}
    world.want("a")
    assert world.run(1, held_by(world, "a")), "by its own vote and that of c"
    disk = world.boxes["c"].disk
    (lost,) = [name for name in disk if name.startswith("lease.")]
    del disk[lost]
    world.crash("c", node=False)
    world.boxes["c"].desk = LeaseDesk("c", count(1))
    world.event("c", Booted("c", dict(disk), True, 0.0, True))
    world.event("c", PlanInUse(plan_of("c", THREE)))
    world.cut = {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    world.want("b")
    assert world.run(LEASE_MAX_S + 5, held_by(world, "b")), "and no two at a time meanwhile"


def test_a_voter_that_forgot_and_begins_anew_meanwhile_still_waits() -> None:
    """What its disk has by then is not what it had: the second start is no proof of a memory."""
    world = site()
    lines = {("b", "a"), ("a", "b"), ("b", "c"), ("c", "b")}
    world.cut |= lines
    world.want("a")
    assert world.run(1, held_by(world, "a")), "by its own vote and that of c"
    world.crash("c", node=False)
    world.boxes["c"].disk.clear()
    world.boot("c", same_boot=True)
    world.run(0.1)
    world.crash("c", node=False)
    world.boot("c", same_boot=True)
    world.cut = {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    world.want("b")
    asked_at = world.t
    assert world.run(LEASE_MAX_S + 5, held_by(world, "b")), "and no two at a time meanwhile"
    assert world.t - asked_at > LEASE_MAX_S - 1
    world.crash("c", node=False)
    world.boot("c", same_boot=True)
    world.crash("b")
    world.cut = set()
    assert world.run(LEASE_S + 2, held_by(world, "a")), "once that is over it remembers"
