"""Rollouts and drains at random: availability never falls below what the workload states.

A toy fleet obeys late: replicas take a while to start, to become ready and to go. What must hold is
said here once more, in none of the engine's code: of every plan, how many replicas it takes away
that serve, and how many run beside others.
"""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.decisions import Cause, Plan
from orchestrator.scheduling.snapshot import Mode, Observed, Resources, Template, Workload
from polder.manifest.update import Disruption, Update
from tests.unit.scheduling_world import World, box

GENTLE = {Cause.UPDATED, Cause.MOVED, Cause.DRAINED, Cause.UNTOLERATED, Cause.UNSATISFIABLE}
AMOUNTS = ("0", "1", "2", "25%", "34%", "100%")
SITES = ("s1", "s2", "s3")


class Fleet:
    """One seed's world of one or two workloads. `calm`: nothing fails by itself."""

    def __init__(self, seed: int, calm: bool) -> None:
        self.dice = random.Random(seed)
        self.calm = calm
        self.world = World(now=1000.0)
        self.story: list[str] = []
        self.started: dict[tuple[str, str, int], int] = {}
        self.steps = 0
        for number in range(self.dice.randint(3, 8)):
            given = Resources(self.dice.choice((1000, 4000)), 8 << 30, 8 << 30)
            self.world.add(box(f"n{number}", self.dice.choice(SITES), allocatable=given))
        for name in ("web", "db")[: self.dice.randint(1, 2)]:
            mode = Mode.REPLICAS if self.dice.random() < 0.8 else Mode.PER_NODE
            count = self.dice.randint(1, 9) if mode is Mode.REPLICAS else 1
            self.world.want(name, self.template(), count=count, mode=mode, **self.rules())
        self.rest(60)

    def template(self) -> Template:
        port = ((8080, "TCP"),) if self.dice.random() < 0.15 else ()
        return Template(Resources(self.dice.choice((10, 100, 300))), port)

    def rules(self) -> dict[str, object]:
        pick = self.dice.choice
        return {
            "update": Update(
                max_unavailable=pick(AMOUNTS), max_surge=pick(AMOUNTS), min_ready=pick((0.0, 3.0))
            ),
            "disruption": Disruption(pick((None, *AMOUNTS))),
        }

    # --- what happens ----------------------------------------------------------------------------

    def event(self) -> None:
        dice, world = self.dice, self.world
        name = dice.choice([w.name for w in world.workloads.values()])
        workload = world.workloads[f"uid-{name}"]
        node = dice.choice(sorted(world.nodes))
        match dice.randrange(9):
            case 0 | 1:
                world.update(name, self.template())
                world.want(name, stable=dice.choice((0, workload.stable or workload.revision)))
            case 2 if workload.revision > 1:
                world.want(name, revision=dice.randint(1, workload.revision), stable=0)
                world.want(name, revision=self.latest(name) if dice.random() < 0.3 else 1)
            case 3:
                some = frozenset(dice.sample(SITES, dice.randint(0, 3)))
                world.want(name, admitted=dice.choice((None, some, some)))
            case 4:
                world.want(name, paused=dice.random() < 0.4)
            case 5:
                world.change(node, draining=dice.random() < 0.6)
            case 6:
                world.want(name, **self.rules())
            case 7 if not self.calm:
                states = (Liveness.LIVE, Liveness.SILENT, Liveness.LOST)
                world.change(node, liveness=dice.choice(states), since=world.now)
            case 8 if not self.calm and world.observed:
                key = dice.choice(sorted(world.observed))
                seen = world.observed[key]
                world.observed[key] = replace(seen, ready=False, ready_for_s=0.0)
                self.started[(*key, seen.revision)] = self.steps + dice.randrange(30)
            case _:
                return
        self.story.append(f"{self.steps}: {name} {node} {world.workloads[f'uid-{name}']}")

    def latest(self, name: str) -> int:
        return max(number for uid, number in self.world.templates if uid == f"uid-{name}")

    def agents(self) -> None:
        """A step of all live agents: what is new starts, what started becomes ready in time."""
        world, dice = self.world, self.dice
        for node, placement in world.placements.items():
            if world.nodes[node].liveness is not Liveness.LIVE:
                continue
            for item in placement.assignments:
                key = (node, item.replica_uid)
                stay = (*key, item.revision)
                if stay not in self.started:
                    self.started[stay] = self.steps + dice.randrange(4)
                ready = self.steps >= self.started[stay]
                before = world.observed.get(key)
                same = before is not None and before.revision == item.revision and before.ready
                for_s = before.ready_for_s + 1.0 if ready and same and before is not None else 0.0
                world.observed[key] = Observed(True, ready, item.revision, ready_for_s=for_s)
            for stop in placement.stops:
                if dice.random() < 0.5:
                    world.gone.add((node, stop.replica_uid))

    def rest(self, most: int) -> None:
        """Until nothing changes any more."""
        quiet = 0
        for _ in range(most):
            quiet = quiet + 1 if self.step().changes_nothing else 0
            if quiet > 8:
                return

    def step(self) -> Plan:
        self.steps += 1
        self.world.now += 1.0
        self.agents()
        before = self.world.snapshot()
        places = {name: placement.assignments for name, placement in before.placements.items()}
        decided = self.world.step()
        for workload in before.workloads:
            self.check(workload, places, decided)
        return decided

    # --- what must hold --------------------------------------------------------------------------

    def check(
        self, workload: Workload, places: dict[str, tuple[AssignmentRecord, ...]], decided: Plan
    ) -> None:
        stays = [
            (node, item)
            for node, items in places.items()
            for item in items
            if item.workload_uid == workload.uid
        ]
        serving = {(n, i.replica_uid): i for n, i in stays if self.is_available(workload, n, i)}
        before = {item.replica for item in serving.values()}
        gone = {(s.node, s.assignment.replica_uid) for s in decided.stop}
        forced = {
            s.assignment.replica for s in decided.stop if s.cause not in GENTLE
        }  # lost, too many, or the replacement itself
        revised = {(r.node, r.assignment.replica_uid) for r in decided.revise}
        after = {i.replica for key, i in serving.items() if key not in gone | revised}
        taken = before - after - forced
        wanted = self.wanted(workload)
        if workload.mode is Mode.REPLICAS and taken:
            floor = wanted - max(self.may_lack(workload, wanted))
            assert len(after) >= floor, (
                f"{workload.name}: {taken} taken, {len(after)} of {wanted} left, floor {floor}; "
                + "\n".join(self.story)
            )
        for stop in decided.stop:
            assert stop.cause and stop.message
            old_serves = (stop.node, stop.assignment.replica_uid) in serving
            if stop.cause is Cause.UPDATED and old_serves:
                assert stop.assignment.replica in after, f"{stop} leaves nobody"
        twice = Counter(item.replica for _, item in stays)
        already = sum(count > 1 for count in twice.values())
        now = Counter(
            item.replica
            for placement in self.world.placements.values()
            for item in placement.assignments
            if item.workload_uid == workload.uid
        )
        beside = sum(count > 1 for count in now.values())
        assert max(now.values(), default=0) <= 2
        assert beside <= max(already, self.may_surge(workload, wanted)), "\n".join(self.story)

    def is_available(self, workload: Workload, node: str, item: AssignmentRecord) -> bool:
        seen = self.world.observed.get((node, item.replica_uid))
        return (
            seen is not None
            and self.world.nodes[node].liveness is Liveness.LIVE
            and seen.ready
            and seen.revision == item.revision
            and seen.ready_for_s >= workload.update.min_ready
        )

    def wanted(self, workload: Workload) -> int:
        if workload.mode is Mode.REPLICAS:
            return workload.count
        return len(self.world.nodes)

    def may_lack(self, workload: Workload, wanted: int) -> tuple[int, int]:
        """(because of updates, because of drains)"""
        updates = _of(workload.update.max_unavailable, wanted, math.floor)
        if not updates and not self.may_surge(workload, wanted):
            updates = 1
        stated = workload.disruption.max_unavailable
        return updates, updates if stated is None else _of(stated, wanted, math.floor)

    def may_surge(self, workload: Workload, wanted: int) -> int:
        return _of(workload.update.max_surge, wanted, math.ceil)


def _of(text: str, wanted: int, rounded: "type[int] | object") -> int:
    share = int(text[:-1]) * wanted / 100 if text.endswith("%") else float(text)
    return int(rounded(share))  # type: ignore[operator]


def live(seed: int, calm: bool) -> None:
    fleet = Fleet(seed, calm)
    dice, world = fleet.dice, fleet.world
    for _ in range(25):
        for _ in range(dice.randrange(3)):
            fleet.event()
        for _ in range(dice.randint(1, 6)):
            fleet.step()
    for node in list(world.nodes):
        world.change(node, draining=False, liveness=Liveness.LIVE)
    for workload in list(world.workloads.values()):
        latest = fleet.latest(workload.name)
        easy = Template(Resources(10))  # what fits everywhere
        world.templates[(workload.uid, latest + 1)] = easy
        world.want(
            workload.name, revision=latest + 1, stable=0, admitted=None, paused=False,
            update=Update(), disruption=Disruption(),
        )  # fmt: skip
    fleet.rest(400)
    for workload in world.workloads.values():
        mine = [
            item
            for placement in world.placements.values()
            for item in placement.assignments
            if item.workload_uid == workload.uid
        ]
        assert len(mine) == fleet.wanted(workload), "\n".join(fleet.story)
        assert {item.revision for item in mine} == {workload.revision}, "\n".join(fleet.story)
        assert not any(item.replaces and item.replaces in fleet.started for item in mine)


@pytest.mark.parametrize("seed", range(1, 61))
def test_nothing_fails_and_availability_stays_within_the_budget(seed: int) -> None:
    live(seed, calm=True)


@pytest.mark.parametrize("seed", range(1001, 1061))
def test_nodes_and_replicas_fail_and_no_plan_makes_it_worse_than_the_budget(seed: int) -> None:
    live(seed, calm=False)
