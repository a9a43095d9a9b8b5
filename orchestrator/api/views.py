"""What operators see as status: composed when read, from the mirror and from what agents say. Pure.

Every part carries its age and its source, and what has not been heard of within its interval is
Unknown: never a confident stale answer. Conditions are in `conditions.py`. Shapes are JSON with
camelCase keys; edgectl relies on them. Times are unix milliseconds; 0 means never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.api import conditions
from orchestrator.api.index import Stopping
from orchestrator.domain import reports
from orchestrator.domain.liveness import Liveness, NodeLiveness
from orchestrator.domain.maintenance import AT_WORK, Standing
from orchestrator.domain.upgrade_state import BEGUN
from orchestrator.fleet import NodeObservation
from orchestrator.records import IdentityRecord, NodePlacement, NodeStatusRecord, StoredResource
from polder.statuses import condition, empty_replica, of_agent, reported, usage
from polder.v1 import agent_pb2

Status = dict[str, Any]

_AT_WORK_THERE = (agent_pb2.REPLICA_PHASE_RUNNING, agent_pb2.REPLICA_PHASE_ORPHANED)
_STRAYS_SHOWN = 5
_NOTHING = agent_pb2.Heartbeat()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that is known of one node. `standing`: what its site and provider say of new replicas."""

    liveness: NodeLiveness
    observation: NodeObservation | None
    reported: NodeStatusRecord | None
    placement: NodePlacement
    allocated: Mapping[str, int]
    identity: IdentityRecord | None
    record: StoredResource | None = None
    standing: Standing = AT_WORK
    mirror_ms: int = 0  # of what age is what the Store says


def node_status(facts: NodeFacts) -> Status:
    """`ready` None: nobody knows now."""
    seen = facts.observation
    heartbeat = seen.heartbeat if seen is not None and seen.heartbeat else _NOTHING
    revoked = facts.identity is not None and facts.identity.revoked_at_ms > 0
    ready, reason, message = _node_readiness(facts, heartbeat, revoked)
    amounts = dict(facts.allocated)
    heard = facts.liveness.state is Liveness.LIVE
    last_seen_ms = _ms(seen.last_seen) if seen else 0
    cordoned, draining = _leaving(facts)
    status: Status = {
        "ready": ready,
        "reason": reason,
        "message": message,
        "lastSeenAt": last_seen_ms,
        "sinceAt": _node_since(facts),
        "source": f"gateway/{seen.member}" if seen and seen.member else "",
        "session": bool(seen and seen.connected),
        "agentVersion": _agent_version(facts),
        "inventory": facts.reported.inventory if facts.reported else {},
        "inventoryAt": facts.reported.reported_at_ms if facts.reported else 0,
        "usage": usage(heartbeat.usage) if seen and seen.heartbeat else {},
        "usageAt": (_ms(seen.heartbeat_at) or last_seen_ms) if seen and seen.heartbeat else 0,
        "usageKnown": bool(heard and seen and seen.heartbeat),
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
        "cordoned": cordoned,
        "draining": draining,
    }
    status["conditions"] = _node_conditions(facts, status, heartbeat, heard=heard)
    return status


def _leaving(facts: NodeFacts) -> tuple[str, bool]:
    """Why no new replicas come, and whether those that are there leave."""
    spec = facts.record.spec if facts.record is not None else {}
    own = f"node {facts.placement.node} is cordoned" if spec.get("unschedulable") else ""
    texts = [text for text in (own, facts.standing.cordoned) if text]
    return "; ".join(texts), bool(spec.get("draining")) or facts.standing.draining


def _node_conditions(
    facts: NodeFacts, status: Status, heartbeat: agent_pb2.Heartbeat, *, heard: bool
) -> list[Status]:
    node, record = facts.placement.node, facts.record
    changed = record.changed_by if record is not None else ""
    source = changed if changed and not facts.standing.cordoned else "leader"
    found = [
        condition(
            "Ready",
            status["ready"],
            status["source"] or "gateway",
            reason=status["reason"],
            message=status["message"],
            since_ms=status["sinceAt"],
            heard_ms=status["lastSeenAt"],
        )
    ]
    for kind, holds, message in (
        ("Cordoned", bool(status["cordoned"]), status["cordoned"]),
        ("Draining", status["draining"], ""),
    ):
        if holds:
            found.append(condition(kind, True, source, message=message, heard_ms=facts.mirror_ms))
    at_ms = status["lastSeenAt"]
    if facts.observation is not None and facts.observation.upgrade is not None:
        found.append(_upgrading(facts.observation.upgrade, node, at_ms, heard=heard))
    if strays := _strays(facts):
        found.append(
            condition(
                "StrayReplicas",
                True if heard else None,
                f"agent/{node}",
                reason="NotPlacedHere",
                message=f"runs what nobody placed on it: {strays}; see the operating guide",
                heard_ms=at_ms,
            )
        )
    return found + of_agent(heartbeat.conditions, node, at_ms, heard=heard)


def _upgrading(said: agent_pb2.UpgradeStatus, node: str, at_ms: int, *, heard: bool) -> Status:
    """How it is with an upgrade of its agent, as long as the agent has something to say of it."""
    under_way = said.phase in BEGUN
    parts = (f"to {said.version}", said.reason, said.message)
    return condition(
        "Upgrading",
        under_way if heard else None,
        f"agent/{node}",
        reason=said.phase,
        message=": ".join(part for part in parts if part),
        since_ms=said.at_ms,
        heard_ms=at_ms,
    )


def _strays(facts: NodeFacts) -> str:
    """Replicas that run there without being placed there, such as those of a former node that was
    deleted while nobody could reach it."""
    placed = {item.replica_uid for item in facts.placement.assignments}
    placed |= {stop.replica_uid for stop in facts.placement.stops}
    seen = facts.observation
    names = sorted(
        f"{found.namespace}/{found.replica}"
        for uid, found in (seen.replicas.items() if seen is not None else ())
        if uid not in placed and found.phase in _AT_WORK_THERE
    )
    shown = ", ".join(names[:_STRAYS_SHOWN])
    more = len(names) - _STRAYS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


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
    for found in reports.unable(heartbeat):
        return False, found.type, found.message
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


@dataclass(frozen=True, slots=True)
class LeaderView:
    """How far the leader's words can be relied on. `current`: it still says so."""

    source: str = "leader"
    told_at_ms: int = 0
    current: bool = True


def replica_status(
    node: str, uid: str, host_ports: Sequence[int], view: NodeView, stopping: str = ""
) -> Status:
    """`stopping`: why it must leave its node; empty when it must run."""
    status = empty_replica(node, host_ports)
    status["observedAt"] = view.observed_at_ms
    seen = view.observation
    heard = view.liveness.state is Liveness.LIVE and seen is not None and seen.complete
    found = seen.replicas.get(uid) if seen is not None else None
    if found is not None:
        status.update(reported(found))
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


def unplaced_status(explanation: Mapping[str, Any] | None, leader: LeaderView) -> Status:
    """Of a replica without a node, with the leader's words for why."""
    status = empty_replica("", ())
    reasons = explanation["reasons"] if explanation else []
    status["phase"] = "Unplaced"
    status["reason"] = str(reasons[0]["reason"]) if reasons else "NotPlaced"
    status["message"] = str(explanation["message"]) if explanation else "waits to be placed"
    if not leader.current:
        status["phase"], status["reason"] = "Unknown", "LeaderSilent"
        status["message"] = "has no node, and no leader has said anything of it"
    status["source"] = leader.source
    status["observedAt"] = leader.told_at_ms
    status["conditions"] = conditions.of_unplaced(status)
    return status


def with_conditions(
    status: Status, placed_ms: int, ready_ms: int, leader: LeaderView, mirror_ms: int
) -> Status:
    """A placed replica's status, completed. `ready_ms`: since when it is ready, or not."""
    found = conditions.of_replica(status, placed_ms, ready_ms, leader.source, mirror_ms)
    return {**status, "placedAt": placed_ms, "conditions": found}


# --- sites and operators ------------------------------------------------------------------------


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


_VOLATILE = ("lastSeenAt", "usage", "usageAt", "observedAt", "updatedAt")


def without_age(status: Status) -> Status:
    """Only what counts as a change: a heartbeat alone is no news to a watcher."""
    found = {key: value for key, value in status.items() if key not in _VOLATILE}
    if "conditions" in found:
        found["conditions"] = [_without_hearing(item) for item in found["conditions"]]
    if "waits" in found:
        found["waits"] = _without_hearing(found["waits"])
    if "standbys" in found:
        found["standbys"] = [_without_hearing(item) for item in found["standbys"]]
    return found


def _without_hearing(item: Mapping[str, Any]) -> Status:
    return {key: value for key, value in item.items() if key != "lastHeardAt"}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
