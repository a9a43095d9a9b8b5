"""Signatures of releases: made by a CA of the installation, believed by whoever trusts its root.

Used by `edge-orchestrator ca sign-release`, by the orchestrator when a release is brought to it,
and by the agent in its one-shot process (`agent/credentials.py`). The releases are those of
`release.py`; see ADR 31.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from polder.release import (
    RELEASE_CONTEXT,
    InvalidRelease,
    Release,
    SignedRelease,
    read_release,
    release_bytes,
)
from polder.signing import UntrustedSignature, sign, verify_by_authority


def sign_release(
    release: Release, key: ec.EllipticCurvePrivateKey, chain_der: Sequence[bytes]
) -> SignedRelease:
    """By the root's key without a chain, or by a region's with its certificate."""
    payload = release_bytes(release)
    return SignedRelease(payload, sign(RELEASE_CONTEXT + payload, key), tuple(chain_der))


def verify_release(
    signed: SignedRelease, roots_der: Sequence[bytes], at: float, trust_domain: str
) -> Release:
    """What was signed. Raises UntrustedSignature.

    Only a CA may sign one: members, nodes and operators have certificates of the same roots.
    """
    message = RELEASE_CONTEXT + signed.release
    verify_by_authority(message, signed.signature, signed.chain, roots_der, at)
    try:
        release = read_release(signed.release)
    except InvalidRelease as error:
        raise UntrustedSignature("BadRelease", str(error)) from error
    if release.trust_domain != trust_domain:
        raise UntrustedSignature(
            "WrongInstallation", f"the release is for {release.trust_domain}, not {trust_domain}"
        )
    return release
