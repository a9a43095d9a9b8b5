"""LocalService: where operators reach this node when no orchestrator can be reached. See ADR 26.

The server proves itself with the site certificate, which nobody signed; Introduce says whose it is.
Callers show no certificate to TLS: they enter with a proof of their own, and what Enter gave them
goes with each further call. `assembly.py` makes it, `agent/service.py` runs it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from agent.conditions import Conditions
from agent.connections import Crowd, at_most
from agent.local.arriving import Arriving
from agent.local.callers import Caller
from agent.local.changing import Changing
from agent.local.door import Door
from agent.local.journal import NotWritten
from agent.local.reach import Reach
from agent.local.refusals import Code, Refused, unauthenticated, unavailable
from agent.local.showing import Showing
from agent.local.tries import address_of
from agent.site.certificate import SiteCertificate
from agent.site.server import CannotListen
from polder.errors import detail
from polder.local_access import SESSION_KEY
from polder.v1 import local_pb2, local_pb2_grpc

log = logging.getLogger(__name__)

CONDITION = "LocalPortUnavailable"
LISTEN_RETRY_S = 5.0
REQUEST_MAX_BYTES = 128 << 10  # a piece of a command's input has 32 KiB; anybody may send so much
RESPONSE_MAX_BYTES = 32 << 20
CALLS_MAX = 64
CONNECTIONS_MAX = 128
HEAR_OUT_S = 0.25
_OPTIONS = [
    ("grpc.max_send_message_length", RESPONSE_MAX_BYTES),
    ("grpc.max_receive_message_length", REQUEST_MAX_BYTES),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_connection_idle_ms", 60_000),
    *at_most(CONNECTIONS_MAX),  # anybody may connect
    # A caller that vanished in the middle of a command keeps no stream: half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # edgectl pings too, so that it notices a node that died; no more often than this.
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    # Two agents of one box that share a port by mistake: the second is told so.
    ("grpc.so_reuseport", 0),
]
_Answer = TypeVar("_Answer")


class LocalServer(local_pb2_grpc.LocalServiceServicer):
    """`listen`: HOST:PORT. Use `run`."""

    def __init__(
        self,
        listen: str,
        certificate: SiteCertificate,
        door: Door,
        showing: Showing,
        reach: Reach,
        changing: Changing,
    ) -> None:
        self._listen = listen
        self._certificate = certificate
        self._door = door
        self._showing = showing
        self._reach = reach
        self._changing = changing

    async def run(self, conditions: Conditions) -> None:
        """Until cancelled. A port that is taken is tried again."""
        while True:
            try:
                server, port = await self._start()
                break
            except CannotListen as error:
                text = f"operators cannot reach this node itself: {error}"
                conditions.set(CONDITION, "CannotListen", text)
                await asyncio.sleep(LISTEN_RETRY_S)
        conditions.clear(CONDITION)
        try:
            await Crowd(port, CONNECTIONS_MAX // 2).run()
        finally:
            await server.stop(None)

    async def _start(self) -> tuple[grpc.aio.Server, int]:
        """With the port."""
        server = grpc.aio.server(
            options=_OPTIONS, interceptors=[Arriving()], maximum_concurrent_rpcs=CALLS_MAX
        )
        local_pb2_grpc.add_LocalServiceServicer_to_server(self, server)
        pair = [(self._certificate.key_pem, self._certificate.pem)]
        try:
            port = server.add_secure_port(self._listen, grpc.ssl_server_credentials(pair))
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise CannotListen(f"{self._listen}: {error}") from error
        log.info("listening for operators", extra={"address": self._listen})
        return server, port

    # ---- before anybody is let in ----

    async def Introduce(  # noqa: N802
        self, request: local_pb2.IntroduceRequest, context: Any
    ) -> local_pb2.IntroduceResponse:
        address = address_of(context.peer())
        return await _answer(context, self._door.introduce(address, request.nonce))

    async def Enter(  # noqa: N802
        self, request: local_pb2.EnterRequest, context: Any
    ) -> local_pb2.EnterResponse:
        return await _answer(context, self._door.enter(address_of(context.peer()), request))

    # ---- for those who are in ----

    async def Show(  # noqa: N802
        self, request: local_pb2.ShowRequest, context: Any
    ) -> local_pb2.ShowResponse:
        async def show() -> local_pb2.ShowResponse:
            return self._showing.show(self._caller(context), request.namespace)

        return await _answer(context, show())

    async def Recall(  # noqa: N802
        self, request: local_pb2.RecallRequest, context: Any
    ) -> local_pb2.RecallResponse:
        async def recall() -> local_pb2.RecallResponse:
            return self._showing.recall(self._caller(context), request)

        return await _answer(context, recall())

    async def Reach(  # type: ignore[override]  # noqa: N802 - it reads and writes by the context
        self, _requests: object, context: Any
    ) -> None:
        async def reach() -> None:
            try:
                caller = self._caller(context)
            except Refused:
                await _hear_out(context)
                raise
            await self._reach.serve(caller, context)

        await _answer(context, reach())

    async def Change(  # noqa: N802
        self, request: local_pb2.ChangeRequest, context: Any
    ) -> local_pb2.ChangeResponse:
        async def change() -> local_pb2.ChangeResponse:
            return await self._changing.change(self._caller(context), request)

        return await _answer(context, change())

    def _caller(self, context: Any) -> Caller:
        """Who calls. Raises Refused."""
        for key, value in context.invocation_metadata() or ():
            if key == SESSION_KEY and isinstance(value, str):
                return self._door.caller(value)
        raise unauthenticated("UnknownSession", "this call needs a session", "enter first")


async def _hear_out(context: Any) -> None:
    """Let the first message arrive before a stream is refused: a client whose write fails while the
    status is on its way reports INTERNAL instead of it."""
    gone = (TimeoutError, grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError)
    with contextlib.suppress(*gone):  # then nobody hears the refusal either
        async with asyncio.timeout(HEAR_OUT_S):
            await context.read()


async def _answer(context: Any, work: Awaitable[_Answer]) -> _Answer:
    """The error boundary: what is refused is told with a reason, what fails without its insides."""
    try:
        return await work
    except Refused as error:
        refused = error
    except NotWritten as error:
        text = f"nothing was done: {error}"
        refused = unavailable("NotWritable", text, "edgectl describe node tells of its disks")
    except grpc.aio.AbortError:
        raise
    except Exception:
        log.exception("a local operator's call failed")
        refused = Refused(Code.INTERNAL, "Internal", "the agent failed; its log says why")
    log.log(logging.INFO, "local operator refused", extra={"reason": refused.reason})
    trailers = detail(refused.reason, refused.hint)
    await context.abort(refused.code, refused.message, trailers)
    raise AssertionError("abort returns")
