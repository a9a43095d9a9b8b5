"""Nodes of a site that answer operators, in memory: real gRPC, TLS and proofs, and no agent behind.

For what edgectl must hold against whoever answers at an address. What agents themselves do is
tested against agents.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polder.errors import detail
from polder.local_access import SERVER_NAME, SESSION_KEY, introduction
from polder.signing import sign
from polder.v1 import agent_pb2, local_pb2, local_pb2_grpc
from tests.integration.edgectl_server import Authority

DOMAIN = "polder.test"
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER


def self_signed(uri: str) -> tuple[bytes, bytes, bytes]:
    """As a node's site certificate: (certificate DER, PEM, key PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    sans = [x509.UniformResourceIdentifier(uri), x509.DNSName(SERVER_NAME)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName(sans), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pkcs8 = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(PEM, pkcs8, serialization.NoEncryption())
    return certificate.public_bytes(DER), certificate.public_bytes(PEM), secret


class LocalNode(local_pb2_grpc.LocalServiceServicer):
    """One node. Tests change its fields; `entered` is what was shown to it."""

    def __init__(
        self,
        authority: Authority,
        node: str,
        site: str = "ams",
        *,
        life: timedelta | None = None,
        endpoint: str = "127.0.0.1:0",
    ) -> None:
        uri = f"spiffe://{DOMAIN}/site/{site}/node/{node}"
        pem, key_pem = authority.issue(uri, [], life or timedelta(hours=1))
        self.chain = [x509.load_pem_x509_certificate(pem).public_bytes(DER)]
        self.key: Any = serialization.load_pem_private_key(key_pem, None)
        self.certificate, site_pem, site_key = self_signed(uri)
        self.signed_for = self.certificate  # another one: it passes on what another node said
        self.answer = local_pb2.ShowResponse(node=node, site=site, now_ms=now_ms())
        self.clock_ms = 0
        self.proof_s = 0.0
        self.sessions: set[str] = set()
        self.session_ms = 600_000
        self.seen_sessions: list[str] = []
        self.entered: list[local_pb2.EnterRequest] = []
        self.refuses: tuple[grpc.StatusCode, str, str, str] | None = None
        self.says: list[agent_pb2.RelayRequest] = []
        self.heard: list[local_pb2.ReachRequest] = []
        self.changes: list[local_pb2.ChangeRequest] = []
        self.lose_answers = 0
        self.forgets_after_show = False
        pings = [("grpc.http2.min_ping_interval_without_data_ms", 4_000)]  # as agents
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=pings)
        local_pb2_grpc.add_LocalServiceServicer_to_server(self, self.server)
        secured = grpc.ssl_server_credentials([(site_key, site_pem)])
        port = self.server.add_secure_port(endpoint, secured)
        self.endpoint = f"127.0.0.1:{port}"
        self.server.start()

    def stop(self) -> None:
        self.server.stop(None).wait()

    def knows(self, *others: "LocalNode") -> None:
        for other in others:
            peer = local_pb2.LocalPeer(node=other.answer.node, shares=True, heard=True)
            peer.local_endpoints.append(other.endpoint)
            self.answer.peers.append(peer)

    # --- the service --------------------------------------------------------------------------

    def Introduce(
        self, request: local_pb2.IntroduceRequest, context: grpc.ServicerContext
    ) -> local_pb2.IntroduceResponse:
        time.sleep(self.proof_s)
        return local_pb2.IntroduceResponse(
            certificate_chain=self.chain,
            signature=sign(introduction(request.nonce, self.signed_for), self.key),
            challenge=os.urandom(32),
            now_ms=now_ms() + self.clock_ms,
        )

    def Enter(
        self, request: local_pb2.EnterRequest, context: grpc.ServicerContext
    ) -> local_pb2.EnterResponse:
        self.entered.append(request)
        if self.refuses:
            refuse(context, *self.refuses)
        session = hashlib.sha256(os.urandom(8)).hexdigest()
        self.sessions.add(session)
        return local_pb2.EnterResponse(
            session=session, by="operator/ann", roles=["admin"], expires_in_ms=self.session_ms
        )

    def Show(
        self, request: local_pb2.ShowRequest, context: grpc.ServicerContext
    ) -> local_pb2.ShowResponse:
        self._check(context)
        self.answer.now_ms = now_ms() + self.clock_ms
        if self.forgets_after_show:
            self.sessions.clear()
        return self.answer

    def Recall(
        self, request: local_pb2.RecallRequest, context: grpc.ServicerContext
    ) -> local_pb2.RecallResponse:
        self._check(context)
        at_ms = now_ms() + self.clock_ms
        entry = agent_pb2.JournalEntry(at_ms=at_ms, by="operator/ann", verb="enter")
        return local_pb2.RecallResponse(journal=[entry], now_ms=at_ms)

    def Change(
        self, request: local_pb2.ChangeRequest, context: grpc.ServicerContext
    ) -> local_pb2.ChangeResponse:
        self._check(context)
        self.changes.append(request)
        if self.lose_answers:
            self.lose_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return local_pb2.ChangeResponse(message="it will end within 30 s")

    def Reach(
        self, request_iterator: Iterable[local_pb2.ReachRequest], context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.RelayRequest]:
        self._check(context)
        requests = iter(request_iterator)
        first = next(requests)
        self.heard.append(first)
        if first.open.WhichOneof("what") == "logs":
            yield from self.says
            return
        for request in requests:
            self.heard.append(request)
            if request.input.close_stdin:
                break
            yield agent_pb2.RelayRequest(stdout=request.input.stdin)
        yield agent_pb2.RelayRequest(end=agent_pb2.RelayEnd(exit_code=7))

    def _check(self, context: grpc.ServicerContext) -> None:
        given = str(dict(context.invocation_metadata()).get(SESSION_KEY))
        self.seen_sessions.append(given)
        if given not in self.sessions:
            code = grpc.StatusCode.UNAUTHENTICATED
            refuse(context, code, "UnknownSession", "no such session", "enter again")


def refuse(
    context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str, hint: str
) -> None:
    context.set_trailing_metadata(detail(reason, hint))
    context.abort(code, message)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
