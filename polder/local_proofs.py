"""Proofs of who is at the two ends of LocalService, and the signatures of break-glass tokens.

Used by edgectl, by `edge-orchestrator ca break-glass`, and by the agent in its one-shot process
(`agent/credentials.py`). Messages and tokens are those of `local_access.py`.

A site that is cut off cannot renew certificates, and a box that was off may have a wrong clock. So
dates are judged apart from signatures: what a certificate must have been is said with each proof.
A certificate whose validity has not begun yet says that the clock is slow, since our authorities
do not date ahead; it is no reason to keep its owner out. `begins` of a proof is a time that has
passed for sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polder.identity import Identity, InvalidIdentity, NodeId, OperatorId
from polder.local_access import (
    BREAK_GLASS_CONTEXT,
    BreakGlassToken,
    Grant,
    InvalidGrant,
    grant_bytes,
    read_grant,
)
from polder.roles import parse_role
from polder.signing import (
    UntrustedSignature,
    identity_of,
    sign,
    validity,
    verify_by,
    verify_by_authority,
    verify_chain,
)


@dataclass(frozen=True, slots=True)
class ProvenNode:
    """`warning`: what the caller should know of its dates; empty: nothing."""

    id: NodeId
    warning: str = ""


@dataclass(frozen=True, slots=True)
class ProvenOperator:
    """`begins` and `ends` in unix seconds. `warning` as above."""

    id: OperatorId
    serial: str
    roles: tuple[str, ...]
    begins: float
    ends: float
    warning: str = ""


def verify_introduction(
    message: bytes,
    signature: bytes,
    chain_der: Sequence[bytes],
    roots_der: Sequence[bytes],
    at: float,
    trust_domain: str,
) -> ProvenNode:
    """Which node signed `message` (`local_access.introduction`). Raises UntrustedSignature.

    Its certificate may have expired while the site was cut off: the key is still its own.
    """
    begins, ends = validity(chain_der)
    leaf = verify_chain(chain_der, roots_der, min(max(at, begins), ends))
    node = _identity(leaf, trust_domain)
    if not isinstance(node, NodeId):
        raise UntrustedSignature("WrongSigner", f"{node} is no node")
    verify_by(leaf, signature, message)
    warning = _slow(at, begins, "this machine")
    if at > ends:
        warning = f"the certificate of {node.node} expired at {_moment(ends)}"
    return ProvenNode(node, warning)


def verify_operator(
    message: bytes,
    signature: bytes,
    chain_der: Sequence[bytes],
    roots_der: Sequence[bytes],
    at: float,
    heard_at: float,
    trust_domain: str,
) -> ProvenOperator:
    """Which operator signed `message` (`local_access.entry`). Raises UntrustedSignature.

    `heard_at` (unix seconds, at most `at`): a certificate that was valid then or later is let in,
    with a warning: since then nobody could have got another one here.
    """
    begins, ends = validity(chain_der)
    moment = max(at, begins)
    if moment > ends >= min(heard_at, at):
        moment = ends
    leaf = verify_chain(chain_der, roots_der, moment)
    operator = _identity(leaf, trust_domain)
    if not isinstance(operator, OperatorId):
        raise UntrustedSignature("WrongSigner", f"{operator} is no operator")
    verify_by(leaf, signature, message)
    warning = _slow(at, begins, "this node")
    if at > ends:
        warning = (
            f"the certificate of {operator.name} expired at {_moment(ends)}; it is let in because "
            "no orchestrator was heard here since"
        )
    serial = f"{leaf.serial_number:x}"
    return ProvenOperator(operator, serial, _roles(leaf), begins, ends, warning)


def sign_grant(
    grant: Grant, key: ec.EllipticCurvePrivateKey, chain_der: Sequence[bytes], root_der: bytes
) -> BreakGlassToken:
    """By the root's key without a chain, or by a region's with its certificate."""
    payload = grant_bytes(grant)
    signature = sign(BREAK_GLASS_CONTEXT + payload, key)
    return BreakGlassToken(payload, signature, tuple(chain_der), root_der)


def verify_grant(
    token: BreakGlassToken,
    roots_der: Sequence[bytes],
    at: float,
    trust_domain: str,
    site: str,
) -> tuple[Grant, str]:
    """What the token allows at this site now, and a warning or nothing. Raises UntrustedSignature.

    Only a CA may sign one: operators and nodes have certificates of the same roots.
    """
    message = BREAK_GLASS_CONTEXT + token.grant
    verify_by_authority(message, token.signature, token.chain, roots_der, at)
    try:
        grant = read_grant(token.grant)
    except InvalidGrant as error:
        raise UntrustedSignature("BadGrant", str(error)) from error
    if (grant.trust_domain, grant.site) != (trust_domain, site):
        other = f"site {grant.site} of {grant.trust_domain}"
        raise UntrustedSignature("WrongSite", f"the token is for {other}, not for {site}")
    if at * 1000 >= grant.expires_at_ms:
        ended = _moment(grant.expires_at_ms / 1000)
        raise UntrustedSignature("ExpiredGrant", f"the token was good until {ended}")
    return grant, _slow(at, grant.issued_at_ms / 1000, "this node")


def _identity(leaf: x509.Certificate, trust_domain: str) -> Identity:
    try:
        found = identity_of(leaf)
    except InvalidIdentity as error:
        raise UntrustedSignature("WrongSigner", str(error)) from error
    if found.trust_domain != trust_domain:
        raise UntrustedSignature("WrongSigner", f"{found} is not of {trust_domain}")
    return found


def _roles(leaf: x509.Certificate) -> tuple[str, ...]:
    """Those that this program knows; another one grants nothing."""
    found = []
    for attribute in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME):
        try:
            found.append(str(parse_role(str(attribute.value))))
        except ValueError:
            continue
    return tuple(found)


def _slow(at: float, begins: float, what: str) -> str:
    if at >= begins:
        return ""
    return (
        f"the clock of {what} is slow: it says {_moment(at)}, but it is {_moment(begins)} or later"
    )


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%F %T}Z"
