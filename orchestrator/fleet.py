"""What agents say right now: liveness, usage, replica states. In memory; each fact has one owner.

The gateway that holds a node's session writes; the leader (through `liveness`) and the operator API
read. Nothing here is durable: after a restart every agent says it all again in its Hello.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from polder.v1 import agent_pb2

Listener = Callable[[str], None]


@dataclass(slots=True)
class NodeObservation:
    """One node as last seen. Times are unix seconds by this member's clock; 0: never."""

    node: str
    member: str = ""
    connected: bool = False
    instance_id: str = ""
    agent_version: str = ""
    connected_at: float = 0.0
    last_seen: float = 0.0
    disconnected_at: float = 0.0
    heartbeat: agent_pb2.Heartbeat | None = None
    acked_generation: int = 0
    plan_error: str = ""
    complete: bool = False  # a Hello came: `replicas` is everything that runs there
    replicas: dict[str, agent_pb2.ReplicaStatus] = field(default_factory=dict)
    # Replica uids that the agent said are gone, until the leader has pruned their stops.
    gone: set[str] = field(default_factory=set)


class Fleet:
    """Observations by node. Listeners get its name after every change; they must be quick."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
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
