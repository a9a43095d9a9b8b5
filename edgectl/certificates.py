"""Reading and making certificates, for `operator create` and for explaining refused connections.

The only module of edgectl that imports cryptography, which is slow to import.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def client_problem(certificate_pem: bytes) -> str:
    """Why a server would refuse this client certificate, as far as can be told. Empty: no idea."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError:
        return "the client certificate of the context cannot be read"
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return (
            f"your client certificate expired on {certificate.not_valid_after_utc:%F %R} UTC; "
            "an admin can issue a new one: edgectl operator create NAME --role ROLE"
        )
    if now < certificate.not_valid_before_utc:
        return (
            f"your client certificate is valid only from {certificate.not_valid_before_utc:%F %R} "
            "UTC: is this machine's clock right?"
        )
    return ""


def new_key_and_request(common_name: str) -> tuple[bytes, bytes]:
    """An ECDSA P-256 key (PKCS #8 PEM) and a certificate signing request (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, signed.public_bytes(serialization.Encoding.DER)


def pem_bundle(certificates: Sequence[bytes]) -> bytes:
    """Certificates (DER, or PEM already) as one PEM text. Raises ValueError."""
    parts = []
    for raw in certificates:
        if raw.lstrip().startswith(b"-----BEGIN"):
            parts.append(raw.strip() + b"\n")
        else:
            certificate = x509.load_der_x509_certificate(raw)
            parts.append(certificate.public_bytes(serialization.Encoding.PEM))
    return b"".join(parts)
