"""Which orchestrator is talked to: the first of several endpoints that answers.

Used by `client.py`. Endpoints are asked for their name in their order, each a moment after the one
before, so that a dead one costs that moment and no timeout; the first that answers is used, and
stays in use for the rest of the process until it fails. A single endpoint is simply called.
"""

import queue
import time
from typing import Any

import grpc

from edgectl.config import Connection
from edgectl.errors import CliError
from polder.v1 import operator_pb2
from polder.v1.operator_pb2_grpc import OperatorServiceStub

MAX_MESSAGE_BYTES = 32 << 20
CONNECT_TIMEOUT_MS = 4000  # how long a silent endpoint keeps us waiting when there is no other
HEAD_START_S = 0.3  # a healthy one on another continent needs four round trips
NO_LIFE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
KEEPALIVE_MS = 5_000  # the orchestrator takes pings every 4 s at most
KEEPALIVE_TIMEOUT_MS = 4_000
_LOOPBACK = ("127.", "localhost:", "[::1]:")

_Found = queue.SimpleQueue[tuple[int, bool]]


class Connector:
    """`order` are the endpoints, the one to use next first. Not for several threads."""

    def __init__(self, connection: Connection, endpoints: tuple[str, ...]) -> None:
        self.order = list(endpoints)
        self._connection = connection
        self._channel: grpc.Channel | None = None

    @property
    def several(self) -> bool:
        return len(self.order) > 1

    def channel(self) -> grpc.Channel:
        """Of the endpoint in use, which is then `order[0]`. It may still fail to connect."""
        if self._channel is None:
            self._channel = self._race() if self.several else self._open(self.order[0])
        return self._channel

    def drop(self) -> None:
        """The endpoint in use failed: the others come first from now on."""
        self.close()
        self.order.append(self.order.pop(0))

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _race(self) -> grpc.Channel:
        """Of the first that answers. Where none does, of the first, so that its call says why."""
        found: _Found = queue.SimpleQueue()
        channels: list[grpc.Channel] = []
        calls: list[Any] = []
        failed: set[int] = set()
        winner = 0
        deadline = time.monotonic() + CONNECT_TIMEOUT_MS / 1000
        try:
            while len(failed) < len(self.order) and time.monotonic() < deadline:
                if len(channels) < len(self.order):
                    channels.append(self._open(self.order[len(channels)]))
                    calls.append(_ask(channels[-1], len(calls), found))
                more = len(channels) < len(self.order)
                wait_s = HEAD_START_S if more else max(0.0, deadline - time.monotonic())
                try:
                    number, answered = found.get(timeout=wait_s)
                except queue.Empty:
                    continue
                if answered:
                    winner = number
                    break
                failed.add(number)
            chosen = channels.pop(winner)
        finally:
            for call in calls:
                call.cancel()
            for channel in channels:
                channel.close()
        self.order.insert(0, self.order.pop(winner))
        return chosen

    def _open(self, endpoint: str) -> grpc.Channel:
        return grpc.secure_channel(endpoint, self._credentials(), options=self._options(endpoint))

    def _credentials(self) -> grpc.ChannelCredentials:
        connection = self._connection
        for name, pem in (
            ("certificate authority", connection.ca_pem),
            ("client certificate", connection.certificate_pem),
            ("client key", connection.key_pem),
        ):
            if b"-----BEGIN" not in pem:
                raise CliError(f"context {connection.context!r}: the {name} is not PEM")
        return grpc.ssl_channel_credentials(
            connection.ca_pem, connection.key_pem, connection.certificate_pem
        )

    def _options(self, endpoint: str) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),  # what may be sent twice is decided in client.py
        ]
        if self._connection.server_name:
            options.append(("grpc.ssl_target_name_override", self._connection.server_name))
        if endpoint.startswith(_LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        return options


def _ask(channel: grpc.Channel, number: int, found: _Found) -> Any:
    """Says in `found` whether it answers. Who refuses us does, too."""

    def heard(call: Any) -> None:
        found.put((number, call.code() not in NO_LIFE))

    rpc: Any = OperatorServiceStub(channel).WhoAmI
    call = rpc.future(operator_pb2.WhoAmIRequest(), timeout=CONNECT_TIMEOUT_MS / 1000)
    call.add_done_callback(heard)
    return call
