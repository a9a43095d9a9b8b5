"""Signing and verification of NodePlans, and the certificate chains behind them.

The gateway signs; the agent verifies in a one-shot process (`agent/credentials.py`), because the
cryptography library costs more memory than the agent's main process can spare.
"""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from polder.identity import Identity, InvalidIdentity, MemberId, parse

PLAN_CONTEXT = b"polder.v1.NodePlan\0"  # keeps a signature from being valid for anything else
MAX_CHAIN = 4

# What the library raises on a certificate that is malformed or of a kind that it does not know.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class UntrustedSignature(Exception):
    """`reason` is CamelCase: BadChain, ExpiredChain, WrongSigner, BadSignature."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def sign_plan(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """ECDSA P-256 with SHA-256 over the context and the payload; DER."""
    return sign(PLAN_CONTEXT + payload, key)


def sign(message: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """ECDSA P-256 with SHA-256, DER. The message begins with a context of its own kind."""
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def identity_of(certificate: x509.Certificate) -> Identity:
    """The certificate's one SPIFFE identity. Raises InvalidIdentity when it has none or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidIdentity("the certificate has no SPIFFE identity") from None
    except _UNREADABLE as error:
        raise InvalidIdentity("the certificate's names cannot be read") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidIdentity(f"the certificate has {len(uris)} URI names; exactly one is needed")
    return parse(uris[0])


def verify_chain(
    chain_der: Sequence[bytes], roots_der: Sequence[bytes], at: float
) -> x509.Certificate:
    """The leaf, if an unbroken chain of CA certificates leads from it to a root.

    `at` (unix seconds) is the moment for which validity counts; as in RFC 5280 (section 6.1.1 d),
    a root is trusted because it is pinned, not because of its dates. Raises UntrustedSignature.
    """
    if not 0 < len(chain_der) <= MAX_CHAIN:
        raise UntrustedSignature("BadChain", f"a chain of {len(chain_der)} certificates")
    try:
        chain = [x509.load_der_x509_certificate(der) for der in chain_der]
        roots = [x509.load_der_x509_certificate(der) for der in roots_der]
    except _UNREADABLE as error:
        raise UntrustedSignature("BadChain", "a certificate cannot be read") from error
    moment = datetime.fromtimestamp(at, UTC)
    for below, (child, issuer) in enumerate(itertools.pairwise(chain)):
        _check_issued(child, issuer, below)
    if not any(_is_issued(chain[-1], root, len(chain) - 1) or chain[-1] == root for root in roots):
        raise UntrustedSignature("BadChain", "the chain leads to no root that this node trusts")
    for certificate in chain:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= moment <= end:
            early = f"but from {start:%F %T}Z on: is the clock right?"
            when = early if moment < start else f"but until {end:%F %T}Z"
            name = certificate.subject.rfc4514_string()
            text = f"{name} was not valid at {moment:%F %T}Z, {when}"
            raise UntrustedSignature("ExpiredChain", text)
    return chain[0]


def verify_plan(
    payload: bytes,
    signature: bytes,
    chain_der: Sequence[bytes],
    roots_der: Sequence[bytes],
    at: float,
    trust_domain: str,
) -> MemberId:
    """Who signed the plan. Raises UntrustedSignature unless an orchestrator of our domain did."""
    leaf = verify_chain(chain_der, roots_der, at)
    try:
        signer = identity_of(leaf)
    except InvalidIdentity as error:
        raise UntrustedSignature("WrongSigner", str(error)) from error
    if not isinstance(signer, MemberId) or signer.trust_domain != trust_domain:
        raise UntrustedSignature("WrongSigner", f"{signer} may not sign plans for {trust_domain}")
    verify_by(leaf, signature, PLAN_CONTEXT + payload)
    return signer


def verify_by(signer: x509.Certificate, signature: bytes, message: bytes) -> None:
    """Raises UntrustedSignature unless the certificate's key signed the message."""
    try:
        key = signer.public_key()
    except _UNREADABLE as error:
        raise UntrustedSignature("BadSignature", "the signer's key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UntrustedSignature("BadSignature", "the signer's key is not ECDSA P-256")
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        text = "the signature does not fit what was signed"
        raise UntrustedSignature("BadSignature", text) from error


def verify_by_authority(
    message: bytes,
    signature: bytes,
    chain_der: Sequence[bytes],
    roots_der: Sequence[bytes],
    at: float,
) -> None:
    """Raises UntrustedSignature unless a CA signed the message: a root, or with a chain a region's.

    At `at` (unix seconds), or at the beginning of the CA's validity if that is later: our
    authorities do not date ahead, so that the clock is slow.
    """
    if len(chain_der) > 1:
        raise UntrustedSignature("BadChain", "only the root or a region's CA may sign this")
    if not chain_der:
        verify_by_root(message, signature, roots_der)
        return
    begins, _ = validity(chain_der)
    signer = verify_chain(chain_der, roots_der, max(at, begins))
    if not is_authority(signer):
        raise UntrustedSignature("WrongSigner", "whoever signed this is no CA")
    verify_by(signer, signature, message)


def verify_by_root(message: bytes, signature: bytes, roots_der: Sequence[bytes]) -> None:
    """Raises UntrustedSignature unless one of the roots itself signed the message."""
    for der in roots_der:
        try:
            verify_by(x509.load_der_x509_certificate(der), signature, message)
            return
        except (UntrustedSignature, ValueError):
            continue
    raise UntrustedSignature("BadSignature", "no root of this installation signed this")


def validity(chain_der: Sequence[bytes]) -> tuple[float, float]:
    """From when to when (unix seconds) all certificates of a chain are valid by what they say
    themselves. Raises UntrustedSignature for one that cannot be read."""
    try:
        chain = [x509.load_der_x509_certificate(der) for der in chain_der]
    except _UNREADABLE as error:
        raise UntrustedSignature("BadChain", "a certificate cannot be read") from error
    if not chain:
        raise UntrustedSignature("BadChain", "a chain of 0 certificates")
    begins = max(certificate.not_valid_before_utc for certificate in chain)
    return begins.timestamp(), min(c.not_valid_after_utc for c in chain).timestamp()


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may issue certificates."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return False


def _is_issued(child: x509.Certificate, issuer: x509.Certificate, below: int) -> bool:
    try:
        _check_issued(child, issuer, below)
    except UntrustedSignature:
        return False
    return True


def _check_issued(child: x509.Certificate, issuer: x509.Certificate, below: int) -> None:
    """`below`: how many CA certificates stand between the issuer and the leaf."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise UntrustedSignature("BadChain", "an issuer in the chain is no CA")
        if constraints.path_length is not None and below > constraints.path_length:
            raise UntrustedSignature("BadChain", "the chain is longer than an issuer in it allows")
        if not _may_sign_certificates(issuer):
            raise UntrustedSignature("BadChain", "an issuer's key is not for certificates")
        child.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, InvalidSignature, *_UNREADABLE) as error:
        raise UntrustedSignature("BadChain", "a link of the chain is broken") from error


def _may_sign_certificates(issuer: x509.Certificate) -> bool:
    """RFC 5280, section 4.2.1.3: an absent key usage restricts nothing."""
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.key_cert_sign
