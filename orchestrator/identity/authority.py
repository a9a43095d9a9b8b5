"""The certificate authority: one root, one intermediate per region, and what the latter issues.

Used by `edge-orchestrator ca`, by the first start, and by the modules beside it that issue. The
root signs intermediates only; once they exist its key can be taken away to a safe (the file
`root.key` may be absent, and only `create_region` needs it). On disk:

    <dir>/root.crt  <dir>/root.key  <dir>/regions/<region>/ca.crt  <dir>/regions/<region>/ca.key
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.identity.pem import (
    UnusableFile,
    der,
    key_pem,
    new_key,
    pem_of,
    read_certificates,
    read_key,
    write_file,
)
from polder.identity import Identity

ROOT_LIFE_S = 10 * 365 * 86_400.0
REGION_LIFE_S = 2 * 365 * 86_400.0
# Boxes whose clock runs behind accept a fresh certificate all the same. At most a tenth of its
# life: it is renewed at a third of what it says, and that must lie ahead.
BACKDATE_S = 300.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with the chain to show: leaf first, DER. `serial` is hex; times in unix ms."""

    chain_der: tuple[bytes, ...]
    serial: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """What a certificate shall say. `life_s` counts from now; the region's own end cuts it."""

    identity: Identity
    public_key: ec.EllipticCurvePublicKey
    life_s: float
    organizations: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    server: bool = False


class Authority:
    """A region's intermediate with its key, and the root that vouches for it."""

    def __init__(
        self,
        root: x509.Certificate,
        intermediate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
    ) -> None:
        self.root = root
        self.intermediate = intermediate
        self._key = key
        self.trust_domain = trust_domain_of(root)
        self.roots_der = (der(root),)
        self._intermediate_der = der(intermediate)
        self._key_identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )

    @property
    def ends_at(self) -> dict[str, float]:
        """Unix seconds by certificate: `root_ca`, `region_ca`."""
        return {
            "root_ca": self.root.not_valid_after_utc.timestamp(),
            "region_ca": self.intermediate.not_valid_after_utc.timestamp(),
        }

    def issue(self, request: LeafRequest, now: float) -> Issued:
        """A leaf certificate. Raises UnusableFile when the intermediate has expired."""
        start = datetime.fromtimestamp(now, UTC)
        if start >= self.intermediate.not_valid_after_utc:
            raise UnusableFile("the region's CA has expired; make a new one with `ca init`")
        end = min(start + timedelta(seconds=request.life_s), self.intermediate.not_valid_after_utc)
        identity = request.identity
        common_name = str(identity).rpartition("/")[2][:64]
        names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in request.organizations]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if request.server:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(x509.Name(names), self.intermediate.subject, request.public_key, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_alternative_names(identity, request.hosts), critical=False)
            .add_extension(self._key_identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            chain_der=(der(certificate), self._intermediate_der),
            serial=serial_text(certificate),
            expires_at_ms=int(end.timestamp() * 1000),
        )


def serial_text(certificate: x509.Certificate) -> str:
    """How the allow-list writes a serial number."""
    return f"{certificate.serial_number:x}"


def trust_domain_of(root: x509.Certificate) -> str:
    """Raises UnusableFile when the root is none of ours."""
    found = root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(found[0].value) if found else ""
    if not name.endswith(_ROOT_SUFFIX):
        raise UnusableFile("the root certificate was not made by `edge-orchestrator ca init`")
    return name.removesuffix(_ROOT_SUFFIX)


_ROOT_SUFFIX = " Polder root"


def create_root(directory: Path, trust_domain: str, now: float) -> None:
    """Makes `root.crt` and `root.key`. Raises UnusableFile when there is a root already."""
    if (directory / "root.crt").exists():
        raise UnusableFile(f"{directory} already has a root; it is never overwritten")
    key = new_key()
    start = datetime.fromtimestamp(now, UTC)
    name = _name(trust_domain + _ROOT_SUFFIX)
    certificate = (
        _builder(name, name, key.public_key(), start, start + timedelta(seconds=ROOT_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_file(directory / "root.key", key_pem(key))
    write_file(directory / "root.crt", pem_of([der(certificate)]), mode=0o644)


def create_region(directory: Path, region: str, now: float) -> None:
    """Makes or replaces a region's intermediate. Raises UnusableFile when `root.key` is away."""
    root = read_certificates(directory / "root.crt")[0]
    root_key = read_key(directory / "root.key")
    _check_pair(root, root_key, directory / "root.key")
    trust_domain = trust_domain_of(root)
    key = new_key()
    start = datetime.fromtimestamp(now, UTC)
    end = min(start + timedelta(seconds=REGION_LIFE_S), root.not_valid_after_utc)
    root_identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name(f"{trust_domain} {region}"), root.subject, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(
            # A region's CA can speak for this installation only, even where both are trusted.
            x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], None),
            critical=True,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_identifier),
            critical=False,
        )
        .sign(root_key, hashes.SHA256())
    )
    home = directory / "regions" / region
    write_file(home / "ca.key", key_pem(key))
    write_file(home / "ca.crt", pem_of([der(certificate)]), mode=0o644)


def load_authority(directory: Path, region: str) -> Authority:
    """What a member of the region issues with. Raises UnusableFile with what to do."""
    root = read_certificates(directory / "root.crt")[0]
    home = directory / "regions" / region
    if not (home / "ca.crt").exists():
        raise UnusableFile(
            f"{directory} has no CA for the region {region!r}: "
            f"edge-orchestrator ca init --dir {directory} --region {region}"
        )
    intermediate = read_certificates(home / "ca.crt")[0]
    key = read_key(home / "ca.key")
    _check_pair(intermediate, key, home / "ca.key")
    try:
        intermediate.verify_directly_issued_by(root)
    except Exception as error:  # the library raises several unrelated types
        raise UnusableFile(
            f"{home / 'ca.crt'} was not issued by {directory / 'root.crt'}"
        ) from error
    return Authority(root, intermediate, key)


def _check_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    if certificate.public_key() != key.public_key():
        raise UnusableFile(f"the key {path} does not belong to the certificate beside it")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    backdate_s = min(BACKDATE_S, (end - start).total_seconds() / 10)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(seconds=backdate_s))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(identity: Identity, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)
