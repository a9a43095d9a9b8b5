"""What a world comes to when agents do as they are told: plan, obey, plan again, until it rests.

Pure. Used for `edgectl plan` and `edgectl simulate`, which compare where two worlds come to rest: a
replacement starts before the old one stops, so a single plan shows only the first half of a move.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord, NodePlacement
from orchestrator.scheduling.apply import applied, by_node
from orchestrator.scheduling.decisions import Cause, Explanation, Plan
from orchestrator.scheduling.demands import Demands
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import Observed, Snapshot

ROUNDS_MAX = 60

ReplicaKey = tuple[str, str]
"""(workload uid, replica name)."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A replica on a node."""

    node: str
    assignment: AssignmentRecord


@dataclass(slots=True)
class Outlook:
    """Where a world comes to rest. `rests` False: the look ahead ended before.

    `causes` is why a replica last left a node.
    """

    stays: dict[ReplicaKey, Stay] = field(default_factory=dict)
    causes: dict[ReplicaKey, Cause] = field(default_factory=dict)
    explanations: tuple[Explanation, ...] = ()
    rests: bool = False


def outlook(
    snapshot: Snapshot, now: float, seed: int = 0, enough: Callable[[], bool] = lambda: False
) -> Outlook:
    """Ends early when `enough` says so. Of updates in turn only the first rounds are played:
    where a replica is does not depend on them."""
    found = Outlook()
    world = _obeyed(snapshot)
    for _ in range(ROUNDS_MAX):
        decided = plan(world, now, seed)
        found.explanations = decided.explanations
        if not (decided.place or decided.stop or decided.finished_workloads):
            found.rests = True
            break
        for stop in decided.stop:
            key = (stop.assignment.workload_uid, stop.assignment.replica)
            found.causes[key] = stop.cause
        world = _after(world, decided)
        if enough():
            break
    found.stays = stays(world)
    return found


def stays(snapshot: Snapshot) -> dict[ReplicaKey, Stay]:
    """Every replica that has a node; of two holders the newer."""
    found: dict[ReplicaKey, Stay] = {}
    for name, placement in snapshot.placements.items():
        for item in placement.assignments:
            key = (item.workload_uid, item.replica)
            before = found.get(key)
            if before is None or before.assignment.epoch < item.epoch:
                found[key] = Stay(name, item)
    return found


def _obeyed(snapshot: Snapshot) -> Snapshot:
    """Every live agent runs what its plan says, and has stopped what it says."""
    live = {node.name for node in snapshot.nodes if node.liveness is Liveness.LIVE}
    ready: dict[int, Observed] = {}
    observed = {}
    gone = set()
    for name, placement in snapshot.placements.items():
        if name not in live:
            continue
        for item in placement.assignments:
            seen = ready.setdefault(item.revision, Observed(True, True, item.revision))
            observed[(name, item.replica_uid)] = seen
        gone |= {(name, stop.replica_uid) for stop in placement.stops}
    return replace(
        snapshot,
        observed=observed,
        foreign=frozenset(),
        gone=frozenset(gone),
        using=frozenset(live),
    )


def _after(snapshot: Snapshot, decided: Plan) -> Snapshot:
    placements = dict(snapshot.placements)
    demands, carried = Demands(snapshot), Carried(snapshot)
    for node, change in by_node(decided).items():
        after = applied(placements.get(node, NodePlacement(node)), change, now_ms=0)
        placements[node] = replace(
            after,
            secrets_digest=carried.digest(node, after.assignments),
            demands_digest=demands.digest(node, after.assignments),
        )
    finished = frozenset(decided.finished_workloads)
    workloads = tuple(item for item in snapshot.workloads if item.uid not in finished)
    # Epochs come from the revision: what is decided later counts more.
    following = replace(
        snapshot, placements=placements, workloads=workloads, revision=snapshot.revision + 1
    )
    return _obeyed(following)
