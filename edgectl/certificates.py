"""Reading and making certificates, for those who need them and to explain refused connections.

`operator create` makes keys and requests, `site` proves with them who the operator is.

The only module of edgectl that imports cryptography, which is slow to import.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polder.signing import identity_of


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


def ders_of(pem: bytes) -> list[bytes]:
    """The certificates of a PEM text, in their order. Raises ValueError."""
    found = x509.load_pem_x509_certificates(pem)
    return [certificate.public_bytes(serialization.Encoding.DER) for certificate in found]


def signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError for anything else than an elliptic curve's key without a password."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError("the key has a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is of another kind")
    return key


def trust_domain_of(certificate_der: bytes) -> str:
    """Of its owner. Raises ValueError."""
    return identity_of(x509.load_der_x509_certificate(certificate_der)).trust_domain
