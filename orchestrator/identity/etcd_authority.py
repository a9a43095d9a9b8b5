"""Certificates for etcd, from a CA of its own. Used by `edge-orchestrator ca etcd`.

etcd trusts every client certificate of its CA. So this CA issues to etcd's members and to the
orchestrators as its clients, and to nobody else: the root of nodes and operators stays out of it.

    <dir>/etcd/ca.crt  <dir>/etcd/ca.key  <dir>/etcd/<name>/{ca.crt,etcd.crt,etcd.key}

A name's folder is what is carried to its machine. etcd and our client read these files anew for
each connection, so renewing is making them again; the key stays, so that no reader finds half.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.identity.authority import key_usage, new_certificate
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

CA_LIFE_S = 10 * 365 * 86_400.0
LEAF_LIFE_S = 2 * 365 * 86_400.0
_CA_NAME = "Polder etcd CA"
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class EtcdFiles:
    """What `etcd` and `edge-orchestrator serve` are given."""

    ca: Path
    certificate: Path
    key: Path


def etcd_home(directory: Path) -> Path:
    return directory / "etcd"


def issue_etcd(
    directory: Path, name: str, hosts: tuple[str, ...], now: float, *, client: bool
) -> EtcdFiles:
    """Makes or renews the certificate of a member, or of a `client` of etcd; makes the CA if there
    is none. A member's renewal without `hosts` keeps those that it has. Raises UnusableFile."""
    home = etcd_home(directory)
    if not (home / "ca.crt").exists():
        _create_ca(home, now)
    authority, key = read_certificates(home / "ca.crt")[0], read_key(home / "ca.key")
    if authority.public_key() != key.public_key():
        raise UnusableFile(
            f"the key {home / 'ca.key'} does not belong to the certificate beside it"
        )
    files = EtcdFiles(*(home / name / file for file in ("ca.crt", "etcd.crt", "etcd.key")))
    known = read_certificates(files.certificate)[0] if files.certificate.exists() else None
    if known is not None and is_client(known) != client:
        what = "a client" if not client else "a member"
        raise UnusableFile(f"{name!r} is {what} of etcd already; choose another name")
    if not client and not hosts:
        hosts = _hosts_of(known)
        if not hosts:
            raise UnusableFile(
                "a member of etcd needs --host, once per name or address that others dial"
            )
    own = read_key(files.key) if files.key.exists() else new_key()
    certificate = _leaf(authority, key, own, name, () if client else hosts, now)
    if not files.key.exists():
        write_file(files.key, key_pem(own))
    write_file(files.certificate, pem_of([der(certificate)]), mode=0o644)
    write_file(files.ca, pem_of([der(authority)]), mode=0o644)
    return files


def is_client(certificate: x509.Certificate) -> bool:
    """It serves nobody: an orchestrator's."""
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return ExtendedKeyUsageOID.SERVER_AUTH not in usages


def _create_ca(home: Path, now: float) -> None:
    key = new_key()
    start = datetime.fromtimestamp(now, UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CA_NAME)])
    end = start + timedelta(seconds=CA_LIFE_S)
    certificate = (
        new_certificate(name, name, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_file(home / "ca.key", key_pem(key))
    write_file(home / "ca.crt", pem_of([der(certificate)]), mode=0o644)


def _leaf(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    own: ec.EllipticCurvePrivateKey,
    name: str,
    hosts: tuple[str, ...],
    now: float,
) -> x509.Certificate:
    """No hosts: a client's. A member's serves both sides: members are each other's clients, and
    etcd's gateway is its own."""
    start = datetime.fromtimestamp(now, UTC)
    end = min(start + timedelta(seconds=LEAF_LIFE_S), authority.not_valid_after_utc)
    if start >= end:
        raise UnusableFile("the CA of etcd has expired; move its folder away and begin anew")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if hosts:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        new_certificate(subject, authority.subject, own.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    if hosts:
        names = [_general_name(host) for host in dict.fromkeys((*hosts, *_ALWAYS))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise UnusableFile(f"{host!r} is neither a name nor an address") from error


def _hosts_of(certificate: x509.Certificate | None) -> tuple[str, ...]:
    if certificate is None:
        return ()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    return (*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))
