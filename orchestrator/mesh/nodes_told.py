"""What followers have been told of this member's own nodes, and the difference to what is so now.

`telling.py` asks. A replica's state is replaced and never changed in place (`domain/reports.py`),
so that a difference costs a comparison of identities. Memory is one reference per replica.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.fleet import NO_STANDBYS, Fleet, NodeObservation, Standbys
from polder.v1 import agent_pb2, member_pb2

REPLICAS_PER_MESSAGE = 100
"""A node with more is told in parts, the first of them whole."""


@dataclass(slots=True)
class _Told:
    session_id: str
    facts: member_pb2.NodeSaid  # without replicas
    replicas: dict[str, agent_pb2.ReplicaStatus] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    heartbeat: agent_pb2.Heartbeat | None = None
    standbys: Standbys = field(default_factory=lambda: NO_STANDBYS)


class NodesTold:
    """`changed` notes a node; `differences` says what all followers must hear of those noted.

    `start` when there is somebody to tell, `stop` when there is not: a member that is alone, as
    with SQLite, keeps no account.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._started = False
        self._told: dict[str, _Told] = {}
        self._changed: dict[str, None] = {}

    @property
    def count(self) -> int:
        """Nodes with a session here."""
        return len(self._told)

    def nodes(self) -> list[str]:
        """With a session here, as followers were told."""
        return list(self._told)

    def start(self) -> None:
        """What is here now counts as told: it goes to each follower as a whole."""
        if not self._started:
            self._started = True
            for seen in self._fleet.nodes():
                if _is_ours(seen):
                    self._told[seen.node] = _taken(seen)

    def stop(self) -> None:
        self._started = False
        self._told.clear()
        self._changed.clear()

    def changed(self, node: str) -> bool:
        """Whether it is this member's to tell about."""
        if not self._started:
            return False
        if node not in self._told and not _is_ours(self._fleet.get(node)):
            return False
        self._changed[node] = None
        return True

    def differences(self) -> Iterator[member_pb2.NodeSaid]:
        """Of all that were noted since the last time. Take all of them, and at once."""
        changed, self._changed = self._changed, {}
        for node in changed:
            seen, told = self._fleet.get(node), self._told.get(node)
            if seen is None or not _is_ours(seen):
                if told is not None:
                    del self._told[node]
                    yield _ended(node, told, seen)
            elif told is None or told.session_id != seen.session_id:
                self._told[node] = _taken(seen)
                yield from self.whole(node)
            else:
                yield from _difference(told, seen)

    def whole(self, node: str) -> Iterator[member_pb2.NodeSaid]:
        """One node as it was told last; nothing when it is not here any more."""
        told = self._told.get(node)
        if told is None:
            return
        statuses = list(told.replicas.values())
        first = _said(told)
        first.whole = True
        first.gone.extend(told.gone)
        first.stopped.extend(told.gone)
        if told.heartbeat is not None:
            first.heartbeat.CopyFrom(told.heartbeat)
        first.standbys.extend(told.standbys.values())
        first.replicas.extend(statuses[:REPLICAS_PER_MESSAGE])
        yield from _in_parts(first, told, statuses[REPLICAS_PER_MESSAGE:])


def _is_ours(seen: NodeObservation | None) -> bool:
    return seen is not None and seen.connected and seen.peer is None


def _taken(seen: NodeObservation) -> _Told:
    return _Told(
        seen.session_id,
        _facts(seen),
        dict(seen.replicas),
        frozenset(seen.gone),
        seen.heartbeat,
        seen.standbys,
    )


def _facts(seen: NodeObservation) -> member_pb2.NodeSaid:
    return member_pb2.NodeSaid(
        node=seen.node,
        connected=True,
        instance_id=seen.instance_id,
        session_number=seen.session_number,
        session_id=seen.session_id,
        supersedes=seen.supersedes,
        agent_version=seen.agent_version,
        connected_at_ms=int(seen.connected_at * 1000),
        acked_generation=seen.acked_generation,
        plan_error=seen.plan_error,
        hello_complete=seen.complete,
        upgrade=seen.upgrade,
    )


def _said(told: _Told) -> member_pb2.NodeSaid:
    said = member_pb2.NodeSaid()
    said.CopyFrom(told.facts)
    return said


def _difference(told: _Told, seen: NodeObservation) -> Iterator[member_pb2.NodeSaid]:
    """Nothing when nothing changed. Updates `told`."""
    facts, before = _facts(seen), told.replicas
    changed = [s for uid, s in seen.replicas.items() if before.get(uid) is not s]
    removed = [uid for uid in before if uid not in seen.replicas]
    stopped = seen.gone - told.gone
    usage = seen.heartbeat is not told.heartbeat
    standbys = seen.standbys if seen.standbys is not told.standbys else NO_STANDBYS
    if not (changed or removed or stopped or usage or standbys or facts != told.facts):
        return
    told.facts, told.heartbeat = facts, seen.heartbeat
    told.replicas, told.gone = dict(seen.replicas), frozenset(seen.gone)
    told.standbys = seen.standbys
    first = _said(told)
    first.gone.extend({*removed, *stopped})
    first.stopped.extend(stopped)
    first.standbys.extend(standbys.values())
    if usage and seen.heartbeat is not None:
        first.heartbeat.CopyFrom(seen.heartbeat)
    first.replicas.extend(changed[:REPLICAS_PER_MESSAGE])
    yield from _in_parts(first, told, changed[REPLICAS_PER_MESSAGE:])


def _in_parts(
    first: member_pb2.NodeSaid, told: _Told, rest: list[agent_pb2.ReplicaStatus]
) -> Iterator[member_pb2.NodeSaid]:
    """Until the last part came, the node's list of replicas is not all of it."""
    parts = range(0, len(rest), REPLICAS_PER_MESSAGE)
    if parts:
        first.hello_complete = False
    yield first
    for start in parts:
        part = _said(told)
        part.hello_complete = told.facts.hello_complete and start == parts[-1]
        part.replicas.extend(rest[start : start + REPLICAS_PER_MESSAGE])
        yield part


def _ended(node: str, told: _Told, seen: NodeObservation | None) -> member_pb2.NodeSaid:
    """Its session is over, or another member has a newer one: there it goes on."""
    at = seen.disconnected_at if seen is not None else 0.0
    return member_pb2.NodeSaid(
        node=node,
        session_id=told.session_id,
        instance_id=told.facts.instance_id,
        disconnected_at_ms=int(at * 1000),
    )
