"""What `plan()` decides, case by case, in a world where agents obey."""

import gc
from collections import Counter

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord, NodePlacement
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Mode, Resources, Snapshot, Template
from polder import epochs
from polder.manifest import Placement, Spread, Taint, Toleration
from polder.manifest.policy import SovereigntySpec
from polder.manifest.update import Update
from tests.unit.scheduling_world import SMALL, World, box

PORT = Template(host_ports=((8080, "TCP"),))


def three() -> World:
    return World().add(box("n1", "s1"), box("n2", "s2"), box("n3", "s3"))


def assignment(
    replica: str = "ghost-0", workload: str = "ghost", epoch: int = 1
) -> AssignmentRecord:
    return AssignmentRecord("ns", workload, f"uid-{workload}", replica, f"u{epoch}", epoch, 1)


# --- placing --------------------------------------------------------------------------------------


def test_replicas_go_to_different_nodes() -> None:
    world = three()
    world.want("web", count=3)
    decided = world.step()
    assert sorted(world.where()) == ["web-0", "web-1", "web-2"]
    assert sorted(world.where().values()) == ["n1", "n2", "n3"]
    decided_at = epochs.decided_at(decided.revision)
    assert all(place.assignment.epoch == decided_at for place in decided.place)


def test_an_unchanged_world_changes_nothing() -> None:
    world = three()
    world.want("web", count=5)
    world.settle()
    assert world.step().changes_nothing


def test_a_node_whose_runtime_is_down_gets_nothing_new_and_keeps_what_it_has() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("web", count=2)
    world.settle()
    world.change("n1", not_ready=True)
    assert world.step().changes_nothing
    world.want("late", count=3)
    assert {place.node for place in world.step().place} == {"n2"}


def test_what_does_not_fit_says_why_and_the_rest_is_placed() -> None:
    world = three()
    world.change("n3", unschedulable=True)
    world.want("web", Template(Resources(cpu_millis=600)), count=5)
    decided = world.step()
    assert len(decided.place) == 2
    (why,) = decided.explanations
    assert why.code == "Unschedulable" and len(why.replicas) == 3
    assert {r.code: r.nodes for r in why.reasons} == {
        "InsufficientCpu": 2,
        "NodeUnschedulable": 1,
    }
    assert "0 of 3 nodes fit" in why.message
    assert dict(decided.desired) == {"uid-web": 5}


def test_higher_priority_is_placed_first() -> None:
    world = World().add(box("n1"))
    world.want("low", Template(Resources(cpu_millis=900)))
    world.want("high", Template(Resources(cpu_millis=900)), priority=10, created_at_ms=5)
    world.step()
    assert world.where() == {"high-0": "n1"}


def test_spread_is_a_hard_limit_over_domains_that_can_take_replicas() -> None:
    world = World().add(box("a1", "a"), box("a2", "a"), box("b1", "b"))
    spread = Placement(spread=Spread("site", 1))
    big = Template(Resources(cpu_millis=900))
    world.want("web", big, count=3, placement=spread)
    world.step()
    assert Counter(n[0] for n in world.where().values()) == {"a": 2, "b": 1}
    world = World().add(box("a1", "a"), box("a2", "a"), box("a3", "a"), box("b1", "b"))
    world.want("web", big, count=4, placement=spread)
    decided = world.step()
    assert Counter(n[0] for n in world.where().values()) == {"a": 2, "b": 1}
    assert {r.code for r in decided.explanations[0].reasons} >= {"SpreadExceeded"}


def test_a_dead_site_does_not_block_the_spread() -> None:
    world = World().add(box("a1", "a"), box("b1", "b", liveness=Liveness.LOST))
    world.want("web", count=3, placement=Placement(spread=Spread("site", 1)))
    world.step()
    assert set(world.where().values()) == {"a1"} and len(world.where()) == 3


def test_spread_is_closed_on_unknowns() -> None:
    world = World().add(box("n1", region=""))
    world.want("web", placement=Placement(spread=Spread("region", 1)))
    world.change("n1", region="")
    decided = world.step()
    assert len(decided.place) == 1 or decided.explanations[0].code == "Unschedulable"
    world = World().add(box("n1", region=""), box("n2", region="eu"))
    world.want("web", placement=Placement(spread=Spread("region", 1)))
    world.step()
    assert world.where() == {"web-0": "n2"}


def test_a_host_port_is_for_one_replica_per_node_until_it_is_gone() -> None:
    world = World().add(box("n1"))
    world.want("a", PORT)
    world.settle()
    world.want("b", PORT)
    decided = world.step()
    assert decided.explanations[0].reasons[0].code == "HostPortTaken"
    world.want("a", deleting=True)
    world.step()
    assert world.where() == {}
    assert world.step().place == ()  # the stop is pending: the port is not free
    world.obey()
    assert [place.assignment.replica for place in world.step().place] == ["b-0"]


def test_per_site_and_per_node() -> None:
    world = World().add(box("a1", "a"), box("a2", "a"), box("b1", "b"), box("b2", "b"))
    world.want("gw", mode=Mode.PER_SITE, count=1)
    world.want("mon", mode=Mode.PER_NODE, count=1)
    world.want("twin", mode=Mode.PER_NODE, count=2, placement=Placement(node_selector={"x": "y"}))
    world.change("a1", labels={"x": "y"})
    world.settle()
    where = world.where()
    assert where["gw-a"].startswith("a") and where["gw-b"].startswith("b")
    assert {k: v for k, v in where.items() if k.startswith("mon")} == {
        f"mon-{n}": n for n in ("a1", "a2", "b1", "b2")
    }
    assert {k for k in where if k.startswith("twin")} == {"twin-a1", "twin--1-a1"}
    world.add(box("c1", "c"))
    world.settle()
    assert world.where()["gw-c"] == "c1" and world.where()["mon-c1"] == "c1"


# --- stopping -------------------------------------------------------------------------------------


def test_scaling_down_stops_the_highest_index_first() -> None:
    world = three()
    world.want("web", count=12)
    world.settle()
    world.want("web", count=10)
    decided = world.step()
    assert [s.assignment.replica for s in decided.stop] == ["web-11", "web-10"]
    assert {s.cause for s in decided.stop} == {Cause.SCALED_DOWN}


def test_deletion_stops_then_finishes() -> None:
    world = three()
    world.want("web", count=2)
    world.settle()
    world.want("web", deleting=True)
    decided = world.step()
    assert {s.cause for s in decided.stop} == {Cause.WORKLOAD_DELETED}
    assert world.step().finished_workloads == ()
    world.obey()
    decided = world.step()
    assert len(decided.prune) == 2 and decided.finished_workloads == ("uid-web",)
    assert all(not placement.stops for placement in world.placements.values())


def test_a_lost_node_does_not_hold_up_a_deletion() -> None:
    world = World().add(box("n1"))
    world.want("web")
    world.settle()
    world.change("n1", liveness=Liveness.LOST)
    world.want("web", deleting=True)
    world.step()
    assert world.step().finished_workloads == ("uid-web",)
    assert world.placements["n1"].stops  # it hears of it when it is back


@pytest.mark.parametrize("broken", [{"nodes": ()}, {"complete": False}])
def test_an_empty_or_failed_snapshot_stops_nothing(broken: dict[str, object]) -> None:
    world = three()
    world.want("web", count=3)
    world.settle()
    world.want("web", deleting=True)
    good = world.snapshot()
    fields = {name: getattr(good, name) for name in Snapshot.__slots__}
    decided = plan(Snapshot(**{**fields, **broken}), 0.0)
    assert decided.changes_nothing


def test_without_any_node_everything_is_explained_and_deletions_finish() -> None:
    world = World()
    world.want("web", count=2, placement=Placement(spread=Spread("site", 1)))
    world.want("gw", mode=Mode.PER_SITE)
    world.want("mon", mode=Mode.PER_NODE)
    world.want("old", deleting=True)
    decided = world.step()
    assert [(e.workload, e.replicas) for e in decided.explanations] == [("web", ("web-0", "web-1"))]
    assert "0 of 0 nodes fit" in decided.explanations[0].message
    assert decided.finished_workloads == ("uid-old",)


def test_an_assignment_without_a_workload_is_kept_and_reported() -> None:
    world = three()
    world.placements["n1"] = NodePlacement("n1", 1, (assignment(),))
    decided = world.step()
    assert decided.changes_nothing
    assert [(o.node, o.missing) for o in decided.orphans] == [("n1", "workload")]


def test_an_assignment_on_a_node_without_a_record_is_kept_and_reported() -> None:
    world = three()
    world.want("web")
    world.placements["zz"] = NodePlacement("zz", 1, (assignment("web-0", "web"),))
    decided = world.step()
    assert decided.changes_nothing and decided.orphans[0].missing == "node"


def test_of_two_holders_the_higher_epoch_stays() -> None:
    world = three()
    world.want("web")
    world.placements["n1"] = NodePlacement("n1", 1, (assignment("web-0", "web", 7),))
    world.placements["n2"] = NodePlacement("n2", 1, (assignment("web-0", "web", 9),))
    decided = world.step()
    (stop,) = decided.stop
    assert (stop.node, stop.cause) == ("n1", Cause.MOVED)
    assert world.where() == {"web-0": "n2"}


# --- nodes that change ----------------------------------------------------------------------------


def test_a_silent_node_keeps_what_it_has_and_gets_nothing_new() -> None:
    world = World().add(box("n1"))
    world.want("web")
    world.settle()
    world.change("n1", liveness=Liveness.SILENT)
    world.want("web", count=2)
    decided = world.step()
    assert not decided.stop and not decided.place
    assert decided.explanations[0].reasons[0].code == "NodeSilent"


def test_a_lost_nodes_replicas_move_under_a_new_epoch() -> None:
    world = three()
    world.want("web", count=3)
    world.settle()
    before = {i.replica: i for p in world.placements.values() for i in p.assignments}
    world.change("n1", liveness=Liveness.LOST)
    decided = world.step()
    (place,), (stop,) = decided.place, decided.stop
    assert (stop.node, stop.cause, place.moved_from) == ("n1", Cause.NODE_LOST, "n1")
    assert stop.moved_to == place.node
    older = before[place.assignment.replica]
    assert place.assignment.epoch > older.epoch
    assert place.assignment.replica_uid != older.replica_uid
    world.change("n1", liveness=Liveness.LIVE)
    world.settle()
    assert world.where()[place.assignment.replica] == place.node  # it does not move back


def test_a_lost_nodes_replicas_stay_when_there_is_no_place() -> None:
    world = World().add(box("n1"))
    world.want("web")
    world.want("mon", mode=Mode.PER_NODE)
    world.settle()
    world.change("n1", liveness=Liveness.LOST)
    decided = world.step()
    assert decided.changes_nothing
    assert [e.code for e in decided.explanations] == ["CannotMove"]


def test_draining_moves_one_replica_of_a_workload_at_a_time_and_leaves_per_node() -> None:
    world = World().add(box("n1"))
    world.want("web", count=3)
    world.want("other", count=1)
    world.want("mon", mode=Mode.PER_NODE)
    world.settle()
    world.add(box("n2"), box("n3"))
    world.settle()
    world.change("n1", draining=True)
    decided = world.step()
    assert sorted(p.assignment.workload for p in decided.place) == ["other", "web"]
    assert decided.stop == ()  # the replacements start first
    assert world.step().changes_nothing  # and are waited for
    world.obey()
    decided = world.step()
    assert sorted(s.assignment.workload for s in decided.stop) == ["other", "web"]
    assert {s.cause for s in decided.stop} == {Cause.DRAINED}
    world.settle()
    assert {r for r, n in world.where().items() if n == "n1"} == {"mon-n1"}


def test_draining_the_only_node_moves_nothing_and_says_so() -> None:
    world = World().add(box("n1"))
    world.want("web")
    world.settle()
    world.change("n1", draining=True)
    decided = world.step()
    assert decided.changes_nothing
    assert decided.explanations[0].code == "CannotMove"
    assert "being drained" in decided.explanations[0].message


def test_cordoning_moves_nothing() -> None:
    world = three()
    world.want("web", count=3)
    world.settle()
    world.change("n1", unschedulable=True)
    assert world.step().changes_nothing


def test_a_deleted_node_is_emptied_and_then_forgotten() -> None:
    world = three()
    world.want("web", count=3)
    world.want("mon", mode=Mode.PER_NODE)
    world.settle()
    world.change("n1", deleting=True)
    decided = world.step()
    assert {s.cause for s in decided.stop} == {Cause.NODE_DELETED}
    world.settle()
    assert "n1" not in world.nodes and "n1" not in world.placements
    assert len([r for r in world.where() if r.startswith("web")]) == 3


def test_the_last_node_can_be_deleted() -> None:
    world = World().add(box("n1"), box("n2", unschedulable=True))
    world.want("web")
    world.settle()
    world.change("n1", deleting=True)
    world.settle()
    assert world.where() == {} and "n1" not in world.nodes


def test_no_execute_moves_no_schedule_does_not() -> None:
    world = three()
    world.want("web", count=3)
    world.settle()
    world.change("n1", taints=(Taint("t", "NoSchedule"),))
    assert world.step().changes_nothing
    world.change("n1", taints=(Taint("t", "NoExecute"),))
    assert [s.cause for p in world.settle() for s in p.stop] == [Cause.UNTOLERATED]
    tolerant = Placement(tolerations=(Toleration("t"),))
    world = three()
    world.want("web", count=3, placement=tolerant)
    world.settle()
    world.change("n1", taints=(Taint("t", "NoExecute"),))
    assert world.step().changes_nothing


def test_a_changed_selector_moves_replicas_one_by_one() -> None:
    world = three()
    world.want("web", count=3)
    world.settle()
    for name in ("n2", "n3"):
        world.change(name, labels={"zone": "a"})
    world.want("web", placement=Placement(node_selector={"zone": "a"}))
    stops = [stop for decided in world.settle() for stop in decided.stop]
    assert [(s.node, s.cause) for s in stops] == [("n1", Cause.UNSATISFIABLE)]
    assert set(world.where().values()) == {"n2", "n3"}


# --- updates --------------------------------------------------------------------------------------


def test_without_surge_an_update_rolls_one_ready_replica_at_a_time_under_the_same_uid() -> None:
    world = three()
    world.want("web", count=3, update=Update(max_surge="0"))
    world.settle()
    before = {i.replica_uid for p in world.placements.values() for i in p.assignments}
    world.update("web", Template(Resources(cpu_millis=200)))
    decided = world.step()
    assert len(decided.revise) == 1 and not decided.stop
    assert decided.explanations[0].code == "UpdateWaits"
    assert world.step().revise == ()  # not seen to be ready at the new revision
    plans = world.settle()
    assert [len(p.revise) for p in plans if p.revise] == [1, 1]
    after = {i.replica_uid for p in world.placements.values() for i in p.assignments}
    assert before == after
    assert {i.revision for p in world.placements.values() for i in p.assignments} == {2}


def test_replicas_that_are_not_ready_update_at_once() -> None:
    world = three()
    world.want("web", count=3)
    world.step()
    world.obey(ready=False)
    world.update("web", SMALL)
    assert len(world.step().revise) == 3


def test_an_update_without_room_moves() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("web")
    world.want("fat", Template(Resources(cpu_millis=800)))
    world.settle()
    world.change(world.where()["fat-0"], allocatable=Resources(900, 1 << 30, 1 << 30))
    node = world.where()["web-0"]
    world.change(node, allocatable=Resources(150, 1 << 30, 1 << 30))
    world.add(box("n3"))
    world.update("web", Template(Resources(cpu_millis=500)))
    stops = [stop for decided in world.settle() for stop in decided.stop]
    assert [(s.node, s.cause, s.moved_to) for s in stops] == [(node, Cause.UPDATED, "n3")]


def test_an_update_that_asks_for_less_fits_a_node_that_shrank() -> None:
    world = World().add(box("n1"))
    world.want("web", Template(Resources(cpu_millis=500)))
    world.settle()
    world.change("n1", allocatable=Resources(100, 1 << 30, 1 << 30))
    world.update("web", Template(Resources(cpu_millis=300)))
    assert len(world.step().revise) == 1


def test_a_lost_node_does_not_hold_up_an_update() -> None:
    world = three()
    world.want("mon", mode=Mode.PER_NODE)
    world.settle()
    world.change("n2", liveness=Liveness.LOST)
    world.update("mon", SMALL)
    world.settle()
    numbers = {n: {i.revision for i in p.assignments} for n, p in world.placements.items()}
    assert numbers == {"n1": {2}, "n2": {1}, "n3": {2}}
    world.change("n2", liveness=Liveness.LIVE)
    world.settle()
    assert {i.revision for p in world.placements.values() for i in p.assignments} == {2}


def test_a_missing_template_changes_nothing() -> None:
    world = three()
    world.want("web", count=2)
    world.settle()
    world.update("web", SMALL)
    del world.templates[("uid-web", 2)]
    decided = world.step()
    assert decided.changes_nothing and decided.explanations[0].code == "MissingRevision"


def test_a_changed_secret_is_a_new_generation_where_it_is_named() -> None:
    world = three()
    world.secrets[("ns", "key")] = "v1"
    world.want("web", Template(secrets=("key",)))
    world.want("plain", count=3)
    world.settle()
    node = world.where()["web-0"]
    before = {n: p.generation for n, p in world.placements.items()}
    world.secrets[("ns", "key")] = "v2"
    world.secrets[("ns", "unrelated")] = "v1"
    assert world.step().refresh == (node,)
    after = {n: p.generation for n, p in world.placements.items()}
    assert {n for n in after if after[n] != before[n]} == {node}
    assert world.step().changes_nothing


# --- memory ---------------------------------------------------------------------------------------


def test_a_plan_leaves_nothing_to_the_garbage_collector() -> None:
    """A leader plans every second. Tables of 10,000 nodes in reference cycles are freed so late
    that its memory grows by a megabyte a second."""
    world = three()
    world.want("web", count=2, sovereignty=SovereigntySpec(residency=("NL",)))
    world.want("free", count=5)
    world.step()
    snapshot = world.snapshot()
    gc.collect()
    gc.disable()
    try:
        plan(snapshot, world.now)
        assert gc.collect() == 0
    finally:
        gc.enable()
