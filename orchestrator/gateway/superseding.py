"""One session per node, the newest: within this member, and between this one and the others.

The service enters and leaves sessions here; the mesh says when another member has a newer session
with a node of ours. Which of two is newer is the rule of `orchestrator/mesh/newer.py`. A box with a
copy of the node's disk is kept out before (`twins.py`), where boxes tell which they are.
"""

import logging
import random
from collections.abc import Sequence

from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.twins import Twins
from orchestrator.mesh.newer import SessionName, is_newer
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

_SAME_RETRY_MS = 1_000
_OTHER_RETRY_MS = 30_000
"""Two boxes with one identity take turns, rather than chase each other from member to member."""
SUPERSEDED = "Superseded"


class Superseding:
    """One per member. Without `twins` the newest session wins, whatever box it is of."""

    def __init__(
        self,
        fleet: Fleet,
        sessions: Sessions,
        events: Recorder,
        member: str,
        twins: Twins | None = None,
    ) -> None:
        self._fleet = fleet
        self._sessions = sessions
        self._events = events
        self._member = member
        self._twins = twins

    def enter(
        self, session: LiveSession, addresses: Sequence[str] = ()
    ) -> agent_pb2.Goodbye | None:
        """The node's session from now on; or what it is told because it is an old one, or another
        box's (`addresses`: where that is)."""
        copied = self._twins.meet(session, addresses) if self._twins is not None else None
        if copied is not None:
            return copied
        seen = self._fleet.get(session.node)
        facts = {"node": session.node, "instance": session.instance_id}
        if seen is not None and seen.connected:
            session.supersedes = seen.session_id
            peer = seen.peer
            if peer is not None and peer.reachable:
                if is_newer(seen.session, session.name):
                    log.info("an old session is not opened", extra=facts)
                    return _goodbye(seen.session, peer.name, same=True)
                log.info("session moves here", extra={**facts, "from": peer.name})
        older = self._sessions.enter(session)
        log.info("session opened", extra=facts)
        if older is not None and older.instance_id != session.instance_id:
            log.warning("session superseded", extra={**facts, "instance": older.instance_id})
            self._tell(session.node, session.instance_id, older.instance_id, "")
        return None

    def leave(self, session: LiveSession, now: float) -> None:
        """`now`: unix seconds."""
        session.mark_closed()
        if not self._sessions.leave(session):
            return  # a newer session speaks for the node
        log.info("session closed", extra={"node": session.node})
        seen = self._fleet.get(session.node)
        if seen is not None and seen.peer is None and seen.session_id == session.session_id:
            seen.connected = False
            seen.disconnected_at = now
            self._fleet.touch(session.node)

    def supersede(self, node: str, by: SessionName, member: str) -> None:
        """The mesh: `member` has a newer session with a node of ours."""
        session = self._sessions.get(node)
        if session is None or session.is_closed():
            return
        same = session.instance_id == by.instance_id
        facts = {"node": node, "instance": session.instance_id, "by": by.instance_id, "at": member}
        log.log(logging.INFO if same else logging.WARNING, "session superseded", extra=facts)
        goodbye = _goodbye(by, member, same=same)
        session.close(goodbye.reason, goodbye.message, goodbye.retry_after_ms)
        if not same:
            self._tell(node, by.instance_id, session.instance_id, f" at {member}")

    def _tell(self, node: str, newer: str, older: str, where: str) -> None:
        """An agent that reconnects or renews supersedes only itself, which is no news."""
        message = (
            f"instance {newer} connected{where} while {older} was connected; "
            "the newer one stays. If it repeats, two agents have one identity: on one box, or on "
            "two that do not tell their hardware apart. Give one of the two a machine id of its "
            f"own, `edgectl revoke node/{node}`, and join both anew"
        )
        source = f"gateway/{self._member}"
        severity = common_pb2.EVENT_TYPE_NORMAL
        self._events.record("Node", "", node, severity, "SessionSuperseded", message, source)


def _goodbye(by: SessionName, member: str, *, same: bool) -> agent_pb2.Goodbye:
    whose = "this agent" if same else f"another agent with this node's identity ({by.instance_id})"
    retry_ms = _SAME_RETRY_MS if same else _OTHER_RETRY_MS
    return agent_pb2.Goodbye(
        reason=SUPERSEDED,
        message=f"{whose} has a newer session, at member {member}",
        retry_after_ms=int(retry_ms * random.uniform(1.0, 1.5)),
    )
