"""Holds back a change that would stop too much at once, until an operator approves. Pure.

Mistakes reach far when automation carries them out: a count with a digit missing, a taint on every
node, a policy that nobody meets. So the stops of a plan for which nothing comes instead are counted
per fleet, namespace and site. Where they are more than `stops_max` and more than `share_max` of
what runs there, they wait. Deleting a workload or a node is explicit, and is not counted; nor are
moves, updates and the ends of jobs.

What an approval covers is named by workload, generation and cause: a later change of the same
workload asks again. The rest of the plan goes on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.holds import WORKLOADS_MAX, Hold, HoldKind, Scope, identifier
from orchestrator.domain.liveness import LOST_AFTER_S
from orchestrator.scheduling.decisions import Cause, Explanation, Place, Plan, Stop
from orchestrator.scheduling.snapshot import Snapshot

EXPLICIT = frozenset(
    {
        Cause.WORKLOAD_DELETED,
        Cause.NODE_DELETED,
        Cause.MOVED,
        Cause.REPLACEMENT_FAILED,
        Cause.UPDATED,
        Cause.COMPLETED,
        Cause.DEADLINE_EXCEEDED,
        Cause.REPLACED,
        Cause.JOB_RETRY,
        Cause.JOB_FAILED,
        Cause.IMAGE_PLATFORM,
    }
)
"""Stops that were asked for, or after which as much runs as before. All others are counted, also
those that somebody adds later."""

_WIDE_TO_NARROW = (Scope.FLEET, Scope.NAMESPACE, Scope.SITE)


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """`stops_max` stops at once are always allowed, and so is a `share_max` of what runs.

    `suspicion_s`: how long a site or region that fell silent is doubted (silence.py). `spared_s`:
    what its nodes get on top when others of them are heard again.
    """

    stops_max: int = 10
    share_max: float = 0.5
    suspicion_s: float = 600.0
    spared_s: float = LOST_AFTER_S


DEFAULT = GuardSettings()


@dataclass(frozen=True, slots=True)
class HeldBack:
    """`plan` without the held stops. `holds`: those of stops that are to stand in the Store, and no
    others; `begun`: those of them that are new."""

    plan: Plan
    holds: tuple[Hold, ...] = ()
    begun: tuple[Hold, ...] = ()


def hold_back(
    plan: Plan,
    snapshot: Snapshot,
    stored: Mapping[str, Hold],
    generations: Mapping[str, int],
    now: float,
    settings: GuardSettings = DEFAULT,
) -> HeldBack:
    """`stored`: holds by id. `generations`: of each workload's spec, by uid. `now`: unix s."""
    due = _counted(plan)
    covers = {id(stop): _cover(stop, generations) for stop in due}
    present = frozenset(covers.values())
    approved = [hold for hold in stored.values() if _lets_go(hold, present, now)]
    released = {cover for hold in approved for cover in hold.covers}
    waiting = [stop for stop in due if covers[id(stop)] not in released]
    if len(waiting) <= settings.stops_max:
        return HeldBack(plan, tuple(approved))
    held: list[Stop] = []
    holds, begun = list(approved), []
    for scope, name, stops, replicas in _excessive(waiting, snapshot, settings):
        hold = _hold(scope, name, stops, replicas, {covers[id(stop)] for stop in stops}, now)
        before = stored.get(hold.id)
        if before is None:
            begun.append(hold)
        else:
            since_ms, revision = before.since_ms, before.store_revision
            hold = replace(hold, since_ms=since_ms, store_revision=revision)
        holds.append(hold)
        held += stops
        plan = replace(plan, explanations=(*plan.explanations, *_explained(hold, stops)))
    return HeldBack(_without(plan, held, snapshot), tuple(holds), tuple(begun))


def _counted(plan: Plan) -> list[Stop]:
    """Stops for which nothing comes instead."""
    due = [stop for stop in plan.stop if not stop.moved_to and stop.cause not in EXPLICIT]
    if any(stop.cause is Cause.PREEMPTED for stop in due):
        placed = {(p.assignment.workload_uid, p.assignment.replica) for p in plan.place}
        due = [stop for stop in due if _replica(stop) not in placed]
    return due


def _replica(stop: Stop) -> tuple[str, str]:
    return (stop.assignment.workload_uid, stop.assignment.replica)


def _cover(stop: Stop, generations: Mapping[str, int]) -> str:
    uid = stop.assignment.workload_uid
    return f"{uid}:{generations.get(uid, 0)}:{stop.cause.value}"


def _lets_go(hold: Hold, present: frozenset[str], now: float) -> bool:
    """Approved, not too long ago, and of something that the plan still wants."""
    if hold.kind is not HoldKind.STOPS or not hold.approved_lately(now):
        return False
    return not present.isdisjoint(hold.covers)


def _excessive(
    waiting: Sequence[Stop], snapshot: Snapshot, settings: GuardSettings
) -> Iterable[tuple[Scope, str, list[Stop], int]]:
    """(scope, its name, its stops, replicas there), the widest first; no stop in two of them."""
    sites = {node.name: node.site for node in snapshot.nodes}

    def name_in(scope: Scope, node: str, namespace: str) -> str:
        if scope is Scope.FLEET:
            return ""
        return namespace if scope is Scope.NAMESPACE else sites.get(node, "")

    left = list(waiting)
    for scope in _WIDE_TO_NARROW:
        total = Counter(
            name_in(scope, node, item.namespace)
            for node, placement in snapshot.placements.items()
            for item in placement.assignments
        )
        groups: dict[str, list[Stop]] = {}
        for stop in left:
            name = name_in(scope, stop.node, stop.assignment.namespace)
            groups.setdefault(name, []).append(stop)
        for name, stops in sorted(groups.items()):
            if len(stops) > max(settings.stops_max, settings.share_max * total[name]):
                yield scope, name, stops, total[name]
                taken = {id(stop) for stop in stops}
                left = [stop for stop in left if id(stop) not in taken]


def _hold(
    scope: Scope, name: str, stops: Sequence[Stop], replicas: int, covers: set[str], now: float
) -> Hold:
    where = f"of {scope} {name}" if name else "of the whole fleet"
    causes = ", ".join(sorted({stop.cause.value for stop in stops}))
    workloads = sorted({f"{s.assignment.namespace}/{s.assignment.workload}" for s in stops})
    return Hold(
        id=f"stops-{identifier(scope, name, *sorted(covers))}",
        kind=HoldKind.STOPS,
        scope=scope,
        name=name,
        message=f"{len(stops)} of {replicas} replicas {where} would stop at once ({causes})",
        since_ms=int(now * 1000),
        stops=len(stops),
        replicas=replicas,
        workloads=tuple(workloads[:WORKLOADS_MAX]),
        covers=tuple(sorted(covers)),
    )


def _explained(hold: Hold, stops: Iterable[Stop]) -> Iterable[Explanation]:
    replicas: dict[tuple[str, str], list[str]] = {}
    for stop in stops:
        item = stop.assignment
        replicas.setdefault((item.namespace, item.workload), []).append(item.replica)
    message = f"{hold.message}; they run on until `edgectl approve {hold.id}`"
    for (namespace, workload), names in sorted(replicas.items()):
        yield Explanation(namespace, workload, "Held", message, tuple(sorted(names)))


def _without(plan: Plan, held: Sequence[Stop], snapshot: Snapshot) -> Plan:
    """The plan without these stops, nor what counts on the quota that they would free."""
    out = {id(stop) for stop in held}
    plan = replace(plan, stop=tuple(stop for stop in plan.stop if id(stop) not in out))
    full = {
        name
        for name in {stop.assignment.namespace for stop in held}
        if (found := snapshot.namespaces.get(name)) is not None and found.quota is not None
    }
    if not full or not plan.place:
        return plan
    moving = {_replica(stop) for stop in plan.stop if stop.moved_to}

    def may_come(place: Place) -> bool:
        item = place.assignment
        if item.namespace not in full or item.replaces:
            return True
        return (item.workload_uid, item.replica) in moving

    return with_places(plan, may_come)


def with_places(plan: Plan, keep: Callable[[Place], bool]) -> Plan:
    """The plan with only these places, and without the volumes that others would have bound."""
    gone = {
        (place.assignment.namespace, place.assignment.replica)
        for place in plan.place
        if not keep(place)
    }
    if not gone:
        return plan
    return replace(
        plan,
        place=[place for place in plan.place if keep(place)],
        bind=tuple(bind for bind in plan.bind if (bind.namespace, bind.replica) not in gone),
    )
