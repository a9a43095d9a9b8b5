"""Logs and exec of nodes that are connected to another member: asked there, and carried through.

The operator API opens every relay with `Forwarding`, which finds the member that has the node's
session. `MemberService.Forward` ends in `serve`, which only asks nodes that are connected here and
never a third member: nothing goes in circles. HTTP/2's flow control reaches through both calls, so
nothing piles up on either member; whichever end goes, the other is told.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, cast

from grpc import StatusCode, aio

from orchestrator.cancellation import is_cancelled
from orchestrator.fleet import Fleet
from orchestrator.gateway.relays import NodeUnreachable, Relay, RelayBroker
from orchestrator.refusals import invalid
from polder.v1 import agent_pb2, member_pb2, member_pb2_grpc

log = logging.getLogger(__name__)

FORWARDS_MAX = 200
"""To one member: they share a connection, which carries no more than 256 streams."""
OPEN_TIMEOUT_S = 12.0
"""A little longer than the asked member waits for the node."""
_FIRST_TIMEOUT_S = 10.0
_MOVED_WITHIN_S = 2.0
_TEXT_MAX = 512
_EOF: Any = cast(Any, aio).EOF  # its stubs lack it

StubOf = Callable[[str], member_pb2_grpc.MemberServiceStub | None]


class Forwarding:
    """One per member. `open` as `RelayBroker.open`, for every node of the installation."""

    def __init__(self, member: str, broker: RelayBroker, fleet: Fleet, stub_of: StubOf) -> None:
        """`stub_of`: how to call a member; None while it cannot be reached."""
        self._member = member
        self._broker = broker
        self._fleet = fleet
        self._stub_of = stub_of
        self._open: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """Relays that go through another member now."""
        return sum(self._open.values())

    def open(self, node: str, request: agent_pb2.OpenRelay) -> "RoutedRelay":
        """Nothing is sent until `async with`, which raises NodeUnreachable."""
        return RoutedRelay(self, node, request)

    async def enter(self, node: str, request: agent_pb2.OpenRelay) -> Relay:
        """A relay that the node has answered. Raises NodeUnreachable."""
        where = self._where(node)
        try:
            return await self._relay(node, request, where).__aenter__()
        except NodeUnreachable as error:
            if error.reason != "NotConnected":
                raise
            if not await self._has_moved(node, where):
                raise self._not_connected(node, error.message) from error
        return await self._relay(node, request, self._where(node)).__aenter__()

    def _not_connected(self, node: str, message: str) -> NodeUnreachable:
        """Of those that can be asked nobody has its session."""
        unasked = self._fleet.unasked
        if unasked:
            names = "; ".join(f"member {name} {why}" for name, why in sorted(unasked.items()))
            message = f"node {node} is not connected to any member that is heard here; {names}"
        return NodeUnreachable("NotConnected", message)

    def _relay(self, node: str, request: agent_pb2.OpenRelay, where: str) -> Relay:
        if not where:
            return self._broker.open(node, request)
        return _ForwardedRelay(node, request, where, self._stub_of(where), self._open)

    def _where(self, node: str) -> str:
        """The other member that has its session; empty: this one, or none."""
        seen = self._fleet.get(node)
        if seen is None or not seen.connected or seen.member == self._member:
            return ""
        return seen.member

    async def _has_moved(self, node: str, former: str) -> bool:
        """Whether another member has it now. One that has just left says so a moment later."""
        seen = self._fleet.get(node)
        if not former and (seen is None or not seen.connected):
            return False
        news = asyncio.Event()
        unsubscribe = self._fleet.subscribe(lambda _: news.set())
        try:
            async with asyncio.timeout(_MOVED_WITHIN_S):
                while not self._is_elsewhere(node, former):
                    news.clear()
                    await news.wait()
        except TimeoutError:
            return False
        finally:
            unsubscribe()
        return True

    def _is_elsewhere(self, node: str, former: str) -> bool:
        seen = self._fleet.get(node)
        return seen is not None and seen.connected and self._where(node) != former

    # --- for other members -----------------------------------------------------------------------

    async def serve(
        self, requests: AsyncIterator[member_pb2.ForwardRequest]
    ) -> AsyncIterator[member_pb2.ForwardResponse]:
        """One relay to a node that is connected here. Raises Refused."""
        first = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TIMEOUT_S):
                first = await anext(aiter(requests), None)
        if first is None or not first.HasField("open"):
            raise invalid("the first message of a forward must be its open")
        try:
            async with self._broker.open(first.open.node, first.open.request) as relay:
                # The node has answered: that much the caller must know before anything is said.
                opened = agent_pb2.RelayOpen(relay_id=relay.relay_id)
                yield member_pb2.ForwardResponse(output=agent_pb2.RelayRequest(open=opened))
                pump = asyncio.create_task(_pump(requests, relay), name="forward-input")
                try:
                    async for message in relay:
                        yield member_pb2.ForwardResponse(output=message)
                finally:
                    pump.cancel()
                    await asyncio.wait({pump})
        except NodeUnreachable as error:
            failure = member_pb2.ForwardFailure(reason=error.reason, message=error.message)
            yield member_pb2.ForwardResponse(failure=failure)


async def _pump(requests: AsyncIterator[member_pb2.ForwardRequest], relay: Relay) -> None:
    async for request in requests:
        if request.HasField("input"):
            await relay.send(request.input)


class RoutedRelay:
    """One log or exec, wherever its node is: see `Relay`."""

    def __init__(self, forwarding: Forwarding, node: str, request: agent_pb2.OpenRelay) -> None:
        self._forwarding = forwarding
        self._node = node
        self._request = request
        self._relay: Relay | None = None

    async def __aenter__(self) -> Relay:
        self._relay = await self._forwarding.enter(self._node, self._request)
        return self._relay

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._relay is not None
        await self._relay.__aexit__(kind, error, trace)


class _ForwardedRelay:
    """The operator's end of a Forward call: what `RelaySession` is for a node that is here."""

    def __init__(
        self,
        node: str,
        request: agent_pb2.OpenRelay,
        member: str,
        stub: member_pb2_grpc.MemberServiceStub | None,
        counted: Counter[str],
    ) -> None:
        self._node = node
        self._open = member_pb2.ForwardOpen(node=node, request=request)
        self._open.request.relay_id = ""
        self._member = member
        self._stub: Any = stub
        self._counted = counted
        self._call: Any = None
        self._ended = False

    async def __aenter__(self) -> "Relay":
        """Raises NodeUnreachable."""
        has_it = f"member {self._member}, to which node {self._node} is connected,"
        if self._stub is None:
            raise NodeUnreachable("NoAnswer", f"{has_it} cannot be reached now")
        if self._counted[self._member] >= FORWARDS_MAX:
            message = f"too many logs and execs go through {has_it[:-1]}; close some and retry"
            raise NodeUnreachable("TooManyRelays", message)
        try:
            self._call = self._stub.Forward()
        except Exception as error:  # gRPC names no public one: the connection was just closed
            raise NodeUnreachable("NoAnswer", f"{has_it} cannot be reached now") from error
        self._counted[self._member] += 1
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._say(member_pb2.ForwardRequest(open=self._open))
                await self._read()
        except TimeoutError:
            self._leave()
            message = f"{has_it} did not answer within {OPEN_TIMEOUT_S:g} s"
            raise NodeUnreachable("NoAnswer", message) from None
        except (aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._leave()
            reason, why = _why(error)
            raise NodeUnreachable(reason, f"{has_it} cannot forward: {why}") from error
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """The other member's end is cancelled with this one, and the node's with that."""
        self._call.cancel()
        self._counted[self._member] -= 1
        if not self._counted[self._member]:
            del self._counted[self._member]

    def __aiter__(self) -> "Relay":
        return self

    async def __anext__(self) -> agent_pb2.RelayRequest:
        if self._ended:
            raise StopAsyncIteration
        try:
            message = await self._read()
        except aio.AioRpcError as error:
            _, why = _why(error)
            text = (
                f"member {self._member}, to which node {self._node} is connected, went away "
                f"during the request: {why}"
            )
            raise NodeUnreachable("ConnectionLost", text) from error
        self._ended = message.WhichOneof("message") == "end"
        return message

    async def _read(self) -> agent_pb2.RelayRequest:
        """Raises NodeUnreachable, as the other member says, and AioRpcError."""
        try:
            response = await self._call.read()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            response = _EOF  # the link's connection was closed here
        if response is _EOF:
            text = (
                f"the connection to member {self._member}, to which node {self._node} is "
                "connected, ended during the request"
            )
            raise NodeUnreachable("ConnectionLost", text)
        if response.HasField("failure"):
            failure = response.failure
            raise NodeUnreachable(failure.reason[:64], failure.message[:_TEXT_MAX])
        output: agent_pb2.RelayRequest = response.output
        return output

    async def send(self, response: agent_pb2.RelayResponse) -> None:
        """Waits while the node does not read. What comes after the node's end is dropped."""
        # A call that is over tells why to who reads.
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._say(member_pb2.ForwardRequest(input=response))

    async def _say(self, request: member_pb2.ForwardRequest) -> None:
        """Raises AioRpcError and InvalidStateError when the call is over."""
        try:
            await self._call.write(request)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise asyncio.InvalidStateError from None


def _why(error: Exception) -> tuple[str, str]:
    """(reason of a NodeUnreachable, text)."""
    if not isinstance(error, aio.AioRpcError):
        return "NoAnswer", "the call is over"
    full = error.code() is StatusCode.RESOURCE_EXHAUSTED
    text = f"{error.details() or error.code().name}"[:_TEXT_MAX]
    return ("TooManyRelays" if full else "NoAnswer"), text
