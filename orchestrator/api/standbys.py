"""Who may take a replica over, whether it could now, and where a site runs it by itself.


Composed when read, like every status: from the assignment's group, and from what agents say of
their roles. Called by `catalog.py` for statuses, by `whying.py` and by `telling.py`. Times are unix
milliseconds.
"""

from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.api.index import Placed
from orchestrator.api.views import NodeView
from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from polder.statuses import condition

Status = dict[str, Any]
ViewOf = Callable[[str], NodeView]

ABLE, UNABLE, UNKNOWN, VOTES = "Able", "Unable", "Unknown", "Votes"
_NAMED_MAX = 3


def standbys_of(placed: Placed, view_of: ViewOf) -> list[Status]:
    """In the order in which they take over; then, of an exclusive replica, who only votes."""
    group = placed.assignment.group
    if group is None:
        return []
    voters = [(node, False) for node in group.members] + [(node, True) for node in group.witnesses]
    return [
        _standby(placed.assignment, node, view_of(node), witness=witness)
        for node, witness in voters
        if node != placed.node
    ]


def _standby(item: AssignmentRecord, node: str, view: NodeView, *, witness: bool) -> Status:
    found: Status = {
        "node": node,
        "state": VOTES if witness else ABLE,
        "reason": "",
        "message": "",
        "lastHeardAt": view.observed_at_ms,
    }
    seen = view.observation
    if view.liveness.state is not Liveness.LIVE or seen is None:
        found |= {"state": UNKNOWN, "reason": "NodeSilent", "message": f"no word from node {node}"}
        return found
    if witness:
        return found
    said = seen.standbys.get((item.workload_uid, item.replica))
    if said is None:
        text = f"node {node} has not said whether it could"
        found |= {"state": UNKNOWN, "reason": "NotReported", "message": text}
    elif not said.able:
        found |= {"state": UNABLE, "reason": said.reason, "message": said.message}
    return found


def standby_text(standby: Status) -> str:
    """`edge-2`, or why it could not: `edge-2 (Unable: NoRoom: 64 MiB are free)`."""
    if standby["state"] == ABLE:
        return str(standby["node"])
    words = [standby[key] for key in ("state", "reason", "message") if standby[key]]
    return f"{standby['node']} ({': '.join(words)})"


def local_stays(placed: Placed, view_of: ViewOf) -> list[Status]:
    """Where its site runs it by its own decision, as long as no record says so."""
    item = placed.assignment
    if item.group is None:
        return []
    return [
        {
            "node": node,
            "epoch": status.epoch,
            "ready": status.ready,
            "sinceAt": status.ready_since_ms,
        }
        for node in item.group.members
        if (seen := view_of(node).observation) is not None
        for status in seen.local_stays
        if (status.workload_uid, status.replica) == (item.workload_uid, item.replica)
        and status.replica_uid != item.replica_uid
    ]


def with_standbys(status: Status, placed: Placed, view_of: ViewOf) -> Status:
    """A replica's status with all that its site may do, and did."""
    item = placed.assignment
    found = {**status, "standbys": standbys_of(placed, view_of)}
    if stays := local_stays(placed, view_of):
        found["localStays"] = stays
    if item.took_over:
        found["tookOver"] = {"from": item.took_over, "at": item.placed_at_ms}
    seen = view_of(placed.node).observation
    said = seen.replicas.get(item.replica_uid) if seen is not None else None
    if said is not None and said.epoch > item.epoch:
        found["epoch"] = said.epoch  # its site counted on
    return found


def standbys_condition(
    replicas: Iterable[Placed], view_of: ViewOf, *, wanted: bool = False
) -> Status | None:
    """Of a workload: whether each of its replicas has a standby that could take it over now. None:
    none of them shall have any. `wanted`: its spec asks for some."""
    lacking: list[tuple[str, list[Status]]] = []
    doubtful, some, heard_ms = False, False, 0
    for placed in replicas:
        item = placed.assignment
        if item.group is None and (item.standbys or not wanted):
            continue
        found = [item for item in standbys_of(placed, view_of) if item["state"] != VOTES]
        some = True
        ages = [int(item["lastHeardAt"]) for item in found]
        heard_ms = min([heard_ms or ages[0], *ages]) if ages else heard_ms
        if not any(item["state"] == ABLE for item in found):
            lacking.append((placed.assignment.replica, found))
            doubtful |= any(item["state"] == UNKNOWN for item in found)
    if not some:
        return None
    if not lacking:
        return condition("StandbysAble", True, "agents", heard_ms=heard_ms)
    replica, found = lacking[0]
    why = "; ".join(standby_text(item) for item in found[:_NAMED_MAX]) or "it has no standbys"
    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    return condition(
        "StandbysAble",
        None if doubtful else False,
        "agents",
        reason=str(found[0]["reason"]) if found else "NoStandbys",
        message=f"nobody could take over {replica}{more}: {why}",
        heard_ms=heard_ms,
    )
