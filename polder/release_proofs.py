"""Signatures of releases: made with the installation's root, believed by whoever trusts it.

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
from polder.signing import UntrustedSignature, sign, verify_by_root


def sign_release(release: Release, key: ec.EllipticCurvePrivateKey) -> SignedRelease:
    """`key`: the root's."""
    payload = release_bytes(release)
    return SignedRelease(payload, sign(RELEASE_CONTEXT + payload, key))


def verify_release(signed: SignedRelease, roots_der: Sequence[bytes], trust_domain: str) -> Release:
    """What was signed. Raises UntrustedSignature.

    Only a root may sign one: members hold the keys of their regions' CAs, and a member that was
    broken into must not put software on every box.
    """
    verify_by_root(RELEASE_CONTEXT + signed.release, signed.signature, roots_der)
    try:
        release = read_release(signed.release)
    except InvalidRelease as error:
        raise UntrustedSignature("BadRelease", str(error)) from error
    if release.trust_domain != trust_domain:
        raise UntrustedSignature(
            "WrongInstallation", f"the release is for {release.trust_domain}, not {trust_domain}"
        )
    return release
