"""Exclusive replicas: never two, whatever happens to nodes, sites and what people want."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling import groups
from orchestrator.scheduling.decisions import Cause, Plan
from orchestrator.scheduling.exclusive import ISOLATION_MARGIN_S
from orchestrator.scheduling.snapshot import Mode, Observed, Resources, Template
from orchestrator.scheduling.standbys import PATIENCE_S
from polder import epochs
from polder.manifest.placement import Failover
from polder.manifest.update import Disruption, Update
from tests.unit.scheduling_world import SMALL, World, box

ONE = Failover(standbys=1, exclusive=True)
STOPS = replace(ONE, when_isolated="stop", stop_after=60.0)


def site_of(count: int, site: str = "s1") -> World:
    return World(now=1000.0).add(*(box(f"{site}-{i}", site) for i in range(count)))


def settled(world: World, failover: Failover = ONE, **facts: Any) -> World:
    world.want("db", failover=failover, **facts)
    world.settle()
    return world


def stays(world: World, replica: str = "db-0") -> dict[str, AssignmentRecord]:
    """By node."""
    return {
        node: item
        for node, placement in world.placements.items()
        for item in placement.assignments
        if item.replica == replica
    }


def holder(world: World) -> tuple[str, AssignmentRecord]:
    ((node, item),) = stays(world).items()
    return node, item


def group(world: World) -> GroupRecord:
    found = holder(world)[1].group
    assert found is not None
    return found


def told(decided: Plan) -> dict[str, str]:
    return {e.code: e.message for e in decided.explanations}


def lose(world: World, *nodes: str, since: float | None = None) -> None:
    for node in nodes:
        at = world.now if since is None else since
        world.change(node, liveness=Liveness.LOST, since=at)


# --- groups --------------------------------------------------------------------------------------


def test_primary_standby_and_a_witness_make_three() -> None:
    world = settled(site_of(5))
    node, item = holder(world)
    assert group(world).members == (node, *item.standbys) and len(item.standbys) == 1
    assert len(set(group(world).voters)) == 3
    assert group(world).number == epochs.decided_at(1) and not group(world).before


def test_voters_are_odd_as_long_as_there_are_nodes() -> None:
    world = settled(site_of(5), replace(ONE, standbys=3))
    assert (len(group(world).members), len(group(world).witnesses)) == (4, 1)
    assert len(group(settled(site_of(5), replace(ONE, standbys=0))).voters) == 3


def test_others_have_a_group_without_votes_and_only_within_a_site() -> None:
    world = settled(site_of(3), Failover(standbys=1, on_return="newer"))
    assert not group(world).exclusive and not group(world).witnesses
    assert group(world).members[1:] == holder(world)[1].standbys
    assert group(world).on_return == "newer"
    far = settled(site_of(3), Failover(standbys=1, scope="region"))
    assert holder(far)[1].standbys and holder(far)[1].group is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_site_of_one_or_two_has_a_single_voter_and_says_so(count: int) -> None:
    world = settled(site_of(count))
    node, item = holder(world)
    assert group(world).voters == (node,) and not item.standbys
    assert "site s1 has fewer than 3 nodes" in told(world.step())["NoMajority"]
    world.add(box("later-1"), box("later-2"))
    world.settle()
    assert len(group(world).voters) == 3, "when nodes come there is a majority"


def test_nodes_that_peers_cannot_reach_do_not_vote() -> None:
    world = site_of(4)
    world.change("s1-2", reachable=False)
    world.change("s1-3", reachable=False)
    settled(world)
    assert len(group(world).voters) == 1 and "NoMajority" in told(world.step())


def test_what_has_data_on_its_node_has_no_standby() -> None:
    world = site_of(3)
    world.want("db", replace(SMALL, local_volumes=("data",)), failover=Failover(standbys=1))
    world.settle()
    assert not holder(world)[1].standbys and holder(world)[1].group is None


@pytest.mark.parametrize("which", ["holder", "witness"])
def test_a_voter_whose_box_joined_again_votes_in_the_next_group(which: str) -> None:
    """With another disk it does not know what it granted: what the next group grants is newer."""
    world = settled(site_of(3))
    before = group(world)
    name = before.members[0] if which == "holder" else before.witnesses[0]
    world.change(name, joined_epoch=before.number)
    assert world.step().changes_nothing, "the group began with it"
    world.change(name, joined_epoch=epochs.decided_at(world.revision))
    world.settle()
    after = group(world)
    assert set(after.voters) == set(before.voters) and after.number > before.number
    assert [(e.number, e.voters) for e in after.before] == [(before.number, before.voters)]
    assert world.step().changes_nothing, "once"


def test_no_group_follows_it_while_too_few_could_seal_the_one_before() -> None:
    world = settled(site_of(3))
    before = group(world)
    world.change(before.witnesses[0], joined_epoch=epochs.decided_at(world.revision + 1))
    lose(world, *before.members)
    world.step()
    assert group(world) == before


def test_a_single_voter_that_joined_again_counts_on_above_what_it_forgot() -> None:
    world = settled(site_of(1))
    before = group(world)
    world.change("s1-0", joined_epoch=epochs.decided_at(world.revision))
    world.settle()
    assert group(world).number > before.number and group(world).voters == before.voters


def test_a_group_keeps_its_number_until_its_voters_change() -> None:
    world = settled(site_of(5))
    before = group(world)
    world.want("db", failover=replace(ONE, on_return="newer"))
    world.settle()
    assert group(world).number == before.number and group(world).on_return == "newer"
    gone = before.witnesses[0]
    lose(world, gone)
    assert world.step().changes_nothing, "it may only be starting again"
    world.now += PATIENCE_S
    world.settle()
    after = group(world)
    assert gone not in after.voters and after.number > before.number
    assert [(e.number, e.voters) for e in after.before] == [(before.number, before.voters)]
    assert set(before.members) < set(after.voters)


def test_groups_before_the_last_that_had_a_holder_need_no_seal() -> None:
    world = settled(site_of(8))
    numbers = [group(world).number]
    for _ in range(2):
        lose(world, group(world).witnesses[0], since=-1e6)
        world.step()
        numbers.append(group(world).number)
    assert [e.number for e in group(world).before] == numbers[:2]
    node, item = holder(world)
    by_lease = epochs.after(numbers[1])
    world.observed[node, item.replica_uid] = Observed(True, True, 1, epoch=by_lease)
    lose(world, group(world).witnesses[0], since=-1e6)
    world.step()
    assert [e.number for e in group(world).before] == numbers[1:], "its holder came by the second"


def test_no_former_group_is_ever_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not named is not sealed, and its voters may let another holder in."""
    monkeypatch.setattr(groups, "BEFORE_MAX", 3)
    world = settled(site_of(12))
    numbers = [group(world).number]
    for _ in range(3):
        lose(world, group(world).witnesses[0], since=-1e6)
        world.step()
        numbers.append(group(world).number)
    assert [e.number for e in group(world).before] == numbers[:3]
    full, (node, item) = group(world), holder(world)
    lose(world, full.witnesses[0], since=-1e6)
    decided = world.step()
    assert group(world) == full and "GroupFull" in told(decided)
    assert f"until the agent of node {node} is restarted" in told(decided)["GroupFull"]
    by_lease = epochs.after(full.number)
    world.observed[node, item.replica_uid] = Observed(True, True, 1, epoch=by_lease)
    decided = world.step()
    assert "GroupFull" not in told(decided)
    assert [e.number for e in group(world).before] == [full.number], "its holder came by that one"


def test_what_cannot_be_handed_over_any_more_stops_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "BEFORE_MAX", 0)
    world = settled(site_of(5))
    node, _ = holder(world)
    world.change(node, draining=True)
    decided = world.step()
    ((stopped, moved_to),) = [(stop.node, stop.moved_to) for stop in decided.stop]
    assert (stopped, moved_to) == (node, "") and not decided.place


def test_without_another_node_a_lost_voter_stays() -> None:
    world = settled(site_of(3))
    before = group(world)
    for name in before.voters[1:]:
        lose(world, name, since=-1e6)
        world.step()
        assert (
            set(group(world).voters) == set(before.voters) and group(world).number == before.number
        )
        world.change(name, liveness=Liveness.LIVE)
    world.change(before.voters[1], liveness=Liveness.LIVE, deleting=True)
    world.settle()
    assert group(world).voters == (holder(world)[0],), "deleted is gone for good"


def test_a_group_of_which_no_majority_is_heard_stays_as_it_is() -> None:
    world = settled(site_of(6))
    before = group(world)
    lose(world, *before.voters[1:], since=0.0)
    decided = world.step()
    assert not decided.standbys and group(world) == before
    assert "without 2 of them nobody takes it over" in told(decided)["NoMajority"]


# --- nodes that are lost -------------------------------------------------------------------------


def test_a_lost_nodes_replica_is_not_placed_elsewhere() -> None:
    world = settled(site_of(3).add(box("far", "s2")))
    node, item = holder(world)
    lose(world, node, since=-1e6)
    for _ in range(3):
        decided = world.step()
        world.obey()
        assert not decided.place and not decided.stop
    assert f"{item.standbys[0]} may take it over" in told(decided)["ExclusiveWaits"]


def test_who_is_only_silent_is_not_missed_yet() -> None:
    world = settled(site_of(3))
    for name in world.nodes:
        world.change(name, liveness=Liveness.SILENT)
    assert not told(world.step())


def test_a_lost_nodes_replica_gets_a_standby_that_has_room() -> None:
    world = settled(site_of(4))
    node, item = holder(world)
    full = item.standbys[0]
    world.change(full, allocatable=Resources(10, 1 << 20, 1 << 20))
    lose(world, node)
    world.settle()
    assert stays(world)[node].standbys[0] != full
    assert stays(world)[node].replica_uid == item.replica_uid, "where it is does not change"


def test_it_is_placed_anew_when_its_group_was_silent_for_longer_than_it_may_run() -> None:
    world = settled(site_of(3).add(box("far", "s2")), STOPS)
    node, item = holder(world)
    lose(world, "s1-0", "s1-1", "s1-2")
    world.now += STOPS.stop_after + 10
    assert world.step().changes_nothing
    world.now += ISOLATION_MARGIN_S
    decided = world.step()
    (place,) = decided.place
    assert place.node == "far" and place.assignment.epoch > item.epoch
    assert place.assignment.group is not None and place.assignment.group.forced
    assert [(s.node, s.cause) for s in decided.stop] == [(node, Cause.NODE_LOST)]


@pytest.mark.parametrize("spoilt", ["keep", "one is heard", "an older plan"])
def test_silence_alone_proves_nothing(spoilt: str) -> None:
    failover = ONE if spoilt == "keep" else STOPS
    world = settled(site_of(3).add(box("far", "s2")), failover)
    _, item = holder(world)
    lose(world, "s1-0", "s1-1", "s1-2")
    if spoilt == "one is heard":
        world.change(item.standbys[0], liveness=Liveness.LIVE)
    elif spoilt == "an older plan":
        world.using.discard(item.standbys[0])
    world.now += 1e5
    assert not world.step().place


def test_a_fence_places_it_anew_and_a_node_that_is_heard_is_not_fenced() -> None:
    world = settled(site_of(2))
    node, item = holder(world)
    world.fenced.add(item.replica_uid)
    assert world.step().changes_nothing
    lose(world, node)
    decided = world.step()
    (place,) = decided.place
    made = place.assignment.group
    assert place.node != node and made is not None and made.forced and not made.before


def test_who_is_not_heard_does_not_vote_on_what_was_fenced_for() -> None:
    """Two of three nodes are gone: a group that named them would have no majority."""
    world = settled(site_of(3), replace(ONE, standbys=2))
    node, item = holder(world)
    last = item.standbys[0]
    for name in {"s1-0", "s1-1", "s1-2"} - {last}:
        world.change(name, liveness=Liveness.SILENT, since=world.now)
    world.fenced.add(item.replica_uid)
    world.settle()
    assert list(stays(world)) == [last]
    assert group(world).voters == (last,) and group(world).forced
    alone = group(world).number
    world.change(node, liveness=Liveness.LIVE, since=world.now)
    world.change(item.standbys[1], liveness=Liveness.LIVE, since=world.now)
    world.settle()
    assert len(group(world).voters) == 3
    assert [former.number for former in group(world).before] == [alone]


# --- leaving a node that is heard ----------------------------------------------------------------


def test_a_drain_hands_it_over_within_the_site() -> None:
    world = settled(site_of(4).add(box("far", "s2")))
    node, item = holder(world)
    before = group(world)
    world.change(node, draining=True)
    decided = world.step()
    (place,) = decided.place
    assert place.node == item.standbys[0], "who votes already comes first"
    assert [(s.node, s.moved_to) for s in decided.stop] == [(node, place.node)]
    world.settle()
    assert list(stays(world)) == [place.node]
    after = group(world)
    assert after.number == before.number or after.before[-1].number == before.number


def test_out_of_its_site_it_stops_first_and_is_placed_when_nobody_can_run_it() -> None:
    world = settled(site_of(3).add(box("far", "s2")))
    node, item = holder(world)
    standby = item.standbys[0]
    for name in ("s1-0", "s1-1", "s1-2"):
        world.change(name, draining=True)
    decided = world.step()
    assert not decided.place and [s.node for s in decided.stop] == [node]
    waits = world.step()
    assert not waits.place and f"node {node} has not said" in told(waits)["ExclusiveWaits"]
    world.obey()
    world.using.discard(standby)
    waits = world.step()
    assert not waits.place and not waits.prune
    assert f"node {standby} might take it over" in told(waits)["ExclusiveWaits"]
    world.obey()
    decided = world.step()
    (place,) = decided.place
    assert place.node == "far"
    assert place.assignment.group is not None and not place.assignment.group.before


def test_a_stop_is_not_over_before_a_late_takeover_would_have_been_heard() -> None:
    world = settled(site_of(3).add(box("far", "s2")))
    world.now = 3.0  # stops of this world are asked for at 0
    for name in ("s1-0", "s1-1", "s1-2"):
        world.change(name, draining=True)
    world.step()
    world.obey()
    waits = world.step()
    assert not waits.place and "less than 5 s ago" in told(waits)["ExclusiveWaits"]
    world.now = 5.0
    assert len(world.step().place) == 1


def test_it_does_not_stop_while_there_is_no_other_place() -> None:
    world = settled(site_of(3))
    for name in ("s1-0", "s1-1", "s1-2"):
        world.change(name, draining=True)
    decided = world.step()
    assert not decided.stop and "CannotMove" in told(decided)


def test_a_deleted_node_hands_it_over_even_when_it_is_silent() -> None:
    world = settled(site_of(4))
    node, _ = holder(world)
    lose(world, node)
    world.change(node, deleting=True)
    decided = world.step()
    (place,) = decided.place
    assert place.node != node and place.assignment.group is not None
    assert not place.assignment.group.forced
    world.settle()
    assert node not in world.nodes


def test_a_deleted_node_of_which_nothing_is_known_stays_until_somebody_vouches() -> None:
    world = settled(site_of(2))
    node, item = holder(world)
    lose(world, node)
    world.change(node, deleting=True)
    world.settle()
    assert node in world.nodes and list(stays(world)) == [node]
    world.fenced.add(item.replica_uid)
    world.settle()
    assert node not in world.nodes and len(stays(world)) == 1


@pytest.mark.parametrize("change", [{"count": 0}, {"deleting": True}])
def test_a_deleted_node_is_not_kept_for_what_nobody_wants(change: dict[str, Any]) -> None:
    world = settled(site_of(2))
    node, _ = holder(world)
    lose(world, node)
    world.want("db", **change)
    world.settle()
    world.change(node, deleting=True)
    world.settle()
    assert node not in world.nodes


# --- changes -------------------------------------------------------------------------------------


def test_updates_stop_first_whatever_the_surge_and_one_at_a_time() -> None:
    world = settled(site_of(4), update=Update(max_unavailable="0", max_surge="2"), count=2)
    world.update("db", Template(Resources(200)))
    decided = world.step()
    assert len(decided.revise) == 1 and not decided.place and not decided.stop
    world.settle()
    assert {item.revision for item in stays(world).values()} == {2}


def test_a_drain_waits_for_the_budget() -> None:
    world = settled(site_of(4), disruption=Disruption("0"))
    world.change(holder(world)[0], draining=True)
    assert "DrainBlocked" in told(world.step())


def test_of_two_records_the_newer_counts_and_nobody_waits_for_it() -> None:
    world = settled(site_of(3))
    node, item = holder(world)
    other = item.standbys[0]
    newer = replace(item, epoch=item.epoch + 1, replica_uid="s1", replaces=item.replica_uid)
    before = world.placements.get(other)
    assert before is not None
    world.placements[other] = replace(before, assignments=(newer,))
    decided = world.step()
    assert [(s.node, s.cause) for s in decided.stop] == [(node, Cause.MOVED)]
    assert list(stays(world)) == [other]


def test_scaled_down_and_up_again_it_waits_for_the_stop() -> None:
    world = settled(site_of(3), count=2)
    world.want("db", count=1)
    assert len(world.step().stop) == 1
    world.want("db", count=2)
    decided = world.step()
    assert not decided.place and "ExclusiveWaits" in told(decided)
    assert dict(decided.desired)["uid-db"] == 2
    world.settle()
    assert len(stays(world, "db-1")) == 1


def test_what_is_preempted_waits_for_its_own_stop() -> None:
    world = site_of(3)
    settled(world)
    node, _ = holder(world)
    whole = Template(Resources(1000))
    for other in set(world.nodes) - {node}:
        world.change(other, unschedulable=True)
    world.want("urgent", whole, priority=10)
    for other in set(world.nodes) - {node}:
        world.change(other, allocatable=Resources(500, 1 << 30, 1 << 30), unschedulable=False)
    decided = world.step()
    assert [(s.node, s.cause) for s in decided.stop] == [(node, Cause.PREEMPTED)]
    assert not [p for p in decided.place if p.assignment.workload == "db"]
    world.settle()
    assert len(stays(world)) == 1 and node not in stays(world)


def test_a_deleted_workload_goes_when_nothing_is_left_of_it() -> None:
    world = settled(site_of(3))
    world.want("db", deleting=True)
    world.settle()
    assert not world.workloads and not any(p.stops for p in world.placements.values())


def test_it_is_never_two_per_site_either() -> None:
    world = site_of(3)
    settled(world, mode=Mode.PER_SITE)
    (item,) = stays(world, "db-s1").values()
    node = next(iter(stays(world, "db-s1")))
    lose(world, node, since=0.0)
    assert not world.step().place and item.group is not None


# --- lostAfter -----------------------------------------------------------------------------------


def test_a_workload_may_be_more_patient_than_the_installation() -> None:
    world = site_of(3)
    world.want("calm", failover=Failover(lost_after=300.0))
    world.want("web")
    world.settle()
    lose(world, *world.nodes, since=world.now - 60)
    world.add(box("spare"))
    decided = world.step()
    assert [p.assignment.workload for p in decided.place] == ["web"]
    world.now += 250
    decided = world.step()
    assert [p.assignment.workload for p in decided.place] == ["calm"]
