"""The join port's service: Join and nothing else of AgentService."""

from typing import Any

from grpc import aio

from orchestrator.identity.nodes import NodeIdentities
from polder.v1 import agent_pb2, agent_pb2_grpc


class JoinService(agent_pb2_grpc.AgentServiceServicer):
    """Served without client certificates: the token is what proves the box."""

    def __init__(self, nodes: NodeIdentities) -> None:
        self._nodes = nodes

    async def Join(  # noqa: N802
        self, request: agent_pb2.JoinRequest, context: aio.ServicerContext[Any, Any]
    ) -> agent_pb2.JoinResponse:
        return await self._nodes.join(request)
