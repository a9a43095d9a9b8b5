"""SPIFFE identities: who may be behind a certificate. Used by both sides and by edgectl.

The forms follow the SPIFFE ID specification (spiffe.io, "SPIFFE-ID"), section 2. A certificate
carries exactly one, as a URI SAN.
"""

import re
from dataclasses import dataclass

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,253}")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_PREFIX = "spiffe://"


class InvalidIdentity(ValueError):
    """The text is no identity of ours."""


@dataclass(frozen=True, slots=True)
class NodeId:
    """One box's agent."""

    trust_domain: str
    site: str
    node: str

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/site/{self.site}/node/{self.node}"


@dataclass(frozen=True, slots=True)
class MemberId:
    """One orchestrator process."""

    trust_domain: str
    region: str
    member: str

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/region/{self.region}/orchestrator/{self.member}"


@dataclass(frozen=True, slots=True)
class OperatorId:
    """A person or a program that operates."""

    trust_domain: str
    name: str

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/operator/{self.name}"


Identity = NodeId | MemberId | OperatorId


def parse(text: str) -> Identity:
    """The identity that a SPIFFE URI names. Raises InvalidIdentity."""
    if not text.startswith(_PREFIX) or len(text) > 2048:
        raise InvalidIdentity(f"{text[:80]!r} is not a SPIFFE identity")
    trust_domain, *segments = text[len(_PREFIX) :].split("/")
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise InvalidIdentity(f"{text[:80]!r} has no valid trust domain")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise InvalidIdentity(f"{text[:80]!r} has an invalid path")
    match segments:
        case ["site", site, "node", node]:
            return NodeId(trust_domain, site, node)
        case ["region", region, "orchestrator", member]:
            return MemberId(trust_domain, region, member)
        case ["operator", name]:
            return OperatorId(trust_domain, name)
    raise InvalidIdentity(f"{text[:80]!r} names neither a node, a member nor an operator")
