"""How the agent dials an orchestrator: TLS, keepalive and limits. Used by session and join."""

from collections.abc import Iterable
from typing import Any

import grpc

from agent.identity_store import NodeIdentity
from polder.errors import parse_detail
from polder.v1 import common_pb2

# The DNS name that every member's certificate carries besides its identity. Node and operator
# certificates never do, so that nobody else passes for an orchestrator whatever its address.
SERVER_NAME = "orchestrator.polder.internal"
MAX_MESSAGE_BYTES = 16 << 20

# gRPC measures the bandwidth with a ping after whatever is read: on a stream with a message each
# second that is as many packets again. Without it the window is as wide as this says.
NO_PROBES: list[tuple[str, str | int]] = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
]


def _options(keepalive_s: float, keepalive_timeout_s: float) -> list[tuple[str, str | int]]:
    return [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.default_authority", SERVER_NAME),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Also sets TCP_USER_TIMEOUT to the timeout: unacknowledged heartbeats end the connection.
        ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_timeout_s * 1000)),
        # What counts while heartbeats flow: keepalive_timeout_ms alone leaves it at a minute.
        ("grpc.http2.ping_timeout_ms", int(keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        *NO_PROBES,
        # A new channel is a new connection: after a renewal, with the new certificate.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        # Endpoints are pinned; a proxy from the environment would be a surprise.
        ("grpc.enable_http_proxy", 0),
    ]


def open_channel(
    endpoint: str,
    identity: NodeIdentity,
    *,
    keepalive_s: float = 20.0,
    keepalive_timeout_s: float = 8.0,
) -> grpc.aio.Channel:
    """A channel with the node's certificate. Nothing is dialled before the first call."""
    credentials = grpc.ssl_channel_credentials(
        identity.roots_pem, identity.key_pem, identity.chain_pem
    )
    options = _options(keepalive_s, keepalive_timeout_s)
    return grpc.aio.secure_channel(endpoint, credentials, options)


def open_join_channel(endpoint: str, root_pem: bytes) -> grpc.aio.Channel:
    """A channel without a certificate of ours, to a server that `root_pem` vouches for."""
    credentials = grpc.ssl_channel_credentials(root_pem)
    return grpc.aio.secure_channel(endpoint, credentials, _options(20.0, 8.0))


def detail_of(metadata: Iterable[Any] | None) -> common_pb2.ErrorDetail | None:
    """What a failed call says in its trailing metadata, for which grpc has several types."""
    return parse_detail([(key, value) for key, value in metadata or ()])
