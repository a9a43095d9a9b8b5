"""Where the nodes of the site reach this one: SiteService, mutual TLS, only those of the roster.

`agent/site/loop.py` tells it who they are. It listens only while there is anybody; a change of the
roster holds from the next handshake on, and open streams of those that stay are left alone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from agent.channel import NO_PROBES
from agent.connections import Crowd, at_most
from agent.domain.roster import Peer
from agent.identity_store import from_pem, to_pem
from agent.site.certificate import SiteCertificate
from polder.v1 import site_pb2_grpc

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 << 20
STREAMS_MAX = 256
CONNECTIONS_MAX = 320  # one for each peer, and some that are on their way out
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 4),
    *NO_PROBES,
    ("grpc.max_connection_idle_ms", 60_000),
    *at_most(CONNECTIONS_MAX),
    # Two agents of one box that share a port by mistake: the second is told so.
    ("grpc.so_reuseport", 0),
]

Accept = Callable[[str, Any], Awaitable[None]]
"""(node, stream) of a peer that dialled; until its conversation is over."""


class CannotListen(Exception):
    """The address is taken or is none of this box."""


class SiteServer(site_pb2_grpc.SiteServiceServicer):
    """`listen`: HOST:PORT. `accept` gets every stream of a peer that is known."""

    def __init__(self, listen: str, certificate: SiteCertificate, accept: Accept) -> None:
        self._listen = listen
        self._certificate = certificate
        self._accept = accept
        self._nodes: dict[bytes, str] = {}  # by certificate, DER
        self._trusted = b""
        self._server: grpc.aio.Server | None = None
        self._thinning: asyncio.Task[None] | None = None

    @property
    def listens(self) -> bool:
        return self._server is not None

    async def use(self, peers: Mapping[str, Peer]) -> None:
        """These and no others may call from now on. Raises CannotListen; then it may be asked
        again."""
        self._nodes = {peer.certificate: name for name, peer in peers.items()}
        self._trusted = to_pem(sorted(self._nodes))
        if not peers:
            await self.stop()
        elif self._server is None:
            await self._start()

    async def stop(self) -> None:
        if self._thinning is not None:
            self._thinning.cancel()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def _start(self) -> None:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=STREAMS_MAX)
        site_pb2_grpc.add_SiteServiceServicer_to_server(self, server)
        credentials = grpc.dynamic_ssl_server_credentials(
            self._who_may_call(), self._who_may_call, require_client_authentication=True
        )
        try:
            port = server.add_secure_port(self._listen, credentials)
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise CannotListen(f"{self._listen}: {error}") from error
        self._server = server
        self._thinning = asyncio.create_task(Crowd(port, CONNECTIONS_MAX - 64).run())
        log.info("listening for the site", extra={"address": self._listen})

    def _who_may_call(self) -> grpc.ServerCertificateConfiguration:
        """Asked by gRPC's own threads before every handshake. Trusted is each peer's certificate
        itself: no other passes for it, whoever signed it."""
        pair = [(self._certificate.key_pem, self._certificate.pem)]
        return grpc.ssl_server_certificate_configuration(pair, self._trusted)

    async def Talk(  # type: ignore[override]  # noqa: N802 - it reads and writes by the context
        self, _requests: object, context: Any
    ) -> None:
        """One peer's stream. Who it is says the certificate, and the roster of this moment."""
        (pem,) = context.auth_context().get("x509_pem_cert", [b""])
        try:
            (der,) = from_pem(pem)
        except ValueError:
            der = b""
        node = self._nodes.get(der)
        if node is None:
            text = "this node's plan does not name the certificate"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, text)
            return
        try:
            await self._accept(node, context)
        except asyncio.CancelledError:
            log.debug("the stream was cut off", extra={"peer": node})
            raise
