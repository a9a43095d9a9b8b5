"""The certificate authority: one root, one intermediate per region, and what the latter issues.

Used by `edge-orchestrator ca`, by the first start, and by the modules beside it that issue. The
root signs intermediates only; once they exist its key can be taken away to a safe (the file
`root.key` may be absent, and only `create_region` needs it). On disk:

    <dir>/root.crt  <dir>/root.key  <dir>/regions/<region>/ca.crt  <dir>/regions/<region>/ca.key

A region's pair is replaced through a third file, `ca.key.next`, so that whoever reads, also after a
crash, finds a certificate with its key.
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
# Boxes whose clock runs behind accept a fresh certificate all the same, and everybody the one of a
# member whose clock is an hour ahead. At most a tenth of its life: it is renewed at a third of what
# it says, and that must lie ahead.
BACKDATE_S = 7_200.0


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
        self.trust_domain = trust_domain_of(root)
        self.roots_der = (der(root),)
        self._use(intermediate, key)

    def take(self, newer: "Authority") -> bool:
        """Issue with its intermediate from now on; whether that is another one. What was issued
        before stays valid. Raises UnusableFile when its root is another: that is no rotation."""
        if newer.roots_der != self.roots_der:
            raise UnusableFile("the files are of another root; restart to use another installation")
        if newer.intermediate == self.intermediate:
            return False
        self._use(newer.intermediate, newer._key)
        return True

    def _use(self, intermediate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.intermediate = intermediate
        self._key = key
        self._intermediate_der = der(intermediate)
        self._key_identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )

    @property
    def region(self) -> str:
        """As the intermediate names it."""
        return _region_named(self.intermediate)

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """To be carried to the region's machines, and for nothing else."""
        return self._key

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """What leads from it to the root: its own certificate."""
        return (self._intermediate_der,)

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
            raise UnusableFile("the region's CA has expired; make a new one: `ca rotate`")
        end = min(start + timedelta(seconds=request.life_s), self.intermediate.not_valid_after_utc)
        identity = request.identity
        common_name = str(identity).rpartition("/")[2][:64]
        names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in request.organizations]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if request.server:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            new_certificate(
                x509.Name(names), self.intermediate.subject, request.public_key, start, end
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(ca=False), critical=True)
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


def region_of(intermediate_der: bytes) -> str:
    """Which region's CA a certificate is of. Raises ValueError for one that cannot be read."""
    return _region_named(x509.load_der_x509_certificate(intermediate_der))


def _region_named(intermediate: x509.Certificate) -> str:
    found = intermediate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value).partition(" ")[2] if found else ""


_ROOT_SUFFIX = " Polder root"


def create_root(directory: Path, trust_domain: str, now: float) -> None:
    """Makes `root.crt` and `root.key`. Raises UnusableFile when there is a root already."""
    if (directory / "root.crt").exists():
        raise UnusableFile(f"{directory} already has a root; it is never overwritten")
    key = new_key()
    start = datetime.fromtimestamp(now, UTC)
    name = _name(trust_domain + _ROOT_SUFFIX)
    certificate = (
        new_certificate(name, name, key.public_key(), start, start + timedelta(seconds=ROOT_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_file(directory / "root.key", key_pem(key))
    write_file(directory / "root.crt", pem_of([der(certificate)]), mode=0o644)


def load_root(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Raises UnusableFile when `root.key` is away, or another root's."""
    root = read_certificates(directory / "root.crt")[0]
    key = read_key(directory / "root.key")
    if root.public_key() != key.public_key():
        raise UnusableFile(
            f"the key {directory / 'root.key'} does not belong to the certificate beside it"
        )
    return root, key


def create_region(directory: Path, region: str, now: float) -> None:
    """Makes or replaces a region's intermediate. Raises UnusableFile when `root.key` is away."""
    root, root_key = load_root(directory)
    trust_domain = trust_domain_of(root)
    key = new_key()
    start = datetime.fromtimestamp(now, UTC)
    end = min(start + timedelta(seconds=REGION_LIFE_S), root.not_valid_after_utc)
    root_identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        new_certificate(
            _name(f"{trust_domain} {region}"), root.subject, key.public_key(), start, end
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
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
    write_region(directory, region, key_pem(key), pem_of([der(certificate)]))


def region_home(directory: Path, region: str) -> Path:
    return directory / "regions" / region


def write_region(directory: Path, region: str, key: bytes, certificate: bytes) -> None:
    """Puts a region's pair (PEM) in place of any former one; see the module's head."""
    home = region_home(directory, region)
    if not (home / "ca.crt").exists():
        write_file(home / "ca.key", key)
        write_file(home / "ca.crt", certificate, mode=0o644)
        return
    if (home / _NEXT).exists() and _fits(home / _NEXT, home / "ca.crt"):
        (home / _NEXT).replace(home / "ca.key")  # an earlier replacement ended before this step
    write_file(home / _NEXT, key)
    write_file(home / "ca.crt", certificate, mode=0o644)
    (home / _NEXT).replace(home / "ca.key")


def load_authority(directory: Path, region: str) -> Authority:
    """What a member of the region issues with. Raises UnusableFile with what to do."""
    root = read_certificates(directory / "root.crt")[0]
    home = region_home(directory, region)
    if not (home / "ca.crt").exists():
        raise UnusableFile(
            f"{directory} has no CA for the region {region!r}: "
            f"edge-orchestrator ca init --dir {directory} --region {region} where root.key is, "
            "or ca import of what was exported there"
        )
    intermediate, key = _read_pair(home)
    return vouched(root, intermediate, key, str(home / "ca.crt"))


def signing_key(
    directory: Path, region: str, now: float
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, tuple[bytes, ...]]:
    """What signs what agents check alone: (root, key, chain), of the region's CA, or without a
    region of the root. Raises UnusableFile when that key is not here, or has expired."""
    if region:
        authority = load_authority(directory, region)
        if now >= authority.ends_at["region_ca"]:
            raise UnusableFile(f"the CA of region {region} has expired: no agent would believe it")
        return authority.root, authority.private_key, authority.chain_der
    if not (directory / "root.key").exists():
        raise UnusableFile(f"{directory} has no root.key: let a region's CA sign, by --region")
    root, key = load_root(directory)
    return root, key, ()


def vouched(
    root: x509.Certificate,
    intermediate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    where: str,
) -> Authority:
    """The three, if they belong together. Raises UnusableFile."""
    if intermediate.public_key() != key.public_key():
        raise UnusableFile(f"the key of {where} does not belong to the certificate")
    try:
        intermediate.verify_directly_issued_by(root)
    except Exception as error:  # the library raises several unrelated types
        raise UnusableFile(f"{where} was not issued by the root beside it") from error
    return Authority(root, intermediate, key)


_NEXT = "ca.key.next"


def _read_pair(home: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """In the middle of a replacement the key is still the next one; right after it, what was read
    first may be the former certificate: so it is read twice."""
    for _ in range(2):
        certificate = read_certificates(home / "ca.crt")[0]
        for path in (home / "ca.key", home / _NEXT):
            key = read_key(path) if path.exists() or path.name == "ca.key" else None
            if key is not None and key.public_key() == certificate.public_key():
                return certificate, key
    raise UnusableFile(f"the key {home / 'ca.key'} does not belong to the certificate beside it")


def _fits(key: Path, certificate: Path) -> bool:
    return read_key(key).public_key() == read_certificates(certificate)[0].public_key()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def new_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """What every certificate has, valid from a little before `start`."""
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


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """A CA's key signs certificates, a leaf's key signs handshakes and plans."""
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
