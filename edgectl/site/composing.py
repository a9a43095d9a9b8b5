"""Nodes, replicas and workloads of a site in the shape in which an orchestrator shows them. Pure.

So tables, json, jsonpath, describe and wait are the same, whoever is asked (the shapes are those of
the orchestrator's `api/views.py`). What only a site knows is added: where a fact is known from,
overrides as conditions, leases, autonomy. Times are unix milliseconds; 0 means never.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgectl.site.picture import WITNESS, Picture, ReplicaPicture, Role, Silent
from polder import statuses
from polder.manifest import API_VERSION
from polder.overrides import SITE, STOPPED
from polder.v1 import agent_pb2, common_pb2, local_pb2

Status = dict[str, Any]

_PRESENT = (
    agent_pb2.REPLICA_PHASE_RUNNING,
    agent_pb2.REPLICA_PHASE_STOPPING,
    agent_pb2.REPLICA_PHASE_ORPHANED,
)
_UNABLE = "RuntimeDown"  # of a node's conditions: nothing starts there
_VOLATILE = ("usage", "usageAt", "observedAt", "leaseUntilAt", "autonomyUntilAt", "isolatedSinceAt")


def nodes(picture: Picture) -> Iterator[common_pb2.Resource]:
    """Those that answered, and those that are known to be there."""
    for node, shown in sorted(picture.answers.items()):
        yield _resource("Node", "", node, {"site": shown.site}, _node(picture, shown))
    for silent in picture.silent:
        if silent.node:
            status = _silent_node(picture, silent)
            yield _resource("Node", "", silent.node, {"site": picture.site}, status)


def replicas(picture: Picture, namespace: str = "") -> Iterator[common_pb2.Resource]:
    """One for each node that runs it: after a partition there may be two for a while."""
    for replica in picture.replicas(namespace):
        said = replica.status
        for stay in _stays(picture, replica):
            spec = {
                "workload": said.workload,
                "node": stay.node,
                "revision": stay.revision,
                "epoch": stay.status["epoch"],
            }
            made = _resource("Replica", said.namespace, said.replica, spec, stay.status)
            made.metadata.uid = stay.uid
            made.metadata.created_at_ms = stay.status["startedAt"]
            yield made


def workloads(picture: Picture, namespace: str = "") -> Iterator[common_pb2.Resource]:
    """As far as this site knows them: of other sites' replicas it knows nothing."""
    found: dict[tuple[str, str], list[ReplicaPicture]] = {}
    for replica in picture.replicas(namespace):
        found.setdefault((replica.namespace, replica.status.workload), []).append(replica)
    for (where, name), own in sorted(found.items()):
        templates = (_template(role.replica.template_json) for o in own for role in o.roles)
        template = next(filter(None, templates), None)
        spec = {"template": template} if template else {}
        made = _resource("Workload", where, name, spec, _workload(picture, own))
        made.metadata.uid = own[0].status.workload_uid
        yield made


def _workload(picture: Picture, own: list[ReplicaPicture]) -> Status:
    stays = [max(_stays(picture, replica), key=_serves) for replica in own]
    phases = [stay.status["phase"] for stay in stays]
    odd = next((phase for phase in phases if phase != "Running"), "Running")
    revision = max(stay.revision for stay in stays)
    return {
        "phase": odd,
        "reason": next((s.status["reason"] for s in stays if s.status["phase"] == odd), ""),
        "replicas": len(stays),
        "ready": sum(bool(stay.status["ready"]) for stay in stays),
        "placed": sum(bool(stay.node) for stay in stays),
        "running": phases.count("Running"),
        "updated": sum(stay.revision == revision for stay in stays),
        "unknown": phases.count("Unknown"),
        "revision": revision,
        "updatedAt": picture.now_ms,
        "source": f"site/{picture.site}",
        "conditions": [
            condition for replica in own for condition in _overridden(picture, replica, named=True)
        ],
    }


def without_age(resource: common_pb2.Resource) -> common_pb2.Resource:
    """Only what counts as a change: for comparing, since what is left out is shown, too."""
    status = json.loads(resource.status_json)
    for key in _VOLATILE:
        status.pop(key, None)
    for part in (*status.get("conditions", ()), *status.get("standbys", ())):
        part.pop("lastHeardAt", None)
    kept = common_pb2.Resource()
    kept.CopyFrom(resource)
    kept.status_json = json.dumps(status).encode()
    return kept


def serves(resource: common_pb2.Resource) -> tuple[bool, int]:
    """Of several with one name the greatest of these is the one that serves."""
    status = json.loads(resource.status_json)
    return bool(status.get("ready")), int(status.get("epoch") or 0)


# --- nodes --------------------------------------------------------------------------------------


def _node(picture: Picture, shown: local_pb2.ShowResponse) -> Status:
    now_ms, source = shown.now_ms, f"agent/{shown.node}"
    conditions = statuses.of_agent(shown.conditions, shown.node, now_ms, heard=True)
    for known in picture.overrides():
        if known.in_force and known.concerns(SITE) and shown.node in known.nodes:
            conditions += statuses.of_override(known.override, now_ms)
    down = next((c for c in shown.conditions if c.status and c.type == _UNABLE), None)
    return {
        "ready": down is None,
        "reason": down.type if down else "",
        "message": down.message if down else "",
        "sinceAt": down.since_ms if down else 0,
        "lastSeenAt": now_ms,
        "observedAt": now_ms,
        "source": source,
        "agentVersion": shown.agent_version,
        "inventory": {"arch": shown.arch, "allocatable": _amounts(shown.allocatable)},
        "usage": statuses.usage(shown.usage) if shown.HasField("usage") else {},
        "usageAt": now_ms,
        "planGeneration": shown.plan_generation,
        "planIssuedAt": shown.plan_issued_at_ms,
        "isolated": bool(shown.isolated_ms),
        "isolatedSinceAt": now_ms - shown.isolated_ms if shown.isolated_ms else 0,
        "autonomous": bool(shown.autonomy_left_ms),
        "autonomyUntilAt": now_ms + shown.autonomy_left_ms if shown.autonomy_left_ms else 0,
        "replicas": sum(replica.status.phase in _PRESENT for replica in shown.replicas),
        "peers": [
            {"node": peer.node, "shares": peer.shares, "heard": peer.heard} for peer in shown.peers
        ],
        "conditions": conditions,
    }


def _silent_node(picture: Picture, silent: Silent) -> Status:
    """It may be well: others of the site may hear it where we do not."""
    hearing = picture.hearing(silent.node)
    heard = f"; heard by {', '.join(hearing)}" if hearing else "; no node that answered hears it"
    return {
        "ready": None,
        "reason": "NotReached",
        "message": f"{silent.error.message}{heard}",
        "sinceAt": 0,
        "lastSeenAt": 0,
        "source": ",".join(f"agent/{node}" for node in hearing),
        "heardBy": hearing,
    }


# --- replicas -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stay:
    """A replica on a node; `node` is empty where none is known to run it."""

    node: str
    revision: int
    uid: str
    status: Status


def _stays(picture: Picture, replica: ReplicaPicture) -> Iterator[_Stay]:
    """At least one."""
    common = {
        "standbys": list(_standbys(picture, replica)),
        "exclusive": any(role.replica.exclusive for role in replica.roles),
        "members": list(replica.members),
        "conditions": _overridden(picture, replica),
    }
    running = replica.running
    for role in _present(replica) or running:  # where it was before it moved is of no interest
        yield _stay(role, role.node, _own_status(role) | common)
    hearsay = replica.said_to_run(picture.silent_nodes)
    newest = max((role.replica.status.epoch for role in running), default=0)
    if hearsay is not None and (not running or hearsay.replica.holder_epoch > newest):
        yield _stay(hearsay, hearsay.replica.holder, _hearsay(picture, hearsay) | common)
    elif not running:
        yield _stay(replica.roles[0], "", _nowhere(picture, replica) | common)


def _present(replica: ReplicaPicture) -> list[Role]:
    """Where there is a pod of it."""
    return [role for role in replica.running if role.replica.status.phase in _PRESENT]


def _stay(role: Role, node: str, status: Status) -> _Stay:
    said = role.replica.status
    return _Stay(node, said.revision, said.replica_uid if role.runs else "", status)


def _serves(stay: _Stay) -> tuple[bool, int]:
    """Of several stays the greatest of these is the one that serves."""
    return bool(stay.status["ready"]), stay.status["epoch"]


def _own_status(role: Role) -> Status:
    """What the node says of what is on it."""
    said, shown, lease_ms = role.replica.status, role.shown, role.replica.lease_left_ms
    leased = role.replica.exclusive and lease_ms >= 0
    return (
        _empty(role, role.node)
        | statuses.reported(said)
        | {
            "observedAt": shown.now_ms,
            "source": f"agent/{role.node}",
            "epoch": said.epoch,
            "leaseUntilAt": shown.now_ms + lease_ms if leased else 0,
            "takesOver": said.takes_over,
        }
    )


def _hearsay(picture: Picture, role: Role) -> Status:
    """What another node last heard of the one that runs it and did not answer."""
    replica = role.replica
    ready = "ready" if replica.holder_ready else "not ready"
    verb = "hears" if role.node in picture.hearing(replica.holder) else "last heard"
    message = f"{replica.holder} did not answer; {role.node} {verb} that it runs there, {ready}"
    return _empty(role, replica.holder) | {
        "phase": "Unknown",
        "reason": "NodeNotReached",
        "message": message,
        "source": f"agent/{role.node}",
        "epoch": replica.holder_epoch,
    }


def _nowhere(picture: Picture, replica: ReplicaPicture) -> Status:
    """No node that answered runs it."""
    role = replica.roles[0]
    missing = sorted(set(replica.members) & picture.silent_nodes)
    found = _empty(role, "") | {"source": ",".join(f"agent/{r.node}" for r in replica.roles)}
    stopped = any(
        known.override.field == STOPPED and known.in_force
        for known in picture.overrides()
        if known.concerns(replica.subject)
    )
    if missing:
        asked = " and ".join(missing)
        message = f"no node that answered runs it, and {asked} did not answer"
        return found | {"phase": "Unknown", "reason": "NodeNotReached", "message": message}
    if stopped:
        return found | {"phase": "Stopped", "reason": "StoppedLocally"}
    return found | {"reason": "NotStarted", "message": "no node of the site runs it"}


def _empty(role: Role, node: str) -> Status:
    """`node`: where it is said to be; empty: nowhere."""
    return statuses.empty_replica(node, _host_ports(role.replica.template_json)) | {
        "epoch": role.replica.status.epoch,
        "leaseUntilAt": 0,
        "takesOver": "",
    }


def _standbys(picture: Picture, replica: ReplicaPicture) -> Iterator[Status]:
    """In the order in which they take over; then who only votes."""
    said = {role.node: role for role in replica.roles}
    runs = {role.node for role in _present(replica) or replica.running}
    witnesses = [node for node, role in said.items() if role.replica.role == WITNESS]
    for node in (*replica.members, *witnesses):
        if node not in runs:
            yield {"node": node, **_ability(picture, node, said.get(node))}


def _ability(picture: Picture, node: str, role: Role | None) -> Status:
    if role is None:
        reached = node in picture.answers
        reason = "NotReported" if reached else "NotReached"
        return {"state": "Unknown", "reason": reason, "message": "", "lastHeardAt": 0}
    standby, heard = role.replica.standby, role.shown.now_ms
    if role.runs:  # it ran there, and may again
        said = role.replica.status
        found = {"state": "Unknown", "reason": said.reason, "message": said.message}
        return found | {"lastHeardAt": heard}
    if role.replica.role == WITNESS:
        return {"state": "Votes", "reason": "", "message": "", "lastHeardAt": heard}
    state = "Able" if standby.able else "Unable"
    found = {"state": state, "reason": standby.reason, "message": standby.message}
    return found | {"lastHeardAt": heard}


# --- overrides ----------------------------------------------------------------------------------


def _overridden(picture: Picture, replica: ReplicaPicture, *, named: bool = False) -> list[Status]:
    """Of the replica, and of the whole site."""
    subjects = (replica.subject,) if named else (replica.subject, SITE)
    return [
        condition
        for known in picture.overrides()
        if known.in_force and any(known.concerns(subject) for subject in subjects)
        for condition in statuses.of_override(known.override, picture.now_ms, named=named)
    ]


# --- pieces -------------------------------------------------------------------------------------


def _amounts(found: agent_pb2.Resources) -> dict[str, Any]:
    return {
        "cpuMillis": found.cpu_millis,
        "memoryBytes": found.memory_bytes,
        "diskBytes": found.disk_bytes,
        "devices": dict(found.devices),
    }


def _template(template_json: bytes) -> dict[str, Any]:
    """Empty for what is none: one node that tells nonsense is not to hide what the others say."""
    try:
        template = json.loads(template_json) if template_json else {}
    except (ValueError, RecursionError):
        return {}
    return template if isinstance(template, dict) else {}


def _host_ports(template_json: bytes) -> list[int]:
    ports = [
        port.get("hostPort")
        for container in _objects(_template(template_json).get("containers"))
        for port in _objects(container.get("ports"))
    ]
    return [port for port in ports if isinstance(port, int) and port]


def _objects(value: object) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else []
    return [item for item in found if isinstance(item, dict)]


def _resource(
    kind: str, namespace: str, name: str, spec: dict[str, Any], status: Status
) -> common_pb2.Resource:
    found = common_pb2.Resource(api_version=API_VERSION, kind=kind)
    found.metadata.namespace, found.metadata.name = namespace, name
    found.spec_json, found.status_json = json.dumps(spec).encode(), json.dumps(status).encode()
    return found
