"""Who runs where, kept up to date from the mirror: what views and relays look up.

The mirror holds placements by node; operators ask by workload and by replica.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.cache import Cache, Change
from orchestrator.records import (
    AssignmentRecord,
    NodePlacement,
    StopRecord,
    StoredResource,
)
from orchestrator.store import keys
from polder.manifest import PodTemplate

WorkloadKey = tuple[str, str]
ReplicaKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica that a node must run."""

    node: str
    assignment: AssignmentRecord


@dataclass(frozen=True, slots=True)
class Stopping:
    """A replica that must leave a node."""

    node: str
    stop: StopRecord


@dataclass(slots=True)
class WorkloadPlacement:
    """All of one workload. Keys are replica uids: during a move one replica has two."""

    placed: dict[str, Placed] = field(default_factory=dict)
    stopping: dict[str, Stopping] = field(default_factory=dict)


_NOTHING = WorkloadPlacement()


class PlacementIndex:
    """Make it before the mirror starts, so that it sees the first read."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._workloads: defaultdict[WorkloadKey, WorkloadPlacement] = defaultdict(
            WorkloadPlacement
        )
        self._replicas: dict[ReplicaKey, dict[str, Placed]] = {}
        self._site_nodes: defaultdict[str, set[str]] = defaultdict(set)
        self._names: dict[str, WorkloadKey] = {}
        self._requests: dict[tuple[str, int], dict[str, int]] = {}
        cache.subscribe(self._on_changes)

    def workload(self, namespace: str, name: str) -> WorkloadPlacement:
        return self._workloads.get((namespace, name), _NOTHING)

    def name_of(self, workload_uid: str) -> WorkloadKey | None:
        return self._names.get(workload_uid)

    def replica(self, namespace: str, name: str) -> Placed | None:
        """Where the replica is assigned; while a replacement starts, the one that still serves."""
        found = self._replicas.get((namespace, name))
        if not found:
            return None
        newest = max(found.values(), key=lambda placed: placed.assignment.epoch)
        replaced = newest.assignment.replaces
        return next((p for p in found.values() if p.assignment.replica_uid == replaced), newest)

    def nodes_at(self, site: str) -> set[str]:
        return self._site_nodes.get(site, set())

    def allocated(self, placement: NodePlacement) -> dict[str, int]:
        """What the node's assignments have reserved: cpuMillis, memoryBytes, diskBytes, and a
        number for each device."""
        total: dict[str, int] = {"cpuMillis": 0, "memoryBytes": 0, "diskBytes": 0}
        for item in placement.assignments:
            for name, amount in self._request(item.workload_uid, item.revision).items():
                total[name] = total.get(name, 0) + amount
        return total

    def _request(self, workload_uid: str, revision: int) -> dict[str, int]:
        key = (workload_uid, revision)
        found = self._requests.get(key)
        if found is None:
            template = self._cache.revision_of(workload_uid, revision)
            if template is None:
                return {}
            found = self._requests[key] = requested(template.decoded)
        return found

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change.previous, NodePlacement):
                self._remove(change.previous)
            if isinstance(change.value, NodePlacement):
                self._add(change.value)
            if change.key.startswith(_NODES):
                self._move_node(change)
            elif change.key.startswith(_WORKLOADS):
                self._name(change)
            elif change.key.startswith(keys.REVISIONS) and change.value is None:
                uid, _, number = change.key.removeprefix(keys.REVISIONS).partition("/")
                self._requests.pop((uid, int(number)), None)

    def _add(self, placement: NodePlacement) -> None:
        for item in placement.assignments:
            placed = Placed(placement.node, item)
            self._workloads[item.namespace, item.workload].placed[item.replica_uid] = placed
            self._replicas.setdefault((item.namespace, item.replica), {})[item.replica_uid] = placed
        for stop in placement.stops:
            stopping = Stopping(placement.node, stop)
            self._workloads[stop.namespace, stop.workload].stopping[stop.replica_uid] = stopping

    def _remove(self, placement: NodePlacement) -> None:
        """Only what still is this node's: another node may have taken the replica already."""
        for item in placement.assignments:
            workload = self._workloads[item.namespace, item.workload]
            found = workload.placed.get(item.replica_uid)
            if found is not None and found.node == placement.node:
                del workload.placed[item.replica_uid]
            current = self._replicas.get((item.namespace, item.replica), {})
            if (stay := current.get(item.replica_uid)) and stay.node == placement.node:
                del current[item.replica_uid]
            if not current:
                self._replicas.pop((item.namespace, item.replica), None)
            self._forget_empty(item.namespace, item.workload)
        for stop in placement.stops:
            self._workloads[stop.namespace, stop.workload].stopping.pop(stop.replica_uid, None)
            self._forget_empty(stop.namespace, stop.workload)

    def _forget_empty(self, namespace: str, workload: str) -> None:
        found = self._workloads[namespace, workload]
        if not found.placed and not found.stopping:
            del self._workloads[namespace, workload]

    def _name(self, change: Change) -> None:
        if isinstance(change.previous, StoredResource):
            self._names.pop(change.previous.uid, None)
        if isinstance(change.value, StoredResource):
            self._names[change.value.uid] = (change.value.namespace, change.value.name)

    def _move_node(self, change: Change) -> None:
        if isinstance(change.previous, StoredResource):
            self._site_nodes[str(change.previous.spec.get("site"))].discard(change.previous.name)
        if isinstance(change.value, StoredResource):
            self._site_nodes[str(change.value.spec.get("site"))].add(change.value.name)


_NODES = keys.spec_prefix("Node")
_WORKLOADS = keys.spec_prefix("Workload")


def requested(template: PodTemplate) -> dict[str, int]:
    """The sum of what a template's containers reserve."""
    total: dict[str, int] = {"cpuMillis": 0, "memoryBytes": 0, "diskBytes": 0}
    for container in template.containers:
        need = container.resources
        total["cpuMillis"] += need.cpu
        total["memoryBytes"] += need.memory
        total["diskBytes"] += need.disk
        for name, count in need.devices.items():
            total[name] = total.get(name, 0) + count
    return total
