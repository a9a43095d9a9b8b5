"""The front door of both listeners: who calls, may they, and how a failure is told.

One gRPC interceptor wraps every handler. Handlers get a context whose caller is known
(`authz.caller_of`), raise `Refused`, and never think about certificates, status codes or metrics.
Streams run as coroutines that write, not as generators: that keeps every await of a call inside
one `try`, so that a revoked caller's stream ends with UNAUTHENTICATED wherever it waits.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
from grpc import aio

from orchestrator.authz import Listener, Rule, Who, admit, attach, detach, rule_for
from orchestrator.calls import LiveCalls
from orchestrator.cancellation import is_cancelled
from orchestrator.identity.peers import Peers
from orchestrator.metrics import Metrics
from orchestrator.operator_calls import Metadata, OperatorCalls, operation
from orchestrator.refusals import Refused, from_store
from orchestrator.store.port import StoreError
from polder.errors import detail

log = logging.getLogger(__name__)

_HEAR_OUT_S = 0.25

Context: TypeAlias = "aio.ServicerContext[Any, Any]"  # generic in its stubs only
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class FrontDoor(aio.ServerInterceptor):  # type: ignore[type-arg,unused-ignore]  # by stubs
    """One per listener. `operators` only where operators call."""

    def __init__(
        self,
        listener: Listener,
        peers: Peers,
        calls: LiveCalls,
        metrics: Metrics,
        operators: OperatorCalls | None = None,
    ) -> None:
        self._operators = operators
        self._listener = listener
        self._peers = peers
        self._calls = calls
        self._metrics = metrics
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        found = self._wrapped.get(method)
        if found is not None:
            return found
        handler = await continuation(handler_call_details)
        if handler is None:
            return cast(Handler, None)  # gRPC answers UNIMPLEMENTED
        try:
            rule: Rule | None = rule_for(method, self._listener)
        except Refused:
            rule = None
        wrapped = self._wrapped[method] = self._wrap(method, rule, handler)
        return wrapped

    def _wrap(self, method: str, rule: Rule | None, handler: Handler) -> Handler:
        serve = _inner(handler)
        short = method.rpartition("/")[2]
        name = operation(method) if self._operators is not None else ""
        streams_out = bool(handler.response_streaming)
        long = streams_out or bool(handler.request_streaming)

        async def unary(request: Any, context: Context) -> Any:
            started = time.perf_counter()
            code = "OK"
            signed = self._signed(name)
            try:
                await self._admit(method, rule, context)
                if self._operators is None or not name:
                    return await serve(request, context)
                signed = await self._operators.metadata(name, request)
                with self._operators.request(name, context):
                    answer = await serve(request, context)
                context.set_trailing_metadata(signed)
                return answer
            except (Exception, asyncio.CancelledError) as error:
                if _is_the_callers(error):
                    raise
                refused = _refusal(method, error)
                code = refused.code.name
                return await _refuse(context, refused, signed)
            finally:
                detach(context)
                self._metrics.call(short, code, time.perf_counter() - started)

        async def stream(request: Any, context: Context) -> Any:
            code = "OK"
            self._metrics.streams.labels(short).inc()
            try:
                return await self._stream(method, rule, serve, request, context, name)
            except (Exception, asyncio.CancelledError) as error:
                if _is_the_callers(error):
                    code = "CANCELLED"
                    raise
                refused = _refusal(method, error)
                code = refused.code.name
                if handler.request_streaming:
                    await _hear_out(context)
                return await _refuse(context, refused, self._signed(name))
            finally:
                detach(context)
                self._metrics.streams.labels(short).dec()
                self._metrics.call(short, code, None)

        return _like(handler, stream if long else unary)

    def _signed(self, name: str) -> Metadata:
        """What a refusal carries of an operator's call."""
        return self._operators.signed if name and self._operators is not None else ()

    async def _admit(self, method: str, rule: Rule | None, context: Context) -> Any:
        self._calls.check_open()
        if rule is None:
            rule_for(method, self._listener)  # raises
            raise AssertionError("a rule appeared")
        if rule.who is Who.ANYONE:
            return None
        caller = await self._peers.authenticate(cast(Any, context))
        admit(rule, caller)
        attach(context, caller)
        return caller

    async def _stream(
        self,
        method: str,
        rule: Rule | None,
        serve: Callable[[Any, Context], Any],
        request: Any,
        context: Context,
        name: str,
    ) -> Any:
        caller = await self._admit(method, rule, context)
        if caller is None:
            return await _run_stream(serve, request, context)
        with self._calls.registered(caller) as call:
            try:
                if self._operators is not None and name:
                    metadata = await self._operators.metadata(name, request)
                    await context.send_initial_metadata(metadata)
                return await _run_stream(serve, request, context)
            except asyncio.CancelledError:
                if call.refusal is None:
                    raise
                call.task.uncancel()
                raise call.refusal from None


async def _run_stream(serve: Callable[[Any, Context], Any], request: Any, context: Context) -> Any:
    result = serve(request, context)
    if not isinstance(result, AsyncIterator):
        return await result
    try:
        async for response in result:
            await context.write(response)
    finally:
        close = getattr(result, "aclose", None)
        if close is not None:
            await close()
    return None


def _is_the_callers(error: BaseException) -> bool:
    """The call was cancelled from outside. What its handler waited for may say the same of itself;
    gRPC would then take the caller for gone and answer nothing."""
    return isinstance(error, asyncio.CancelledError) and is_cancelled()


def _refusal(method: str, error: BaseException) -> Refused:
    """What the caller is told. Raises the error itself when gRPC aborts with it already."""
    if isinstance(error, aio.AbortError):
        raise error
    if isinstance(error, StoreError):
        log.warning("%s: %s", method, error)
        return from_store(error)
    if isinstance(error, Refused):
        log.log(_LOUDNESS.get(error.code, logging.DEBUG), "%s refused: %s", method, error.message)
        return error
    log.error("%s failed", method, exc_info=error)
    return Refused(
        grpc.StatusCode.INTERNAL, "Internal", "the orchestrator failed; its log says why"
    )


_LOUDNESS = {
    grpc.StatusCode.UNAUTHENTICATED: logging.INFO,
    grpc.StatusCode.PERMISSION_DENIED: logging.INFO,
}


async def _hear_out(context: Context) -> None:
    """Let the client's first message arrive before its stream is refused.

    A gRPC client whose write fails while the status is on its way reports INTERNAL instead of it.
    """
    with contextlib.suppress(Exception):  # whatever comes, the refusal is told
        async with asyncio.timeout(_HEAR_OUT_S):
            await context.read()


async def _refuse(context: Context, refused: Refused, signed: Metadata) -> None:
    trailers = detail(refused.reason, refused.hint, refused.violations)
    await context.abort(refused.code, refused.message, (*trailers, *signed))


def _inner(handler: Handler) -> Callable[[Any, Context], Any]:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        found = getattr(handler, kind)
        if found is not None:
            return cast(Callable[[Any, Context], Any], found)
    raise AssertionError("a handler without behaviour")


def _like(handler: Handler, behaviour: Callable[[Any, Context], Any]) -> Handler:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return cast(
        Handler,
        cast(Any, make)(behaviour, handler.request_deserializer, handler.response_serializer),
    )
