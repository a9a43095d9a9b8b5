"""What agents say right now: liveness, usage, replica states. In memory; each fact has one owner.

A node's owner is the member with its newest session. The gateway writes what this member's own
agents say, `orchestrator/mesh/nodes_heard.py` what other members say of theirs; the leader (through
`liveness`) and the operator API read. Nothing here is durable: after a restart every agent says it
all again in its Hello, and every member to those that follow it.

Nothing is written per node while all is well: how long a node of another member has been silent
follows from that member's last pulse and from the few that it calls silent.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType

from orchestrator.domain.liveness import (
    DEFAULT_PERIODS,
    Liveness,
    NodeLiveness,
    Periods,
    liveness,
)
from orchestrator.mesh.newer import SessionName
from polder.v1 import agent_pb2

Listener = Callable[[str], None]
Standbys = Mapping[tuple[str, str], agent_pb2.StandbyStatus]
"""By (workload uid, replica)."""
AWAY_AFTER_S = 5.0
NO_STANDBYS: Standbys = MappingProxyType({})
_EVER = {ready: (ready, 0.0) for ready in (False, True)}  # one for all, as nearly always


class Peer:
    """Another member as far as this one hears it. Moments are seconds of the fleet's steady clock.

    `heard_at` is its last pulse, `heard_unix` the same for people. `silent`: those of its nodes
    that it has not heard lately, each with the moment of its last word. `reachable`: its link
    stands, and it has said everything. `claims`: sessions that it has while another member
    has a newer one, by node.
    """

    __slots__ = ("claims", "heard_at", "heard_unix", "name", "reachable", "silent")

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard_at = 0.0
        self.heard_unix = 0.0
        self.silent: Mapping[str, float] = {}
        self.reachable = False
        self.claims: dict[str, str] = {}

    def last_word(self, node: str) -> float:
        """Of one of its nodes, at the latest."""
        return self.silent.get(node, self.heard_at)


@dataclass(slots=True)
class NodeObservation:
    """One node as last seen. Times are unix seconds by this member's clock; 0: never.

    They are for people: `heard_at` is what decides, in seconds of the fleet's steady clock. Of a
    node that another member has a session with (`peer`) both are as of the last `Fleet.get`.
    """

    node: str
    member: str = ""
    connected: bool = False
    instance_id: str = ""
    agent_version: str = ""
    connected_at: float = 0.0
    last_seen: float = 0.0
    heard_at: float | None = None
    disconnected_at: float = 0.0
    # Whose session it is: None is this member. With what it is known by everywhere.
    peer: Peer | None = None
    session_id: str = ""
    session_number: int = 0
    supersedes: str = ""
    heartbeat: agent_pb2.Heartbeat | None = None
    heartbeat_at: float = 0.0
    acked_generation: int = 0
    plan_error: str = ""
    complete: bool = False  # a Hello came: `replicas` is everything that runs there
    replicas: dict[str, agent_pb2.ReplicaStatus] = field(default_factory=dict)
    # What it said of its standby roles; replaced, and never changed in place.
    standbys: Standbys = field(default_factory=lambda: NO_STANDBYS)
    # What it said last of an upgrade of its agent; replaced, and never changed in place.
    upgrade: agent_pb2.UpgradeStatus | None = None
    # Replica uids that the agent said are gone, until the leader has pruned their stops.
    gone: set[str] = field(default_factory=set)
    # By replica uid: whether it is ready, and since when as far as this process saw it change.
    readiness: dict[str, tuple[bool, float]] = field(default_factory=dict)
    # Of `replicas`, those that its site decided on by itself; kept by `note_readiness`.
    local_stays: tuple[agent_pb2.ReplicaStatus, ...] = ()

    def ready_at(self, replica_uid: str) -> float:
        """Unix seconds since when it is ready, or not; 0: since before it was first heard of."""
        return self.readiness.get(replica_uid, (False, 0.0))[1]

    def note_readiness(self, now: float) -> None:
        """After `replicas` changed. `now`: unix seconds."""
        noted = {}
        for uid, status in self.replicas.items():
            before = self.readiness.get(uid)
            if before is None or before[0] != status.ready:
                before = (status.ready, now) if before is not None else _EVER[status.ready]
            noted[uid] = before
        self.readiness = noted
        self.local_stays = tuple(s for s in self.replicas.values() if s.takes_over)

    @property
    def session(self) -> SessionName:
        """What its session is called everywhere."""
        return SessionName(self.instance_id, self.session_number, self.session_id, self.supersedes)

    def belong(self, peer: Peer | None, session: SessionName, member: str) -> None:
        """It is connected to `member`: this one (None), or the one that `peer` stands for."""
        self.settle()
        if self.peer is not None and self.connected and self.peer is not peer:
            self.peer.claims[self.node] = self.session_id  # until it says that it has ended
        if peer is not None:
            peer.claims.pop(self.node, None)
        self.peer, self.member, self.connected = peer, member, True
        self.instance_id, self.session_number = session.instance_id, session.number
        self.session_id, self.supersedes = session.session_id, session.supersedes

    def last_word(self) -> float | None:
        """Steady seconds; None: nothing was heard of it since this process started."""
        if self.peer is not None and self.connected:
            return self.peer.last_word(self.node)
        return self.heard_at

    def settle(self) -> None:
        """Writes down what follows from the peer's last pulse: before the session ends, and for
        those who read."""
        if self.peer is not None and self.connected:
            word = self.heard_at = self.peer.last_word(self.node)
            self.last_seen = self.peer.heard_unix - (self.peer.heard_at - word)


class Fleet:
    """Observations by node. Listeners get its name after every change; they must be quick.

    `started_at`: unix seconds. `steady`: seconds of a clock that never jumps. `lost_after_s`: as in
    the `Periods` that are asked for.
    """

    def __init__(
        self,
        started_at: float,
        steady: Callable[[], float] = time.monotonic,
        lost_after_s: float = DEFAULT_PERIODS.lost_after_s,
    ) -> None:
        self.started_at = started_at
        self.steady = steady
        self._lost_after_s = lost_after_s
        self.listening_since = steady()
        self.unasked: Mapping[str, str] = {}
        self._deaf_since = -inf
        self._deaf_until = -inf
        self._attended_at: float | None = None
        self.back_at = -inf  # when this process went on after it had been stopped or starved
        self._nodes: dict[str, NodeObservation] = {}
        self._listeners: list[Listener] = []

    def get(self, node: str) -> NodeObservation | None:
        found = self._nodes.get(node)
        if found is not None and found.peer is not None:
            found.settle()
        return found

    def observe(self, node: str) -> NodeObservation:
        """The node's observation, made if need be. Call `touch` after changing it."""
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = NodeObservation(node)
        return found

    def heard(self, node: str, now: float) -> NodeObservation:
        """Its agent said something. `now`: unix seconds."""
        found = self.observe(node)
        found.last_seen, found.heard_at = now, self.steady()
        return found

    def liveness(
        self,
        node: str,
        ever_seen: bool,
        periods: Periods = DEFAULT_PERIODS,
        listening_since: float | None = None,
    ) -> NodeLiveness:
        """`ever_seen`: it reported at some time before. `listening_since`: seconds of the steady
        clock; silence from before does not count. None: since this process started."""
        seen, steady = self._nodes.get(node), self.steady()
        if self._attended_at is not None:
            self.attend()
        word = seen.last_word() if seen is not None else None
        silence_s = None if word is None else steady - word
        if seen is not None and silence_s is not None and silence_s <= periods.silent_after_s:
            seen.settle()  # as nearly always
            return NodeLiveness(Liveness.LIVE, seen.last_seen, max(0.0, silence_s))
        since = max(self.listening_since, listening_since or 0.0)
        # Who may hear it could not be asked: silence from before does not count, unless the node
        # was lost before that.
        if max(word or 0.0, since) + periods.lost_after_s >= self._deaf_since:
            since = max(since, steady if self.unasked else self._deaf_until)
        listened_s = max(0.0, steady - since)
        state = liveness(silence_s, ever_seen, listened_s, periods)
        if state is Liveness.NEVER_SEEN:
            return NodeLiveness(state, 0.0)
        if seen is not None:
            seen.settle()
        last_seen = seen.last_seen if seen is not None else 0.0
        quiet_s = listened_s if silence_s is None else min(silence_s, listened_s)
        return NodeLiveness(state, last_seen or self.started_at, max(0.0, quiet_s))

    def is_live(self, node: str, silent_after_s: float) -> bool:
        """What `liveness` comes to for nearly all nodes, at a tenth of its cost."""
        seen = self._nodes.get(node)
        if seen is None:
            return False
        peer = seen.peer
        if peer is not None and seen.connected:
            word: float | None = peer.silent.get(node, peer.heard_at)
        else:
            word = seen.heard_at
        return word is not None and self.steady() - word <= silent_after_s

    def silence_s(self, node: str) -> float:
        """How long nobody who was asked has heard it; infinite: since before this process."""
        seen = self._nodes.get(node)
        word = seen.last_word() if seen is not None else None
        return inf if word is None else self.steady() - word

    # --- members that cannot be heard ------------------------------------------------------------

    def cannot_ask(self, members: Mapping[str, str]) -> None:
        """Those that are there, as the Store knows, and that no link reaches; each with what people
        are told of it. Any node that is silent may be theirs: none is lost meanwhile."""
        if members and not self.unasked:
            self._begin_deaf(self.steady())
        if self.unasked.keys() - members.keys():
            self._deaf_until = self.steady()
        self.unasked = dict(members)

    def link_ended(self) -> None:
        """A member is not heard any more: its agents get a full period to be heard elsewhere."""
        self._begin_deaf(self.steady())
        self._deaf_until = self.steady()

    def attend(self) -> None:
        """Called every second. When it was not, this process was stopped or starved, and heard
        nobody; silence from before does not count then."""
        before, steady = self._attended_at, self.steady()
        self._attended_at = steady
        if before is not None and steady - before > AWAY_AFTER_S:
            self._begin_deaf(before)
            self._deaf_until = self.back_at = steady

    def _begin_deaf(self, since: float) -> None:
        """Times that follow each other closely are one; so is all the time until nobody is left
        who cannot be asked."""
        if not self.unasked and since - self._deaf_until > self._lost_after_s:
            self._deaf_since = since

    def doubt(self, node: str) -> str:
        """Why the node's silence proves nothing; empty when everybody could be asked."""
        if not self.unasked:
            return ""
        seen = self._nodes.get(node)
        owner = seen.peer.name if seen is not None and seen.connected and seen.peer else ""
        name = owner if owner in self.unasked else min(self.unasked)
        had = "has its session" if name == owner else "may have a session with it"
        return (
            f"node {node} is silent, and member {name}, which {had}, {self.unasked[name]}: "
            "evictions wait until it can be asked, or ends"
        )

    # --- all -------------------------------------------------------------------------------------

    def nodes(self) -> Iterable[NodeObservation]:
        return self._nodes.values()

    def forget(self, node: str) -> None:
        former = self._nodes.pop(node, None)
        if former is None:
            return
        if former.peer is not None and former.connected:
            # If that is another node's already, of the same name, it must be heard anew.
            former.peer.claims[node] = former.session_id
        self.touch(node)

    def touch(self, node: str) -> None:
        """Tell the listeners. Heartbeats that change nothing visible need not call it."""
        for listener in self._listeners:
            listener(node)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Returns the function that ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
