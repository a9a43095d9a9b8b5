"""The short way for a workload of one replica that is placed for the first time.

`plan()` tries it before it makes a `WorkloadPlan`: nothing is held, so nothing can be too much,
move or change. Whatever is not as simple as that, or finds no node, goes the long way.
"""

from orchestrator.scheduling.part import Planning
from orchestrator.scheduling.placements import Batch
from orchestrator.scheduling.reasons import NO_POLICY, Need
from orchestrator.scheduling.snapshot import Mode, Namespace, Workload

_FREE = Namespace("")
_FIRST = (0,)


def place_first(planning: Planning, workload: Workload) -> bool:
    """Whether it was placed."""
    snapshot, where = planning.snapshot, workload.placement
    namespace = snapshot.namespaces.get(workload.namespace, _FREE)
    template = snapshot.templates.get((workload.uid, workload.revision))
    if (
        template is None
        or workload.count != 1
        or workload.mode is not Mode.REPLICAS
        or where.spread is not None
        or where.prefer_green
        or workload.failover.standbys
        or workload.failover.exclusive
        or not namespace.readable
        or namespace.frozen
        or template.demands
        or template.local_volumes
        or workload.stable
        or workload.held_elsewhere
        or workload.frozen
        or workload.indexes is not None
        or namespace.quota is not None
        or planning.neighbours.active
        or workload.uid in planning.holders.by_workload
    ):
        return False
    floor = namespace.floor if namespace is not _FREE else NO_POLICY
    need = Need(where, template, workload.sovereignty, floor)
    row = planning.placer.single.choose(need, namespace.pack)
    if row is None:
        planning.placer.nowhere_for = workload.uid
        return False
    planning.out.place.add(Batch(workload, _FIRST, (row,)))
    planning.out.desired.append((workload.uid, 1))
    return True
