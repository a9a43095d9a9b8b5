"""Logs and exec: joins an operator's call to the stream that the agent opens for it.

`orchestrator/mesh/forward.py` calls `RelayBroker.open`, for the operator API or another member; the
node is asked over its session, and then opens a Relay RPC of its own with the id it was given.
HTTP/2's flow control reaches from the operator's terminal to the container: nothing is buffered
here beyond a few messages.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Protocol, TypeVar

from polder.v1 import agent_pb2

T = TypeVar("T")

MAX_RELAYS_PER_NODE = 32
MAX_RELAYS = 2000
OPEN_TIMEOUT_S = 10.0
_BUFFERED = 8


class NodeUnreachable(Exception):
    """The node cannot be asked now. `reason` is CamelCase: NotConnected, TooManyRelays, NoAnswer,
    ConnectionLost."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class UnknownRelay(Exception):
    """A node opened a relay that nobody asked of it."""


class Asker(Protocol):
    """How the broker reaches a node: the gateway's directory of sessions."""

    def ask(self, node: str, message: agent_pb2.SessionResponse) -> None:
        """Raises NodeUnreachable."""
        ...


class Relay(Protocol):
    """One log or exec in progress. `async with`, then iterate what the node says and `send`.

    Iteration ends after the RelayEnd; it raises NodeUnreachable when the node went away before.
    """

    async def __aenter__(self) -> "Relay":
        """Raises NodeUnreachable."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __aiter__(self) -> "Relay": ...

    async def __anext__(self) -> agent_pb2.RelayRequest: ...

    async def send(self, response: agent_pb2.RelayResponse) -> None:
        """Waits while the node does not read. What comes after the node's end is dropped."""
        ...


class RelaySession:
    """A `Relay` to a node that is connected to this member."""

    def __init__(
        self, broker: "RelayBroker", node: str, request: agent_pb2.OpenRelay, timeout_s: float
    ) -> None:
        self._broker = broker
        self._timeout_s = timeout_s
        self.node = node
        self.request = agent_pb2.OpenRelay()
        self.request.CopyFrom(request)
        self.request.relay_id = secrets.token_hex(16)
        self._attached = asyncio.Event()
        self._operator_gone = asyncio.Event()
        self._node_gone = asyncio.Event()
        self._inbound: asyncio.Queue[agent_pb2.RelayRequest] = asyncio.Queue(_BUFFERED)
        self._outbound: asyncio.Queue[agent_pb2.RelayResponse] = asyncio.Queue(_BUFFERED)
        self._ended = False

    @property
    def relay_id(self) -> str:
        return self.request.relay_id

    async def __aenter__(self) -> "RelaySession":
        """Raises NodeUnreachable."""
        self._broker.register(self)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._attached.wait()
        except TimeoutError:
            self._broker.unregister(self)
            message = f"node {self.node} did not answer within {self._timeout_s:g} s"
            raise NodeUnreachable("NoAnswer", message) from None
        except BaseException:
            self._broker.unregister(self)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._operator_gone.set()
        self._broker.unregister(self)

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> agent_pb2.RelayRequest:
        if self._ended:
            raise StopAsyncIteration
        if self._inbound.empty():
            message = await _unless(self._node_gone, self._inbound.get())
        else:
            message = self._inbound.get_nowait()
        if message is None and not self._inbound.empty():
            message = self._inbound.get_nowait()
        if message is None:
            text = f"node {self.node} went away during the request"
            raise NodeUnreachable("ConnectionLost", text)
        self._ended = message.WhichOneof("message") == "end"
        return message

    async def send(self, response: agent_pb2.RelayResponse) -> None:
        """Waits while the node does not read. What comes after the node's end is dropped."""
        await _unless(self._node_gone, self._outbound.put(response))

    async def serve(
        self, requests: AsyncIterator[agent_pb2.RelayRequest]
    ) -> AsyncIterator[agent_pb2.RelayResponse]:
        """The node's side: runs in its Relay RPC until either end is done."""
        if self._attached.is_set():
            raise UnknownRelay(f"relay {self.relay_id} was opened twice")
        self._attached.set()
        reader = asyncio.create_task(self._read(requests), name=f"relay-{self.relay_id}")
        try:
            while not self._node_gone.is_set():
                getting = _unless(self._node_gone, self._outbound.get())
                response = await _unless(self._operator_gone, getting)
                if response is None:
                    break
                yield response
        finally:
            reader.cancel()
            self._node_gone.set()

    async def _read(self, requests: AsyncIterator[agent_pb2.RelayRequest]) -> None:
        try:
            async for request in requests:
                await _unless(self._operator_gone, self._inbound.put(request))
                if request.WhichOneof("message") == "end":
                    return
        finally:
            self._node_gone.set()


class RelayBroker:
    """Knows every relay that was asked for and is not over. One per orchestrator process."""

    def __init__(self, asker: Asker, open_timeout_s: float = OPEN_TIMEOUT_S) -> None:
        self._asker = asker
        self._open_timeout_s = open_timeout_s
        self._relays: dict[str, RelaySession] = {}
        self._per_node: defaultdict[str, int] = defaultdict(int)

    @property
    def active(self) -> int:
        return len(self._relays)

    def open(self, node: str, request: agent_pb2.OpenRelay) -> RelaySession:
        """A relay to the node; `request.relay_id` is ignored. Nothing is sent until `async with`,
        which raises NodeUnreachable."""
        return RelaySession(self, node, request, self._open_timeout_s)

    def serve(
        self,
        node: str,
        opened: agent_pb2.RelayOpen,
        requests: AsyncIterator[agent_pb2.RelayRequest],
    ) -> AsyncIterator[agent_pb2.RelayResponse]:
        """The responses for a node's Relay RPC. Raises UnknownRelay: also for another node's id."""
        relay = self._relays.get(opened.relay_id)
        if relay is None or relay.node != node:
            raise UnknownRelay("nobody asked this node for such a relay, or it is over")
        return relay.serve(requests)

    def register(self, relay: RelaySession) -> None:
        """Raises NodeUnreachable."""
        if (
            len(self._relays) >= MAX_RELAYS
            or self._per_node.get(relay.node, 0) >= MAX_RELAYS_PER_NODE
        ):
            message = f"too many logs and execs are open on node {relay.node}; close some and retry"
            raise NodeUnreachable("TooManyRelays", message)
        self._asker.ask(relay.node, agent_pb2.SessionResponse(open_relay=relay.request))
        self._relays[relay.relay_id] = relay
        self._per_node[relay.node] += 1

    def unregister(self, relay: RelaySession) -> None:
        if self._relays.pop(relay.relay_id, None) is not None:
            self._per_node[relay.node] -= 1
            if not self._per_node[relay.node]:
                del self._per_node[relay.node]


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result, or None when the event came first; the work is then cancelled."""
    doing = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        waiting.cancel()
