"""How long, and how often at once, a call may be arriving. Used by `server.py`.

gRPC waits for a call's message without end and counts the call meanwhile: whoever reaches the port
could use up all calls, and keep operators out, by never saying what it calls for.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from agent.local.tries import address_of, network_of

ARRIVING_S = 10.0
FROM_ONE_NETWORK = 16  # calls with one message that are not answered yet

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Arriving(grpc.aio.ServerInterceptor):
    """Reads the message of each call that has one, instead of gRPC."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler  # type: ignore[no-any-return]

        async def hear(requests: AsyncIterator[Any], context: Any) -> Any:
            network = network_of(address_of(context.peer()))
            if self._open[network] >= FROM_ONE_NETWORK:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once")
            self._open[network] += 1
            try:
                request = await _first(requests, context)
                return await handler.unary_unary(request, context)
            finally:
                self._open[network] -= 1
                if not self._open[network]:
                    del self._open[network]

        return grpc.stream_unary_rpc_method_handler(
            hear, handler.request_deserializer, handler.response_serializer
        )


async def _first(requests: AsyncIterator[Any], context: Any) -> Any:
    try:
        async with asyncio.timeout(ARRIVING_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call did not arrive")
