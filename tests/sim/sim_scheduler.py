"""A seeded life of a fleet under the scheduler: random events, agents that obey late or not at all.

Run by `tests/unit/test_scheduling_simulation.py`, and by hand for many seeds:

    python -m tests.sim.sim_scheduler --seeds 500 --first 1

A failure prints the seed that replays it. What must hold after every plan is in `check`, written
without any of the scheduler's own code.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.snapshot import Mode, Observed, Resources, Snapshot, Template
from polder.manifest import Placement, Spread, Taint
from tests.unit.scheduling_world import World, box

STEPS = 60
SITES = ("s1", "s2", "s3")


class Violation(AssertionError):
    """Something that must never be."""


class Life:
    """One seed's world. `run` raises Violation."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World()
        self.tainted = (Taint("flood", "NoExecute"),)
        for number in range(self.dice.randint(1, 8)):
            self._new_node(f"n{number}")

    def run(self, steps: int = STEPS) -> None:
        for _ in range(steps):
            self._event()
            before = self.world.snapshot()
            decided = self.world.step()
            check(before, decided, self.world)
            self._agents()
        self._heal()
        for _ in range(100):
            self.world.obey()
            before = self.world.snapshot()
            decided = self.world.step()
            check(before, decided, self.world)
            if decided.changes_nothing:
                break
        else:
            raise Violation("a healed world does not converge")
        self._check_converged()

    # --- what happens ----------------------------------------------------------------------------

    def _event(self) -> None:
        dice, world = self.dice, self.world
        node = dice.choice(sorted(world.nodes)) if world.nodes else None
        names = sorted(w.name for w in world.workloads.values() if not w.deleting)
        name = dice.choice(names) if names else None
        match dice.randrange(12):
            case 0 | 1:
                self._new_workload(f"w{dice.randrange(10)}")
            case 2 if name:
                world.want(name, count=dice.randrange(6))
            case 3 if name:
                world.update(name, self._template())
            case 4 if name:
                world.want(name, deleting=True)
            case 5 if name:
                world.want(name, placement=self._placement())
            case 6 if node:
                states = (Liveness.LIVE, Liveness.SILENT, Liveness.LOST)
                world.change(node, liveness=dice.choice(states))
            case 7 if node:
                world.change(node, draining=dice.random() < 0.5)
            case 8 if node:
                world.change(node, taints=self.tainted if dice.random() < 0.5 else ())
            case 9 if node:
                world.change(node, allocatable=self._resources())
            case 10 if node and dice.random() < 0.4:
                world.change(node, deleting=True)
            case 11 if len(world.nodes) < 10:
                self._new_node(f"n{dice.randrange(100)}")

    def _new_node(self, name: str) -> None:
        labels = {"zone": self.dice.choice("ab")}
        node = box(
            name, self.dice.choice(SITES), labels=labels, allocatable=self._resources(),
            arch=self.dice.choice(("arm64", "amd64")),
        )  # fmt: skip
        if name not in self.world.nodes:
            self.world.add(node)

    def _new_workload(self, name: str) -> None:
        dice = self.dice
        if f"uid-{name}" in self.world.workloads:
            return
        self.world.want(
            name, self._template(), count=dice.randrange(5), placement=self._placement(),
            mode=dice.choice((Mode.REPLICAS, Mode.REPLICAS, Mode.PER_SITE, Mode.PER_NODE)),
            priority=dice.randrange(3),
        )  # fmt: skip

    def _template(self) -> Template:
        dice = self.dice
        ports = ((8080 + dice.randrange(2), "TCP"),) if dice.random() < 0.3 else ()
        devices = {"polder.eu/gpu": 1} if dice.random() < 0.2 else {}
        request = Resources(dice.randrange(500), dice.randrange(1 << 29), 0, devices)
        return Template(request, ports)

    def _placement(self) -> Placement:
        dice = self.dice
        spread = Spread(dice.choice(("node", "site")), dice.randint(1, 2))
        return Placement(
            arch=("arm64",) if dice.random() < 0.2 else (),
            node_selector={"zone": dice.choice("ab")} if dice.random() < 0.3 else {},
            spread=spread if dice.random() < 0.3 else None,
        )

    def _resources(self) -> Resources:
        return Resources(
            self.dice.randrange(200, 2000), self.dice.randrange(1 << 28, 1 << 31), 1 << 33,
            {"polder.eu/gpu": self.dice.randrange(3)},
        )  # fmt: skip

    def _agents(self) -> None:
        """Each live agent has done what it was told, or some of it, or nothing."""
        world, dice = self.world, self.dice
        for name, placement in world.placements.items():
            if name not in world.nodes or world.nodes[name].liveness is not Liveness.LIVE:
                continue
            for item in placement.assignments:
                if dice.random() < 0.7:
                    seen = Observed(True, dice.random() < 0.8, item.revision)
                    world.observed[(name, item.replica_uid)] = seen
            for stop in placement.stops:
                if dice.random() < 0.5:
                    world.gone.add((name, stop.replica_uid))

    def _heal(self) -> None:
        for name in list(self.world.nodes):
            self.world.change(name, liveness=Liveness.LIVE, draining=False, taints=())

    def _check_converged(self) -> None:
        for workload in self.world.workloads.values():
            if workload.deleting and self.world.nodes:
                raise Violation(f"{workload.name} is still being deleted")
        if any(node.deleting for node in self.world.nodes.values()) and len(self.world.nodes) > 0:
            raise Violation("a node is still being deleted")


# --- what must hold -------------------------------------------------------------------------------


def check(before: Snapshot, decided: Plan, world: World) -> None:
    """After a plan was made from `before` and committed to `world`."""
    _check_stops(before, decided)
    _check_places(before, decided)
    _check_capacity(before, decided, world)
    _check_replicas(world)


def _check_stops(before: Snapshot, decided: Plan) -> None:
    assigned = {
        (node, item.replica_uid) for node, p in before.placements.items() for item in p.assignments
    }
    for stop in decided.stop:
        if not stop.cause or not stop.message:
            raise Violation(f"{stop} has no cause")
        if (stop.node, stop.assignment.replica_uid) not in assigned:
            raise Violation(f"{stop} stops what was not there")
    _check_replaced(before, decided)
    serving = Counter(
        stop.assignment.workload_uid
        for stop in decided.stop
        if stop.cause.value in ("Drained", "Moved", "Unsatisfiable", "Untolerated")
        and stop.moved_to
        and _is_ready(before, stop.node, stop.assignment.replica_uid)
    )
    if any(count > 1 for count in serving.values()):
        raise Violation(f"more than one serving replica of a workload moves at once: {serving}")


def _check_replaced(before: Snapshot, decided: Plan) -> None:
    """Who is replaced while it serves stops only when its replacement does."""
    replacing = {
        item.replaces: (node, item.replica_uid)
        for node, p in before.placements.items()
        for item in p.assignments
        if item.replaces
    }
    stopped = {(stop.node, stop.assignment.replica_uid) for stop in decided.stop}
    for stop in decided.stop:
        new = replacing.get(stop.assignment.replica_uid)
        if new in stopped:  # it was given up: then this one leaves as if there had been none
            new = None
        gentle = stop.cause.value in ("Drained", "Moved", "Unsatisfiable", "Untolerated")
        if new and gentle and stop.moved_to and not _is_ready(before, *new):
            raise Violation(f"{stop} stops before its replacement is ready")
        serves = _is_ready(before, stop.node, stop.assignment.replica_uid)
        if gentle and stop.moved_to and serves and not new and stop.cause.value != "Moved":
            raise Violation(f"{stop} stops what serves without a replacement")


def _is_ready(before: Snapshot, node: str, uid: str) -> bool:
    known = {n.name: n for n in before.nodes}
    seen = before.observed.get((node, uid))
    live = node in known and known[node].liveness is Liveness.LIVE
    return live and seen is not None and seen.running and seen.ready


def _check_places(before: Snapshot, decided: Plan) -> None:
    nodes = {node.name: node for node in before.nodes}
    workloads = {workload.uid: workload for workload in before.workloads}
    for place in decided.place:
        node, rules = nodes[place.node], workloads[place.assignment.workload_uid].placement
        if node.liveness is not Liveness.LIVE or node.draining or node.deleting or node.taints:
            raise Violation(f"{place} goes to {node}")
        if rules.arch and node.arch not in rules.arch:
            raise Violation(f"{place} has the wrong architecture")
        if any(node.labels.get(key) != value for key, value in rules.node_selector.items()):
            raise Violation(f"{place} ignores the selector")


def _check_capacity(before: Snapshot, decided: Plan, world: World) -> None:
    """Whoever got something new must have room for all that it holds, pending stops included."""
    grown = {p.node for p in decided.place}
    for node in before.nodes:
        if node.name not in grown or node.name not in world.placements:
            continue
        placement, given = world.placements[node.name], node.allocatable or Resources()
        held = [(a.workload_uid, a.revision) for a in placement.assignments]
        held += [(s.workload_uid, s.revision) for s in placement.stops]
        templates = [before.templates.get(key, Template()) for key in held]
        placed = [
            before.templates[(p.assignment.workload_uid, p.assignment.revision)]
            for p in decided.place
            if p.node == node.name
        ]
        for amount in ("cpu_millis", "memory_bytes", "disk_bytes"):
            asked = sum(getattr(template.request, amount) for template in placed)
            total = sum(getattr(template.request, amount) for template in templates)
            if asked and total > getattr(given, amount):
                raise Violation(f"{node.name} promises {total} of {amount}")
        gpus = sum(template.request.devices.get("polder.eu/gpu", 0) for template in templates)
        if any(t.request.devices for t in placed) and gpus > given.devices["polder.eu/gpu"]:
            raise Violation(f"{node.name} promises {gpus} devices")
        ports = Counter(port for template in templates for port in template.host_ports)
        if any(ports[port] > 1 for template in placed for port in template.host_ports):
            raise Violation(f"{node.name} promises a host port twice: {ports}")


def _check_replicas(world: World) -> None:
    uids: Counter[str] = Counter()
    names: Counter[tuple[str, str]] = Counter()
    for placement in world.placements.values():
        uids.update(item.replica_uid for item in placement.assignments)
        uids.update(stop.replica_uid for stop in placement.stops)
        names.update((item.workload_uid, item.replica) for item in placement.assignments)
    twice = [uid for uid, count in uids.items() if count > 1]
    if twice:
        raise Violation(f"held twice: {twice}")
    for key, count in names.items():
        if count > 1:
            _check_pair(key, [item for item in _assignments(world) if key == _key(item)])


def _assignments(world: World) -> list[AssignmentRecord]:
    return [item for p in world.placements.values() for item in p.assignments]


def _key(item: AssignmentRecord) -> tuple[str, str]:
    return (item.workload_uid, item.replica)


def _check_pair(key: tuple[str, str], items: list[AssignmentRecord]) -> None:
    """Two holders only while the newer one, which says so, starts."""
    older, newer = min(items, key=lambda i: i.epoch), max(items, key=lambda i: i.epoch)
    if len(items) > 2 or newer.replaces != older.replica_uid:
        raise Violation(f"held twice: {key}")


def permuted(snapshot: Snapshot, dice: random.Random) -> Snapshot:
    """The same world, told in another order."""
    nodes, workloads = list(snapshot.nodes), list(snapshot.workloads)
    dice.shuffle(nodes)
    dice.shuffle(workloads)
    return replace(snapshot, nodes=tuple(nodes), workloads=tuple(workloads))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    given = parser.parse_args(arguments)
    for seed in range(given.first, given.first + given.seeds):
        try:
            Life(seed).run()
        except AssertionError as error:
            print(f"seed {seed}: {error}")
            return 1
    print(f"{given.seeds} seeds from {given.first}: nothing that must not be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
