"""What a region's machine needs of the CA, as one file: made where the root's key is, carried over.

Used by `edge-orchestrator ca export` and `ca import`. JSON with the root's certificate and the
region's certificate and key, in PEM; never the root's key. Whoever has the file can act as this
region, so it is written with mode 0600 and is best deleted after the import.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from orchestrator.identity.authority import (
    Authority,
    load_authority,
    region_home,
    vouched,
    write_region,
)
from orchestrator.identity.pem import UnusableFile, der, key_pem, pem_of, read_certificates
from orchestrator.identity.pem import write_file as write

_VERSION = "polder.eu/v1"
_KIND = "RegionAuthority"
_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Bundle:
    """A region's authority as it travels; `key` belongs to its intermediate."""

    region: str
    authority: Authority
    key: ec.EllipticCurvePrivateKey


def export_region(directory: Path, region: str, out: Path) -> Authority:
    """Writes `out`. Raises UnusableFile; an existing file is not overwritten."""
    if out.exists():
        raise UnusableFile(f"{out} exists; remove it, or choose another name")
    authority = load_authority(directory, region)
    body = {
        "apiVersion": _VERSION,
        "kind": _KIND,
        "trustDomain": authority.trust_domain,
        "region": region,
        "root": pem_of(authority.roots_der).decode(),
        "certificate": pem_of([der(authority.intermediate)]).decode(),
        "key": key_pem(authority.private_key).decode(),
    }
    write(out, (json.dumps(body, indent=2) + "\n").encode())
    return authority


def read_bundle(path: Path) -> Bundle:
    """Raises UnusableFile when it is none, or its parts do not belong together."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{path} cannot be read: {error.strerror}") from error
    try:
        body = json.loads(raw) if len(raw) <= _BYTES_MAX else None
        if not isinstance(body, dict) or body.get("kind") != _KIND:
            raise UnusableFile(f"{path} was not made by `edge-orchestrator ca export`")
        root = x509.load_pem_x509_certificate(str(body["root"]).encode())
        certificate = x509.load_pem_x509_certificate(str(body["certificate"]).encode())
        key = load_pem_private_key(str(body["key"]).encode(), None)
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableFile(f"{path} is damaged: export it again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnusableFile(f"the key in {path} is not ECDSA P-256")
    authority = vouched(root, certificate, key, str(path))
    region = str(body.get("region", ""))
    if body.get("trustDomain") != authority.trust_domain or region != authority.region:
        raise UnusableFile(f"{path} says another region or trust domain than its certificates")
    return Bundle(region, authority, key)


def import_region(bundle: Bundle, directory: Path) -> str:
    """Puts it into a CA directory: "imported", "replaced" or "unchanged". Raises UnusableFile when
    the directory has another root, or a newer CA of the region."""
    authority = bundle.authority
    known = directory / "root.crt"
    if known.exists() and read_certificates(known)[0] != authority.root:
        raise UnusableFile(
            f"{directory} has another root than the file: nodes and operators of the one are "
            "strangers to the other. Import into an empty directory, or export from the CA that "
            "this installation uses"
        )
    outcome = "imported"
    if (region_home(directory, bundle.region) / "ca.crt").exists():
        outcome = "replaced"
        ours = load_authority(directory, bundle.region).intermediate
        if ours == authority.intermediate:
            return "unchanged"
        if ours.not_valid_before_utc > authority.intermediate.not_valid_before_utc:
            raise UnusableFile(
                f"{directory} has a newer CA of region {bundle.region}, of "
                f"{ours.not_valid_before_utc:%F %T}Z; the file is from before its rotation. "
                "Export it again"
            )
    if not known.exists():
        write(known, pem_of(authority.roots_der), mode=0o644)
    pem = pem_of([der(authority.intermediate)])
    write_region(directory, bundle.region, key_pem(bundle.key), pem)
    return outcome
