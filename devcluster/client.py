"""A plain operator client from a context file, for benchmarks and tests. Operators use edgectl."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from polder.v1 import operator_pb2, operator_pb2_grpc

Options = list[tuple[str, Any]]


class Context:
    """What a context file holds: endpoints and credentials. Written by the orchestrator as JSON."""

    def __init__(self, path: Path) -> None:
        body = json.loads(path.read_text())
        cluster = body["clusters"][0]["cluster"]
        user = body["users"][0]["user"]
        self.endpoints: list[str] = cluster["endpoints"]
        self.server_name: str = cluster["serverName"]
        self.roots = base64.b64decode(cluster["certificateAuthorityData"])
        self.certificate = base64.b64decode(user["clientCertificateData"])
        self.key = base64.b64decode(user["clientKeyData"])

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)

    def options(self, *, own_connection: bool = False) -> Options:
        options: Options = [("grpc.ssl_target_name_override", self.server_name)]
        if own_connection:  # otherwise channels of one process share a connection
            options.append(("grpc.use_local_subchannel_pool", 1))
        return options

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(self.endpoints[0], self.credentials(), self.options())

    def aio_channel(self) -> grpc.aio.Channel:
        options = self.options(own_connection=True)
        return grpc.aio.secure_channel(self.endpoints[0], self.credentials(), options)

    def stub(self) -> operator_pb2_grpc.OperatorServiceStub:
        return operator_pb2_grpc.OperatorServiceStub(self.channel())


def apply_request(*documents: dict[str, Any], dry_run: bool = False) -> operator_pb2.ApplyRequest:
    """Manifests as Python data, as one all-or-nothing request."""
    return operator_pb2.ApplyRequest(documents=_documents(documents), dry_run=dry_run)


def _documents(manifests: Iterable[dict[str, Any]]) -> Iterable[operator_pb2.Document]:
    for manifest in manifests:
        yield operator_pb2.Document(json=json.dumps(manifest).encode())


def workload(
    name: str,
    *,
    image: str,
    namespace: str = "default",
    host_port: int = 0,
    replicas: int = 1,
    **container: Any,
) -> dict[str, Any]:
    """A one-container workload that serves HTTP on 8080, with a readiness probe."""
    port: dict[str, Any] = {"name": "http", "containerPort": 8080}
    if host_port:
        port["hostPort"] = host_port
    body: dict[str, Any] = {
        "name": "web",
        "image": image,
        "ports": [port],
        "resources": {"cpu": "20m", "memory": "16Mi"},
        "readinessProbe": {"http": {"path": "/healthz", "port": "http"}},
    }
    body.update(container)
    return {
        "apiVersion": "polder.eu/v1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "template": {"containers": [body]}},
    }


SITE_MANIFESTS: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "polder.eu/v1",
        "kind": "Provider",
        "metadata": {"name": "example-telco"},
        "spec": {"legalName": "Example Telco N.V.", "seatCountry": "NL"},
    },
    {
        "apiVersion": "polder.eu/v1",
        "kind": "Site",
        "metadata": {"name": "nl-utr-1"},
        "spec": {
            "provider": "example-telco",
            "country": "NL",
            "region": "eu-west",
            "coordinates": {"latitude": 52.09, "longitude": 5.12},
        },
    },
)
"""One provider and one site: what a first node needs."""
