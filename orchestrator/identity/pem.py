"""Keys and certificates as bytes and as files. Used by everything in this package.

A key file is created with mode 0600 before anything is written to it, and replaces its predecessor
in one step: a crash leaves the old one or the new one, never half of either.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class UnusableFile(Exception):
    """A key or certificate file is missing or cannot be used; the message says what to do."""


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def pem_of(certificates_der: Sequence[bytes]) -> bytes:
    """DER certificates as one PEM text, in order."""
    return b"".join(
        x509.load_der_x509_certificate(item).public_bytes(Encoding.PEM) for item in certificates_der
    )


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises UnusableFile."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UnusableFile(f"the key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UnusableFile(f"{path} holds no private key that can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise UnusableFile(f"the key in {path} is not ECDSA P-256")
    return key


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one. Raises UnusableFile."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise UnusableFile(f"the certificate {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnusableFile(f"{path} holds no certificate that can be read") from error


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Durably and in one step. Parent directories are made with mode 0700."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
