"""`plan(snapshot, now) -> Plan`: the whole of scheduling, without I/O, clock or dice.

The leader (`orchestrator/leader.py`) calls it with what the Store and the agents say and commits
the answer; tests and `bench/` call it with worlds that they make up.
"""

from collections.abc import Iterable

from orchestrator.records import NodePlacement
from orchestrator.scheduling.decisions import Cause, Plan, Stop, Unbind
from orchestrator.scheduling.demands import Demands
from orchestrator.scheduling.desired import is_indexed
from orchestrator.scheduling.first import place_first
from orchestrator.scheduling.holders import Holders, answers, find_holders
from orchestrator.scheduling.part import Planning
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import Mode, Snapshot, Workload
from orchestrator.scheduling.table import NodeTable
from orchestrator.scheduling.workload_plan import WorkloadPlan
from polder import epochs


def plan(snapshot: Snapshot, now: float, seed: int = 0) -> Plan:
    """What to place, move, stop and update, and why the rest is as it is.

    `now` (unix seconds) decides which certificates are over. `seed` breaks ties between nodes that
    are equally good.

    A snapshot that is incomplete, or that knows no node at all, stops nothing.
    """
    if not snapshot.complete:
        return Plan(snapshot.revision)
    table = NodeTable(snapshot.nodes, snapshot.sites, now, seed)
    holders = find_holders(snapshot, table)
    planning = Planning(snapshot, table, holders, now)
    out = planning.out
    frozen = frozen_workloads(snapshot) if holders.superseded else ()
    for older, newer in holders.superseded:
        if older.record.workload_uid in frozen:
            continue
        message = f"epoch {epochs.shown(newer.record.epoch)} of it is on node {newer.node}"
        out.stop.append(Stop(older.node, older.record, Cause.MOVED, message))
    out.stop += _endings(snapshot, holders)
    finished = []
    followers: list[WorkloadPlan] = []
    for workload in in_order(snapshot.workloads):
        held = holders.by_workload.get(workload.uid)
        if workload.deleting and not held and workload.uid not in holders.stopping:
            finished.append(workload.uid)
            continue
        if not workload.deleting and follows_others(workload):
            followers.append(WorkloadPlan(planning, workload))
            followers[-1].change_held()
            followers[-1].place_some()
        else:
            decide(planning, workload)
    _place_followers(followers)
    return Plan(
        revision=snapshot.revision,
        place=out.place,
        stop=tuple(out.stop) if snapshot.nodes else (),
        revise=tuple(out.revise),
        standbys=tuple(out.standbys),
        bind=tuple(out.bind),
        unbind=_unbound(snapshot, table),
        noncompliant=tuple(out.noncompliant),
        prune=_prunable(snapshot, holders),
        refresh=tuple(
            sorted(
                snapshot.ahead
                | snapshot.reroled
                | Carried(snapshot).outdated()
                | Demands(snapshot).outdated()
            )
        ),
        explanations=tuple(out.explanations),
        desired=tuple(out.desired),
        orphans=tuple(holders.orphans),
        finished_workloads=tuple(finished),
        finished_nodes=_finished_nodes(snapshot, table, holders),
    )


def _endings(snapshot: Snapshot, holders: Holders) -> list[Stop]:
    """Stays that their jobs want to stop. What becomes of a job is decided before the plan."""
    jobs = {job.uid: job for job in snapshot.workloads if job.ending and not job.frozen}
    found = []
    for holder in holders.apart:
        job = jobs.get(holder.record.workload_uid)
        if job is not None and holder.record.replica_uid in job.ending:
            cause, message = job.ending[holder.record.replica_uid]
            found.append(Stop(holder.node, holder.record, Cause(cause), message))
    return found


def frozen_workloads(snapshot: Snapshot) -> frozenset[str]:
    """Uids of the workloads about which nothing may change, by themselves or by namespace."""
    closed = {name for name, namespace in snapshot.namespaces.items() if namespace.frozen}
    return frozenset(
        workload.uid
        for workload in snapshot.workloads
        if workload.frozen or (closed and workload.namespace in closed)
    )


def _unbound(snapshot: Snapshot, table: NodeTable) -> tuple[Unbind, ...]:
    """Data that went with its node. A snapshot without any node says nothing of nodes."""
    if not snapshot.nodes:
        return ()
    gone = ((key, node) for key, node in snapshot.volumes.items() if node not in table.index)
    return tuple(Unbind(namespace, name, node) for (namespace, name), node in sorted(gone))


def follows_others(workload: Workload) -> bool:
    """Whether it may have to wait for another workload's place."""
    return any(rule.required for rule in workload.placement.affinity)


def _place_followers(followers: list[WorkloadPlan]) -> None:
    """Once more when all have had their turn, so that one plan is enough whoever comes first; in
    rounds, since a follower may be followed."""
    while any(part.place_some() for part in followers):
        pass
    for part in followers:
        part.finish()


def decide(planning: Planning, workload: Workload) -> None:
    """All that is to be done about one workload."""
    if workload.deleting:
        WorkloadPlan(planning, workload).delete()
    elif not place_first(planning, workload):
        WorkloadPlan(planning, workload).decide()


def in_order(workloads: Iterable[Workload]) -> list[Workload]:
    """The order in which workloads are decided on: the more urgent first."""
    return sorted(workloads, key=_urgency)


def _urgency(workload: Workload) -> tuple[int, int, str, str]:
    """Higher priority first, then who came first; names only break ties."""
    return (-workload.priority, workload.created_at_ms, workload.namespace, workload.name)


def _prunable(snapshot: Snapshot, holders: Holders) -> tuple[tuple[str, str], ...]:
    """Stops that are done. Of an exclusive replica it is known from them what is not over."""
    remaining = holders.remaining
    return tuple(
        (placement.node, stop.replica_uid)
        for _, placement in sorted(snapshot.placements.items())
        for stop in placement.stops
        if (placement.node, stop.replica_uid) in snapshot.gone and stop.replica_uid not in remaining
    )


def _is_wanted(workload: Workload | None, replica: str) -> bool:
    if workload is None or workload.mode is not Mode.REPLICAS:
        return workload is not None
    return is_indexed(workload, replica)


def _finished_nodes(snapshot: Snapshot, table: NodeTable, holders: Holders) -> tuple[str, ...]:
    """Deleted nodes that hold nothing, and of whose stops nothing more will be heard or is due.

    What may still run there of an exclusive replica is due until another stay has its name: in the
    same site, which that can only have by the lease, or by an operator's word.
    """
    finished = []
    wanted = {workload.uid: workload for workload in snapshot.workloads if not workload.deleting}
    for node in sorted(table.nodes, key=lambda node: node.name):
        if not node.deleting:
            continue
        placement = snapshot.placements.get(node.name, NodePlacement(node.name))
        waits = any((node.name, stop.replica_uid) not in snapshot.gone for stop in placement.stops)
        if any(
            holders.is_awaited(stop) and _is_wanted(wanted.get(stop.workload_uid), stop.replica)
            for stop in placement.stops
        ):
            continue
        if not placement.assignments and not (waits and answers(node)):
            finished.append(node.name)
    return tuple(finished)
