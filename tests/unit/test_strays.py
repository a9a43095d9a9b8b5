"""Stays that no record names: stopped when a newer one is ready, and never for want of a record."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.records import AssignmentRecord, GroupRecord, NodePlacement, StopRecord
from orchestrator.scheduling.snapshot import Observed, Snapshot, Workload
from orchestrator.scheduling.steer import Memory, World, steer
from orchestrator.scheduling.strays import NODES_PER_TICK, recall
from orchestrator.scheduling.tick import Moment, Stray
from orchestrator.store import keys
from polder.manifest.placement import Failover
from tests.unit.scheduling_world import SMALL, box

STRAY = Stray("box", "default", "w", "uid-w", "w-0", "old", 5, 1, generation_seen=57)
HELD = AssignmentRecord("default", "w", "uid-w", "w-0", "new", 9, 1)
MOMENT = Moment(1000.0, 1.0)


def world(*strays: Stray, ready: bool = True, **changes: Any) -> World:
    snapshot = Snapshot(
        7,
        placements={"other": NodePlacement("other", 3, (HELD,), store_revision=4)},
        observed={("other", "new"): Observed(True, ready, 1)},
    )
    return World(replace(snapshot, **changes), strays=strays)


def test_a_stay_with_a_newer_ready_holder_stops() -> None:
    """The box was deleted while nobody could reach it, and has joined again."""
    (batch,) = recall(world(STRAY), MOMENT)
    (write,) = batch.writes
    assert (write.key, write.expected) == (keys.placement("box"), 0)
    assert write.value is not None
    after = NodePlacement.from_bytes(write.value, 0)
    assert after.generation == 58, "the agent has a plan of 57, and must take this one"
    (stop,) = after.stops
    assert (stop.replica_uid, stop.cause) == ("old", "Moved")
    assert "w-0 is held by node other (epoch 9)" in stop.message
    assert [(t.kind, t.name, t.reason, t.warning) for t in batch.tells] == [
        ("Replica", "w-0", "StrayStops", True)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"placements": {}},  # nobody else has it: an absent record stops nothing
        {"placements": {"other": NodePlacement("other", 3, (replace(HELD, epoch=4),))}},
        {"placements": {"other": NodePlacement("other", 3, (replace(HELD, workload_uid="x"),))}},
        {"placements": {"other": NodePlacement("other", 3, (replace(HELD, namespace="y"),))}},
        {"observed": {}},  # it has a successor, which does not serve yet
    ],
)
def test_without_evidence_it_runs_on(changes: dict[str, Any]) -> None:
    assert recall(world(STRAY, **changes), MOMENT) == ()


def test_an_exclusive_replica_that_moves_away_is_not_kept_by_a_standby() -> None:
    """The standby took it over when it was told to stop, and before it had the newer plan."""
    group = GroupRecord(3, ("other", "box"), ("third",), exclusive=True)
    stop = StopRecord("default", "w", "w-0", "u", "Drained", "", 1, "uid-w", 1, group)
    left = {"other": NodePlacement("other", 3, (), (stop,))}
    (batch,) = recall(world(STRAY, placements=left), MOMENT)
    assert batch.writes[0].value is not None
    (found,) = NodePlacement.from_bytes(batch.writes[0].value, 0).stops
    assert (found.replica_uid, found.group) == ("old", group), "it is waited for, as the other"
    held = {
        "other": NodePlacement("other", 3, (), (stop,)),
        "far": NodePlacement("far", 1, (HELD,)),
    }
    assert recall(world(STRAY, placements=held), MOMENT) == (), "its holder is not ready yet"


def test_nothing_is_placed_beside_an_exclusive_stay_without_a_record() -> None:
    alone = Workload("uid-w", "default", "w", failover=Failover(exclusive=True))
    lone = world(STRAY, placements={}, observed={}, workloads=(alone,), nodes=(box("box"),))
    lone = replace(lone, snapshot=replace(lone.snapshot, templates={("uid-w", 1): SMALL}))
    decided = steer(lone, Memory(), MOMENT).plan
    assert not decided.place
    (told,) = [e for e in decided.explanations if e.code == "ExclusiveWaits"]
    assert "node box runs it, and no record says so" in told.message
    assert steer(replace(lone, strays=()), Memory(), MOMENT).plan.place


def test_a_successor_that_is_not_ready_is_waited_for() -> None:
    assert recall(world(STRAY, ready=False), MOMENT) == ()


def test_nothing_that_is_frozen_stops() -> None:
    frozen = Workload("uid-w", "default", "w", frozen=True)
    assert recall(world(STRAY, workloads=(frozen,)), MOMENT) == ()


def test_what_the_node_has_to_do_already_is_kept() -> None:
    own = replace(HELD, replica="w-1", replica_uid="mine")
    before = NodePlacement("box", 90, (own,), store_revision=12)
    held = world(STRAY).snapshot.placements
    (batch,) = recall(world(STRAY, placements={**held, "box": before}), MOMENT)
    (write,) = batch.writes
    assert write.expected == 12 and write.value is not None
    after = NodePlacement.from_bytes(write.value, 0)
    assert (after.generation, after.assignments) == (91, (own,))


def test_a_tick_without_strays_writes_nothing_for_them() -> None:
    still = Snapshot(7, nodes=(box("a"),), complete=True)
    assert steer(World(still), Memory(), MOMENT).batches == ()


def test_boxes_whose_strays_run_on_do_not_hold_up_those_that_come_after() -> None:
    """As after a store that was restored from a backup: it knows nothing of what came later."""
    alone = [
        replace(STRAY, node=f"a{n}", workload_uid="uid-gone", replica_uid=f"a{n}")
        for n in range(NODES_PER_TICK + 1)
    ]
    (batch,) = recall(world(*alone, STRAY), MOMENT)
    assert [write.key for write in batch.writes] == [keys.placement("box")]


def test_many_strays_are_looked_up_in_one_walk() -> None:
    walks = 0

    class Counted(dict[str, NodePlacement]):
        def items(self) -> Any:
            nonlocal walks
            walks += 1
            return super().items()

    strays = [replace(STRAY, node=f"a{n:03}", replica_uid=f"a{n}") for n in range(200)]
    placements = Counted(world(STRAY).snapshot.placements)
    assert len(recall(world(*strays, placements=placements), MOMENT)) == NODES_PER_TICK
    assert walks == 1
