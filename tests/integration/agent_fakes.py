"""A small orchestrator for tests of the agent: a throwaway CA and a real gRPC server that a test
scripts. It shares no code with the real one."""

import asyncio
import datetime
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.identity_store import from_pem, to_pem
from polder.signing import sign_plan
from polder.v1 import agent_pb2, agent_pb2_grpc, plan_pb2
from tests.emulated import patience

DOMAIN = "test.polder.internal"
SERVER_NAME = "orchestrator.polder.internal"

Key = ec.EllipticCurvePrivateKey
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER


async def eventually(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Poll until it holds; fail at the deadline."""
    deadline = time.monotonic() + patience(within_s)
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def key_pem(key: Key) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Ca:
    """A root that issues directly."""

    def __init__(self, name: str = "test root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self.name, self.key.public_key(), 3600.0, ca=True)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def issue(
        self,
        public_key: object,
        uri: str,
        *,
        dns: str = "",
        life_s: float = 3600.0,
        age_s: float = 0.0,
        roles: Iterable[str] = (),
    ) -> bytes:
        named = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, role) for role in roles]
        return self._build(
            x509.Name(named), public_key, life_s, uri=uri, dns=dns, age_s=age_s
        ).public_bytes(DER)

    def _build(
        self,
        subject: x509.Name,
        public_key: object,
        life_s: float,
        *,
        ca: bool = False,
        uri: str = "",
        dns: str = "",
        age_s: float = 0.0,
    ) -> x509.Certificate:
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s + 1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(seconds=life_s))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        names: list[x509.GeneralName] = []
        names += [x509.UniformResourceIdentifier(uri)] if uri else []
        names += [x509.DNSName(dns)] if dns else []
        if names:
            usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
            usages += [ExtendedKeyUsageOID.SERVER_AUTH] if dns else []
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())


@dataclass
class Visit:
    """One Session stream as the server sees it."""

    context: grpc.aio.ServicerContext
    serial: str = ""
    received: list[agent_pb2.SessionRequest] = field(default_factory=list)
    outgoing: asyncio.Queue[agent_pb2.SessionResponse | None] = field(default_factory=asyncio.Queue)
    over: bool = False

    def of(self, kind: str) -> list[object]:
        return [getattr(r, kind) for r in self.received if r.WhichOneof("message") == kind]

    @property
    def hello(self) -> agent_pb2.Hello:
        return self.received[0].hello

    def say(self, **message: object) -> None:
        self.outgoing.put_nowait(agent_pb2.SessionResponse(**message))  # type: ignore[arg-type]


class Orchestrator(agent_pb2_grpc.AgentServiceServicer):
    """Scripted: set the attributes, read `visits`."""

    def __init__(self, ca: Ca) -> None:
        self.ca = ca
        self.member = "m1"
        self.visits: list[Visit] = []
        self.greeting: agent_pb2.SessionResponse | None = None  # instead of a Welcome
        self.silent = False
        self.heartbeat_ms = 200
        self.told: list[str] = []  # addresses in the Welcome
        self.age_ms = 0
        self.cut_off = False  # as the Welcome says
        self.refuse: grpc.StatusCode | None = None
        self.renewed_life_s = 3600.0
        self.renewed_age_s = 0.0
        self.renew_error = ""
        self.relays: dict[str, list[agent_pb2.RelayRequest]] = {}
        self.relay_script: Callable[[grpc.aio.ServicerContext, str], Awaitable[None]] | None = None
        self.on_join: (
            Callable[
                [agent_pb2.JoinRequest, grpc.aio.ServicerContext], Awaitable[agent_pb2.JoinResponse]
            ]
            | None
        ) = None
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.chain = [
            ca.issue(
                self.key.public_key(),
                f"spiffe://{DOMAIN}/region/r1/orchestrator/m1",
                dns=SERVER_NAME,
            )
        ]
        self.port = 0
        self.join_port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> "Orchestrator":
        pair = [(key_pem(self.key), to_pem(self.chain))]
        server = grpc.aio.server(
            options=[
                ("grpc.http2.min_ping_interval_without_data_ms", 100),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, server)
        mutual = grpc.ssl_server_credentials(pair, self.ca.pem, require_client_auth=True)
        self.port = server.add_secure_port(f"127.0.0.1:{port}", mutual)
        self.join_port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        await server.start()
        self._server = server
        return self

    async def stop(self, grace: float | None = None) -> None:
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None

    def signed(self, plan: plan_pb2.NodePlan) -> plan_pb2.SignedNodePlan:
        payload = plan.SerializeToString()
        return plan_pb2.SignedNodePlan(
            node_plan=payload,
            signature=sign_plan(payload, self.key),
            certificate_chain=self.chain,
            generation=plan.generation,
        )

    async def Join(self, request, context):  # type: ignore[no-untyped-def]
        assert self.on_join is not None
        return await self.on_join(request, context)

    def admit(self, request: agent_pb2.JoinRequest, node: str, site: str = "s1"):  # type: ignore[no-untyped-def]
        key = x509.load_der_x509_csr(request.csr).public_key()
        leaf = self.ca.issue(key, f"spiffe://{DOMAIN}/site/{site}/node/{node}")
        return agent_pb2.JoinResponse(
            node=node,
            site=site,
            trust_domain=DOMAIN,
            certificate_chain=[leaf],
            trust_bundle=[self.ca.der],
            endpoints=[self.endpoint],
        )

    async def Session(self, request_iterator, context):  # type: ignore[no-untyped-def]
        visit = Visit(context)
        pem = context.auth_context()["x509_pem_cert"][0]
        visit.serial = f"{x509.load_pem_x509_certificate(pem).serial_number:x}"
        self.visits.append(visit)
        if self.refuse is not None:
            visit.over = True
            await context.abort(self.refuse, "not you")
        reader = asyncio.create_task(self._read(visit, request_iterator))
        try:
            await eventually(lambda: visit.received)
            if self.silent:
                await asyncio.sleep(3600)
            yield self.greeting or agent_pb2.SessionResponse(
                welcome=agent_pb2.Welcome(
                    member=self.member,
                    region="r1",
                    version="test",
                    now_ms=int(time.time() * 1000),
                    heartbeat_interval_ms=self.heartbeat_ms,
                    endpoints=self.told,
                    session_age_max_ms=self.age_ms,
                    standing=agent_pb2.MemberStanding(cut_off=self.cut_off),
                )
            )
            while (message := await visit.outgoing.get()) is not None:
                yield message
        finally:
            visit.over = True
            reader.cancel()

    async def _read(self, visit: Visit, request_iterator) -> None:  # type: ignore[no-untyped-def]
        async for request in request_iterator:
            visit.received.append(request)
            if request.WhichOneof("message") == "renew":
                visit.say(renew=self._renew(visit, request.renew))
        visit.outgoing.put_nowait(None)

    def _renew(self, visit: Visit, request: agent_pb2.RenewRequest) -> agent_pb2.RenewResponse:
        if self.renew_error:
            return agent_pb2.RenewResponse(error=self.renew_error)
        pem = visit.context.auth_context()["x509_pem_cert"][0]
        old = x509.load_pem_x509_certificate(pem)
        (uri,) = old.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.UniformResourceIdentifier)
        key = x509.load_der_x509_csr(request.csr).public_key()
        leaf = self.ca.issue(key, uri, life_s=self.renewed_life_s, age_s=self.renewed_age_s)
        return agent_pb2.RenewResponse(
            certificate_chain=[leaf],
            trust_bundle=[self.ca.der],
            endpoints=[self.endpoint],
        )

    async def Relay(self, request_iterator, context):  # type: ignore[no-untyped-def]
        first = await context.read()
        relay_id = first.open.relay_id
        heard = self.relays.setdefault(relay_id, [])
        if self.relay_script is not None:
            await self.relay_script(context, relay_id)
        while (request := await context.read()) is not grpc.aio.EOF:
            heard.append(request)


def write_identity(
    state_dir: Path,
    ca: Ca,
    endpoints: list[str],
    *,
    node: str = "box-1",
    life_s: float = 3600.0,
    age_s: float = 0.0,
) -> str:
    """What `edge-agent join` leaves behind, without a join. Returns the serial."""
    key = ec.generate_private_key(ec.SECP256R1())
    uri = f"spiffe://{DOMAIN}/site/s1/node/{node}"
    leaf = ca.issue(key.public_key(), uri, life_s=life_s, age_s=age_s)
    certificate = x509.load_der_x509_certificate(leaf)
    directory = state_dir / "identities" / "000001"
    directory.mkdir(parents=True)
    facts = {
        "identity": uri,
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.timestamp(),
        "not_after": certificate.not_valid_after_utc.timestamp(),
    }
    (directory / "key.pem").write_bytes(key_pem(key))
    (directory / "chain.pem").write_bytes(to_pem([leaf]))
    (directory / "roots.pem").write_bytes(to_pem([ca.der]))
    (directory / "endpoints.json").write_text(json.dumps(endpoints))
    (directory / "node.json").write_text(json.dumps(facts))
    (state_dir / "identity").symlink_to("identities/000001")
    assert from_pem(to_pem([leaf])) == [leaf]
    return facts["serial"]  # type: ignore[return-value]
