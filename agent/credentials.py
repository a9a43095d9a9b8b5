"""One-shot cryptography: `python -m agent.credentials COMMAND`, for `agent/identity_store.py`.

The cryptography library costs 12 MB of memory and the agent's whole budget is 40 MB, so only this
process, which lives for a tenth of a second, imports it. The long-running agent must not import
this module.

Both ways of the pipe carry frames: a big-endian length of four bytes, then that many bytes. The
first frame is a JSON object; what it counts as `parts` follows as raw frames. The answer is one
JSON object on stdout, with raw frames behind it. Exit code 0 also when the answer is a refusal
(`{"refused": reason, "message": ...}`): anything else means that nothing is known.

    new-key      {path}                     -> {}, [CSR]       the key goes to `path`, mode 0600
    new-site-key {path, identity, dns}      -> {}, [certificate]   likewise, signed with the key
    inspect      {key_path?}, [certificate] -> {identity, serial, not_before, not_after}
    verify-plan  {at, trust_domain, roots: N}, [plan, signature, N roots, chain...] -> {signer}
    verify-release {trust_domain}, [release, signature, roots...] -> {version}
    sign         {}, [key, message]     -> {}, [signature]

and for operators at the site (`agent/local/door.py`, ADR 26, and `agent/site/proofs.py`, ADR 27):

    verify-operator     {at, heard_at, trust_domain, roots: N},
                        [message, signature, N roots, chain...]
                        -> {name, serial, roles, begins, ends, warning}
    verify-break-glass  {at, trust_domain, site, token}, [roots...] -> {grant, warning}
    verify-overrides    {at, trust_domain, site, overrides}, [roots...] -> {unproven: {place: why}}
"""

import datetime
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from polder.identity import InvalidIdentity
from polder.signing import UntrustedSignature, identity_of, sign, verify_plan

MAX_FRAME = 32 << 20
MAX_PARTS = 32

Answer = tuple[dict[str, object], list[bytes]]


class Refused(Exception):
    """The input was read and the answer is no."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def new_key(header: dict[str, object], _parts: Sequence[bytes]) -> Answer:
    """An ECDSA P-256 key in a new file, and a request for its certificate.

    The request names nobody: the orchestrator decides who this is and uses only the public key.
    """
    key = _key_in(str(header["path"]))
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    return {}, [request.public_bytes(serialization.Encoding.DER)]


def _key_in(path: str) -> ec.EllipticCurvePrivateKey:
    """An ECDSA P-256 key, durably in a new file."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(out.fileno())
    return key


def new_site_key(header: dict[str, object], _parts: Sequence[bytes]) -> Answer:
    """A key in a new file, and the certificate that the nodes of the site are shown.

    Nobody vouches for it but the signed plans that name it, and it never expires: the plans decide
    for how long it counts. So a wrong clock does not part two nodes. The subject is unlike that
    of any other key, since TLS libraries look a trusted certificate up by it.
    """
    key = _key_in(str(header["path"]))
    named = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, named.digest.hex())])
    names = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(str(header["identity"])),
            x509.DNSName(str(header["dns"])),
        ]
    )
    usages = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(usages, critical=False)
        .add_extension(named, critical=False)
        .sign(key, hashes.SHA256())
    )
    return {}, [certificate.public_bytes(serialization.Encoding.DER)]


def inspect(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """Who a certificate names and when it is valid (unix seconds).

    With `key_path` the certificate must be for that key: an answer meant for somebody else is
    refused before it replaces credentials that work.
    """
    (der,) = parts
    try:
        certificate = x509.load_der_x509_certificate(der)
        identity = identity_of(certificate)
    except (ValueError, InvalidIdentity) as error:
        raise Refused("BadCertificate", str(error)) from error
    if "key_path" in header:
        pem = Path(str(header["key_path"])).read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        if key.public_key() != certificate.public_key():
            raise Refused("WrongKey", "the certificate is not for the key that it was asked for")
    return {
        "identity": str(identity),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.timestamp(),
        "not_after": certificate.not_valid_after_utc.timestamp(),
    }, []


def verify(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """Who signed a plan."""
    payload, signature, *certificates = parts
    roots = int(str(header["roots"]))
    try:
        signer = verify_plan(
            payload,
            signature,
            certificates[roots:],
            certificates[:roots],
            float(str(header["at"])),
            str(header["trust_domain"]),
        )
    except UntrustedSignature as error:
        raise Refused(error.reason, str(error)) from error
    return {"signer": str(signer)}, []


def release(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """Whether the installation's root signed a release of the agent."""
    from polder.release import SignedRelease
    from polder.release_proofs import verify_release

    payload, signature, *roots = parts
    signed = SignedRelease(payload, signature)
    try:
        found = verify_release(signed, roots, str(header["trust_domain"]))
    except UntrustedSignature as error:
        raise Refused(error.reason, str(error)) from error
    return {"version": found.version}, []


def sign_message(_header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """With the node's own key, as it was read with its certificate: between two readings both may
    be renewed."""
    pem, message = parts
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the node's key is not ECDSA")
    return {}, [sign(message, key)]


def operator(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """Who asks to be let in, by certificate."""
    from polder.local_proofs import verify_operator  # not for every plan that is verified

    message, signature, *certificates = parts
    roots = int(str(header["roots"]))
    try:
        proven = verify_operator(
            message,
            signature,
            certificates[roots:],
            certificates[:roots],
            float(str(header["at"])),
            float(str(header["heard_at"])),
            str(header["trust_domain"]),
        )
    except UntrustedSignature as error:
        raise Refused(error.reason, str(error)) from error
    return {
        "name": proven.id.name,
        "serial": proven.serial,
        "roles": list(proven.roles),
        "begins": proven.begins,
        "ends": proven.ends,
        "warning": proven.warning,
    }, []


def break_glass(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """What a break-glass token allows at this site."""
    from polder.local_access import InvalidGrant, grant_bytes, read_token
    from polder.local_proofs import verify_grant

    try:
        grant, warning = verify_grant(
            read_token(str(header["token"])),
            parts,
            float(str(header["at"])),
            str(header["trust_domain"]),
            str(header["site"]),
        )
    except InvalidGrant as error:
        raise Refused("BadToken", str(error)) from error
    except UntrustedSignature as error:
        raise Refused(error.reason, str(error)) from error
    return {"grant": grant_bytes(grant).decode(), "warning": warning}, []


def decisions(header: dict[str, object], parts: Sequence[bytes]) -> Answer:
    """Which decisions of operators were not written by the nodes that they name."""
    from polder.override_proofs import unproven
    from polder.overrides import BadOverride, from_body

    told = header["overrides"]
    if not isinstance(told, list):
        raise ValueError("no overrides")
    try:
        overrides = [from_body(body) for body in told]
    except BadOverride as error:
        raise Refused("BadOverride", str(error)) from error
    at, trust_domain = float(str(header["at"])), str(header["trust_domain"])
    found = unproven(overrides, str(header["site"]), parts, at, trust_domain)
    return {"unproven": {str(place): why for place, why in found.items()}}, []


COMMANDS: dict[str, Callable[[dict[str, object], Sequence[bytes]], Answer]] = {
    "new-key": new_key,
    "new-site-key": new_site_key,
    "inspect": inspect,
    "verify-plan": verify,
    "verify-release": release,
    "sign": sign_message,
    "verify-operator": operator,
    "verify-break-glass": break_glass,
    "verify-overrides": decisions,
}


def _read_frame(stream: BinaryIO) -> bytes:
    (length,) = struct.unpack(">I", stream.read(4))
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    data = stream.read(length)
    if len(data) != length:
        raise ValueError("the input is cut off")
    return data


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0 answered, 1 failed, 2 not understood."""
    command = COMMANDS.get(arguments[0]) if len(arguments) == 1 else None
    if command is None:
        sys.stderr.write(f"usage: agent.credentials {'|'.join(COMMANDS)}\n")
        return 2
    source = sys.stdin.buffer
    try:
        header = json.loads(_read_frame(source))
        count = int(header.get("parts", 0))
        if not 0 <= count <= MAX_PARTS:
            raise ValueError(f"{count} parts")
        parts = [_read_frame(source) for _ in range(count)]
    except (ValueError, struct.error) as error:
        sys.stderr.write(f"bad input: {error}\n")
        return 2
    try:
        answer, raw = command(header, parts)
    except Refused as error:
        answer, raw = {"refused": error.reason, "message": str(error)}, []
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    for frame in (json.dumps(answer).encode(), *raw):
        sys.stdout.buffer.write(struct.pack(">I", len(frame)) + frame)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
