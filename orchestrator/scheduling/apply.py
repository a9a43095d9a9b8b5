"""A node's placement after a plan: the record that the leader writes, made without I/O."""

from dataclasses import dataclass, field, replace

from orchestrator.records import AssignmentRecord, NodePlacement, StopRecord
from orchestrator.scheduling.decisions import Bind, Place, Plan, Revise, Standbys, Stop

GENERATION_LEAD_MAX = 1_000_000_000
"""An agent that claims to be further ahead is broken: following it would run out of numbers."""


@dataclass(slots=True)
class NodeChange:
    """What a plan says of one node."""

    place: list[Place]
    stop: list[Stop]
    revise: list[Revise]
    prune: set[str]
    refresh: bool = False
    standbys: list[Standbys] = field(default_factory=list)
    bind: list[Bind] = field(default_factory=list)

    def without_moves_away(self) -> "NodeChange":
        """The part that does not depend on another node's record."""
        staying = [stop for stop in self.stop if not stop.moved_to]
        return replace(self, stop=staying)

    def with_volumes_up_to(self, count: int) -> "NodeChange":
        """The part that records at most so many volumes. The next plan finds the rest again."""
        left, late = count, set[tuple[str, str]]()
        for bind in self.bind:
            left -= len(bind.volumes)
            if left < 0:
                late.add((bind.namespace, bind.replica))
        if not late:
            return self

        def is_late(item: AssignmentRecord) -> bool:
            return (item.namespace, item.replica) in late

        return replace(
            self,
            place=[place for place in self.place if not is_late(place.assignment)],
            revise=[revise for revise in self.revise if not is_late(revise.assignment)],
            bind=[bind for bind in self.bind if (bind.namespace, bind.replica) not in late],
        )

    @property
    def is_empty(self) -> bool:
        return not (
            self.place
            or self.stop
            or self.revise
            or self.prune
            or self.refresh
            or self.standbys
            or self.bind
        )


def by_node(plan: Plan) -> dict[str, NodeChange]:
    """The plan, turned to the nodes that it concerns."""
    changes: dict[str, NodeChange] = {}

    def of(node: str) -> NodeChange:
        return changes.setdefault(node, NodeChange([], [], [], set()))

    for place in plan.place:
        of(place.node).place.append(place)
    for stop in plan.stop:
        of(stop.node).stop.append(stop)
    for revise in plan.revise:
        of(revise.node).revise.append(revise)
    for standbys in plan.standbys:
        of(standbys.node).standbys.append(standbys)
    for bind in plan.bind:
        of(bind.node).bind.append(bind)
    for node, uid in plan.prune:
        of(node).prune.add(uid)
    for node in plan.refresh:
        of(node).refresh = True
    return changes


def applied(
    placement: NodePlacement, change: NodeChange, now_ms: int, generation_seen: int = 0
) -> NodePlacement:
    """The placement with the change made and a new generation, in a fixed order of replicas.

    `generation_seen` is what the agent says it uses. It is ahead only when the store was restored
    from a backup; the new generation then has to pass it, or the agent would drop the plan as old.
    """
    stopping = {stop.assignment.replica_uid for stop in change.stop}
    revised = {revise.assignment.replica_uid: revise.revision for revise in change.revise}
    shared = {found.assignment.replica_uid: found for found in change.standbys}
    assignments = [
        replace(
            item,
            revision=revised.get(item.replica_uid, item.revision),
            standbys=shared[item.replica_uid].standbys
            if item.replica_uid in shared
            else item.standbys,
            group=shared[item.replica_uid].group if item.replica_uid in shared else item.group,
        )
        for item in placement.assignments
        if item.replica_uid not in stopping
    ]
    assignments += [place.assignment for place in change.place]
    present = {item.replica_uid for item in placement.assignments}
    stops = [stop for stop in placement.stops if stop.replica_uid not in change.prune]
    stops += [
        _stop_record(stop, now_ms) for stop in change.stop if stop.assignment.replica_uid in present
    ]
    if generation_seen - placement.generation > GENERATION_LEAD_MAX:
        generation_seen = 0
    return replace(
        placement,
        generation=max(placement.generation, generation_seen) + 1,
        assignments=tuple(sorted(assignments, key=lambda a: (a.namespace, a.replica, a.epoch))),
        stops=tuple(sorted(stops, key=lambda s: (s.namespace, s.replica, s.replica_uid))),
        decided_at_ms=now_ms,
    )


def _stop_record(stop: Stop, now_ms: int) -> StopRecord:
    assignment = stop.assignment
    group, message = assignment.group, stop.message
    if stop.moved_to and stop.moved_to != stop.node:
        message += f"; it moves to {stop.moved_to}"
    return StopRecord(
        namespace=assignment.namespace,
        workload=assignment.workload,
        replica=assignment.replica,
        replica_uid=assignment.replica_uid,
        cause=stop.cause.value,
        message=message,
        requested_at_ms=now_ms,
        workload_uid=assignment.workload_uid,
        revision=assignment.revision,
        group=group if group is not None and group.exclusive else None,
    )
