"""The command `edge-orchestrator probe`: what a box or operator would find at an address.

Called by `main.py`; `helm test` runs it in the cluster, and it works from anywhere. It shows no
certificate of its own, so it needs no secret: the join port must answer with health and a
certificate of this installation, and the other port must refuse whoever shows none.
"""

import argparse
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.config import parse_address
from orchestrator.identity.member import SERVER_NAME
from orchestrator.identity.pem import der, pem_of, read_certificates
from polder.identity import InvalidIdentity, MemberId, parse
from polder.manifest.quantity import duration_s

_TRY_S = 5.0
_PAUSE_S = 1.0


class NotServed(Exception):
    """What was found instead."""


def add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        "probe", help="check that an installation is served at an address, as a box would"
    )
    probe.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="of mTLS")
    probe.add_argument("--join-endpoint", required=True, metavar="HOST:PORT")
    probe.add_argument("--root", required=True, type=Path, metavar="FILE", help="PEM")
    probe.add_argument("--trust-domain", required=True)
    probe.add_argument("--wait", type=duration_s, default=0.0, help="try for so long, as 60s")
    probe.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    roots = pem_of([der(one) for one in read_certificates(options.root)])
    deadline = time.monotonic() + options.wait
    join = parse_address("--join-endpoint", options.join_endpoint)
    mtls = parse_address("--endpoint", options.endpoint)
    who = _patiently(lambda: server_identity(*join, roots, options.trust_domain), deadline)
    print(f"ok  {options.join_endpoint} is {who}")  # noqa: T201 - a command line speaks
    _patiently(lambda: check_health(options.join_endpoint, roots), deadline)
    print(f"ok  {options.join_endpoint} says that it serves")  # noqa: T201
    _patiently(lambda: check_refusal(*mtls, roots), deadline)
    print(f"ok  {options.endpoint} refuses who shows no certificate")  # noqa: T201
    return 0


def _patiently(attempt: Callable[[], Any], deadline: float) -> Any:
    while True:
        try:
            return attempt()
        except NotServed:
            if time.monotonic() + _PAUSE_S > deadline:
                raise
            time.sleep(_PAUSE_S)


def server_identity(host: str, port: int, roots_pem: bytes, trust_domain: str) -> MemberId:
    """Who answers, by a certificate that the root vouches for. Raises NotServed."""
    with _connect(host, port, roots_pem) as connection:
        shown: Any = connection.getpeercert() or {}
    names = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    for name in names:
        try:
            identity = parse(name)
        except InvalidIdentity:
            continue
        if isinstance(identity, MemberId) and identity.trust_domain == trust_domain:
            return identity
    raise NotServed(f"{host}:{port} is no orchestrator of {trust_domain}, but {names}")


def check_health(endpoint: str, roots_pem: bytes) -> None:
    """Raises NotServed unless `grpc.health.v1` says SERVING."""
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    credentials = grpc.ssl_channel_credentials(roots_pem)
    with grpc.secure_channel(endpoint, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TRY_S)
        except grpc.RpcError as error:
            raise NotServed(f"{endpoint} does not answer: {error.details()}") from error
    if found.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)
        raise NotServed(f"{endpoint} says {name}")


def check_refusal(host: str, port: int, roots_pem: bytes) -> None:
    """Raises NotServed unless a connection without certificate is ended by the server's own TLS:
    something in between that ends TLS itself would let it through."""
    with _connect(host, port, roots_pem) as connection:
        connection.settimeout(_TRY_S)
        try:
            # In TLS 1.3 the refusal comes after the handshake. An HTTP/2 server speaks first, too.
            let_in = connection.recv(1) != b""
        except TimeoutError:
            let_in = True
        except OSError:
            let_in = False
    if let_in:
        raise NotServed(f"{host}:{port} let in who shows no certificate")


def _connect(host: str, port: int, roots_pem: bytes) -> ssl.SSLSocket:
    """Raises NotServed when there is no TLS of this installation."""
    context = ssl.create_default_context(cadata=roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection((host, port), _TRY_S)
    except OSError as error:
        raise NotServed(f"{host}:{port} cannot be reached: {error}") from error
    try:
        return context.wrap_socket(plain, server_hostname=SERVER_NAME)
    except OSError as error:
        plain.close()
        raise NotServed(f"{host}:{port} is not served by this installation: {error}") from error
