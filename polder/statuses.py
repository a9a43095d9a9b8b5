"""Parts of a status as operators see it, from what agents say: one form, whoever is asked.

Used by the orchestrator's API, and by edgectl where it asks the nodes of a site themselves. Pure.
Times are unix milliseconds; 0: not known.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from polder.overrides import FROZEN, PLACED_ON, STOPPED, Override, words
from polder.v1 import agent_pb2

Status = dict[str, Any]

PHASES = {
    agent_pb2.REPLICA_PHASE_PENDING: "Pending",
    agent_pb2.REPLICA_PHASE_RUNNING: "Running",
    agent_pb2.REPLICA_PHASE_STOPPING: "Stopping",
    agent_pb2.REPLICA_PHASE_STOPPED: "Stopped",
    agent_pb2.REPLICA_PHASE_ORPHANED: "Running",
    agent_pb2.REPLICA_PHASE_SUCCEEDED: "Succeeded",
    agent_pb2.REPLICA_PHASE_FAILED: "Failed",
}
_DECIDED = {STOPPED: "Stopped", PLACED_ON: "PlacedOn", FROZEN: "Frozen"}


def empty_replica(node: str, host_ports: Sequence[int]) -> Status:
    """Of one of which nothing is known."""
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


def reported(found: agent_pb2.ReplicaStatus) -> Status:
    """What an agent says of it, over `empty_replica`."""
    return {
        "phase": PHASES.get(found.phase, "Pending"),
        "ready": found.ready,
        "reason": found.reason,
        "message": found.message,
        "restarts": found.restarts,
        "podIp": found.pod_ip,
        "startedAt": found.started_at_ms,
        "containers": [_container(container) for container in found.containers],
    }


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


def usage(found: agent_pb2.Usage) -> Status:
    """What a box uses, and its sensors."""
    return {
        "cpuMillis": found.cpu_millis,
        "memoryBytes": found.memory_bytes,
        "diskBytes": found.disk_bytes,
        "networkRxBytes": found.network_rx_bytes,
        "networkTxBytes": found.network_tx_bytes,
        "temperatureCelsius": found.temperature_celsius,
        "batteryPercent": found.battery_percent,
        "onBattery": found.on_battery,
    }


# --- conditions ---------------------------------------------------------------------------------


def condition(
    kind: str,
    status: bool | None,
    source: str,
    *,
    reason: str = "",
    message: str = "",
    since_ms: int = 0,
    heard_ms: int = 0,
) -> Status:
    """`status` None: not known. `unknownSinceAt` is there only of one that is unknown."""
    found: Status = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionAt": since_ms,
        "lastHeardAt": heard_ms,
        "source": source,
    }
    if status is None:
        found["unknownSinceAt"] = heard_ms
    return found


def of_agent(
    conditions: Iterable[agent_pb2.NodeCondition], node: str, heard_ms: int, *, heard: bool
) -> list[Status]:
    """What an agent says of its box. `heard` False: it said so, and has been silent since."""
    return [
        condition(
            item.type,
            item.status if heard else None,
            f"agent/{node}",
            reason=item.reason,
            message=item.message,
            since_ms=item.since_ms,
            heard_ms=heard_ms,
        )
        for item in conditions
    ]


def of_override(override: Override, heard_ms: int, *, named: bool = False) -> list[Status]:
    """That a site decided it, and what the orchestrator decided against that meanwhile.

    `named`: the messages begin with the replica."""
    name, reason = f"{override.replica}: " if named else "", _DECIDED[override.field]
    found = [
        condition(
            "LocalOverride",
            True,
            f"agent/{override.node}" if override.node else "orchestrator",
            reason=reason,
            message=f"{name}{words(override)}",
            since_ms=override.at_ms,
            heard_ms=heard_ms,
        )
    ]
    if override.conflict:
        message = f"{name}{override.conflict}"
        conflict = condition(
            "OverrideConflict",
            True,
            "orchestrator",
            reason=reason,
            message=message,
            heard_ms=heard_ms,
        )
        found.append(conflict)
    return found
