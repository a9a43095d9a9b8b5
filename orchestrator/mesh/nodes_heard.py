"""What other members say of their nodes, taken into the fleet; and whose a node is.

The links give every message that they hear. Where two members have a session with one node the
newer one counts (`newer.py`); this member closes its own when it is the older. An agent is believed
here as its gateway believed it: limits and checks were applied there.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from orchestrator.cache import Cache
from orchestrator.domain import reports
from orchestrator.fleet import NO_STANDBYS, Fleet, NodeObservation, Peer
from orchestrator.mesh.newer import SessionName, is_newer
from polder.v1 import member_pb2

log = logging.getLogger(__name__)


class Gateway(Protocol):
    """Closes a session of this member whose node has a newer one elsewhere."""

    def supersede(self, node: str, by: SessionName, member: str) -> None: ...


class Heard:
    """One member's nodes, as it says them.

    `missing`: of those that it had before, which it has not named since its last hello.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.missing: set[str] = set()


class NodesHeard:
    """One per member. Nothing here waits."""

    def __init__(
        self, fleet: Fleet, cache: Cache, gateway: Gateway, clock: Callable[[], float]
    ) -> None:
        self.fleet = fleet
        self._cache = cache
        self._gateway = gateway
        self._clock = clock
        self._heard: dict[str, Heard] = {}

    def of(self, member: str) -> Heard:
        """Made if need be, and kept: what a member said counts beyond its link."""
        found = self._heard.get(member)
        if found is None:
            found = self._heard[member] = Heard(Peer(member))
        return found

    # --- a link ----------------------------------------------------------------------------------

    def begin(self, heard: Heard) -> None:
        """It says everything anew; what it does not name by its `complete` is there no more."""
        heard.peer.claims.clear()
        heard.missing = {
            seen.node for seen in self.fleet.nodes() if seen.connected and seen.peer is heard.peer
        }

    def take(self, heard: Heard, nodes: member_pb2.NodesSaid) -> None:
        for said in nodes.nodes:
            self._take_node(heard, said)
        if nodes.complete:
            self._complete(heard)

    def pulse(self, heard: Heard, pulse: member_pb2.Pulse) -> None:
        """All its nodes that it does not call silent have just been heard."""
        steady, peer = self.fleet.steady(), heard.peer
        peer.silent = {item.node: steady - item.silence_ms / 1000 for item in pulse.silent}
        peer.heard_at, peer.heard_unix = steady, self._clock()

    def end(self, heard: Heard) -> None:
        """No link of it stands any more. Its nodes stay as they were: see `Fleet.cannot_ask`."""
        if heard.peer.reachable:
            heard.peer.reachable = False
            self.fleet.link_ended()

    def unclaimed(self, heard: Heard) -> list[str]:
        """Nodes of which it has the only session, although that lost to another: that one is over,
        and what it says of them must be heard again from the beginning."""
        claims = heard.peer.claims
        return [node for node in claims if not self._stands(self.fleet.get(node))]

    # --- a node ----------------------------------------------------------------------------------

    def _complete(self, heard: Heard) -> None:
        heard.peer.reachable = True
        for node in heard.missing:
            heard.peer.claims.pop(node, None)  # it moved before this member was through
            seen = self.fleet.get(node)
            if seen is not None and seen.peer is heard.peer and seen.connected:
                # Its session ended at some moment that nobody here knows: from now on it is silent.
                self._end(seen)
                seen.heard_at = self.fleet.steady()
                self.fleet.touch(node)
        heard.missing.clear()

    def _take_node(self, heard: Heard, said: member_pb2.NodeSaid) -> None:
        heard.missing.discard(said.node)
        seen = self.fleet.get(said.node)
        mine = seen is not None and seen.peer is heard.peer and seen.session_id == said.session_id
        if not said.connected:
            heard.peer.claims.pop(said.node, None)
            if seen is not None and mine and seen.connected:
                self._end(seen, said.disconnected_at_ms)
                self.fleet.touch(said.node)
            return
        if not mine and not (said.whole and self._wins(heard, seen, said)):
            return
        self._update(heard, self.fleet.observe(said.node), said)
        self.fleet.touch(said.node)

    def _stands(self, seen: NodeObservation | None) -> bool:
        """Whether its session is one that this member can hear."""
        if seen is None or not seen.connected:
            return False
        return seen.peer is None or seen.peer.reachable

    def _wins(self, heard: Heard, seen: NodeObservation | None, said: member_pb2.NodeSaid) -> bool:
        """Whether the node is this member's from now on; settles it with the one that has it."""
        if seen is None or seen.peer is heard.peer or not self._stands(seen):
            return True
        theirs = _name(said)
        if not is_newer(theirs, seen.session):
            heard.peer.claims[said.node] = said.session_id
            return False
        if seen.peer is None:
            self._gateway.supersede(said.node, theirs, heard.peer.name)
        return True

    def _update(self, heard: Heard, seen: NodeObservation, said: member_pb2.NodeSaid) -> None:
        # A copy of its own: a part of the message would keep all of the message in memory.
        said = _copied(said)
        seen.belong(heard.peer, _name(said), heard.peer.name)
        seen.agent_version, seen.plan_error = said.agent_version, said.plan_error
        seen.connected_at = said.connected_at_ms / 1000
        seen.acked_generation, seen.complete = said.acked_generation, said.hello_complete
        seen.upgrade = said.upgrade if said.HasField("upgrade") else None
        if said.HasField("heartbeat"):
            seen.heartbeat, seen.heartbeat_at = said.heartbeat, self._clock()
        if said.whole:
            seen.replicas, seen.standbys = {}, NO_STANDBYS
        if said.standbys:
            seen.standbys = reports.standbys(said.standbys)
        for uid in said.gone:
            seen.replicas.pop(uid, None)
        for status in said.replicas:
            seen.replicas[status.replica_uid] = status
        if said.whole or said.replicas or said.gone:
            seen.note_readiness(self._clock())
        if seen.gone or said.stopped:
            # The leader's own mirror may be behind an agent that is quick: what is news stays.
            stops = {stop.replica_uid for stop in self._cache.placement(said.node).stops}
            seen.gone = {uid for uid in seen.gone if uid in stops} | set(said.stopped)
        seen.settle()

    def _end(self, seen: NodeObservation, at_ms: int = 0) -> None:
        seen.settle()
        seen.connected = False
        seen.disconnected_at = at_ms / 1000 if at_ms else self._clock()


def _name(said: member_pb2.NodeSaid) -> SessionName:
    return SessionName(said.instance_id, said.session_number, said.session_id, said.supersedes)


def _copied(said: member_pb2.NodeSaid) -> member_pb2.NodeSaid:
    copy = member_pb2.NodeSaid()
    copy.CopyFrom(said)
    return copy
