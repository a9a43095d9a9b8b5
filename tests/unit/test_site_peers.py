"""Who is heard, who is missed, and whose word counts."""

from agent.domain.site.claims import OurClaims, TheirClaims
from agent.domain.site.messages import Ability, Claim, Claims
from agent.domain.site.peers import (
    BOOT_PATIENCE_S,
    NEW_PATIENCE_S,
    RESTART_PATIENCE_MAX_S,
    SILENT_AFTER_S,
    Peers,
)
from tests.unit.site_lab import E1, KEY


def peers(*known: str, same_boot: bool = True, roster: str = "bc") -> Peers:
    found = Peers()
    found.began(known, same_boot=same_boot)
    found.roster(list(roster), 0.0)
    return found


def test_two_beats_may_get_lost_and_the_third_is_missed() -> None:
    site = peers("b", "c")
    site.heard("b", 10.0)
    assert site.hears("b", 12.3) and not site.missed("b", 12.3)
    assert not site.hears("b", 12.4) and site.missed("b", 12.4)
    assert site.next_due(11.0) == 10.0 + SILENT_AFTER_S
    site.heard("b", 12.5)
    assert not site.missed("b", 12.6)


def test_who_was_never_heard_has_time_to_come() -> None:
    for known, same_boot, after in (
        ((), True, NEW_PATIENCE_S),
        (("b",), False, BOOT_PATIENCE_S),
        (("b",), True, SILENT_AFTER_S),
    ):
        site = peers(*known, same_boot=same_boot)
        assert not site.missed("b", after - 0.1) and site.missed("b", after)
        assert "b" in site.silent(0.0), "it is not heard, and nobody is told otherwise"


def test_a_node_outside_the_roster_is_neither_heard_nor_missed() -> None:
    site = peers("x")
    site.heard("x", 1.0)
    assert not site.hears("x", 1.0) and not site.missed("x", 1e9)
    assert site.beat("x", ("b",)) is False
    site.opened("x", "i", 1.0)
    site.closed("x")
    site.restarting("x", 5.0, 1.0)
    assert site.open() == []


def test_a_restart_is_excused_for_a_while_and_no_longer() -> None:
    site = peers("b", "c")
    site.heard("b", 10.0)
    site.restarting("b", 3600.0, 10.0)
    assert not site.missed("b", 10.0 + RESTART_PATIENCE_MAX_S - 0.1)
    assert "b" not in site.silent(20.0), "nor should others act on our word"
    assert site.missed("b", 10.0 + RESTART_PATIENCE_MAX_S)
    site.restarting("b", 10.0, 30.0)
    assert site.opened("b", "second", 31.0) is False
    assert site.missed("b", 34.0), "it is back: from now on it is missed as ever"


def test_another_process_of_a_peer_is_noticed() -> None:
    site = peers()
    assert not site.opened("b", "first", 1.0)
    site.closed("b")
    assert not site.opened("b", "first", 2.0)
    assert site.opened("b", "second", 3.0)
    assert site.open() == ["b"]


def test_who_hears_whom_is_known_from_beats() -> None:
    site = peers("b", "c", "d", roster="bcd")
    for name in "bcd":
        site.heard(name, 10.0)
    assert site.beat("c", ("b",)) and not site.beat("c", ("b",))
    site.beat("d", ())
    assert site.witnesses_of("b", "bcd", 11.0) == ["d"]
    assert site.witnesses_of("b", "bc", 11.0) == []
    site.heard("c", 13.0)
    assert site.witnesses_of("b", "bcd", 13.0) == [], "the word of a silent one is old"


def test_silence_while_this_process_slept_counts_once() -> None:
    site = peers("b", "c")
    site.heard("b", 10.0)
    site.was_away(11.0, 60.0)
    assert not site.missed("b", 60.9) and site.missed("b", 61.1)
    site.was_away(61.0, 90.0)
    assert site.missed("b", 90.0), "a box that is always late must not wait for ever"


def test_time_asleep_is_no_patience_of_those_never_heard() -> None:
    site = peers()
    site.was_away(1.0, 101.0)
    assert not site.missed("b", 101.0 + NEW_PATIENCE_S - 1.1)


def test_a_peer_that_leaves_the_roster_and_comes_back_is_no_stranger() -> None:
    site = peers()
    site.heard("b", 1.0)
    site.roster(["c"], 2.0)
    assert list(site.names) == ["c"] and not site.known
    site.roster(["b", "c"], 3.0)
    assert site.known == {"b"}
    assert site.missed("b", 3.0 + SILENT_AFTER_S)


# ---- claims ----

READY = Claim(KEY, "p1", E1, True, 40.0)


def test_readiness_is_counted_by_the_clock_of_who_claims_it() -> None:
    theirs = TheirClaims()
    assert theirs.said("a", Claims((READY,)), 1000.0)
    (heard,) = theirs.by_key()[KEY]
    assert heard.ready_since == 960.0
    assert heard.contender(1010.0).ready_for_s == 50.0
    assert not theirs.said("a", Claims((Claim(KEY, "p1", E1, True, 45.0),)), 1005.0)
    assert theirs.said("a", Claims((Claim(KEY, "p1", E1 + 1, True, 45.0),)), 1005.0)


def test_a_new_process_has_to_say_again_what_is_ready() -> None:
    theirs = TheirClaims()
    theirs.said("a", Claims((READY,)), 0.0)
    theirs.began_anew("a")
    (heard,) = theirs.by_key()[KEY]
    assert heard.ready_since is None and heard.uid == "p1", "that it had it is still known"


def test_what_is_said_is_all_there_is() -> None:
    theirs = TheirClaims()
    theirs.said("a", Claims((READY,), (Ability(KEY, False, "NoRoom"),)), 0.0)
    assert theirs.ability("a", KEY) == Ability(KEY, False, "NoRoom")
    theirs.said("a", Claims(), 1.0)
    assert theirs.by_key() == {} and theirs.ability("a", KEY) is None
    theirs.said("a", Claims((READY,)), 2.0)
    theirs.keep(["b"])
    assert theirs.by_key() == {}


def test_a_peer_is_told_what_changed_and_all_of_it_on_a_new_stream() -> None:
    ours = OurClaims()
    assert ours.news_for("b", [READY], []) == Claims((READY,))
    later = Claim(KEY, "p1", E1, True, 41.0)
    assert ours.news_for("b", [later], []) is None, "time passing is no news"
    assert ours.news_for("c", [later], []) is not None
    ours.forget("b")
    assert ours.news_for("b", [later], []) == Claims((later,))
    assert ours.news_for("b", [later], [Ability(KEY, True)]) is not None
