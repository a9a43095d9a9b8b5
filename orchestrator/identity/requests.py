"""What a certificate request may say: a P-256 key, and the proof that the sender holds it.

Called by everything that issues. Names and extensions of a request are ignored on purpose: what a
certificate says comes from the token or from the record, never from who asks.
"""

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.refusals import Refused

_CSR_BYTES_MAX = 4096


def public_key_of(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a PKCS#10 request (DER). Raises Refused (BadCsr)."""
    if not 0 < len(csr) <= _CSR_BYTES_MAX:
        raise _bad(f"the certificate request has {len(csr)} bytes")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        genuine = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise _bad("the certificate request cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise _bad("the key of the certificate request is not ECDSA P-256")
    if not genuine:
        raise _bad("the certificate request is not signed with its own key")
    return key


def _bad(message: str) -> Refused:
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT, "BadCsr", message, "send a PKCS#10 request, DER, P-256"
    )
