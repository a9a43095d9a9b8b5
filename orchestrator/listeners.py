"""The gRPC ports: mTLS for agents and operators, the join port, and one for other members.

Made by `server.py`. Everything a peer can make large or slow has a limit here: messages, metadata,
streams of a connection, handshakes, and connections whose other end is gone.
"""

from collections.abc import Callable
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from orchestrator.authz import Listener
from orchestrator.mesh.service import MemberService, add_member_service
from orchestrator.operator_calls import OperatorCalls
from orchestrator.parts import Parts
from orchestrator.rpc import FrontDoor
from polder.v1 import agent_pb2_grpc, operator_pb2_grpc

REQUEST_BYTES_MAX = 4 << 20
_STREAMS_PER_CONNECTION_MAX = 256
_METADATA_BYTES_MAX = 16 << 10
_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_HANDSHAKE_TIMEOUT_MS = 10_000
_WINDOW_BYTES = 256 << 10
_JOIN_IDLE_MS = 30_000
_JOIN_AGE_MS = 300_000

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION_MAX),
    ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES_MAX),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
    # A connection whose other end vanished without a word is found out within half a minute.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    # Both: with the first alone, a half-open connection went unnoticed for over a minute.
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC measures the bandwidth with a ping after whatever is read: with every heartbeat, a third
    # of an idle agent's packets. Without it the window is as wide as this says: 5 MB/s over 50 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    # Agents ping too; no more often than this.
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
]
_JOIN_OPTIONS: list[tuple[str, Any]] = [
    *_OPTIONS,
    ("grpc.max_connection_idle_ms", _JOIN_IDLE_MS),
    ("grpc.max_connection_age_ms", _JOIN_AGE_MS),
]


class CannotListen(Exception):
    """A port cannot be bound."""


class Listeners:
    """All ports; which RPC is served on which stands in `authz.RULES`.

    Other members are served on `peer_listen`, or on `listen` when there is none. `serve_members`
    before `start`; `drain` answers health checks with NOT_SERVING, `stop` ends.
    """

    def __init__(
        self,
        parts: Parts,
        agents: agent_pb2_grpc.AgentServiceServicer,
        operators: operator_pb2_grpc.OperatorServiceServicer,
    ) -> None:
        config, credentials = parts.config, parts.member.server_credentials
        shared = config.share_port
        self._health = HealthServicer()
        self._mtls = self._server(parts, Listener.MTLS, _OPTIONS, shared=shared)
        self._join = self._server(parts, Listener.JOIN, _JOIN_OPTIONS, shared=shared)
        self._peer = self._mtls
        agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, self._mtls)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(operators, self._mtls)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, self._join)
        _bind(self._mtls, config.listen, credentials, required=True)
        _bind(self._join, config.join_listen, credentials, required=False)
        if config.peer_listen:
            self._peer = self._server(parts, Listener.MTLS, _OPTIONS, shared=False)
            _bind(self._peer, config.peer_listen, credentials, required=True)

    def _server(
        self, parts: Parts, listener: Listener, options: list[tuple[str, Any]], *, shared: bool
    ) -> Any:
        operators = OperatorCalls(parts.freshness, parts.config.member_name)
        door = FrontDoor(listener, parts.peers, parts.calls, parts.metrics, operators)
        # Not by default: a second process on the port, perhaps of another installation, would
        # take half of the agents without anyone noticing.
        reuse = ("grpc.so_reuseport", int(shared))
        server = aio.server(interceptors=[door], options=[*options, reuse])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def serve_members(self, members: MemberService) -> None:
        """What other members call. Before `start`."""
        add_member_service(members, self._peer)

    async def start(self) -> None:
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        if self._peer is not self._mtls:
            await self._peer.start()
        await self._mtls.start()
        await self._join.start()

    async def drain(self) -> None:
        """Load balancers and probes look elsewhere from now on; joins are over."""
        await self._health.enter_graceful_shutdown()
        await self._join.stop(0.0)

    async def stop(self, grace_s: float) -> None:
        """New calls are refused at once; those that run get `grace_s`."""
        await self._mtls.stop(grace_s)
        if self._peer is not self._mtls:
            await self._peer.stop(0.0)  # the others follow its sessions until the last is closed


def _bind(
    server: Any,
    address: str,
    credentials: Callable[..., grpc.ServerCredentials],
    *,
    required: bool,
) -> None:
    try:
        server.add_secure_port(address, credentials(client_certificate=required))
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: is another process using it?") from error
