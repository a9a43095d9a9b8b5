"""What agents say right now: liveness, usage, replica states. In memory; each fact has one owner.

The gateway that holds a node's session writes; the leader (through `liveness`) and the operator API
read. Nothing here is durable: after a restart every agent says it all again in its Hello.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.domain.liveness import (
    DEFAULT_PERIODS,
    Liveness,
    NodeLiveness,
    Periods,
    liveness,
)
from polder.v1 import agent_pb2

Listener = Callable[[str], None]


@dataclass(slots=True)
class NodeObservation:
    """One node as last seen. Times are unix seconds by this member's clock; 0: never.

    They are for people: `heard_at` is what decides, in seconds of the fleet's steady clock.
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
    heartbeat: agent_pb2.Heartbeat | None = None
    acked_generation: int = 0
    plan_error: str = ""
    complete: bool = False  # a Hello came: `replicas` is everything that runs there
    replicas: dict[str, agent_pb2.ReplicaStatus] = field(default_factory=dict)
    # Replica uids that the agent said are gone, until the leader has pruned their stops.
    gone: set[str] = field(default_factory=set)
    # By replica uid: whether it is ready, and since when as far as this process saw it change.
    readiness: dict[str, tuple[bool, float]] = field(default_factory=dict)

    def ready_at(self, replica_uid: str) -> float:
        """Unix seconds since when it is ready, or not; 0: since before it was first heard of."""
        return self.readiness.get(replica_uid, (False, 0.0))[1]

    def note_readiness(self, now: float) -> None:
        """After `replicas` changed. `now`: unix seconds."""
        noted = {}
        for uid, status in self.replicas.items():
            before = self.readiness.get(uid)
            if before is None or before[0] != status.ready:
                before = (status.ready, now if before is not None else 0.0)
            noted[uid] = before
        self.readiness = noted


class Fleet:
    """Observations by node. Listeners get its name after every change; they must be quick.

    `started_at`: unix seconds. `steady`: seconds of a clock that never jumps.
    """

    def __init__(self, started_at: float, steady: Callable[[], float] = time.monotonic) -> None:
        self.started_at = started_at
        self.steady = steady
        self.listening_since = steady()
        self._nodes: dict[str, NodeObservation] = {}
        self._listeners: list[Listener] = []

    def get(self, node: str) -> NodeObservation | None:
        return self._nodes.get(node)

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
        silence_s = None
        if seen is not None and seen.heard_at is not None:
            silence_s = steady - seen.heard_at
        since = max(self.listening_since, listening_since or 0.0)
        listened_s = max(0.0, steady - since)
        state = liveness(silence_s, ever_seen, listened_s, periods)
        last_seen = seen.last_seen if seen is not None else 0.0
        quiet_s = listened_s if silence_s is None else min(silence_s, listened_s)
        if state is Liveness.NEVER_SEEN:
            return NodeLiveness(state, 0.0)
        return NodeLiveness(state, last_seen or self.started_at, max(0.0, quiet_s))

    def nodes(self) -> Iterable[NodeObservation]:
        return self._nodes.values()

    def forget(self, node: str) -> None:
        if self._nodes.pop(node, None) is not None:
            self.touch(node)

    def touch(self, node: str) -> None:
        """Tell the listeners. Heartbeats that change nothing visible need not call it."""
        for listener in self._listeners:
            listener(node)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Returns the function that ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
