"""Changes that stop too much are held until somebody approves; freezes; a Store that forgets."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from orchestrator.cache import Cache
from orchestrator.config import load_config
from orchestrator.domain.census import missing, take
from orchestrator.domain.freezes import Freeze, freeze_of, freezes_in
from orchestrator.domain.guard import DEFAULT, EXPLICIT, GuardSettings, hold_back
from orchestrator.domain.holds import APPROVED_FOR_S, Hold, HoldKind, Scope, holds_in, read
from orchestrator.fleet import Fleet
from orchestrator.metrics import Metrics
from orchestrator.records import AssignmentRecord, KeptRecord, NodePlacement
from orchestrator.scheduling.decisions import Bind, Cause, Place, Plan, Stop
from orchestrator.scheduling.snapshot import Namespace, Node, Quota, Snapshot
from orchestrator.server import guard_settings
from orchestrator.store import keys
from tests.unit.guard_world import GuardedWorld
from tests.unit.scheduling_world import box

NOW = 1_700_000_000.0


def replica(number: int, namespace: str = "ns", workload: str = "app") -> AssignmentRecord:
    name = f"{workload}-{number}"
    return AssignmentRecord(namespace, workload, f"uid-{workload}", name, f"u-{name}", 1, 1)


def world_of(**per_node: list[AssignmentRecord]) -> Snapshot:
    """Nodes named SITE_N."""
    return Snapshot(
        1,
        nodes=tuple(Node(name, name.partition("_")[0]) for name in per_node),
        placements={name: NodePlacement(name, 1, tuple(a)) for name, a in per_node.items()},
    )


def stops(
    snapshot: Snapshot, count: int, cause: Cause = Cause.SCALED_DOWN, moved_to: str = ""
) -> tuple[Stop, ...]:
    found = [
        Stop(node, item, cause, "m", moved_to)
        for node, placement in snapshot.placements.items()
        for item in placement.assignments
    ]
    return tuple(found[:count])


def held_of(snapshot: Snapshot, due: tuple[Stop, ...], settings: GuardSettings = DEFAULT) -> int:
    found = hold_back(Plan(1, stop=due), snapshot, {}, {}, NOW, settings)
    return len(due) - len(found.plan.stop)


# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "stopping", "held"),
    [
        (100, 51, True),
        (100, 50, False),  # half is not more than half
        (12, 10, False),  # ten are always allowed
        (12, 11, True),
        (11, 11, True),
    ],
)
def test_more_than_ten_and_more_than_half(running: int, stopping: int, held: bool) -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(running)])
    assert held_of(snapshot, stops(snapshot, stopping)) == (stopping if held else 0)


@pytest.mark.parametrize("cause", sorted(EXPLICIT))
def test_what_was_asked_for_is_not_counted(cause: Cause) -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(50)])
    assert held_of(snapshot, stops(snapshot, 50, cause)) == 0


@pytest.mark.parametrize("cause", sorted(set(Cause) - EXPLICIT))
def test_every_other_cause_is(cause: Cause) -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(50)])
    assert held_of(snapshot, stops(snapshot, 50, cause)) == 50
    assert held_of(snapshot, stops(snapshot, 50, cause, moved_to="elsewhere")) == 0


def test_a_victim_that_is_placed_again_is_not_counted() -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(20)])
    due = stops(snapshot, 20, Cause.PREEMPTED)
    places = [Place("s_1", replica(n)) for n in range(20)]
    found = hold_back(Plan(1, place=places, stop=due), snapshot, {}, {}, NOW)
    assert len(found.plan.stop) == 20 and not found.holds


def test_the_widest_scope_is_told_and_each_stop_once() -> None:
    small = [replica(n, "ward", "small") for n in range(20)]
    large = [replica(n, "city", "large") for n in range(200)]
    snapshot = world_of(a_0=small, b_0=large)
    due = tuple(s for s in stops(snapshot, 220) if s.assignment.workload == "small")
    found = hold_back(Plan(1, stop=due), snapshot, {}, {}, NOW)
    (hold,) = found.holds  # site a is over too, and its stops are those of the namespace
    assert (hold.scope, hold.name) == (Scope.NAMESPACE, "ward")
    assert (hold.stops, hold.replicas, hold.workloads) == (20, 20, ("ward/small",))
    everything = hold_back(Plan(1, stop=stops(snapshot, 220)), snapshot, {}, {}, NOW)
    assert [h.scope for h in everything.holds] == [Scope.FLEET] and not everything.plan.stop


def test_a_site_is_looked_at_by_itself() -> None:
    snapshot = world_of(
        a_0=[replica(n) for n in range(15)], b_0=[replica(n) for n in range(100, 200)]
    )
    due = stops(snapshot, 15, Cause.UNTOLERATED)
    found = hold_back(Plan(1, stop=due), snapshot, {}, {}, NOW)
    assert [(h.scope, h.name) for h in found.holds] == [(Scope.SITE, "a")]


def test_the_rest_of_the_plan_goes_on_and_what_needs_the_quota_waits() -> None:
    old = [replica(n, "ward", "old") for n in range(20)]
    snapshot = replace(
        world_of(a_0=old, b_0=[replica(99, "ward", "mover")]),
        namespaces={"ward": Namespace("ward", quota=Quota(replicas=21))},
    )
    new, mover = replica(0, "ward", "new"), replica(99, "ward", "mover")
    other = replica(0, "elsewhere", "free")
    moving = Stop("b_0", mover, Cause.DRAINED, "m", moved_to="a_0")
    due = (*(Stop("a_0", item, Cause.SCALED_DOWN, "m") for item in old), moving)
    places = [Place("a_0", new), Place("a_0", mover), Place("a_0", other)]
    binds = (Bind("ward", new.replica, ("data",), "a_0"), Bind("x", "y-0", ("data",), "a_0"))
    found = hold_back(Plan(1, place=places, stop=due, bind=binds), snapshot, {}, {}, NOW)
    assert found.plan.stop == (moving,) and found.plan.bind == binds[1:]
    assert [place.assignment for place in found.plan.place] == [mover, other]


def test_held_replicas_are_explained_with_what_to_type() -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(20)])
    found = hold_back(Plan(1, stop=stops(snapshot, 20)), snapshot, {}, {}, NOW)
    (explained,) = found.plan.explanations
    (hold,) = found.holds
    assert explained.code == "Held" and len(explained.replicas) == 20
    assert explained.message == (
        "20 of 20 replicas of the whole fleet would stop at once (ScaledDown); "
        f"they run on until `edgectl approve {hold.id}`"
    )


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(0, 60))
def test_no_plan_stops_more_than_the_share_of_anything(sites: list[int], stopping: int) -> None:
    per_node: dict[str, list[AssignmentRecord]] = {}
    for number, site in enumerate(sites):
        workload = f"w{number % 3}"
        item = replica(number, f"n{number % 2}", workload)
        per_node.setdefault(f"s{site}_0", []).append(item)
    snapshot = world_of(**per_node)
    found = hold_back(Plan(1, stop=stops(snapshot, stopping)), snapshot, {}, {}, NOW)
    left = found.plan.stop

    def share_is_kept(stopped: int, there: int) -> bool:
        return stopped <= DEFAULT.stops_max or stopped <= DEFAULT.share_max * there

    assert share_is_kept(len(left), len(sites))
    for node, placement in snapshot.placements.items():
        here = sum(1 for stop in left if stop.node == node)
        assert share_is_kept(here, len(placement.assignments))
    for namespace in ("n0", "n1"):
        here = sum(1 for stop in left if stop.assignment.namespace == namespace)
        there = sum(
            1
            for placement in snapshot.placements.values()
            for item in placement.assignments
            if item.namespace == namespace
        )
        assert share_is_kept(here, there)


# --- approvals ------------------------------------------------------------------------------------


def running(count: int) -> GuardedWorld:
    made = GuardedWorld().sites(a=4)
    made.want("app", count=count)
    made.settle()
    assert len(made.world.where()) == count
    return made


def test_an_approval_is_for_one_change() -> None:
    home = running(30)
    home.want("app", count=4)
    home.settle()
    (first,) = home.holds
    assert len(home.world.where()) == 30 and home.reasons() == ["StopsHeld"]
    home.approve(first)
    home.settle()
    assert len(home.world.where()) == 4 and not home.holds
    home.want("app", count=30)
    home.settle()
    home.want("app", count=4)
    home.settle()
    (second,) = home.holds
    assert second.id != first.id and len(home.world.where()) == 30


def test_a_hold_whose_change_is_taken_back_is_gone() -> None:
    home = running(30)
    home.want("app", count=1)
    home.settle()
    (hold,) = home.holds
    since = hold.since_ms
    home.run(30)
    assert [h.since_ms for h in home.holds] == [since]  # one hold, not one per tick
    home.want("app", count=30)
    home.settle()
    assert not home.holds


def test_an_approval_of_yesterday_counts_no_more() -> None:
    home = running(30)
    home.want("app", count=1)
    home.settle()
    (hold,) = home.holds
    for late_s in (APPROVED_FOR_S + 1, -APPROVED_FOR_S - 1):
        approved = replace(hold, approved_by="operator/ann")
        home.put(replace(approved, approved_at_ms=int((home.now - late_s) * 1000)).record())
        home.tick()
        assert len(home.world.where()) == 30


def test_a_new_leader_knows_what_is_held_and_what_was_approved() -> None:
    home = running(30)
    home.want("app", count=1)
    home.settle()
    (hold,) = home.holds
    home.new_leader()
    home.settle()
    assert home.holds == [hold] and home.reasons() == ["StopsHeld"]
    home.approve(hold)
    home.new_leader()
    home.settle()
    assert len(home.world.where()) == 1


def test_deleting_is_explicit_however_much_it_is() -> None:
    home = running(30)
    home.want("app", deleting=True)
    home.settle()
    assert not home.world.where() and not home.holds


def test_a_hold_is_the_same_after_the_store() -> None:
    hold = Hold("h", HoldKind.STOPS, Scope.SITE, "a", "m", 1, 2, 3, 4, ("n/w",), ("u:1:c",), 5, 6)
    record = KeptRecord.from_bytes(hold.key, hold.record().to_bytes(), 7)
    assert read(record) == replace(hold, store_revision=7)
    unreadable = KeptRecord(keys.hold("x"), {"kind": "of the future"}, 1)
    assert holds_in([record, unreadable]).keys() == {"h"}


# --- freezes --------------------------------------------------------------------------------------


def freeze(home: GuardedWorld, namespace: str = "") -> None:
    home.put(Freeze(namespace, "operator/ann", "incident", int(home.now * 1000)).record())


@pytest.mark.parametrize("namespace", ["", "ns"])
def test_nothing_changes_while_it_is_frozen_and_all_of_it_after(namespace: str) -> None:
    home = running(8)
    before = home.world.where()
    freeze(home, namespace)
    home.want("app", count=2)
    home.want("more", count=2)
    home.fall_silent("a-0")
    home.world.change("a-1", draining=True)
    home.new_leader()  # a freeze survives every restart
    home.run(120)
    assert home.world.where() == before
    home.world.change("a-1", draining=False)
    del home.kept[keys.freeze(namespace)]
    home.run(60)
    after = home.world.where()
    assert sorted(after) == ["app-0", "app-1", "more-0", "more-1"]
    assert "a-0" not in after.values()


def test_a_freeze_of_one_namespace_leaves_the_others_alone() -> None:
    home = running(4)
    freeze(home, "elsewhere")
    home.want("app", count=2)
    home.settle()
    assert len(home.world.where()) == 2
    freezes = freezes_in(home.kept.values())
    assert freeze_of(freezes, "ns") is None and freeze_of(freezes, "elsewhere") is not None


def test_deletions_wait_for_the_thaw() -> None:
    home = running(4)
    freeze(home)
    home.want("app", deleting=True)
    home.settle()
    assert len(home.world.where()) == 4
    del home.kept[keys.freeze("")]
    home.settle()
    assert not home.world.where() and not home.world.workloads


def test_a_freeze_that_is_not_understood_freezes_all_the_same() -> None:
    home = running(4)
    home.put(KeptRecord(keys.freeze(""), {"of": "the future", "since_ms": "?"}))
    home.want("app", count=1)
    home.settle()
    assert len(home.world.where()) == 4


# --- a Store that forgets -------------------------------------------------------------------------


def test_workloads_that_vanish_without_a_tombstone_are_not_believed() -> None:
    home = running(4)
    for number in range(20):
        home.want(f"w{number}")
    home.settle()
    before, known = home.world.where(), dict(home.world.workloads)
    home.world.workloads.clear()
    home.run(60)
    assert home.world.where() == before and home.reasons() == ["StoreImplausible"]
    (hold,) = home.holds
    assert hold.kind is HoldKind.STORE and "21 of 21 workloads" in hold.message
    home.want("new")  # nothing is concluded from such a Store, not even this
    assert home.tick().changes_nothing
    home.world.workloads = known
    home.settle()
    assert not home.holds and home.world.where() == before


def test_an_operator_can_say_that_it_is_true() -> None:
    home = running(4)
    home.world.placements.clear()
    home.tick()
    (hold,) = home.holds
    home.approve(hold)
    home.settle()
    assert len(home.world.where()) == 4 and not home.holds


def test_what_goes_by_a_tombstone_is_not_missed() -> None:
    home = running(4)
    for number in range(20):
        home.want(f"w{number}")
    home.settle()
    for number in range(20):
        home.want(f"w{number}", deleting=True)
    home.settle()
    assert list(home.world.workloads) == ["uid-app"] and not home.holds


def test_nodes_and_single_losses() -> None:
    nodes = tuple(box(f"n{number}") for number in range(30))
    before = take(Snapshot(1, nodes=nodes))
    assert missing(before, Snapshot(1, nodes=nodes[1:]), 10, 0.5) == ""
    assert missing(before, Snapshot(1, nodes=nodes[16:]), 10, 0.5) == "16 of 30 nodes"
    assert missing(before, Snapshot(1), 10, 0.5) == "30 of 30 nodes"


def test_an_incomplete_world_changes_nothing_and_forgets_nothing() -> None:
    home = running(30)
    home.want("app", count=1)
    home.settle()
    holds, memory = home.holds, home.memory
    home.complete = False
    assert home.tick().changes_nothing
    assert home.holds == holds and home.memory == memory


# --- settings and gauges --------------------------------------------------------------------------


def test_settings_come_from_the_configuration() -> None:
    values = {"hold_stops_above": 3, "hold_share_above": 0.2, "suspicion_limit": "5m"}
    config = load_config(None, {}, {**values, "lost_after": "40s"})
    assert guard_settings(config) == GuardSettings(3, 0.2, 300.0, 40.0)
    assert guard_settings(load_config(None, {}, {})) == DEFAULT


def test_a_share_of_one_holds_nothing() -> None:
    snapshot = world_of(s_0=[replica(n) for n in range(50)])
    assert held_of(snapshot, stops(snapshot, 50), GuardSettings(share_max=1.0)) == 0


def test_what_is_worth_an_alert_is_a_gauge() -> None:
    store: Any = None
    cache, fleet = Cache(store, lambda: NOW), Fleet(NOW)
    metrics = Metrics("test", "m1", "eu")
    metrics.observe_fleet(fleet, cache, 10.0)
    fleet.observe("n1").plan_error = "Truncated: the plan announces more than it holds"
    fleet.observe("n2")
    cache.doubt = "300 of 300 records are not in the store any more"
    shown = generate_latest(metrics.registry).decode()
    for line in (
        "polder_nodes_refusing_plans 1.0",
        "polder_store_doubted 1.0",
        "polder_freezes 0.0",
        "polder_override_conflicts 0.0",
        'polder_holds{kind="stops"} 0.0',
    ):
        assert line in shown
