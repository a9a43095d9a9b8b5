"""What operators see as status: composed when read, from the mirror and from what agents say. Pure.

Every part carries its age and its source, and what has not been heard of within its interval is
Unknown: never a confident stale answer. Shapes are JSON with camelCase keys; edgectl relies on
them. Times are unix milliseconds; 0 means never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.api.index import Placed, Stopping, WorkloadPlacement
from orchestrator.domain import reports
from orchestrator.domain.liveness import Liveness, NodeLiveness
from orchestrator.fleet import NodeObservation
from orchestrator.records import IdentityRecord, NodePlacement, NodeStatusRecord, StoredResource
from polder.v1 import agent_pb2

Status = dict[str, Any]

_PHASES = {
    agent_pb2.REPLICA_PHASE_PENDING: "Pending",
    agent_pb2.REPLICA_PHASE_RUNNING: "Running",
    agent_pb2.REPLICA_PHASE_STOPPING: "Stopping",
    agent_pb2.REPLICA_PHASE_STOPPED: "Stopped",
    agent_pb2.REPLICA_PHASE_ORPHANED: "Running",
}
_NOTHING = agent_pb2.Heartbeat()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that is known of one node."""

    liveness: NodeLiveness
    observation: NodeObservation | None
    reported: NodeStatusRecord | None
    placement: NodePlacement
    allocated: Mapping[str, int]
    identity: IdentityRecord | None


def node_status(facts: NodeFacts) -> Status:
    """`ready` None: nobody knows now."""
    seen = facts.observation
    heartbeat = seen.heartbeat if seen is not None and seen.heartbeat else _NOTHING
    revoked = facts.identity is not None and facts.identity.revoked_at_ms > 0
    ready, reason, message = _node_readiness(facts, heartbeat, revoked)
    amounts = dict(facts.allocated)
    return {
        "ready": ready,
        "reason": reason,
        "message": message,
        "lastSeenAt": _ms(seen.last_seen) if seen else 0,
        "sinceAt": _node_since(facts),
        "source": f"gateway/{seen.member}" if seen and seen.member else "",
        "session": bool(seen and seen.connected),
        "agentVersion": _agent_version(facts),
        "inventory": facts.reported.inventory if facts.reported else {},
        "inventoryAt": facts.reported.reported_at_ms if facts.reported else 0,
        "usage": _usage(heartbeat.usage) if seen and seen.heartbeat else {},
        "conditions": [_condition(c, facts.placement.node) for c in heartbeat.conditions],
        "allocated": {
            "cpuMillis": amounts.pop("cpuMillis", 0),
            "memoryBytes": amounts.pop("memoryBytes", 0),
            "diskBytes": amounts.pop("diskBytes", 0),
            "devices": amounts,
        },
        "replicas": len(facts.placement.assignments),
        "planGeneration": facts.placement.generation,
        "ackedGeneration": seen.acked_generation if seen else 0,
        "planError": seen.plan_error if seen else "",
        "revoked": revoked,
        "certificateExpiresAt": _expiry(facts.identity),
    }


def _node_readiness(
    facts: NodeFacts, heartbeat: agent_pb2.Heartbeat, revoked: bool
) -> tuple[bool | None, str, str]:
    if revoked and facts.identity is not None:
        return False, "Revoked", facts.identity.revoked_reason
    if facts.liveness.state is Liveness.NEVER_SEEN:
        return None, "NeverConnected", "it has joined and has not connected yet"
    if facts.liveness.state is not Liveness.LIVE:
        seen = facts.observation
        if seen is None or not seen.last_seen:
            return None, "NotReported", "it has not reported since this orchestrator started"
        return None, "Silent", "no word from its agent"
    for condition in reports.unable(heartbeat):
        return False, condition.type, condition.message
    return True, "", ""


def _node_since(facts: NodeFacts) -> int:
    """Since when it is as it is: in contact since it connected, unable since its agent said so,
    or out of contact since."""
    seen = facts.observation
    if facts.liveness.state is Liveness.LIVE and seen is not None:
        unable = [condition.since_ms for condition in reports.unable(seen.heartbeat)]
        return min(unable, default=_ms(seen.connected_at))
    return _ms(facts.liveness.since)


def _agent_version(facts: NodeFacts) -> str:
    if facts.observation is not None and facts.observation.agent_version:
        return facts.observation.agent_version
    return facts.reported.agent_version if facts.reported else ""


def _usage(usage: agent_pb2.Usage) -> Status:
    return {
        "cpuMillis": usage.cpu_millis,
        "memoryBytes": usage.memory_bytes,
        "diskBytes": usage.disk_bytes,
        "networkRxBytes": usage.network_rx_bytes,
        "networkTxBytes": usage.network_tx_bytes,
        "temperatureCelsius": usage.temperature_celsius,
        "batteryPercent": usage.battery_percent,
        "onBattery": usage.on_battery,
    }


def _condition(condition: agent_pb2.NodeCondition, node: str) -> Status:
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "sinceAt": condition.since_ms,
        "source": f"agent/{node}",
    }


def _expiry(identity: IdentityRecord | None) -> int:
    return max(identity.serials.values(), default=0) if identity is not None else 0


# --- replicas -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a replica's status needs of its node."""

    liveness: NodeLiveness
    observation: NodeObservation | None

    @property
    def observed_at_ms(self) -> int:
        return _ms(self.observation.last_seen) if self.observation else 0


def replica_status(
    node: str, uid: str, host_ports: Sequence[int], view: NodeView, stopping: str = ""
) -> Status:
    """`stopping`: why it must leave its node; empty when it must run."""
    status = _empty_replica(node, host_ports)
    status["observedAt"] = view.observed_at_ms
    seen = view.observation
    heard = view.liveness.state is Liveness.LIVE and seen is not None and seen.complete
    found = seen.replicas.get(uid) if seen is not None else None
    if found is not None:
        _add_reported(status, found)
    if not heard or seen is None:
        never = seen is None or not seen.last_seen
        status["phase"], status["ready"] = "Unknown", False
        status["reason"] = "NotReported" if never else "NodeSilent"
        status["message"] = f"no word from node {node}" + (
            " since this orchestrator started" if never else ""
        )
    elif found is None and stopping:
        status["phase"] = "Stopped"
    elif found is None:
        status["reason"] = "PlanRefused" if seen.plan_error else "NotStarted"
        status["message"] = seen.plan_error or f"node {node} has not taken it up yet"
    if stopping and status["phase"] in ("Pending", "Running"):
        status["phase"], status["ready"], status["reason"] = "Stopping", False, stopping
    return status


def unplaced_status(explanation: Mapping[str, Any] | None, now_ms: int) -> Status:
    """Of a replica without a node, with the leader's words for why."""
    status = _empty_replica("", ())
    reasons = explanation["reasons"] if explanation else []
    status["phase"] = "Unplaced"
    status["reason"] = str(reasons[0]["reason"]) if reasons else "NotPlaced"
    status["message"] = str(explanation["message"]) if explanation else "waits to be placed"
    status["source"] = "leader"
    status["observedAt"] = now_ms
    return status


def _empty_replica(node: str, host_ports: Sequence[int]) -> Status:
    return {
        "phase": "Pending",
        "ready": False,
        "reason": "",
        "message": "",
        "restarts": 0,
        "podIp": "",
        "startedAt": 0,
        "observedAt": 0,
        "source": f"agent/{node}" if node else "",
        "containers": [],
        "node": node,
        "hostPorts": list(host_ports),
    }


def _add_reported(status: Status, found: agent_pb2.ReplicaStatus) -> None:
    status.update(
        phase=_PHASES.get(found.phase, "Pending"),
        ready=found.ready,
        reason=found.reason,
        message=found.message,
        restarts=found.restarts,
        podIp=found.pod_ip,
        startedAt=found.started_at_ms,
        containers=[_container(container) for container in found.containers],
    )


def _container(container: agent_pb2.ContainerStatus) -> Status:
    status: Status = {
        "name": container.name,
        "id": container.id,
        "state": container.state,
        "ready": container.ready,
        "restarts": container.restarts,
        "reason": container.reason,
        "message": container.message,
        "startedAt": container.started_at_ms,
        "finishedAt": container.finished_at_ms,
        "exitCode": container.exit_code,
        "image": container.image,
    }
    if container.HasField("last_exit"):
        last = container.last_exit
        status["lastExit"] = {
            "exitCode": last.exit_code,
            "reason": last.reason,
            "message": last.message,
            "startedAt": last.started_at_ms,
            "finishedAt": last.finished_at_ms,
            "lastLog": last.last_log,
        }
    return status


# --- workloads and sites ------------------------------------------------------------------------


def workload_status(
    workload: StoredResource,
    placement: WorkloadPlacement,
    replicas: Sequence[tuple[Placed, Status]],
    unplaced: Sequence[Mapping[str, Any]],
    leader_wants: int | None,
    now_ms: int,
) -> Status:
    """`replicas`: the placed ones with their status; `unplaced`: the leader's explanations;
    `leader_wants`: how many the leader's last plan was for."""
    desired = _desired(workload, len(replicas), leader_wants)
    current = [
        status
        for placed, status in replicas
        if placed.assignment.revision == workload.template_revision
    ]
    counts = {
        "replicas": desired,
        "placed": len(replicas),
        "running": sum(status["phase"] == "Running" for _, status in replicas),
        "ready": sum(bool(status["ready"]) for _, status in replicas),
        "updated": len(current),
    }
    statuses = [status for _, status in replicas]
    phase, reason, message = _workload_phase(workload, placement, counts, statuses, unplaced)
    settled = len(replicas) >= desired or (leader_wants == desired and bool(unplaced))
    return {
        **counts,
        "revision": workload.template_revision,
        "observedGeneration": workload.generation if settled else workload.generation - 1,
        "phase": phase,
        "reason": reason,
        "message": message,
        "unplaced": [dict(item) for item in unplaced],
        "updatedAt": min((status["observedAt"] for status in statuses), default=now_ms),
    }


def _desired(workload: StoredResource, placed: int, leader_wants: int | None) -> int:
    """How many replicas there should be. `perSite` and `perNode` are for the leader to count."""
    spec = workload.decoded
    if spec.per_site is None and spec.per_node is None:
        return 1 if spec.replicas is None else int(spec.replicas)
    return placed if leader_wants is None else leader_wants


def _workload_phase(
    workload: StoredResource,
    placement: WorkloadPlacement,
    counts: Mapping[str, int],
    statuses: Sequence[Status],
    unplaced: Sequence[Mapping[str, Any]],
) -> tuple[str, str, str]:
    if workload.deletion_requested_at_ms:
        left = len(placement.placed) + len(placement.stopping)
        return "Deleting", "", f"{left} replica(s) still on their nodes" if left else ""
    desired = counts["replicas"]
    if counts["ready"] == desired == counts["placed"] == counts["updated"]:
        return "Running", "", ""
    reason, message = _first_trouble(statuses, unplaced)
    unknown = sum(status["phase"] == "Unknown" for status in statuses)
    if unknown and unknown == len(statuses):
        return "Unknown", reason, message
    if counts["running"] == 0 and desired:
        return "Pending", reason or "NotStarted", message
    troubled = unknown or unplaced or any(_is_trouble(status) for status in statuses)
    return ("Degraded" if troubled else "Progressing"), reason, message


def _is_trouble(status: Status) -> bool:
    """Waiting for its first start is no trouble; a reason for not being ready is."""
    return not status["ready"] and status["reason"] not in ("", "NotStarted", "Starting")


def _first_trouble(
    statuses: Sequence[Status], unplaced: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    for status in statuses:
        if _is_trouble(status):
            return str(status["reason"]), str(status["message"])
    for item in unplaced:
        reasons = item["reasons"]
        return (str(reasons[0]["reason"]) if reasons else "NotPlaced"), str(item["message"])
    return "", ""


def site_status(nodes: Sequence[bool]) -> Status:
    """`nodes`: whether each of the site's nodes is ready."""
    return {"nodes": len(nodes), "ready": sum(nodes)}


def operator_status(identity: IdentityRecord) -> Status:
    return {
        "certificateExpiresAt": _expiry(identity),
        "revoked": identity.revoked_at_ms > 0,
    }


def stopping_status(item: Stopping, view: NodeView) -> Status:
    """Of a replica that must leave."""
    return replica_status(item.node, item.stop.replica_uid, (), view, item.stop.cause)


def without_age(status: Status) -> Status:
    """Only what counts as a change: a heartbeat alone is no news to a watcher."""
    volatile = ("lastSeenAt", "usage", "observedAt", "updatedAt")
    return {key: value for key, value in status.items() if key not in volatile}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
