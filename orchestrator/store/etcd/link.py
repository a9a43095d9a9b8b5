"""One connection to one member of etcd, made and found fit for use.

Called by the client. A channel is never reconnected in place: a link that failed is thrown away and
a new one made, which reads the certificate files again.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc

from orchestrator.store.etcd.errors import is_identity, message
from orchestrator.store.etcd.files import content
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.pb import rpc_pb2_grpc
from orchestrator.store.etcd.settings import EtcdTls
from orchestrator.store.port import StoreUnusable

if TYPE_CHECKING:  # the generated module has these in its .pyi only
    from orchestrator.store.etcd.pb.rpc_pb2_grpc import (
        KVAsyncStub,
        LeaseAsyncStub,
        MaintenanceAsyncStub,
        WatchAsyncStub,
    )

REQUIRE_LEADER = (("hasleader", "true"),)
"""A member that is cut off from the leader refuses such calls and ends such streams."""

VERSION_MIN = (3, 4)
_IN_ORDER_SINCE = {(3, 4): 25, (3, 5): 8}
"""By minor version: the patch since which an answer to a progress request overtakes no event."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),  # etcd answers pings with GOAWAY below 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # who may try a call again is decided here and not below
    ("grpc.use_local_subchannel_pool", 1),  # a new link is a new connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Unfit(Exception):
    """This member cannot serve now; the message says why.

    `identity`: one side refused the other's certificate.
    """

    def __init__(self, reason: str, *, identity: bool = False) -> None:
        super().__init__(reason)
        self.identity = identity


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A channel and etcd's services on it."""

    endpoint: str
    channel: grpc.aio.Channel
    kv: "KVAsyncStub"
    watch: "WatchAsyncStub"
    lease: "LeaseAsyncStub"
    maintenance: "MaintenanceAsyncStub"
    in_order: bool = False  # an answer to a progress request comes after the events before it

    async def status(self, timeout_s: float) -> pb.StatusResponse:
        """What the member says of itself. Raises grpc's error."""
        return await self.maintenance.Status(pb.StatusRequest(), timeout=timeout_s)


async def open_link(endpoint: str, tls: EtcdTls) -> Link:
    """A link that has not been tried. Raises StoreUnusable when a certificate file is missing."""
    ca, certificate, key = await asyncio.to_thread(_read, tls)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
    return Link(
        endpoint,
        channel,
        rpc_pb2_grpc.KVStub(channel),
        rpc_pb2_grpc.WatchStub(channel),
        rpc_pb2_grpc.LeaseStub(channel),
        rpc_pb2_grpc.MaintenanceStub(channel),
    )


def _read(tls: EtcdTls) -> tuple[bytes, bytes, bytes]:
    return content(tls.ca), content(tls.certificate), content(tls.key)


async def open_fit_link(
    endpoint: str, tls: EtcdTls, *, timeout_s: float, cluster_id: int
) -> tuple[Link, pb.StatusResponse]:
    """A link to a member that has a leader and is of the cluster we know (0: of any).

    Raises Unfit, StoreUnusable.
    """
    link = await open_link(endpoint, tls)
    try:
        status = await link.status(timeout_s)
        _check(status, cluster_id)
    except BaseException as error:
        await link.channel.close(None)
        if isinstance(error, grpc.RpcError):
            raise Unfit(message(error), identity=is_identity(error)) from error
        raise
    return replace(link, in_order=_is_in_order(status.version)), status


def _is_in_order(version: str) -> bool:
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return len(numbers) == 3 and numbers[2] >= _IN_ORDER_SINCE.get(numbers[:2], 0)


def _check(status: pb.StatusResponse, cluster_id: int) -> None:
    if cluster_id and status.header.cluster_id != cluster_id:
        raise Unfit(f"is of cluster {status.header.cluster_id:x} and not {cluster_id:x}")
    version = tuple(int(part) for part in status.version.split(".")[:2] if part.isdigit())
    if version < VERSION_MIN:
        raise StoreUnusable(f"etcd {status.version} is too old: 3.4 or later is needed")
    if status.isLearner:
        raise Unfit("is a learner and not yet a member")
    if not status.leader:
        raise Unfit("has no leader")
