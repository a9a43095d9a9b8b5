"""Which agents are connected to this member: one live session per node, the newest.

The service enters and leaves sessions; the plan publisher and the relay broker reach nodes here.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterator

from orchestrator.gateway.outbox import Outbox, OutboxFull
from orchestrator.gateway.relays import NodeUnreachable
from orchestrator.mesh.newer import SessionName
from polder.identity import NodeId
from polder.v1 import agent_pb2, plan_pb2

log = logging.getLogger(__name__)


class LiveSession:
    """One agent's open stream. `last_heard` is in seconds of the fleet's steady clock."""

    __slots__ = (
        "__weakref__",
        "_closed",
        "generation_answered",
        "generation_sent",
        "hardware_id",
        "identity",
        "instance_id",
        "last_heard",
        "number",
        "outbox",
        "serial",
        "session_id",
        "started_at",
        "supersedes",
    )

    def __init__(
        self, identity: NodeId, serial: str, hello: agent_pb2.Hello, started_at: float
    ) -> None:
        self.identity = identity
        self.serial = serial
        self.instance_id = hello.instance_id[:128]
        self.hardware_id = hello.inventory.hardware_id
        self.number = max(0, hello.session_number)
        self.session_id = secrets.token_hex(8)
        self.supersedes = ""  # the session that the node was known to have when this one began
        self.last_heard = self.started_at = started_at
        self.outbox = Outbox()
        self._closed = False
        # The newest generation that the agent can know of.
        self.generation_sent = hello.plan_generation
        # The newest that it has taken or refused.
        self.generation_answered = hello.plan_generation

    @property
    def node(self) -> str:
        return self.identity.node

    @property
    def name(self) -> SessionName:
        """What the other members are told of it."""
        return SessionName(self.instance_id, self.number, self.session_id, self.supersedes)

    def is_closed(self) -> bool:
        """Its goodbye waits to be sent, or its stream has ended."""
        return self._closed

    def mark_closed(self) -> None:
        self._closed = True

    def send(self, message: agent_pb2.SessionResponse) -> None:
        """An agent that does not read loses its session rather than filling our memory."""
        try:
            self.outbox.put(message)
        except OutboxFull:
            log.warning("closing a session that is not read", extra={"node": self.node})
            self.close("Overloaded", "the agent does not read what it is sent", 1000)

    def send_plan(self, plan: plan_pb2.SignedNodePlan) -> None:
        self.generation_sent = max(self.generation_sent, plan.generation)
        self.outbox.put_plan(plan)

    def close(self, reason: str, message: str, retry_after_ms: int = 0) -> None:
        """Say goodbye as the last message, and end."""
        goodbye = agent_pb2.Goodbye(reason=reason, message=message, retry_after_ms=retry_after_ms)
        self.outbox.close(goodbye)
        self._closed = True


class Sessions:
    """The directory. It is the relay broker's `Asker`."""

    def __init__(self) -> None:
        self._by_node: dict[str, LiveSession] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    async def emptied(self) -> None:
        """Waits until no session is left."""
        await self._empty.wait()

    def __len__(self) -> int:
        return len(self._by_node)

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._by_node.values()))

    def get(self, node: str) -> LiveSession | None:
        return self._by_node.get(node)

    def enter(self, session: LiveSession) -> LiveSession | None:
        """The node's session from now on; returns the older one, which is being closed."""
        older = self._by_node.get(session.node)
        self._by_node[session.node] = session
        self._empty.clear()
        if older is not None:
            older.close("Superseded", "a newer session of this node was opened")
        return older

    def leave(self, session: LiveSession) -> bool:
        """Whether it was still the node's session."""
        if self._by_node.get(session.node) is not session:
            return False
        del self._by_node[session.node]
        if not self._by_node:
            self._empty.set()
        return True

    def ask(self, node: str, message: agent_pb2.SessionResponse) -> None:
        """Raises NodeUnreachable."""
        session = self._by_node.get(node)
        if session is None or session.is_closed():
            raise NodeUnreachable("NotConnected", f"node {node} is not connected")
        session.send(message)
