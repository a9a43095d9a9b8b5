"""MemberService: what other members ask of this one. Registered on the mTLS port by `listeners.py`.

The front door has checked that a member calls; which one comes from its certificate. Following is
in `telling.py`; forwarding in `forward.py`.
"""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from orchestrator.authz import caller_of
from orchestrator.mesh.telling import Telling
from orchestrator.refusals import forbidden
from polder.identity import MemberId
from polder.v1 import member_pb2

_SERVICE = "polder.v1.MemberService"
Context = Any  # grpc.aio.ServicerContext is generic in its stubs only


class Forwarder(Protocol):
    """Serves one log or exec of a node whose session this member holds."""

    def serve(
        self, requests: AsyncIterator[member_pb2.ForwardRequest]
    ) -> AsyncIterator[member_pb2.ForwardResponse]: ...


class MemberService:
    """One per member."""

    def __init__(self, member: str, telling: Telling, forwarder: Forwarder) -> None:
        self._member = member
        self._telling = telling
        self._forwarder = forwarder

    async def Follow(  # noqa: N802
        self, request: member_pb2.FollowRequest, context: Context
    ) -> None:
        """Until either side ends it. Raises Refused."""
        identity = caller_of(context).identity
        assert isinstance(identity, MemberId)  # by the row in `authz.RULES`
        if request.member != identity.member:
            raise forbidden(f"{identity} calls itself {request.member}")
        if identity.member == self._member:
            raise forbidden(
                f"two members are called {self._member}",
                "give each process its own name: `member` in its configuration",
            )
        await self._telling.serve(identity.member, context.write)

    async def Forward(  # noqa: N802
        self, request_iterator: AsyncIterator[member_pb2.ForwardRequest], context: Context
    ) -> AsyncIterator[member_pb2.ForwardResponse]:
        """One log or exec. Raises Refused."""
        async for response in self._forwarder.serve(request_iterator):
            yield response


def add_member_service(service: MemberService, server: Any) -> None:
    """As the generated code does, but what followers get was made into bytes once for all."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Follow": grpc.unary_stream_rpc_method_handler(
            service.Follow,
            request_deserializer=member_pb2.FollowRequest.FromString,
            response_serializer=bytes,
        ),
        "Forward": grpc.stream_stream_rpc_method_handler(
            service.Forward,
            request_deserializer=member_pb2.ForwardRequest.FromString,
            response_serializer=member_pb2.ForwardResponse.SerializeToString,
        ),
    }
    generic = grpc.method_handlers_generic_handler(_SERVICE, handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_registered_method_handlers(_SERVICE, handlers)
