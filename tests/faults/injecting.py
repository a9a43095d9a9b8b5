"""Which faults a run has, drawn from its seed, and how each is made and undone.

A draw names places by number and roles ("the leader of etcd") that are looked up when the fault
begins; that and the machine's own timing are all that a seed does not fix.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.cluster import MEMBERS, Cluster, Station
from tests.faults.wires import Wire
from tests.integration.etcd_server import EtcdMember

Undo = Callable[[], None]
LEADER = -1
"""In place of a number: whoever leads when the fault begins."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Begins `at_s` after the run, and is undone `for_s` later. `place` counts from 0."""

    kind: str
    place: int
    at_s: float
    for_s: float

    def __str__(self) -> str:
        place = "leader" if self.place == LEADER else self.place
        return f"{self.kind}({place}) at {self.at_s:.1f} s for {self.for_s:.1f} s"


def draw(chance: random.Random, length_s: float) -> list[Fault]:
    """One to three faults; what they do may overlap."""
    found = []
    for _ in range(chance.choice((1, 2, 2, 3))):
        kind = chance.choice(sorted(_KINDS))
        place = chance.choice([LEADER, *range(MEMBERS)])
        at_s = chance.uniform(0.1, 0.5) * length_s
        for_s = chance.uniform(0.15, 0.6) * length_s
        found.append(Fault(kind, place, at_s, min(for_s, length_s - at_s)))
    return sorted(found, key=lambda fault: fault.at_s)


def inject(cluster: Cluster, faults: list[Fault]) -> None:
    """Returns when all are undone. Raises what a fault raised."""
    errors: list[BaseException] = []
    threads = [threading.Thread(target=_one, args=(cluster, f, errors)) for f in faults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _one(cluster: Cluster, fault: Fault, errors: list[BaseException]) -> None:
    try:
        time.sleep(fault.at_s)
        undo = _KINDS[fault.kind](cluster, fault.place)
        time.sleep(fault.for_s)
        undo()
    except BaseException as error:
        errors.append(error)


def _etcd(cluster: Cluster, place: int) -> EtcdMember:
    return cluster.etcd_leader() if place == LEADER else cluster.etcd.members[place]


def _station(cluster: Cluster, place: int) -> Station:
    return cluster.leading_station() if place == LEADER else cluster.stations[place]


def _freeze_etcd(cluster: Cluster, place: int) -> Undo:
    member = _etcd(cluster, place)
    with cluster.changing:
        if member.is_running:
            member.freeze()
    return lambda: _undone(cluster, member.is_running, member.thaw)


def _kill_etcd(cluster: Cluster, place: int) -> Undo:
    member = _etcd(cluster, place)
    with cluster.changing:
        member.kill()

    def again() -> None:
        with cluster.changing:
            if not member.is_running:
                cluster.etcd.start_member(member)

    return again


def _freeze_orchestrator(cluster: Cluster, place: int) -> Undo:
    one = _station(cluster, place).orchestrator
    with cluster.changing:
        if one.is_running:
            one.freeze()
    return lambda: _undone(cluster, one.is_running, one.thaw)


def _kill_orchestrator(cluster: Cluster, place: int) -> Undo:
    one = _station(cluster, place).orchestrator
    with cluster.changing:
        one.clean_up()

    def again() -> None:
        with cluster.changing:
            if not one.is_running:
                one.start(wait=False)

    return again


def _undone(cluster: Cluster, is_running: bool, undo: Undo) -> None:
    with cluster.changing:
        if is_running:
            undo()


def _cut_store(cluster: Cluster, place: int) -> Undo:
    wires = _station(cluster, place).to_etcd
    for wire in wires:
        wire.cut()
    return lambda: _restore(wires)


def _restore(wires: list[Wire]) -> None:
    for wire in wires:
        wire.restore()


def _mute_store(cluster: Cluster, place: int) -> Undo:
    wires = _station(cluster, place).to_etcd
    for wire in wires:
        wire.mute()
    return lambda: _restore(wires)


def _cut_operators(cluster: Cluster, place: int) -> Undo:
    wire = _station(cluster, place).to_operators
    wire.cut()
    return wire.restore


def _mute_operators(cluster: Cluster, place: int) -> Undo:
    wire = _station(cluster, place).to_operators
    wire.mute()
    return wire.restore


_KINDS: dict[str, Callable[[Cluster, int], Undo]] = {
    "freeze-etcd": _freeze_etcd,
    "kill-etcd": _kill_etcd,
    "freeze-orchestrator": _freeze_orchestrator,
    "kill-orchestrator": _kill_orchestrator,
    "cut-store": _cut_store,
    "mute-store": _mute_store,
    "cut-operators": _cut_operators,
    "mute-operators": _mute_operators,
}
