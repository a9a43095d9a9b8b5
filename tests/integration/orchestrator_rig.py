"""An orchestrator in this process on free ports, and clients of every kind to call it with."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from devcluster.ports import free_port
from orchestrator.config import Config, load_config
from orchestrator.identity.authority import Authority, Issued, LeafRequest
from orchestrator.identity.member import SERVER_NAME
from orchestrator.identity.pem import key_pem, new_key, pem_of
from orchestrator.records import IdentityRecord
from orchestrator.server import Orchestrator
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.errors import parse_detail
from polder.identity import Identity, NodeId, OperatorId
from polder.tokens import parse as parse_token
from polder.v1 import agent_pb2, agent_pb2_grpc, common_pb2, operator_pb2, operator_pb2_grpc

PROVIDER = {"kind": "Provider", "metadata": {"name": "telco"}}
PROVIDER_SPEC = {"legalName": "Telco B.V.", "seatCountry": "NL"}


def config_for(folder: Path, **changes: Any) -> Config:
    values = {
        "data_dir": str(folder / "data"),
        "listen": f"127.0.0.1:{free_port()}",
        "join_listen": f"127.0.0.1:{free_port()}",
        "metrics_listen": f"127.0.0.1:{free_port()}",
        "shutdown_grace": 1.0,
        **changes,
    }
    return load_config(None, {}, values)


def certificate_request(key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key or new_key(), hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass
class Credentials:
    """A key and a chain to show, leaf first."""

    key: ec.EllipticCurvePrivateKey
    chain_der: tuple[bytes, ...]

    def channel_credentials(self, roots_pem: bytes) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(roots_pem, key_pem(self.key), pem_of(self.chain_der))


@dataclass
class Rig:
    orchestrator: Orchestrator
    config: Config
    first: "Rig | None" = None  # the member that made their first admin, where it is another
    _channels: list[aio.Channel] = field(default_factory=list)

    @property
    def authority(self) -> Authority:
        return self.orchestrator.parts.authority

    @property
    def roots_pem(self) -> bytes:
        return pem_of(self.authority.roots_der)

    def channel(self, credentials: Credentials | None, *, join: bool = False) -> aio.Channel:
        if credentials is None:
            tls = grpc.ssl_channel_credentials(self.roots_pem)
        else:
            tls = credentials.channel_credentials(self.roots_pem)
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        address = self.config.join_listen if join else self.config.listen
        channel = aio.secure_channel(address, tls, options)
        self._channels.append(channel)
        return channel

    def operators(self, credentials: Credentials) -> Any:
        return operator_pb2_grpc.OperatorServiceStub(self.channel(credentials))

    def agents(self, credentials: Credentials) -> Any:
        return agent_pb2_grpc.AgentServiceStub(self.channel(credentials))

    def joiner(self) -> Any:
        return agent_pb2_grpc.AgentServiceStub(self.channel(None, join=True))

    def admin_credentials(self) -> Credentials:
        return read_context((self.first or self).config.data_path / "admin.yaml")

    def admin(self) -> Any:
        return self.operators(self.admin_credentials())

    async def operator(self, name: str, *roles: str) -> Credentials:
        """A new operator, issued through the API."""
        key = new_key()
        request = operator_pb2.IssueOperatorRequest(
            name=name, roles=roles, csr=certificate_request(key)
        )
        response = await self.admin().IssueOperator(request)
        return Credentials(key, tuple(response.certificate_chain))

    async def listed(
        self, identity: Identity, *, life_s: float = 3600.0, roles: tuple[str, ...] = ()
    ) -> Credentials:
        """A certificate that the allow-list accepts, whatever its life."""
        credentials, issued = self.issue(identity, life_s=life_s, roles=roles)
        kind, name = ("operator", getattr(identity, "name", ""))
        site = ""
        if isinstance(identity, NodeId):
            kind, name, site = "node", identity.node, identity.site
        record = IdentityRecord(kind, name, site, {issued.serial: issued.expires_at_ms}, roles)
        await self.put(keys.identity(kind, name), record.to_bytes())
        return credentials

    def issue(
        self, identity: Identity, *, life_s: float = 3600.0, roles: tuple[str, ...] = ()
    ) -> tuple[Credentials, Issued]:
        key = new_key()
        request = LeafRequest(identity, key.public_key(), life_s, organizations=roles)
        issued = self.authority.issue(request, time.time())
        return Credentials(key, issued.chain_der), issued

    async def put(self, key: str, value: bytes) -> None:
        result = await self.orchestrator.parts.store.txn([], [Put(key, value)])
        await self.orchestrator.parts.cache.wait_for(result.revision)

    async def site(self, name: str = "ams-1") -> None:
        await self.apply(
            manifest("Provider", "telco", spec=PROVIDER_SPEC),
            manifest("Site", name, spec={"provider": "telco", "country": "NL"}),
        )

    async def apply(self, *documents: dict[str, Any], stub: Any = None, **more: Any) -> Any:
        request = apply_request(*documents, **more)
        return await (stub or self.admin()).Apply(request)

    async def token(self, site: str = "ams-1", node: str = "") -> str:
        request = operator_pb2.CreateJoinTokenRequest(site=site, node=node)
        return parse_token((await self.admin().CreateJoinToken(request)).token).secret

    async def node(self, name: str, site: str = "ams-1") -> Credentials:
        """Joined through the join port."""
        key = new_key()
        request = agent_pb2.JoinRequest(
            token_secret=await self.token(site), node=name, csr=certificate_request(key)
        )
        response = await self.joiner().Join(request)
        return Credentials(key, tuple(response.certificate_chain))

    def node_id(self, name: str, site: str = "ams-1") -> NodeId:
        return NodeId(self.authority.trust_domain, site, name)

    def operator_id(self, name: str) -> OperatorId:
        return OperatorId(self.authority.trust_domain, name)

    async def restart(self) -> None:
        """The same member once more, with what it wrote; it may have been stopped before."""
        await self.orchestrator.stop()
        again = Orchestrator(self.config)
        await again.start()
        self.orchestrator = again

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def running(folder: Path, *, first: Rig | None = None, **changes: Any) -> AsyncIterator[Rig]:
    """`first`: the first member of its installation, if this is another."""
    config = config_for(folder, **changes)
    orchestrator = Orchestrator(config)
    await orchestrator.start()
    rig = Rig(orchestrator, config, first)
    try:
        yield rig
    finally:
        await rig.close()
        await rig.orchestrator.stop()


def read_context(path: Path) -> Credentials:
    import base64

    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    user = json.loads(path.read_text())["users"][0]["user"]
    key = load_pem_private_key(base64.b64decode(user["clientKeyData"]), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    chain = x509.load_pem_x509_certificates(base64.b64decode(user["clientCertificateData"]))
    return Credentials(key, tuple(c.public_bytes(Encoding.DER) for c in chain))


def read_endpoints(path: Path) -> list[str]:
    found: list[str] = json.loads(path.read_text())["clusters"][0]["cluster"]["endpoints"]
    return found


def manifest(
    kind: str, name: str, *, namespace: str = "", spec: object = None, **metadata: Any
) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name, **metadata}
    if namespace:
        about["namespace"] = namespace
    return {
        "apiVersion": "polder.eu/v1",
        "kind": kind,
        "metadata": about,
        "spec": spec if spec is not None else {},
    }


def workload(
    name: str, *, namespace: str = "", image: str = "app:1", **spec: Any
) -> dict[str, Any]:
    template = {"containers": [{"name": "app", "image": image}]}
    return manifest("Workload", name, namespace=namespace, spec={"template": template, **spec})


def apply_request(
    *documents: dict[str, Any], dry_run: bool = False, expected: int = 0
) -> operator_pb2.ApplyRequest:
    wire = [
        operator_pb2.Document(json=json.dumps(document).encode(), expected_revision=expected)
        for document in documents
    ]
    return operator_pb2.ApplyRequest(documents=wire, dry_run=dry_run)


def ref(kind: str, name: str, namespace: str = "") -> common_pb2.ResourceRef:
    return common_pb2.ResourceRef(kind=kind, namespace=namespace, name=name)


def detail_of(error: aio.AioRpcError) -> common_pb2.ErrorDetail:
    found = parse_detail(list(error.trailing_metadata()))
    assert found is not None, error
    return found


@dataclass
class Refusal:
    code: grpc.StatusCode
    reason: str
    message: str
    detail: common_pb2.ErrorDetail


async def refusal(call: Any) -> Refusal:
    """How a call is refused; fails when it is not."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except aio.AioRpcError as error:
        detail = detail_of(error)
        return Refusal(error.code(), detail.reason, error.details() or "", detail)
    raise AssertionError("the call was not refused")


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)
