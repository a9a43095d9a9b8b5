"""One run: clients call while faults come and go; then all is healed, read, and checked."""

import random
import time
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.checker import Violation, check
from tests.faults.clients import Caller, Session
from tests.faults.cluster import Cluster
from tests.faults.history import Operation
from tests.faults.injecting import Fault, draw, inject

CLIENTS = 6
KEYS = 4
LENGTH_S = 4.0
FINAL_S = 20.0


@dataclass(slots=True)
class Run:
    """What one run came to. Seconds count from its begin."""

    number: int
    seed: int
    faults: list[Fault]
    history: list[Operation] = field(default_factory=list)
    refused: int = 0
    violations: list[Violation] = field(default_factory=list)
    took_s: float = 0.0
    gap_s: float = 0.0  # the longest without an acknowledged write

    def count(self, outcome: str) -> int:
        return sum(1 for one in self.history if one.outcome == outcome)

    @property
    def old(self) -> int:
        return sum(1 for one in self.history if one.age_s)


def run(cluster: Cluster, seed: int, number: int) -> Run:
    """`seed` and `number` give the same draw each time."""
    chance = random.Random(f"{seed}/{number}")
    result = Run(number, seed, draw(chance, LENGTH_S))
    begun = time.monotonic()
    # Names are never used twice: a run that begins late finds nothing of an earlier one.
    keys = [f"r{time.time_ns() // 1_000_000:x}-{key}" for key in range(KEYS)]
    connection = cluster.connection()
    callers = []
    for client in range(CLIENTS):
        turn = client % len(cluster.endpoints)
        endpoints = cluster.endpoints[turn:] + cluster.endpoints[:turn]
        session = Session(client, connection, endpoints)
        own = random.Random(f"{seed}/{number}/{client}")
        callers.append(Caller(session, keys, own, begun + LENGTH_S))
    for caller in callers:
        caller.start()
    try:
        inject(cluster, result.faults)
    finally:
        for caller in callers:
            caller.join()
        cluster.heal()
    for caller in callers:
        if caller.error is not None:
            raise caller.error
        result.history += caller.seen
        result.refused += caller.refused
    result.history += _final(cluster, keys)
    result.gap_s = _gap_s(result.history, begun)
    result.violations = check(result.history)
    result.took_s = time.monotonic() - begun
    return result


def _final(cluster: Cluster, keys: list[str]) -> list[Operation]:
    """Every key as every member has it in the end. Raises AssertionError when one stays old."""
    found: list[Operation] = []
    for number, endpoint in enumerate(cluster.endpoints):
        session = Session(CLIENTS + number, cluster.connection(), [endpoint])
        deadline = time.monotonic() + FINAL_S
        try:
            for key in keys:
                while (seen := session.get(key)) is None or seen.age_s or seen.outcome == "unknown":
                    assert time.monotonic() < deadline, f"member {number + 1} stays old: {seen}"
                    time.sleep(0.05)
                found.append(seen)
        finally:
            session.close()
    return found


def _gap_s(history: list[Operation], begun: float) -> float:
    acknowledged = sorted(
        one.returned
        for one in history
        if one.kind != "get" and one.outcome not in ("unknown", "absent")
    )
    return max((b - a for a, b in pairwise([begun, *acknowledged])), default=0.0)
