"""Sites that their own operators froze: nothing is placed on, moved from or stopped at their nodes.

As a freeze of a namespace, but by place (`freezes.py`), and for as long as the override stands that
the site told of (`overrides.py`). The leader marks the nodes before it plans, and looks through the
plan once more after: `orchestrator/scheduling/guards_step.py`. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from orchestrator.domain.guard import with_places
from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.decisions import Explanation, Plan
from orchestrator.scheduling.snapshot import Node, Snapshot


def frozen_nodes(snapshot: Snapshot) -> frozenset[str]:
    """Names of the nodes of all frozen sites."""
    sites = snapshot.local.frozen
    return frozenset(node.name for node in snapshot.nodes if node.site in sites) if sites else _NONE


_NONE: frozenset[str] = frozenset()


def marked(snapshot: Snapshot) -> Snapshot:
    """Its nodes get nothing new, and nothing leaves them, whatever they do."""
    if not snapshot.local.frozen:
        return snapshot
    return replace(snapshot, nodes=tuple(_marked(node, snapshot) for node in snapshot.nodes))


def _marked(node: Node, snapshot: Snapshot) -> Node:
    freeze = snapshot.local.frozen.get(node.site)
    if freeze is None:
        return node
    why = f"freeze of site {node.site}: {freeze}"
    found = replace(node, cordoned=why, draining=False, drain_overdue=False)
    if node.liveness is not Liveness.LOST:
        return found
    return replace(found, liveness=Liveness.SILENT, suspect=why)


def without_frozen_sites(plan: Plan, snapshot: Snapshot) -> Plan:
    """The plan without what would change something there, and with a word on why."""
    still = frozen_nodes(snapshot)
    if not still:
        return plan
    plan = with_places(plan, lambda place: still.isdisjoint((place.node, place.moved_from)))
    return replace(
        plan,
        stop=tuple(stop for stop in plan.stop if still.isdisjoint((stop.node, stop.moved_to))),
        revise=tuple(revise for revise in plan.revise if revise.node not in still),
        standbys=tuple(standbys for standbys in plan.standbys if standbys.node not in still),
        explanations=(*plan.explanations, *_explained(snapshot, still)),
        finished_nodes=tuple(node for node in plan.finished_nodes if node not in still),
    )


def _explained(snapshot: Snapshot, still: frozenset[str]) -> Iterable[Explanation]:
    """For each workload that runs there."""
    sites = {node.name: node.site for node in snapshot.nodes if node.name in still}
    names: defaultdict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for node, site in sites.items():
        placement = snapshot.placements.get(node)
        for item in placement.assignments if placement is not None else ():
            names[item.namespace, item.workload, site][item.replica] = None
    for (namespace, workload, site), replicas in sorted(names.items()):
        text = f"site {site} is {snapshot.local.frozen[site]}; nothing changes there until its "
        text += f"operators unfreeze it, or `edgectl override drop site/{site}`"
        yield Explanation(namespace, workload, "SiteFrozen", text, tuple(replicas))


def set_aside(snapshot: Snapshot) -> frozenset[str]:
    """Replica uids of stays for which no rollout waits: they are stopped by operators of their
    site, or nothing changes there."""
    local = snapshot.local
    if not (local.stopped or local.frozen):
        return _NONE
    found: set[str] = set()
    sites = {site for site, _, _ in local.stopped} | local.frozen.keys()
    for node in snapshot.nodes:
        if node.site not in sites:
            continue
        placement = snapshot.placements.get(node.name)
        for item in placement.assignments if placement is not None else ():
            stopped = (node.site, item.workload_uid, item.replica) in local.stopped
            if stopped or node.site in local.frozen:
                found.add(item.replica_uid)
    return frozenset(found)
