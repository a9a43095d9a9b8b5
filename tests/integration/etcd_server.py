"""A real etcd for tests: one member or several, TLS on every port, data in a temporary folder.

Members are processes of Debian's `etcd`, on free ports of this machine. They can be stopped,
killed, frozen (SIGSTOP) and started again with the data they had.
"""

import base64
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devcluster.etcd_api import EtcdApi, EtcdRefused, command
from devcluster.ports import free_port
from orchestrator.store.etcd.settings import EtcdSettings, EtcdTls

READY_S = 30.0


class TestAuthority:
    """A CA that writes PEM files into a folder."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "etcd test CA")])
        builder = self._builder("etcd test CA", self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, life: timedelta = timedelta(hours=1)) -> EtcdTls:
        """A certificate for 127.0.0.1 that serves both sides: members are each other's clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
        certificate = (
            self._builder(name, key.public_key(), life)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        tls = EtcdTls(self.ca, self.folder / f"{name}.pem", self.folder / f"{name}.key")
        tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        tls.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return tls

    def _builder(
        self, name: str, public_key: ec.EllipticCurvePublicKey, life: timedelta = timedelta(hours=1)
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + life)
        )


class EtcdMember:
    """One process. `start` after `kill` or `stop` takes up its data again."""

    def __init__(self, name: str, folder: Path, tls: EtcdTls, flags: tuple[str, ...]) -> None:
        self.name = name
        self.folder = folder
        self.client_port = free_port()
        self.peer_port = free_port()
        self.tls = tls
        self.api = EtcdApi("127.0.0.1", self.client_port, tls)
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, initial_cluster: str) -> None:
        arguments = command(
            self.name,
            self.folder / self.name,
            self.endpoint,
            self.peer_url,
            self.tls,
            initial_cluster,
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*arguments, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "1"},
            )

    def is_healthy(self) -> bool:
        """It answers, and has a leader with which it agrees."""
        return self.api.is_healthy()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def says_it_leads(self) -> bool:
        """A member that does not answer does not."""
        said = self._ask("maintenance/status", {})
        return bool(said) and said.get("leader") == said["header"].get("member_id")

    def value_of(self, key: bytes) -> bytes:
        """As this member has it; empty when it does not answer, or has none."""
        wanted = {"key": base64.b64encode(key).decode(), "serializable": True}
        kvs = self._ask("kv/range", wanted).get("kvs", [])
        return base64.b64decode(kvs[0]["value"]) if kvs else b""

    def _ask(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Empty when it does not answer."""
        try:
            return self.api.ask(path, body, timeout_s=1.0)
        except EtcdRefused:
            return {}

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self.is_healthy():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"etcd {self.name} is not healthy: {tail}")
            time.sleep(0.05)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        if self._frozen:
            process.send_signal(signal.SIGCONT)
            self._frozen = False
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class EtcdCluster:
    """`members` members that trust one CA. End it with `stop()`."""

    def __init__(self, folder: Path, members: int = 1, flags: tuple[str, ...] = ()) -> None:
        self.authority = TestAuthority(folder / "tls")
        self.client_tls = self.authority.issue("polder")
        self.members = [
            EtcdMember(f"m{n}", folder, self.authority.issue(f"m{n}"), flags)
            for n in range(members)
        ]

    def start(self) -> None:
        for member in self.members:
            self.start_member(member)
        for member in self.members:
            member.wait_until_healthy()

    def start_member(self, member: EtcdMember) -> None:
        member.start(",".join(f"{one.name}={one.peer_url}" for one in self.members))

    def settings(self, prefix: str = "/polder") -> EtcdSettings:
        endpoints = tuple(member.endpoint for member in self.members)
        return EtcdSettings(endpoints, self.client_tls, prefix)

    def member_at(self, endpoint: str) -> EtcdMember:
        return next(member for member in self.members if member.endpoint == endpoint)

    def stop(self) -> None:
        for member in self.members:
            member.kill()
