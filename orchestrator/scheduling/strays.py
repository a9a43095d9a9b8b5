"""Stays that run on a node although no record names them, and that a newer holder has replaced.

So it comes when a node was deleted while nobody could reach it, and its box joins again: it still
runs what it last had. A stop needs evidence (ADR 4): it is asked for only where another stay of the
same replica, with a higher epoch, is ready; or where an exclusive replica is on its way to another
site, and a standby took it over before it knew. What has no such successor runs on, and is shown as
the node's condition StrayReplicas.

Pure; a part of the leader's tick (`steer.py`). The leader's world brings the strays along.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.domain.site_freezes import frozen_nodes
from orchestrator.records import AssignmentRecord, GroupRecord, NodePlacement, StopRecord
from orchestrator.scheduling.apply import GENERATION_LEAD_MAX
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.tick import Batch, Moment, Stray, Tell, World, Write
from orchestrator.store import keys
from polder import epochs

NODES_PER_TICK = 50


def recall(world: World, moment: Moment) -> tuple[Batch, ...]:
    """One for each node, with what to tell of it; of at most `NODES_PER_TICK` nodes."""
    batches: list[Batch] = []
    by_node: dict[str, list[Stray]] = {}
    for stray in world.strays:
        by_node.setdefault(stray.node, []).append(stray)
    if not by_node:
        return ()
    still = {workload.uid for workload in world.snapshot.workloads if workload.frozen}
    frozen = frozen_nodes(world.snapshot)
    newest = _newest(world.snapshot, world.strays)
    leaving = _leaving(world.snapshot, world.strays)
    for node in sorted(by_node.keys() - frozen):
        stops, tells = [], []
        for stray in by_node[node]:
            group = leaving.get(_key(stray))
            message = _cause(stray, newest.get(_key(stray)), group)
            if not message or stray.workload_uid in still:
                continue
            stops.append(stop_of(stray, Cause.MOVED, message, moment, group))
            text = f"a stay on node {node} stops: {message}"
            tells.append(Tell("Replica", stray.namespace, stray.replica, True, "StrayStops", text))
        if stops:
            before = world.snapshot.placements.get(node, NodePlacement(node))
            after = _with_stops(before, stops, by_node[node][0].generation_seen, moment)
            write = Write(keys.placement(node), after.to_bytes(), before.store_revision)
            batches.append(Batch((write,), tuple(tells)))
        if len(batches) == NODES_PER_TICK:
            break
    return tuple(batches)


def _cause(stray: Stray, holder: "_Holder | None", group: GroupRecord | None) -> str:
    """Why a stay stops; empty: it runs on."""
    if group is not None:
        return "no record names this stay; its replica is to be placed at another site"
    if holder is None or holder[1].epoch <= stray.epoch:
        return ""
    where, assignment = holder
    message = f"no record names this stay; {stray.replica} is held by node {where} "
    return message + f"(epoch {epochs.shown(assignment.epoch)})"


def unrecorded(
    strays: Iterable[Stray], snapshot: Snapshot
) -> Mapping[tuple[str, str], tuple[str, str]]:
    """Of exclusive replicas, by (workload uid, replica): (node, replica uid) of a stay that runs
    without a record. Nothing is placed beside it."""
    alone = {workload.uid for workload in snapshot.workloads if workload.failover.exclusive}
    found = {}
    for stray in strays:
        if stray.workload_uid in alone and not _is_named(stray, snapshot):
            found[stray.workload_uid, stray.replica] = (stray.node, stray.replica_uid)
    return found


def _is_named(stray: Stray, snapshot: Snapshot) -> bool:
    placement = snapshot.placements.get(stray.node, NodePlacement(stray.node))
    uids = {item.replica_uid for item in placement.assignments}
    return stray.replica_uid in uids.union(stop.replica_uid for stop in placement.stops)


_Key = tuple[str, str, str]
_Holder = tuple[str, AssignmentRecord]


def _key(stay: Stray | AssignmentRecord | StopRecord) -> _Key:
    return (stay.namespace, stay.workload_uid, stay.replica)


def _newest(snapshot: Snapshot, strays: Iterable[Stray]) -> dict[_Key, _Holder]:
    """Of the replicas of these strays the newest stay that is ready, and its node: in one walk,
    since strays without a successor come again in every tick."""
    keyed = {_key(stray) for stray in strays}
    owners = {uid for _, uid, _ in keyed}
    found: dict[_Key, _Holder] = {}
    for node, placement in snapshot.placements.items():
        for item in placement.assignments:
            if item.workload_uid not in owners or (key := _key(item)) not in keyed:
                continue
            seen = snapshot.observed.get((node, item.replica_uid))
            if seen is None or not seen.ready:
                continue
            if key not in found or found[key][1].epoch < item.epoch:
                found[key] = (node, item)
    return found


def _leaving(snapshot: Snapshot, strays: Iterable[Stray]) -> dict[_Key, GroupRecord]:
    """Of the replicas of these strays those that have no holder, and of which an exclusive stay is
    being stopped: its group."""
    keyed = {_key(stray) for stray in strays}
    found: dict[_Key, GroupRecord] = {}
    for placement in snapshot.placements.values():
        for stop in placement.stops:
            if stop.group is not None and stop.group.exclusive and _key(stop) in keyed:
                found[_key(stop)] = stop.group
    if found:
        for placement in snapshot.placements.values():
            for item in placement.assignments:
                found.pop(_key(item), None)
    return found


def stop_of(
    stay: AssignmentRecord | Stray,
    cause: Cause,
    message: str,
    moment: Moment,
    group: GroupRecord | None = None,
) -> StopRecord:
    """Of a stay that its node must end. `group`: who else may hold it, of an exclusive replica, if
    its record does not say so."""
    if isinstance(stay, AssignmentRecord) and stay.group is not None and stay.group.exclusive:
        group = stay.group
    return StopRecord(
        namespace=stay.namespace,
        workload=stay.workload,
        replica=stay.replica,
        replica_uid=stay.replica_uid,
        cause=cause.value,
        message=message,
        requested_at_ms=int(moment.now * 1000),
        workload_uid=stay.workload_uid,
        revision=stay.revision,
        group=group,
    )


def _with_stops(
    placement: NodePlacement, stops: list[StopRecord], generation_seen: int, moment: Moment
) -> NodePlacement:
    """With a generation that the agent takes, whatever plan it still has."""
    if generation_seen - placement.generation > GENERATION_LEAD_MAX:
        generation_seen = 0
    both = (*placement.stops, *stops)
    return replace(
        placement,
        generation=max(placement.generation, generation_seen) + 1,
        stops=tuple(sorted(both, key=lambda s: (s.namespace, s.replica, s.replica_uid))),
        decided_at_ms=int(moment.now * 1000),
    )
