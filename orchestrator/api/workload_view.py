"""A workload's status: counts, phase and conditions, composed from its replicas' statuses. Pure.


Called by `catalog.py`. During an update one replica may have two stays: it counts once, as ready
when either is.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api import conditions
from orchestrator.api.index import Placed, WorkloadPlacement
from orchestrator.api.views import LeaderView, Status
from orchestrator.domain.reports import STOPPED_LOCALLY
from orchestrator.records import StoredResource
from polder.statuses import condition

_NODES_NAMED = 3
_NO_TROUBLE = ("", "NotStarted", "Starting", "Completed")


@dataclass(frozen=True, slots=True)
class Said:
    """What the leader says of a workload. `wants`: how many replicas its last plan was for.

    `rollout`: how far the newest template has come, as `edgectl` shows it; empty: not known.
    """

    unplaced: Sequence[Mapping[str, Any]] = ()
    waiting: Sequence[Mapping[str, Any]] = ()
    wants: int | None = None
    leader: LeaderView = LeaderView()
    rollout: Mapping[str, Any] = field(default_factory=dict)


def workload_status(
    workload: StoredResource,
    placement: WorkloadPlacement,
    replicas: Sequence[tuple[Placed, Status]],
    said: Said,
    now_ms: int,
) -> Status:
    """`replicas`: every stay with its status."""
    statuses = [status for _, status in replicas]
    counts = _counts(workload, replicas, said)
    phase, reason, message = _phase(workload, placement, counts, statuses, said)
    desired, placed = counts["replicas"], counts["placed"]
    settled = placed >= desired or (said.wants == desired and bool(said.unplaced))
    found: Status = {
        **counts,
        "revision": workload.template_revision,
        "observedGeneration": workload.generation if settled else workload.generation - 1,
        "phase": phase,
        "reason": reason,
        "message": message,
        "unplaced": [dict(item) for item in said.unplaced] if said.leader.current else [],
        "waiting": [dict(item) for item in said.waiting] if said.leader.current else [],
        "updatedAt": min((status["observedAt"] for status in statuses), default=now_ms),
        "conditions": conditions.of_workload(
            counts, statuses, (reason, message), said.leader.source, said.leader.told_at_ms
        ),
    }
    if said.rollout:
        found["rollout"] = dict(said.rollout)
        found["conditions"].append(_rolled_out(said, workload))
    return found


def _counts(
    workload: StoredResource, replicas: Sequence[tuple[Placed, Status]], said: Said
) -> dict[str, int]:
    stays: defaultdict[str, list[tuple[Placed, Status]]] = defaultdict(list)
    for placed, status in replicas:
        stays[placed.assignment.replica].append((placed, status))

    def having(check: str, value: object) -> int:
        return sum(any(status[check] == value for _, status in s) for s in stays.values())

    return {
        "replicas": _desired(workload, len(stays), said.wants),
        "placed": len(stays),
        "running": having("phase", "Running"),
        "ready": having("ready", True),
        "updated": sum(
            all(placed.assignment.revision == workload.template_revision for placed, _ in s)
            for s in stays.values()
        ),
        "unknown": sum(
            all(status["phase"] == "Unknown" for _, status in s) for s in stays.values()
        ),
    }


def _desired(workload: StoredResource, placed: int, leader_wants: int | None) -> int:
    """How many replicas there should be. Jobs, `perSite` and `perNode` are for the leader to
    count."""
    spec = workload.decoded
    if spec.per_site is None and spec.per_node is None and spec.run != "once":
        return 1 if spec.replicas is None else int(spec.replicas)
    return placed if leader_wants is None else leader_wants


def _left(placement: WorkloadPlacement) -> str:
    """Of what is being deleted. A node that is silent may run it still: so the nodes are named."""
    nodes = [item.node for item in placement.placed.values()]
    nodes += [item.node for item in placement.stopping.values()]
    if not nodes:
        return ""
    names = sorted(set(nodes))
    more = f" and {len(names) - _NODES_NAMED} more" if len(names) > _NODES_NAMED else ""
    shown = ", ".join(names[:_NODES_NAMED])
    return f"{len(nodes)} replica(s) are not known to have stopped, on {shown}{more}"


def _phase(
    workload: StoredResource,
    placement: WorkloadPlacement,
    counts: Mapping[str, int],
    statuses: Sequence[Status],
    said: Said,
) -> tuple[str, str, str]:
    if workload.deletion_requested_at_ms:
        return "Deleting", "", _left(placement)
    desired = counts["replicas"]
    if counts["ready"] == desired == counts["placed"] == counts["updated"]:
        return "Running", "", ""
    reason, message = _first_trouble(statuses, said)
    if counts["unknown"] and counts["unknown"] == counts["placed"]:
        return "Unknown", reason, message
    if counts["running"] == 0 and desired and reason != STOPPED_LOCALLY:
        return "Pending", reason or "NotStarted", message
    troubled = counts["unknown"] or said.unplaced or any(map(_is_trouble, statuses))
    if troubled or said.rollout.get("phase") in ("Failed", "RolledBack"):
        return "Degraded", reason, message
    return "Progressing", reason, message


def _is_trouble(status: Status) -> bool:
    """Waiting for its first start is no trouble; a reason for not being ready is."""
    return not status["ready"] and status["reason"] not in _NO_TROUBLE


def _first_trouble(statuses: Sequence[Status], said: Said) -> tuple[str, str]:
    for status in statuses:
        if _is_trouble(status):
            return str(status["reason"]), str(status["message"])
    for item in said.unplaced if said.leader.current else ():
        reasons = item["reasons"]
        return (str(reasons[0]["reason"]) if reasons else "NotPlaced"), str(item["message"])
    phase = str(said.rollout.get("phase", ""))
    if phase not in ("", "Progressing", "Proven"):
        return phase, str(said.rollout.get("message", ""))
    return "", ""


def _rolled_out(said: Said, workload: StoredResource) -> Status:
    rollout = said.rollout
    done = rollout.get("phase") in ("Proving", "Proven")
    return condition(
        "RolledOut",
        done and rollout.get("newestRevision") == workload.template_revision,
        said.leader.source,
        reason=str(rollout.get("phase", "")),
        message=str(rollout.get("message", "")),
        since_ms=int(rollout.get("sinceAt", 0)),
        heard_ms=said.leader.told_at_ms,
    )
