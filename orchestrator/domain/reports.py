"""Bounds and checks on what an agent reports. Called by the gateway for every message.

A node speaks for itself and for the replicas on it; a node that says too much costs only itself.
"""

from collections.abc import Callable, Iterable, MutableMapping
from itertools import islice

from orchestrator.records import AssignmentRecord, NodePlacement
from polder.v1 import agent_pb2, common_pb2

REPLICAS_MAX = 1_000
"""Replica states that are kept per node."""
STANDBYS_MAX = 2_000
"""As many as a plan gives it roles; see `roles.ROLES_MAX`."""
CONTAINERS_MAX = 32  # as many containers as a pod may have, and as many init containers again
EVENTS_MAX = 200
"""Events that are taken from one message."""
TEXT_MAX = 1_024
LOG_MAX = 4_096
NAME_MAX = 320
CONDITIONS_MAX = 32
NOT_READY = ("RuntimeDown",)
STOPPED_LOCALLY = "StoppedLocally"
"""The reason of a replica that operators of its site stopped."""
TERMINATING = "Terminating"
"""The reason of a replica that is about to be stopped and serves nobody any more."""

_TEXTS = ("namespace", "workload", "workload_uid", "replica", "replica_uid", "template_digest")


def bounded_status(status: agent_pb2.ReplicaStatus) -> agent_pb2.ReplicaStatus:
    """The same, with long texts cut. Changes and returns its argument."""
    for name in _TEXTS:
        _cut(status, name, NAME_MAX)
    for name in ("reason", "message", "pod_ip"):
        _cut(status, name, TEXT_MAX)
    del status.containers[CONTAINERS_MAX:]
    for container in status.containers:
        for name in ("name", "id", "state", "reason", "message", "image"):
            _cut(container, name, TEXT_MAX)
        if container.HasField("last_exit"):
            for name, limit in (("reason", TEXT_MAX), ("message", TEXT_MAX), ("last_log", LOG_MAX)):
                _cut(container.last_exit, name, limit)
    return status


def bounded_heartbeat(heartbeat: agent_pb2.Heartbeat) -> agent_pb2.Heartbeat:
    """The same, with what grows cut. Changes and returns its argument."""
    del heartbeat.conditions[CONDITIONS_MAX:]
    for condition in heartbeat.conditions:
        for name in ("type", "reason", "message"):
            _cut(condition, name, TEXT_MAX)
    return heartbeat


def on_our_clock(statuses: Iterable[agent_pb2.ReplicaStatus], now_ms: int) -> None:
    """Moves their `ready_since_ms` from the box's clock, which may be wrong by years, to ours: what
    was said just now was observed just now."""
    for status in statuses:
        if status.ready_since_ms and status.observed_at_ms:
            age_ms = max(0, status.observed_at_ms - status.ready_since_ms)
            status.ready_since_ms = max(1, now_ms - age_ms)


def merge(
    known: MutableMapping[str, agent_pb2.ReplicaStatus],
    changed: Iterable[agent_pb2.ReplicaStatus],
) -> int:
    """Takes over what changed; returns how many did not fit. What is known always gets through."""
    refused = 0
    for status in changed:
        status = bounded_status(status)
        if status.replica_uid not in known and len(known) >= REPLICAS_MAX:
            refused += 1
            continue
        known[status.replica_uid] = status
    return refused


def standbys(
    said: Iterable[agent_pb2.StandbyStatus],
) -> dict[tuple[str, str], agent_pb2.StandbyStatus]:
    """By (workload uid, replica), at most STANDBYS_MAX; long texts are cut. Copies: a part of a
    message would keep all of it in memory."""
    found: dict[tuple[str, str], agent_pb2.StandbyStatus] = {}
    for part in islice(said, STANDBYS_MAX):
        status = agent_pb2.StandbyStatus()
        status.CopyFrom(part)
        for name in ("workload_uid", "namespace", "replica", "reason"):
            _cut(status, name, NAME_MAX)
        _cut(status, "message", TEXT_MAX)
        found[status.workload_uid, status.replica] = status
    return found


def conditions_of(heartbeat: agent_pb2.Heartbeat | None) -> list[tuple[str, bool, str, str]]:
    """What of a heartbeat is visible to others: if it changes, listeners are told."""
    if heartbeat is None or not heartbeat.conditions:
        return []
    return [(c.type, c.status, c.reason, c.message) for c in heartbeat.conditions]


def unable(heartbeat: agent_pb2.Heartbeat | None) -> list[agent_pb2.NodeCondition]:
    """The conditions that make a node NotReady: it is heard of, and cannot start anything."""
    if heartbeat is None or not heartbeat.conditions:
        return []
    return [c for c in heartbeat.conditions if c.status and c.type in NOT_READY]


def event_object(
    event: common_pb2.Event,
    placement: NodePlacement,
    shares: Callable[[], Iterable[AssignmentRecord]] = tuple,
) -> tuple[str, str, str, str] | None:
    """(kind, namespace, name, prefix for the message) that an agent's event may be about.

    A replica that no record puts on this node, and that it has no role in (`shares`), is told as
    the node's own event: it may be an orphan, and it may be a lie about somebody else's. None: not
    an agent's to speak about.
    """
    ref = event.object
    if ref.kind == "Node":
        return ("Node", "", placement.node, "") if ref.name in ("", placement.node) else None
    mine = [(r.namespace, r.workload, r.replica) for r in placement.assignments]
    mine += [(r.namespace, r.workload, r.replica) for r in placement.stops]
    if ref.kind == "Replica":
        named = {(namespace, replica) for namespace, _, replica in mine}
        named |= {(item.namespace, item.replica) for item in shares()}
        if (ref.namespace, ref.name) in named:
            return (ref.kind, ref.namespace, ref.name, "")
        return ("Node", "", placement.node, f"{ref.namespace}/{ref.name}"[:NAME_MAX] + ": ")
    if ref.kind == "Workload" and any(
        (namespace, workload) == (ref.namespace, ref.name) for namespace, workload, _ in mine
    ):
        return (ref.kind, ref.namespace, ref.name, "")
    return None


def _cut(message: object, name: str, limit: int) -> None:
    text = getattr(message, name)
    if len(text) > limit:
        setattr(message, name, text[:limit])
