"""Overrides as registers: merged alike everywhere, durable before they count, bounded."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.plan import consider
from agent.domain.site.messages import OperatorDecided, Overrides, PeerSaid, Save, Saved
from agent.domain.site.overrides import DONE_MAX, NAME, OVERTAKEN, RETRY_S, Decisions
from agent.site.codec import BadMessage, decode, encode
from polder.identity import NodeId
from polder.overrides import (
    FIELDS,
    FROZEN,
    OVERRIDES_MAX,
    PLACED_ON,
    SHARE_MAX,
    SITE,
    STAMP_FAR,
    STAMP_LIMIT,
    STAMP_MAX,
    STOPPED,
    TOMBSTONE_S,
    TRUE,
    BadOverride,
    Override,
    Proof,
    Register,
    from_body,
    from_message,
    newer,
    next_stamp,
    to_body,
    to_message,
)
from polder.v1 import plan_pb2, site_pb2
from tests.unit.site_lab import KEY, group, lab, planned


def stopped(stamp: int = 0, node: str = "", value: str = TRUE, **more: Any) -> Override:
    fields = {"workload_uid": KEY[0], "namespace": "ns", "replica": KEY[1]} | more
    return Override(STOPPED, value, stamp=stamp, node=node, **fields)


def frozen(stamp: int = 0, node: str = "", value: str = TRUE, **more: Any) -> Override:
    return Override(FROZEN, value, stamp=stamp, node=node, **more)


def saves(decisions: Decisions, now: float = 0.0, *, ok: bool = True, token: int = 1) -> Any:
    """What is written, as it would be read again."""
    save = decisions.save(token, now)
    assert save is not None
    decisions.saved(token, now, ok=ok)
    return save.body


texts = st.text(max_size=10)
overrides = st.builds(
    lambda field, value, replica, stamp, node, id, conflict: Override(
        field,
        value and (TRUE if field != PLACED_ON else node),
        "" if field == FROZEN else "w",
        "" if field == FROZEN else "ns",
        "" if field == FROZEN else replica,
        id,
        stamp,
        node,
        conflict=conflict,
    ),
    st.sampled_from(FIELDS),
    st.booleans().map(lambda stands: TRUE if stands else ""),
    st.sampled_from(("r0", "r1")),
    st.integers(1, 4),
    st.sampled_from(("a", "b", "c")),
    texts,
    texts,
)


# ---- the rule ----


def merged(*told: list[Override]) -> dict[Register, tuple[int, str, str]]:
    known: dict[Register, Override] = {}
    for some in told:
        known |= {override.register: override for override in newer(some, known)}
    return {register: override.rank for register, override in known.items()}


@given(st.lists(overrides), st.lists(overrides), st.lists(overrides))
def test_the_order_in_which_decisions_come_does_not_matter(
    one: list[Override], two: list[Override], three: list[Override]
) -> None:
    assert merged(one, two, three) == merged(three, one, two, one) == merged(two + one + three)


def test_the_later_decision_counts_and_of_equal_ones_one_for_all() -> None:
    known = {stopped(3, "b").register: stopped(3, "b")}
    assert newer([stopped(2, "c")], known) == []
    assert newer([stopped(3, "b")], known) == []
    assert newer([stopped(3, "c", "")], known) == [stopped(3, "c", "")]
    assert next_stamp(known.values(), [stopped(7, "x")]) == 8 and next_stamp([]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"field": "paused"},
        {"value": "yes"},
        {"workload_uid": ""},
        {"replica": ""},
        {"stamp": -1},
        {"stamp": STAMP_LIMIT + 1},
        {"base_epoch": -1},
        {"reason": "x" * 501},
        {"field": FROZEN},
    ],
)
def test_what_cannot_be_meant_is_no_override(wrong: dict[str, Any]) -> None:
    good = to_body(stopped(1, "a", id="x"))
    assert from_body(good) == stopped(1, "a", id="x")
    with pytest.raises(BadOverride):
        from_body(good | wrong)


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"stamp": "soon"}, {"value": None}])
def test_what_another_version_wrote_is_no_override(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOverride):
        from_body(to_body(stopped(1, "a")) | wrong)


@given(overrides)
def test_its_forms_say_the_same(override: Override) -> None:
    assert from_message(to_message(override)) == override == from_body(to_body(override))
    wire = encode(Overrides((override,))).SerializeToString()
    assert decode(site_pb2.PeerMessage.FromString(wire)) == [Overrides((override,))]


def test_a_peer_that_says_what_no_agent_says_is_refused() -> None:
    bad = plan_pb2.Override(field=STOPPED, value="maybe", workload_uid="w", replica="r", stamp=1)
    with pytest.raises(BadMessage):
        decode(site_pb2.PeerMessage(overrides=site_pb2.Overrides(overrides=[bad])))
    many = [to_message(stopped(1, "a"))] * (2 * OVERRIDES_MAX + 1)
    with pytest.raises(BadMessage):
        decode(site_pb2.PeerMessage(overrides=site_pb2.Overrides(overrides=many)))


def test_a_field_of_a_newer_agent_is_left_out() -> None:
    new = plan_pb2.Override(field="colour", value="red", stamp=1)
    found = decode(site_pb2.PeerMessage(overrides=site_pb2.Overrides(overrides=[new])))
    assert found == [Overrides(())]


def test_a_plan_says_them_and_one_that_is_not_understood_costs_nothing() -> None:
    message = plan_pb2.NodePlan(node="a", site="s", trust_domain="t", generation=1)
    message.overrides.extend([to_message(frozen(3, "b")), plan_pb2.Override(field="colour")])
    accepted = consider(None, NodeId("t", "s", "a"), message.SerializeToString())
    assert accepted.plan.overrides == (frozen(3, "b"),)  # type: ignore[union-attr]


# ---- what one node knows ----


def test_an_operators_decision_is_in_force_once_it_is_on_the_disk() -> None:
    decisions = Decisions("a")
    assert decisions.decide(stopped(id="x"), 0.0) is None
    assert decisions.stopped(KEY) is None and decisions.all() == ()
    save = decisions.save(1, 0.0)
    assert save is not None and decisions.save(2, 0.0) is None
    changed, answers = decisions.saved(1, 0.0, ok=True)
    assert changed and [a.id for a in answers] == ["x"]
    assert decisions.stopped(KEY) == answers[0].override == stopped(1, "a", id="x")
    again = Decisions("a")
    again.read(save.body, 9.0)
    assert again.stopped(KEY) == stopped(1, "a", id="x")


def test_what_cannot_be_written_is_refused_and_does_not_come_into_force_later() -> None:
    decisions = Decisions("a")
    decisions.heard([stopped(4, "b", "", id="old")], 0.0)
    saves(decisions)
    decisions.decide(stopped(id="x"), 1.0)
    assert decisions.save(2, 1.0) is not None
    _, answers = decisions.saved(2, 1.0, ok=False)
    assert answers[0].refusal is not None and answers[0].refusal.reason == "NotWritable"
    assert decisions.save(3, 1.0) is None  # not again at once
    body = saves(decisions, 1.0 + RETRY_S, token=3)
    assert [from_body(item).id for item in body["known"]] == ["old"] and body["done"] == []
    assert decisions.stopped(KEY) is None


def test_two_that_wait_for_one_write_are_both_taken_back() -> None:
    decisions = Decisions("a")
    decisions.decide(stopped(id="x"), 0.0)
    decisions.decide(stopped(value="", id="y"), 0.0)
    assert decisions.save(1, 0.0) is not None
    _, answers = decisions.saved(1, 0.0, ok=False)
    assert {a.id for a in answers} == {"x", "y"} and all(a.refusal for a in answers)
    assert saves(decisions, RETRY_S, token=2)["known"] == []


def test_a_write_that_failed_does_not_bring_back_what_a_later_one_held_too() -> None:
    decisions = Decisions("a")
    decisions.decide(stopped(id="x"), 0.0)
    assert decisions.save(1, 0.0) is not None
    decisions.decide(frozen(id="y"), 0.0)
    assert decisions.save(2, 0.0) is not None
    decisions.saved(1, 0.0, ok=False)
    _, answers = decisions.saved(2, 0.0, ok=True)
    assert [a.id for a in answers] == ["y"]
    assert decisions.frozen() is not None and decisions.stopped(KEY) is None


def test_what_a_peer_said_is_tried_again_until_it_stands() -> None:
    decisions = Decisions("a")
    decisions.heard([frozen(3, "b")], 0.0)
    assert decisions.save(1, 0.0) is not None
    decisions.saved(1, 0.0, ok=False)
    assert decisions.frozen() is None and decisions.next_due() == RETRY_S
    saves(decisions, RETRY_S, token=2)
    assert decisions.frozen() == frozen(3, "b")


def test_the_same_change_is_made_once_however_often_it_is_sent() -> None:
    decisions = Decisions("a")
    decisions.decide(stopped(id="x"), 0.0)
    assert decisions.decide(stopped(id="x"), 0.0) is None  # it waits as well
    body = saves(decisions)
    decisions.decide(stopped(value="", id="y"), 1.0)
    saves(decisions, 1.0, token=2)
    answer = decisions.decide(stopped(id="x"), 2.0)
    assert answer is not None and answer.override == stopped(1, "a", id="x")
    assert decisions.stopped(KEY) is None and decisions.save(3, 2.0) is None
    again = Decisions("a")
    again.read(body, 3.0)
    assert again.decide(stopped(id="x"), 3.0) is not None  # also after a restart


def test_what_was_frozen_at_one_node_is_not_frozen_anew_at_the_next() -> None:
    decisions = Decisions("b")
    decisions.heard([frozen(1, "a", id="x")], 0.0)
    saves(decisions)
    answer = decisions.decide(frozen(id="x"), 0.0)
    assert answer is not None and answer.override == frozen(1, "a", id="x")


def test_only_so_many_changes_are_remembered() -> None:
    decisions = Decisions("a")
    for number in range(DONE_MAX + 5):
        decisions.decide(stopped(id=f"x{number}"), 0.0)
    assert len(saves(decisions)["done"]) == DONE_MAX


def test_the_orchestrator_says_what_contradicts_it_without_another_stamp() -> None:
    decisions = Decisions("a")
    decisions.decide(stopped(id="x"), 0.0)
    saves(decisions)
    known = decisions.stopped(KEY)
    assert known is not None
    told = replace(known, conflict="it was moved meanwhile")
    decisions.heard([told], 0.0)
    assert decisions.stopped(KEY) == known  # of a peer that is nothing new
    assert decisions.planned([told], 0.0) and decisions.stopped(KEY) == told
    assert not decisions.planned([told], 0.0)
    saves(decisions, token=2)
    assert decisions.stopped(KEY) == told


# ---- bounds ----


def test_a_tombstone_goes_after_a_week_and_is_not_brought_back() -> None:
    decisions = Decisions("a")
    buried = stopped(5, "b", "")
    decisions.heard([buried], 100.0)
    saves(decisions, 100.0)
    assert decisions.next_due() == 100.0 + TOMBSTONE_S
    assert not decisions.forget(99.0 + TOMBSTONE_S)
    assert decisions.forget(100.0 + TOMBSTONE_S) and decisions.all() == ()
    decisions.heard([buried], 101.0 + TOMBSTONE_S)
    body = saves(decisions, 101.0 + TOMBSTONE_S, token=2)
    assert body["known"] == [] and body["floors"] == {"b": 5} and decisions.next_due() is None
    decisions.decide(stopped(id="x"), 102.0 + TOMBSTONE_S)
    assert from_body(saves(decisions, 102.0 + TOMBSTONE_S, token=3)["known"][0]).stamp == 6


def many(count: int, value: str = TRUE, *, first: str = "r") -> list[Override]:
    """Decided at some nodes, none of which has more than its share."""
    return [
        stopped(n + 1, f"n{n % 5}", value, replica=f"{first}{n}", id=f"{first}-{n}")
        for n in range(count)
    ]


def test_tombstones_make_room_the_oldest_first() -> None:
    decisions = Decisions("a")
    decisions.heard(many(OVERRIDES_MAX, ""), 0.0)
    decisions.heard([frozen(OVERRIDES_MAX + 1, "c")], 0.0)
    decisions.forget(0.0)
    saves(decisions)
    assert len(decisions.all()) == OVERRIDES_MAX and decisions.frozen() is not None
    assert "r0" not in {override.replica for override in decisions.all()}


def test_two_full_nodes_do_not_tell_each_other_the_same_for_ever() -> None:
    one, two = Decisions("a"), Decisions("b")
    one.heard(many(OVERRIDES_MAX, ""), 0.0)
    two.heard(many(OVERRIDES_MAX, "", first="q"), 0.0)
    for rounds in range(1, 10):
        news = False
        for decisions, other in ((one, two), (two, one)):
            decisions.heard(other.all(), 0.0)
            decisions.forget(0.0)
            if decisions.save(rounds, 0.0) is not None:
                news |= decisions.saved(rounds, 0.0, ok=True)[0]
        if not news and rounds > 1:
            break
    else:
        pytest.fail("they go on for ever")
    assert len(one.all()) <= OVERRIDES_MAX and one.all() == two.all()


def test_nothing_is_decided_beyond_the_bound_nor_taken_up_from_others() -> None:
    decisions = Decisions("a")
    decisions.heard(many(OVERRIDES_MAX), 0.0)
    saves(decisions)
    answer = decisions.decide(frozen(id="x"), 0.0)
    assert answer is not None and answer.refusal is not None
    assert answer.refusal.reason == "TooMany"
    decisions.heard([frozen(9_999, "b")], 0.0)
    assert decisions.save(2, 0.0) is None
    assert decisions.decide(stopped(value="", replica="r0", id="y"), 0.0) is None
    saves(decisions, token=3)
    assert decisions.decide(frozen(id="z"), 0.0) is None  # there is room again


def liars(count: int, value: str = TRUE, start: int = 0) -> list[Override]:
    return [
        stopped(STAMP_FAR - 1, "liar", value, replica=f"l{start + n}", id=f"l{start + n}")
        for n in range(count)
    ]


@pytest.mark.parametrize("value", [TRUE, ""])
def test_a_node_that_lies_takes_no_more_than_its_share(value: str) -> None:
    decisions = Decisions("a")
    honest = [*many(300), *many(200, "", first="q")]
    decisions.heard(honest, 0.0)
    decisions.heard(liars(OVERRIDES_MAX, value), 0.0)
    decisions.forget(0.0)
    saves(decisions)
    assert sum(one.node == "liar" for one in decisions.all()) == SHARE_MAX
    assert {one.id for one in honest} <= {one.id for one in decisions.all()}
    assert decisions.decide(frozen(id="x"), 0.0) is None
    saves(decisions, token=2)
    assert decisions.frozen() is not None


def test_what_a_liar_takes_back_makes_room_for_its_own_alone() -> None:
    decisions = Decisions("a")
    decisions.heard([stopped(7, "b", "", id="honest")], 0.0)
    for start in range(0, 3 * SHARE_MAX, SHARE_MAX):
        decisions.heard(liars(SHARE_MAX, "", start), 0.0)
        decisions.forget(0.0)
    saves(decisions)
    assert sum(one.node == "liar" for one in decisions.all()) == SHARE_MAX
    # The floor of its stamps is its own: what others took back is still taken up.
    decisions.heard([stopped(8, "b", "", replica="later", id="later")], 0.0)
    saves(decisions, token=2)
    assert {"honest", "later"} <= {one.id for one in decisions.all()}


def test_of_one_message_what_makes_room_comes_first() -> None:
    decisions = Decisions("a")
    full = [stopped(1, "b", replica=f"r{n}", id=f"r{n}") for n in range(SHARE_MAX)]
    decisions.heard(full, 0.0)
    another = stopped(3, "b", replica="another", id="another")
    taken_over = stopped(2, "c", "", replica="r0", id="c")
    decisions.heard([another, taken_over], 0.0)
    saves(decisions)
    assert {"another", "c"} <= {one.id for one in decisions.all()}


def test_who_has_its_share_is_told_to_ask_another_node() -> None:
    decisions = Decisions("a")
    for number in range(SHARE_MAX):
        assert decisions.decide(stopped(replica=f"r{number}", id=f"{number}"), 0.0) is None
    answer = decisions.decide(stopped(id="x"), 0.0)
    assert answer is not None and answer.refusal is not None
    assert answer.refusal.reason == "TooMany" and "ask another node" in answer.refusal.message


# ---- what is signed ----

PROOF = Proof(b"signed", (b"leaf",))


def test_what_is_signed_is_made_as_it_was_drafted() -> None:
    decisions = Decisions("a")
    draft = decisions.draft(stopped(id="x"))
    assert isinstance(draft, Override) and (draft.stamp, draft.node) == (1, "a")
    assert decisions.decide(replace(draft, proof=PROOF), 0.0) is None
    again = Decisions("a")
    again.read(saves(decisions), 1.0)
    known = again.stopped(KEY)
    assert known == draft and known is not None and known.proof == PROOF


def test_a_draft_that_was_overtaken_is_not_made() -> None:
    decisions = Decisions("a")
    draft = decisions.draft(stopped(id="x"))
    assert isinstance(draft, Override)
    decisions.heard([frozen(1, "b", id="y")], 0.0)
    answer = decisions.decide(replace(draft, proof=PROOF), 0.0)
    assert answer is not None and answer.refusal == OVERTAKEN
    again = decisions.draft(stopped(id="x"))
    assert isinstance(again, Override) and again.stamp == 2
    assert decisions.decide(replace(again, proof=PROOF), 0.0) is None


def test_a_peer_that_uses_all_stamps_up_keeps_operators_from_nothing_else() -> None:
    decisions = Decisions("a")
    decisions.heard([frozen(STAMP_MAX, "b"), stopped(STAMP_MAX, "b", "", replica="r9")], 0.0)
    saves(decisions)
    assert decisions.decide(stopped(id="x"), 0.0) is None
    saves(decisions, token=2)
    assert (made := decisions.made("x")) is not None and made.stamp == 1
    answer = decisions.decide(frozen(value="", id="y"), 0.0)
    assert answer is not None and answer.refusal is not None
    assert answer.refusal.reason == "StampsUsedUp"
    # An orchestrator takes back whatever it was, and no peer writes where it does.
    decisions.heard([frozen(STAMP_MAX + 1, "b")], 0.0)
    assert (known := decisions.frozen()) is not None and known.stamp == STAMP_MAX
    decisions.planned([frozen(STAMP_MAX + 1, "", "")], 0.0)
    assert decisions.frozen() is None
    # Tombstones of such stamps that go do not carry the others along.
    decisions.forget(TOMBSTONE_S + 1)
    assert decisions.decide(frozen(id="z"), TOMBSTONE_S + 1) is None


@pytest.mark.parametrize("body", [{}, {"known": [7, None, {"field": "x"}], "floors": "high"}])
def test_a_memory_that_cannot_be_read_is_left_out(body: dict[str, Any]) -> None:
    decisions = Decisions("a")
    decisions.read(body, 0.0)
    assert decisions.all() == () and decisions.frozen() is None


# ---- through the machine ----


def test_peers_hear_of_it_at_once_and_who_comes_later_hears_it_first() -> None:
    site = lab(group("a", "b", "c"))
    site.start("a", "b")
    site.run(5)
    site.decide("a", FROZEN)
    assert site.boxes["b"].machine.overrides() == site.boxes["a"].machine.overrides() != ()
    site.start("c")
    site.run(0.1)
    assert site.boxes["c"].machine.overrides() == site.boxes["a"].machine.overrides()
    kinds = [type(said) for _, to, said in site.boxes["a"].said if to == "c"]
    assert kinds.index(Overrides) == 1  # after a beat, before any claim


def test_it_goes_through_nodes_that_do_not_hear_each_other() -> None:
    site = lab(group("a", "b", "c"))
    site.start()
    site.part("a", "c")
    site.run(5)
    site.decide("a", FROZEN)
    assert site.boxes["c"].machine.overrides() == site.boxes["a"].machine.overrides()


def test_what_was_said_while_a_link_was_cut_is_said_again() -> None:
    site = lab(group("a", "b"))
    site.start()
    site.run(5)
    site.part("a", "b")
    site.run(5)
    site.decide("a", FROZEN)
    assert site.boxes["b"].machine.overrides() == ()
    site.mend()
    site.run(3)
    assert site.boxes["b"].machine.overrides() == site.boxes["a"].machine.overrides()


def test_who_is_in_no_roster_is_not_believed() -> None:
    site = lab(group("a", "b"))
    site.start()
    site.feed("a", PeerSaid("stranger", Overrides((frozen(9, "x"),))))
    site.run(1)
    assert site.boxes["a"].machine.overrides() == ()


def test_a_full_disk_is_told_to_the_operator_and_nothing_changes() -> None:
    site = lab(group("a", "b"))
    site.start()
    site.run(5)
    site.boxes["a"].writable = False
    refusal = site.decide("a", STOPPED).refusal
    assert refusal is not None and refusal.reason == "NotWritable"
    site.run(60)
    assert site.runs() == {"a": ["p1"]} and site.boxes["b"].machine.overrides() == ()


def test_it_is_written_before_anything_follows_from_it() -> None:
    site = lab(group("a"))
    site.start()
    site.run(5)
    machine = site.boxes["a"].machine
    wanted = stopped(id="x", by="operator/ann")
    found = machine.handle(OperatorDecided(wanted), site.now)
    (save,) = [i for i in found if isinstance(i, Save)]
    assert save.name == NAME and len(found) == 1
    after = machine.handle(Saved(save.token, True), site.now)
    assert any(getattr(i, "override", None) for i in after)
    assert SITE not in {o.subject for o in machine.overrides()}


def test_a_plan_may_say_what_peers_have_not_heard_yet() -> None:
    site = lab(group("a", "b"))
    site.start()
    site.run(5)
    site.give(
        "a", replace(planned("a", group("a", "b"), generation=2), overrides=(frozen(4, "c"),))
    )
    site.run(0.1)
    assert site.boxes["b"].machine.overrides() == (frozen(4, "c"),)
