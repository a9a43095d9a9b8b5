"""What operators of a site decided: merged, contradicted aloud, over when it has no object."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.overrides import (
    FORGOTTEN_AFTER_S,
    LocalOverride,
    decisions,
    merged,
    read,
    said,
)
from orchestrator.domain.overrides_step import WRITES_PER_TICK, settle
from orchestrator.records import AssignmentRecord, KeptRecord, NodePlacement, StopRecord
from orchestrator.scheduling.snapshot import Snapshot, Workload
from orchestrator.scheduling.tick import Batch, Moment, World
from orchestrator.store import keys
from polder.epochs import decided_at
from polder.overrides import CONFLICT_MAX, STAMP_MAX, BadOverride, Override, newer, to_message
from tests.unit.scheduling_world import box

E = decided_at(5)
NOW_S = 2_000_000.0
WEB = Workload("w", "ns", "web", count=2, revision=3)


def override(field: str = "stopped", value: str = "true", **more: Any) -> LocalOverride:
    """`more`: of the decision, or of the record of it."""
    own = {name: more.pop(name) for name in ("judged", "accepted", "heard_ms") if name in more}
    facts: dict[str, Any] = {"stamp": 4, "node": "a", "by": "operator/ann", "reason": "smoke"}
    if field != "frozen":
        facts |= {"workload_uid": "w", "namespace": "ns", "replica": "web-0"}
        facts |= {"base_revision": 3, "base_epoch": E}
    decision = Override(field, value, **{**facts, **more})
    return replace(LocalOverride("s1", decision, heard_ms=5, store_revision=7), **own)


def stay(epoch: int = E, **more: Any) -> AssignmentRecord:
    return AssignmentRecord("ns", "web", "w", "web-0", f"u-{epoch}", epoch, 3, **more)


def world(
    *every: LocalOverride,
    workload: Workload | None = WEB,
    stops: tuple[StopRecord, ...] = (),
    **on: AssignmentRecord,
) -> World:
    """`on`: who has web-0. Nodes a and b are at s1, z at s2."""
    snapshot = Snapshot(
        9,
        nodes=(box("a"), box("b"), box("z", site="s2")),
        workloads=(workload,) if workload is not None else (),
        placements={
            name: NodePlacement(name, 1, (on[name],) if name in on else (), stops)
            for name in ("a", "b", "z")
        },
        local=decisions(item.record() for item in every),
    )
    return World(snapshot)


def settled(*args: LocalOverride, **more: Any) -> tuple[Batch, ...]:
    return settle(world(*args, **more), Moment(NOW_S, 1.0))


def written(batch: Batch) -> LocalOverride:
    (write,) = batch.writes
    assert write.value is not None
    found = read(KeptRecord(write.key, json.loads(write.value), 8))
    assert found is not None
    return found


def outcome(*args: LocalOverride, **more: Any) -> tuple[LocalOverride, str]:
    """The record as it is written, and the reason that is told."""
    (batch,) = settled(*args, **more)
    assert batch.writes[0].expected == 7
    return written(batch), batch.tells[0].reason if batch.tells else ""


# --- the record -------------------------------------------------------------------------------


def test_a_record_reads_back_and_one_of_a_newer_version_is_left_alone() -> None:
    made = replace(override(), judged=True, accepted="once")
    assert read(made.record()) == made
    body = json.loads(made.record().to_bytes())
    assert read(KeptRecord(made.key, {**body, "later": 1}, 7)) == made
    body["decision"]["field"] = "colour"
    assert read(KeptRecord(made.key, body, 7)) is None
    assert (
        read(KeptRecord(keys.override("s1", "w", "web-1", "stopped"), made.record().body)) is None
    )


STAMPS = st.tuples(st.integers(1, 4), st.sampled_from(("", "a", "b")), st.sampled_from(("x", "y")))


@given(st.lists(STAMPS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_whatever_the_order_the_greatest_counts_as_for_agents(
    told: list[tuple[int, str, str]], dice: Any
) -> None:
    every = [override(stamp=stamp, node=node, id=id_) for stamp, node, id_ in told]
    shuffled = [*every, *every]
    dice.shuffle(shuffled)
    known: LocalOverride | None = None
    for item in shuffled:
        known = merged(known, item) or known
    assert known is not None
    (agreed,) = newer([item.decision for item in every], {})
    assert known.decision == agreed


@pytest.mark.parametrize(
    "wrong",
    [
        {"stamp": 0},
        {"replica": "../../../leader"},
        {"workload_uid": "a/b"},
        {"node": "a\0"},
        {"field": "placedOn", "value": "x/y"},
        {"field": "placedOn", "namespace": "$"},
    ],
)
def test_what_would_make_a_strange_key_is_refused(wrong: dict[str, Any]) -> None:
    message = to_message(override(**wrong).decision)
    with pytest.raises(BadOverride):
        said(message, "s1", 5)
    assert said(to_message(override().decision), "s1", 5).site == "s1"


def test_a_conflict_is_found_by_the_leader_and_not_believed() -> None:
    message = to_message(override(conflict="because I say so").decision)
    assert not said(message, "s1", 5).decision.conflict


# --- the step ---------------------------------------------------------------------------------


def test_what_nothing_contradicts_is_noted_once_and_then_costs_nothing() -> None:
    after, reason = outcome(override(), a=stay())
    assert after.judged and not after.decision.conflict and not reason
    assert settled(replace(override(), judged=True), a=stay()) == ()
    assert settled(a=stay()) == ()


@pytest.mark.parametrize(
    ("given", "facts", "text"),
    [
        (override(), {"b": stay(decided_at(6), because="NodeLost")}, "placed on node b meanwhile"),
        (override(), {"z": stay(decided_at(6))}, "node z of site s2, and runs there"),
        (override(), {"a": stay(), "workload": replace(WEB, count=0)}, "asks for replicas: 0"),
        (override(base_revision=2), {"a": stay()}, "given revision 3 meanwhile"),
        (override("placedOn", "b"), {"a": stay(decided_at(6))}, "placed on node a meanwhile"),
        (override("placedOn", "b"), {"z": stay(decided_at(6))}, "node z of site s2"),
        (
            override("frozen"),
            {"stops": (StopRecord("ns", "web", "web-1", "u9", "ScaledDown", "", 1),)},
            "2 replica(s) there were told to stop",
        ),
    ],
)
def test_what_was_decided_meanwhile_is_a_conflict(
    given: LocalOverride, facts: dict[str, Any], text: str
) -> None:
    after, reason = outcome(given, **facts)
    assert reason == "OverrideConflict" and text in after.decision.conflict
    assert after.decision.stands and after.decision.rank == given.decision.rank
    (batch,) = settled(given, **facts)
    assert "edgectl override drop" in batch.tells[0].message and batch.tells[0].warning
    # It stays until somebody decides, and is told once.
    assert settled(replace(after, store_revision=7), **facts) == ()
    assert settled(replace(after, store_revision=7), a=stay()) == ()


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        # As the site knew it, though there is a newer revision; or as it went on by itself.
        (override(), {"a": stay(), "workload": replace(WEB, revision=4)}),
        (override(), {"b": stay(E + 3)}),
        # Decided with knowledge of it.
        (override(judged=True), {"b": stay(decided_at(6))}),
        (override(judged=True, base_revision=2), {"a": stay()}),
        (
            override("frozen", judged=True),
            {"stops": (StopRecord("ns", "w", "x", "u", "M", "", 1),)},
        ),
        # An operator lets it stand.
        (
            override(judged=True, accepted="workload web asks for replicas: 0"),
            {"a": stay(), "workload": replace(WEB, count=0)},
        ),
        (override(value=""), {"z": stay(decided_at(6))}),
    ],
)
def test_what_is_no_conflict(given: LocalOverride, facts: dict[str, Any]) -> None:
    assert all(not batch.tells for batch in settled(given, **facts))


def test_another_conflict_than_the_accepted_one_is_told() -> None:
    given = override(judged=True, accepted="workload web asks for replicas: 0")
    assert outcome(given, z=stay(decided_at(6)))[1] == "OverrideConflict"


def test_a_move_that_stands_is_taken_back_with_a_greater_stamp() -> None:
    given = override("placedOn", "b", judged=True)
    assert settled(given, a=stay()) == (), "not there yet"
    assert settled(given, b=stay(E + 1, replaces="u-old"), a=stay()) == (), "it starts"
    after, reason = outcome(given, b=stay(E + 1))
    assert reason == "LocalOverrideDone" and not after.decision.stands
    assert after.decision.rank > given.decision.rank and after.decision.by == "orchestrator"
    assert read(after.record()) == after


def test_a_node_that_uses_all_stamps_up_does_not_stop_the_leader() -> None:
    given = override("placedOn", "b", judged=True, stamp=STAMP_MAX)
    after, reason = outcome(given, b=stay(E + 1))
    assert reason == "LocalOverrideDone" and after.decision.rank > given.decision.rank
    assert read(after.record()) == after


def test_a_long_story_of_a_conflict_is_cut() -> None:
    after, reason = outcome(override(), b=stay(decided_at(9), because="x" * 2_000))
    assert reason == "OverrideConflict" and len(after.decision.conflict) == CONFLICT_MAX


def test_a_move_back_to_where_the_record_still_has_it_is_not_done_yet() -> None:
    """Another node took it over, which nobody has written down, and operators moved it back."""
    given = override("placedOn", "a", base_epoch=E + 1, judged=True)
    assert settled(given, a=stay()) == ()
    assert outcome(given, a=stay(E + 2))[1] == "LocalOverrideDone"


def test_a_move_that_was_overtaken_is_over() -> None:
    given = override("placedOn", "b", judged=True)
    for holder in (stay(E + 2), stay(decided_at(8))):
        assert outcome(given, a=holder)[1] == "LocalOverrideDone"


def test_the_deletion_of_its_workload_is_told() -> None:
    for workload in (None, replace(WEB, deleting=True)):
        after, reason = outcome(override(judged=True), workload=workload)
        assert reason == "LocalOverrideOver" and not after.decision.stands
    (batch,) = settled(override(judged=True), workload=None)
    (tell,) = batch.tells
    assert tell.warning and "stopped by operator/ann at a: smoke" in tell.message
    assert settled(override(judged=True), workload=None, a=stay()) == (), "only its record is lost"


def test_what_was_taken_back_is_forgotten_late() -> None:
    recent = override(value="", heard_ms=int((NOW_S - 8 * 86_400) * 1000))
    assert settled(recent) == (), "a box that is back after a week would bring it up again"
    old = override(value="", heard_ms=int((NOW_S - FORGOTTEN_AFTER_S - 1) * 1000))
    (batch,) = settled(old)
    assert batch.writes[0].value is None


def test_an_incomplete_world_changes_nothing_and_a_tick_has_an_end() -> None:
    many = [override(replica=f"web-{n}") for n in range(WRITES_PER_TICK + 5)]
    assert len(settled(*many)) == WRITES_PER_TICK
    whole = world(*many)
    partial = replace(whole, snapshot=replace(whole.snapshot, complete=False))
    assert settle(partial, Moment(NOW_S, 1.0)) == ()
