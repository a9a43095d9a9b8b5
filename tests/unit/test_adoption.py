"""What a site did alone is written down as it is: no move, no restart, no epoch that goes back."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.adoption import SETTLE_S, Case, Verdict, judge, raised
from orchestrator.domain.adoption_step import NODES_OF_SITE, NODES_PER_TICK, adopt
from orchestrator.domain.deleted import KEPT_S, forgettable, tombstone
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.restored import LEAD_MAX
from orchestrator.records import (
    AssignmentRecord,
    GroupRecord,
    KeptRecord,
    NodePlacement,
    StoredResource,
)
from orchestrator.scheduling.snapshot import Mode, Observed, Snapshot, Workload
from orchestrator.scheduling.steer import Memory, World, steer
from orchestrator.scheduling.tick import Batch, Heard, Moment, Stray
from orchestrator.store import keys
from polder.epochs import decided_at
from polder.manifest.placement import Failover
from polder.succession import Contender
from tests.unit.scheduling_world import SMALL, box

E = decided_at(5)
GROUP = GroupRecord(decided_at(4), ("a", "b", "c"))
RECORD = AssignmentRecord(
    "ns", "web", "w", "web-0", "old", E, 1, standbys=("b", "c"), placed_at_ms=9_000, group=GROUP
)
MOMENT = Moment(1_000.0, 1.0)


# --- the rule ---------------------------------------------------------------------------------


def case(
    *,
    record: AssignmentRecord = RECORD,
    node: str = "b",
    epoch: int = E + 1,
    ready_s: float = 0.0,
    holder: str = "silent",
    holder_s: float = 0.0,
    said: int = E,
    same_site: bool = True,
) -> Case:
    local = Contender(node, "local", epoch, ready_s > 0, ready_s)
    heard, serves = holder != "silent", holder == "serves"
    return Case("a", record, said, heard, serves, holder_s, local, same_site)


EXCLUSIVE = replace(RECORD, group=replace(GROUP, exclusive=True, witnesses=("d",)))
NEWER = replace(RECORD, group=replace(GROUP, on_return="newer"))


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"ready_s": 1}, Verdict.ADOPT),
        ({}, Verdict.ADOPT_BESIDE),
        ({"holder": "heard"}, Verdict.WAIT),
        ({"holder": "heard", "ready_s": 1}, Verdict.ADOPT),
        ({"holder": "serves", "holder_s": 900}, Verdict.WAIT),
        ({"holder": "serves", "holder_s": 900, "ready_s": 30}, Verdict.KEEP),
        ({"holder": "serves", "holder_s": 15, "ready_s": 900}, Verdict.ADOPT),
        ({"holder": "serves", "holder_s": SETTLE_S - 1, "ready_s": 900}, Verdict.WAIT),
        ({"holder": "serves", "holder_s": 900, "ready_s": SETTLE_S - 1}, Verdict.WAIT),
        ({"holder": "serves", "holder_s": 900, "ready_s": 30, "record": NEWER}, Verdict.ADOPT),
        # What is newer is not undone, whoever decided it.
        ({"epoch": E, "ready_s": 1}, Verdict.WAIT),
        ({"epoch": E - 1, "ready_s": 1}, Verdict.WAIT),
        ({"said": E + 2, "holder": "serves", "holder_s": 30, "ready_s": 99}, Verdict.WAIT),
        ({"epoch": E + decided_at(LEAD_MAX + 1), "ready_s": 1}, Verdict.WAIT),
        # By a lease, only who may have it; whether it is ready or not.
        ({"record": EXCLUSIVE}, Verdict.ADOPT),
        ({"record": EXCLUSIVE, "holder": "serves", "holder_s": 99}, Verdict.ADOPT),
        ({"record": EXCLUSIVE, "node": "d", "ready_s": 1}, Verdict.WAIT),
        ({"record": EXCLUSIVE, "node": "x", "ready_s": 1}, Verdict.WAIT),
        # A former member, by a plan of before.
        ({"node": "x", "ready_s": 1}, Verdict.ADOPT),
        ({"node": "x", "ready_s": 900, "holder": "serves", "holder_s": 1}, Verdict.KEEP),
        ({"node": "x", "ready_s": 1, "same_site": False}, Verdict.WAIT),
        ({"node": "x", "ready_s": 9, "same_site": False, "holder": "serves"}, Verdict.KEEP),
    ],
)
def test_the_table(facts: dict[str, Any], verdict: Verdict) -> None:
    assert judge(case(**facts)) is verdict


@pytest.mark.parametrize("heard", [(E, E + 7), (decided_at(9) + 3, E), (decided_at(99) - 1, 0)])
def test_who_stays_gets_an_epoch_above_all_that_was_heard(heard: tuple[int, int]) -> None:
    assert raised(9, *heard) > max(heard)
    assert raised(9, E) == decided_at(9)


# --- the step ---------------------------------------------------------------------------------

LOCAL = Stray("b", "ns", "web", "w", "web-0", "local", E + 1, 1, 3, "old", True, 20.0)
WEB = Workload("w", "ns", "web", failover=Failover(standbys=2))


def world(*strays: Stray, holder: Liveness = Liveness.SILENT, **changes: Any) -> World:
    kept = changes.pop("kept", {})
    heard = changes.pop("heard", {})
    nodes = (
        box("a", liveness=holder, since=980.0),
        *(box(name) for name in ("b", "c", "d")),
        box("z", site="s2"),
    )
    snapshot = Snapshot(
        9,
        nodes=nodes,
        workloads=(WEB,),
        placements={
            "a": NodePlacement("a", 3, (RECORD,), store_revision=4),
            "b": NodePlacement("b", 3, store_revision=6),
        },
        templates={("w", 1): SMALL},
        observed={("a", "old"): Observed(True, True, 1, 900.0)},
    )
    return World(replace(snapshot, **changes), strays=strays, kept=kept, heard=heard)


def written(*batches: Batch) -> dict[str, NodePlacement]:
    writes = [write for batch in batches for write in batch.writes]
    assert len({write.key for write in writes}) == len(writes), "a node is written once"
    found = [
        NodePlacement.from_bytes(write.value, write.expected)
        for write in writes
        if write.value is not None
    ]
    return {placement.node: placement for placement in found}


def test_the_record_follows_what_runs() -> None:
    done = adopt(world(LOCAL), MOMENT)
    (batch,) = done.batches
    after = written(batch)
    (made,) = after["b"].assignments
    assert (made.replica_uid, made.epoch, made.revision, made.replaces) == ("local", E + 1, 1, "")
    assert made.group == replace(GROUP, members=("b", "a", "c")) and made.standbys == ("a", "c")
    assert (made.because, made.took_over, made.placed_at_ms) == ("TakenOver", "a", 980_000)
    assert not after["a"].assignments
    (stop,) = after["a"].stops
    assert (stop.replica_uid, stop.cause) == ("old", "TakenOver")
    assert stop.message == "node b took it over (epoch 5+1)"
    assert (after["a"].generation, after["b"].generation) == (4, 4)
    assert (after["a"].store_revision, after["b"].store_revision) == (4, 6)
    assert [(t.reason, t.warning, t.message) for t in batch.tells] == [
        ("TakenOver", True, "node b took it over from node a (epoch 5+1)"),
        ("Adopted", False, "stays on node b, as its site decided"),
    ]
    assert adopt(done.world, MOMENT).batches == (), "once is enough"


def test_nothing_is_placed_anew_in_the_same_tick_and_nothing_later() -> None:
    lost = world(LOCAL, holder=Liveness.LOST)
    decided = steer(lost, Memory(), MOMENT)
    assert not decided.plan.place and not decided.plan.stop
    assert set(written(*decided.batches)) == {"a", "b"}
    without = steer(replace(lost, strays=()), Memory(), MOMENT)
    assert without.plan.place, "it would have been"
    settled = replace(lost.snapshot, placements=written(*decided.batches))
    settled = replace(settled, observed={("b", "local"): Observed(True, True, 1, 20.0)})
    again = steer(World(settled), Memory(), MOMENT)
    assert not again.plan.place and not again.plan.stop


def test_one_that_starts_replaces_the_old_stay_when_it_is_ready() -> None:
    starting = replace(LOCAL, ready=False, ready_for_s=0.0)
    after = written(*adopt(world(starting), MOMENT).batches)
    assert set(after) == {"b"}, "the old one is told nothing yet"
    (made,) = after["b"].assignments
    assert (made.replaces, made.because) == ("old", "TakenOver")
    placements = {**world().snapshot.placements, **after}
    for ready in (False, True):
        seen = {("b", "local"): Observed(True, ready, 1, 5.0)}
        later = world(holder=Liveness.LIVE, placements=placements, observed=seen)
        stops = steer(later, Memory(), MOMENT).plan.stop
        assert [(s.node, s.cause.value) for s in stops] == ([("a", "TakenOver")] if ready else [])


def test_of_two_that_serve_the_one_that_stays_is_newer_from_then_on() -> None:
    heard = {("a", "old"): Heard(E, 900.0)}
    (batch,) = adopt(world(LOCAL, holder=Liveness.LIVE, heard=heard), MOMENT).batches
    after = written(batch)
    (kept,) = after["a"].assignments
    assert (kept.replica_uid, kept.epoch) == ("old", decided_at(9)) and not after["a"].stops
    (stop,) = after["b"].stops
    assert (stop.replica_uid, stop.cause) == ("local", "TakenOver") and not after["b"].assignments
    assert [t.reason for t in batch.tells] == ["TakeoverEnds"]


def test_of_two_local_ones_the_newer_counts_and_the_other_stops_when_it_is_ready() -> None:
    newer = replace(LOCAL, node="c", replica_uid="newer", epoch=E + 2, takes_over="local")
    for strays in ((LOCAL, newer), (newer, LOCAL)):
        done = adopt(world(*strays), MOMENT)
        after = written(*done.batches)
        assert [a.replica_uid for a in after["c"].assignments] == ["newer"]
        assert "b" not in after and done.world.strays == (LOCAL,)
    settled = replace(done.world, snapshot=replace(done.world.snapshot, placements=after))
    (write,) = steer(settled, Memory(), MOMENT).batches[0].writes
    assert write.value is not None
    (stop,) = NodePlacement.from_bytes(write.value, 0).stops
    assert (write.key, stop.replica_uid) == (keys.placement("b"), "local")


def test_a_node_that_took_over_again_has_one_stay_on_record() -> None:
    mine = replace(RECORD, replica_uid="first", epoch=E + 1)
    again = replace(LOCAL, replica_uid="second", epoch=E + 3)
    before = {"b": NodePlacement("b", 3, (mine,), store_revision=6)}
    after = written(*adopt(world(again, placements=before, observed={}), MOMENT).batches)
    assert [a.replica_uid for a in after["b"].assignments] == ["second"]
    assert [s.replica_uid for s in after["b"].stops] == ["first"]


def test_all_replicas_of_a_dead_node_are_one_write_for_each_node() -> None:
    many = [
        replace(RECORD, replica=f"web-{n}", replica_uid=f"old-{n}", epoch=E + n) for n in range(6)
    ]
    taken = [
        replace(
            LOCAL,
            node="b" if n % 2 else "c",
            replica=f"web-{n}",
            replica_uid=f"local-{n}",
            epoch=E + 50,
        )
        for n in range(6)
    ]
    placements = {"a": NodePlacement("a", 3, tuple(many), store_revision=4)}
    asked = replace(WEB, count=6)
    (batch,) = adopt(world(*taken, placements=placements, workloads=(asked,)), MOMENT).batches
    after = written(batch)
    assert {node: len(p.assignments) for node, p in after.items()} == {"a": 0, "b": 3, "c": 3}
    assert len(after["a"].stops) == 6 and after["a"].generation == 4
    assert len(batch.tells) == 12


def test_a_tick_writes_a_bounded_number_of_nodes() -> None:
    count = 2 * NODES_PER_TICK
    records = {
        f"a{n}": NodePlacement(
            f"a{n}", 1, (replace(RECORD, replica=f"web-{n}", replica_uid=f"old-{n}"),)
        )
        for n in range(count)
    }
    strays = [
        replace(LOCAL, node=f"b{n}", replica=f"web-{n}", replica_uid=f"u{n}") for n in range(count)
    ]
    nodes = [box(f"{letter}{n}", site=f"s{n}") for n in range(count) for letter in "ab"]
    asked = replace(WEB, count=count)
    start = world(*strays, placements=records, nodes=tuple(nodes), workloads=(asked,), observed={})
    done = adopt(start, MOMENT)
    assert len(written(*done.batches)) <= NODES_PER_TICK + 2
    assert len(done.batches) == NODES_PER_TICK / 2, "a site's stands or falls alone"
    assert done.world.strays


def test_what_waits_for_its_turn_is_not_placed_anew_meanwhile() -> None:
    """A large site comes back, and half of its nodes are lost."""
    count = NODES_OF_SITE
    records = {
        f"a{n}": NodePlacement(
            f"a{n}", 1, (replace(RECORD, replica=f"web-{n}", replica_uid=f"old-{n}"),)
        )
        for n in range(count)
    }
    strays = tuple(
        replace(LOCAL, node=f"b{n}", replica=f"web-{n}", replica_uid=f"u{n}") for n in range(count)
    )
    nodes = [box(f"a{n}", liveness=Liveness.LOST, since=900.0) for n in range(count)]
    nodes += [box(f"b{n}") for n in range(count)] + [box("z", site="s2")]
    seen = world(
        placements=records,
        nodes=tuple(nodes),
        workloads=(replace(WEB, count=count),),
        observed={},
    )
    placed, ticks = records, 0
    while strays:
        ticks += 1
        assert ticks < 5
        now = replace(seen, strays=strays, snapshot=replace(seen.snapshot, placements=placed))
        decided = steer(now, Memory(), MOMENT)
        assert not decided.plan.place, "each has a place, and runs there"
        changed = written(*decided.batches)
        assert 0 < len(changed) <= NODES_OF_SITE
        placed = placed | changed
        named = {a.replica_uid for p in placed.values() for a in p.assignments}
        strays = tuple(stray for stray in strays if stray.replica_uid not in named)


def test_who_was_not_listened_to_yet_may_serve() -> None:
    """A leader that just began hears one node of the site before the other."""

    def seen_since(since: float, record: AssignmentRecord = RECORD) -> tuple[Batch, ...]:
        nodes = (box("a", liveness=Liveness.SILENT, since=since), *(box(n) for n in "bcd"))
        held = NodePlacement("a", 3, (record,), store_revision=4)
        return adopt(world(LOCAL, nodes=nodes, placements={"a": held}), MOMENT).batches

    assert not seen_since(MOMENT.now - 2.0)
    assert seen_since(MOMENT.now - 9.0)
    assert seen_since(MOMENT.now - 2.0, EXCLUSIVE), "it has the lease"


def test_a_replacement_does_not_start_where_it_would_be_given_up() -> None:
    starting = replace(LOCAL, ready=False, ready_for_s=0.0)
    leaving = tuple(replace(node, draining=node.name == "b") for node in world().snapshot.nodes)
    assert adopt(world(starting, nodes=leaving), MOMENT).batches == ()
    assert adopt(world(LOCAL, nodes=leaving), MOMENT).batches, "one that serves is moved later"


def test_both_holders_are_written_together_wherever_they_are() -> None:
    nodes = tuple(
        replace(node, site="s2") if node.name == "a" else node for node in world().snapshot.nodes
    )
    (batch,) = adopt(world(LOCAL, nodes=nodes), MOMENT).batches
    assert set(written(batch)) == {"a", "b"}


@pytest.mark.parametrize(
    "changes",
    [
        {"complete": False},
        {"workloads": (replace(WEB, frozen=True),)},
        {"workloads": (replace(WEB, once=True),)},
        {"workloads": (replace(WEB, mode=Mode.PER_NODE),)},
        {"workloads": ()},  # its record is missing, and nobody deleted it
        {"placements": {}},  # it is wanted, and has no holder: it runs on until it has
    ],
)
def test_nothing_is_concluded_where_nothing_can_be(changes: dict[str, Any]) -> None:
    start = world(LOCAL, **changes)
    assert adopt(start, MOMENT).batches == ()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"workloads": (replace(WEB, deleting=True),)}, "WorkloadDeleted"),
        (
            {"workloads": (), "kept": {keys.deleted("w"): KeptRecord(keys.deleted("w"), {})}},
            "WorkloadDeleted",
        ),
        ({"workloads": (replace(WEB, count=0),), "placements": {}}, "ScaledDown"),
    ],
)
def test_what_nobody_wants_any_more_is_told_to_stop(changes: dict[str, Any], cause: str) -> None:
    (batch,) = adopt(world(LOCAL, **changes), MOMENT).batches
    after = written(batch)
    (stop,) = after["b"].stops
    assert (stop.replica_uid, stop.cause, stop.workload_uid) == ("local", cause, "w")
    assert after["b"].generation > 3, "one that the agent takes, whatever plan it has"
    assert [t.reason for t in batch.tells] == [cause]


def test_a_template_that_is_not_known_any_more_is_not_named() -> None:
    after = written(*adopt(world(replace(LOCAL, revision=77)), MOMENT).batches)
    assert [a.revision for a in after["b"].assignments] == [1]


def test_a_deletion_is_remembered_where_a_site_may_not_have_heard_of_it() -> None:
    plain = StoredResource("Workload", "ns", "web", "w", {"replicas": 1})
    assert tombstone(plain, 5) is None
    shared = replace(plain, spec={"failover": {"standbys": 1}})
    kept = tombstone(shared, 5_000)
    assert kept is not None and kept.key == keys.deleted("w")
    assert forgettable([kept], 5.0 + KEPT_S) == []
    assert forgettable([kept], 6.0 + KEPT_S) == [kept]
    assert forgettable([KeptRecord(kept.key, {"at_ms": "?"})], 9e9) == []
