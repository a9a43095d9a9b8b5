"""How much of a workload changes at once: budgets of updates and drains, surge, two revisions."""

from dataclasses import replace

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.budget import budget_of
from orchestrator.scheduling.decisions import Cause, Plan
from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.snapshot import (
    Mode,
    Namespace,
    Observed,
    Resources,
    Template,
    Workload,
)
from polder.manifest import Placement, Spread
from polder.manifest.update import Disruption, Update
from tests.unit.scheduling_world import SMALL, World, box

BIG = Template(Resources(cpu_millis=600))
PORT = Template(Resources(cpu_millis=10), host_ports=((8080, "TCP"),))


def three(**facts: object) -> World:
    world = World().add(box("n1", "s1"), box("n2", "s2"), box("n3", "s3"))
    world.want("web", count=3, **facts)
    world.settle()
    return world


def surge(text: str, unavailable: str = "0", **rest: object) -> Update:
    return Update(max_unavailable=unavailable, max_surge=text, **rest)  # type: ignore[arg-type]


def revisions(world: World, name: str = "web") -> dict[str, list[int]]:
    """The revisions of each replica's stays, the older stay first."""
    found: dict[str, list[tuple[int, int]]] = {}
    for placement in world.placements.values():
        for item in placement.assignments:
            if item.workload == name:
                found.setdefault(item.replica, []).append((item.epoch, item.revision))
    return {replica: [r for _, r in sorted(stays)] for replica, stays in sorted(found.items())}


def stops(plans: list[Plan]) -> list[tuple[str, Cause]]:
    return [(stop.assignment.replica, stop.cause) for decided in plans for stop in decided.stop]


# --- the amounts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unavailable", "more", "wanted", "expected"),
    [
        ("1", "1", 3, (1, 1)),
        ("25%", "25%", 3, (0, 1)),
        ("25%", "0", 3, (1, 0)),
        ("0", "0%", 3, (1, 0)),
        ("50%", "50%", 5, (2, 3)),
        ("100%", "0", 2, (2, 0)),
    ],
)
def test_shares_round_to_the_careful_side_and_never_to_a_standstill(
    unavailable: str, more: str, wanted: int, expected: tuple[int, int]
) -> None:
    workload = Workload("u", "ns", "w", update=surge(more, unavailable))
    found = budget_of(workload, wanted, wanted, 0)
    assert (found.unavailable_max, found.surge_max) == expected
    assert found.disruption_max == expected[0]


def test_a_disruption_budget_of_its_own_holds_for_drains_only() -> None:
    workload = Workload("u", "ns", "w", update=surge("0", "2"), disruption=Disruption("0"))
    found = budget_of(workload, 3, 3, 0)
    assert found.may_update(True) and not found.may_disturb(True)


# --- updates --------------------------------------------------------------------------------------


def test_an_update_starts_beside_on_the_own_node_and_then_stops_the_older() -> None:
    world = three(update=surge("1"))
    before = world.where()
    world.update("web", SMALL)
    (place,) = world.step().place
    assert place.node == before["web-0"] and place.assignment.replaces
    assert revisions(world)["web-0"] == [1, 2]
    assert world.step().changes_nothing
    world.obey()
    decided = world.step()
    assert stops([decided]) == [("web-0", Cause.UPDATED)]
    assert [p.assignment.replica for p in decided.place] == ["web-1"]
    world.settle()
    assert world.where() == before
    assert revisions(world) == {f"web-{i}": [2] for i in range(3)}
    messages = {s.message for p in world.placements.values() for s in p.stops}
    assert not any("it moves" in message for message in messages)


def test_as_many_at_once_as_both_amounts_say() -> None:
    world = World().add(*(box(f"n{i}", "s1") for i in range(10)))
    world.want("web", count=10, update=surge("20%", "30%"))
    world.settle()
    world.update("web", SMALL)
    decided = world.step()
    assert len(decided.place) == 2 and len(decided.revise) == 3
    (why,) = [e for e in decided.explanations if e.code == "UpdateWaits"]
    assert len(why.replicas) == 5
    assert "at most 3 may be unavailable (update.maxUnavailable)" in why.message


def test_a_host_port_forbids_the_own_node_and_another_is_taken() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("web", PORT, update=surge("1"))
    world.settle()
    before = world.where()["web-0"]
    world.update("web", PORT)
    plans = world.settle()
    assert stops(plans) == [("web-0", Cause.UPDATED)]
    assert world.where()["web-0"] != before


def test_in_place_when_there_is_no_room_beside_but_only_within_the_budget() -> None:
    world = World().add(box("n1"))
    world.want("web", BIG, update=surge("1", "1"))
    world.settle()
    world.update("web", BIG)
    assert len(world.step().revise) == 1
    world = World().add(box("n1"))
    world.want("web", BIG, update=surge("1", "0"))
    world.settle()
    world.update("web", BIG)
    decided = world.step()
    assert decided.changes_nothing
    assert decided.explanations[0].code == "CannotMove"
    assert "revision 2 has no room on node n1" in decided.explanations[0].message


def test_without_surge_a_template_without_room_moves_within_the_budget() -> None:
    world = World().add(box("n1", allocatable=Resources(300, 1 << 30, 1 << 30)))
    world.want("web", update=surge("0", "1"))
    world.settle()
    world.add(box("n2"))
    world.update("web", BIG)
    assert stops(world.settle()) == [("web-0", Cause.MOVED)]
    assert world.where() == {"web-0": "n2"}


def test_a_replacement_counts_when_it_was_ready_for_long_enough() -> None:
    world = three(update=surge("1", min_ready=10.0))
    for key, seen in world.observed.items():
        world.observed[key] = replace(seen, ready_for_s=100.0)
    world.update("web", SMALL)
    world.step()
    for node, placement in world.placements.items():
        for item in placement.assignments:
            if item.revision == 2:
                new = (node, item.replica_uid)
    world.observed[new] = Observed(True, True, 2, ready_for_s=9.9)
    assert world.step().changes_nothing
    world.observed[new] = Observed(True, True, 2, ready_for_s=10.0)
    assert stops([world.step()]) == [("web-0", Cause.UPDATED)]


def test_a_replica_that_is_about_to_stop_is_not_available() -> None:
    world = three(update=surge("0", "1"))
    key = next(iter(world.observed))
    world.observed[key] = Observed(True, True, 1, terminating=True)
    world.update("web", SMALL)
    (revise,) = world.step().revise
    assert revise.assignment.replica_uid == key[1]  # it serves nobody: it alone changes


def test_another_edit_revises_the_replacement_and_never_what_serves() -> None:
    world = three(update=surge("1"))
    world.update("web", SMALL)
    world.step()
    for _ in range(10):
        world.update("web", SMALL)
        decided = world.step()
        assert not decided.stop
        assert all(revise.assignment.replaces for revise in decided.revise)
    assert sorted(revisions(world).values()) == [[1], [1], [1, 12]]
    world.settle()
    assert set(map(tuple, revisions(world).values())) == {(12,)}


def test_back_to_what_serves_stops_the_replacement() -> None:
    world = three(update=surge("1"))
    world.update("web", SMALL)
    world.step()
    world.want("web", revision=1)
    (stop,) = world.step().stop
    assert stop.cause is Cause.REPLACEMENT_FAILED and stop.assignment.revision == 2
    world.obey()
    world.settle()
    assert set(map(tuple, revisions(world).values())) == {(1,)}


def test_rolling_back_changes_those_at_once_that_do_not_serve() -> None:
    world = three(update=surge("0", "100%"))
    world.update("web", SMALL)
    world.step()
    world.obey(ready=False)
    world.want("web", revision=1, update=surge("0", "1"))
    assert len(world.step().revise) == 3


@pytest.mark.parametrize("mode", [Mode.PER_NODE, Mode.REPLICAS])
def test_a_node_lost_between_start_and_ready_keeps_what_served(mode: Mode) -> None:
    """Both stays are on it: what is not known to be ready takes nothing over.
    (tests.sim rollouts, seed 1137)"""
    world = World().add(box("n1"))
    world.want("web", mode=mode, update=surge("1"))
    world.settle()
    (served,) = world.placements["n1"].assignments
    world.update("web", SMALL)
    world.step()
    assert len(world.placements["n1"].assignments) == 2
    world.change("n1", liveness=Liveness.LOST)
    assert [cause for _, cause in stops([world.step()])] == [Cause.REPLACEMENT_FAILED]
    assert world.placements["n1"].assignments == (served,)
    world.change("n1", liveness=Liveness.LIVE)
    world.settle()
    (after,) = world.placements["n1"].assignments
    assert after.revision == 2


def test_a_silent_nodes_replica_waits_and_counts_as_unavailable() -> None:
    world = three(update=surge("0", "1"))
    world.change("n1", liveness=Liveness.SILENT)
    world.update("web", SMALL)
    decided = world.step()
    assert decided.changes_nothing
    (why,) = decided.explanations
    silent = next(replica for replica, node in world.where().items() if node == "n1")
    assert f"when {silent} is running and ready" in why.message
    world.change("n2", liveness=Liveness.SILENT)
    (why,) = world.step().explanations
    assert " are running and ready" in why.message


# --- two revisions --------------------------------------------------------------------------------


def test_only_admitted_sites_get_the_target() -> None:
    world = three(update=surge("1"))
    world.update("web", SMALL)
    home = {site: replica for replica, site in world.where().items()}
    world.want("web", stable=1, admitted=frozenset({"s2"}))
    world.settle()
    found = revisions(world)
    assert found[home["n2"]] == [2] and found[home["n1"]] == found[home["n3"]] == [1]
    world.want("web", admitted=frozenset({"s1", "s2"}))
    world.settle()
    assert revisions(world)[home["n1"]] == [2]
    world.want("web", admitted=None)
    world.settle()
    assert set(map(tuple, revisions(world).values())) == {(2,)}


@pytest.mark.parametrize("mode", list(Mode))
def test_without_the_revision_from_before_nothing_happens_elsewhere(mode: Mode) -> None:
    """What a canary keeps the target from does not get it because the way back is lost."""
    world = three(mode=mode, update=surge("1"))
    world.update("web", SMALL)
    del world.templates[("uid-web", 1)]
    world.want("web", stable=0, admitted=frozenset({"s2"}))
    world.settle()
    at = {
        node: {item.revision for item in placement.assignments}
        for node, placement in world.placements.items()
    }
    assert at == {"n1": {1}, "n2": {2}, "n3": {1}}
    world.change("n1", liveness=Liveness.LOST)
    world.add(box("n4", "s4"))
    if mode is Mode.REPLICAS:
        world.want("web", count=12)
    world.settle()
    decided = world.step()
    assert "n4" not in world.where().values(), "the target waits for the rollout to come there"
    assert "RevisionLost" in {why.code for why in decided.explanations}
    diagnosis = explain(world.snapshot(), world.workloads["uid-web"], 0.0)
    assert "NotAdmitted" in {group.code for group in diagnosis.groups}
    world.want("web", admitted=None)
    world.settle()
    assert "n4" in world.where().values()


def test_new_replicas_get_the_revision_of_their_site() -> None:
    world = three()
    world.update("web", SMALL)
    spread = Placement(spread=Spread("site", 1))
    world.want("web", stable=1, admitted=frozenset({"s2"}), count=9, placement=spread)
    world.settle()
    at = {"n1": set[int](), "n2": set[int](), "n3": set[int]()}
    for node, placement in world.placements.items():
        at[node] |= {item.revision for item in placement.assignments}
    assert at == {"n1": {1}, "n2": {2}, "n3": {1}}


def test_a_target_that_fits_nowhere_does_not_keep_new_stable_replicas_away() -> None:
    world = three()
    world.update("web", Template(Resources(cpu_millis=5000)))
    world.want("web", stable=1, admitted=frozenset({"s2"}), count=6)
    decided = world.step()
    assert len(decided.place) == 3
    assert {place.assignment.revision for place in decided.place} == {1}
    assert "n2" not in {place.node for place in decided.place}


def test_what_moves_to_another_site_gets_that_sites_revision() -> None:
    world = World().add(box("n1", "s1"), box("n2", "s2"))
    world.want("web")
    world.settle()
    node = world.where()["web-0"]
    other = "n2" if node == "n1" else "n1"
    world.update("web", SMALL)
    world.want("web", stable=1, admitted=frozenset({world.nodes[other].site}))
    world.settle()
    assert revisions(world) == {"web-0": [1]}
    world.change(node, liveness=Liveness.LOST)
    world.step()
    assert world.where() == {"web-0": other} and revisions(world) == {"web-0": [2]}


def test_paused_keeps_every_revision_and_gives_new_ones_the_stable_one() -> None:
    world = three(update=surge("1"))
    world.update("web", SMALL)
    world.step()
    world.want("web", paused=True, stable=1, count=4)
    world.obey()
    world.settle()
    found = revisions(world)
    assert [found[f"web-{i}"] for i in range(4)] == [[2], [1], [1], [1]]
    world.change(world.where()["web-0"], liveness=Liveness.LOST)
    world.settle()
    assert revisions(world)["web-0"] == [2]  # moved, and the same


# --- drains ---------------------------------------------------------------------------------------


def drained(**facts: object) -> World:
    world = World().add(box("n1"))
    world.want("web", count=3, **facts)
    world.settle()
    world.add(box("n2"))
    world.change("n1", draining=True)
    return world


def test_a_drain_starts_as_many_replacements_as_may_run_beside() -> None:
    world = drained(update=surge("2"))
    decided = world.step()
    assert len(decided.place) == 2 and not decided.stop
    (why,) = [e for e in decided.explanations if e.code == "DrainBlocked"]
    assert why.replicas == ("web-2",)
    assert "node n1 is being drained" in why.message and "web-0, web-1" in why.message
    assert "at most 2 start beside the others at once (update.maxSurge)" in why.message


def test_where_nothing_may_run_beside_a_drain_stops_first_within_its_budget() -> None:
    world = drained(update=surge("0", "1"), disruption=Disruption("2"))
    decided = world.step()
    assert len(decided.place) == len(decided.stop) == 2
    assert all(not place.assignment.replaces for place in decided.place)
    assert all(place.assignment.because == "Drained" for place in decided.place)
    assert world.step().changes_nothing
    world = drained(update=surge("0", "1"), disruption=Disruption("0"))
    decided = world.step()
    assert decided.changes_nothing
    (why,) = decided.explanations
    assert why.code == "DrainBlocked" and "disruption.maxUnavailable" in why.message


def test_after_its_deadline_a_drain_stops_what_is_left_but_for_daemons() -> None:
    world = World().add(box("n1"))
    world.want("web", count=2)
    world.want("mon", mode=Mode.PER_NODE)
    world.settle()
    world.change("n1", draining=True)
    decided = world.step()
    assert decided.changes_nothing
    codes = {e.code: e for e in decided.explanations}
    assert codes["CannotMove"].replicas == ("web-0", "web-1")
    assert codes["NodeDaemon"].replicas == ("mon-n1",)
    world.change("n1", drain_overdue=True)
    decided = world.step()
    assert sorted(stops([decided])) == [("web-0", Cause.DRAINED), ("web-1", Cause.DRAINED)]
    assert world.where() == {"mon-n1": "n1"}
    assert "NodeDraining" in str(decided.explanations)


def test_cordons_of_site_and_provider_and_windows_say_which() -> None:
    world = World().add(
        box("n1", "a", cordoned="site a is cordoned"),
        box("n2", "b", cordoned="provider p is cordoned"),
        box("n3", "c", cordoned="maintenance of site c until 2026-11-22T05:00:00Z"),
    )
    world.want("web")
    (why,) = world.step().explanations
    (reason,) = why.reasons
    assert (reason.code, reason.nodes) == ("SiteUnschedulable", 3)
    assert reason.example.endswith("is cordoned") or "maintenance" in reason.example


# --- lost nodes -----------------------------------------------------------------------------------


def test_a_replica_moved_for_loss_moves_again_only_after_long_silence() -> None:
    world = World(now=1000.0).add(box("n1"), box("n2"))
    world.want("web")
    world.settle()
    first = world.where()["web-0"]
    world.change(first, liveness=Liveness.LOST, since=960.0)
    world.settle()
    second = world.where()["web-0"]
    assert second != first
    record = world.placements[second].assignments[0]
    assert (record.because, record.placed_at_ms) == ("NodeLost", 1_000_000)
    world.change(first, liveness=Liveness.LIVE)
    world.now = 1100.0
    world.change(second, liveness=Liveness.LOST, since=1065.0)
    decided = world.step()
    assert decided.changes_nothing and decided.explanations[0].code == "FlapDamped"
    world.now = 1186.0
    assert stops([world.step()]) == [("web-0", Cause.NODE_LOST)]


def test_a_suspect_nodes_replicas_stay() -> None:
    world = three()
    world.change("n1", liveness=Liveness.LOST, suspect="2 of 3 nodes are silent at once")
    assert world.step().changes_nothing


# --- freezes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_namespace", [True, False])
def test_nothing_about_a_frozen_workload_changes(by_namespace: bool) -> None:
    world = three()
    if by_namespace:
        world.namespaces["ns"] = Namespace("ns", frozen=True)
    else:
        world.want("web", frozen=True)
    world.update("web", SMALL)
    world.want("web", count=9)
    world.change("n1", liveness=Liveness.LOST)
    world.change("n2", draining=True, drain_overdue=True)
    decided = world.step()
    assert decided.changes_nothing
    (why,) = decided.explanations
    assert why.code == "Frozen" and "edgectl thaw" in why.message
    world.want("web", deleting=True)
    assert world.step().changes_nothing


# --- jobs -----------------------------------------------------------------------------------------


def job(indexes: tuple[int, ...]) -> World:
    world = World().add(box("n1"), box("n2"))
    world.want("sum", BIG, count=10, once=True, indexes=indexes)
    world.settle()
    return world


def finish(world: World, replica: str, failed: bool = False) -> None:
    for node, placement in world.placements.items():
        for item in placement.assignments:
            if item.replica == replica:
                seen = Observed(False, False, item.revision, finished=True, failed=failed)
                world.observed[(node, item.replica_uid)] = seen


def test_a_job_has_the_replicas_that_it_wants_now_and_ended_ones_hold_no_room() -> None:
    world = job((3, 7))
    assert sorted(world.where()) == ["sum-3", "sum-7"]
    finish(world, "sum-3")
    assert world.step().changes_nothing
    world.want("sum", indexes=(7, 8))
    decided = world.step()
    assert stops([decided]) == [("sum-3", Cause.COMPLETED)]
    assert decided.stop[0].message == "it is finished"
    assert dict(decided.desired) == {"uid-sum": 2}
    world.settle()
    assert sorted(world.where()) == ["sum-7", "sum-8"]


def test_a_running_job_keeps_its_revision_and_never_runs_twice() -> None:
    world = job((0,))
    world.update("sum", SMALL)
    assert world.step().changes_nothing
    node = world.where()["sum-0"]
    world.change(node, draining=True)
    decided = world.step()
    (place,), (stop,) = decided.place, decided.stop
    assert stop.cause is Cause.DRAINED and not place.assignment.replaces
    assert place.assignment.revision == 1


def test_an_ended_replica_is_not_run_again_because_its_node_goes() -> None:
    world = job((0,))
    node = world.where()["sum-0"]
    finish(world, "sum-0")
    for facts in ({"draining": True}, {"liveness": Liveness.LOST}):
        world.change(node, **facts)
        assert world.step().changes_nothing
    world.change(node, deleting=True)
    decided = world.step()
    assert stops([decided]) == [("sum-0", Cause.NODE_DELETED)] and not decided.place
