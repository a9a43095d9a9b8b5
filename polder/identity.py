"""SPIFFE identities: who may be behind a certificate. Used by both sides and by edgectl.

The forms follow the SPIFFE ID specification (spiffe.io, "SPIFFE-ID"), section 2. A certificate
carries exactly one, as a URI SAN. An identity whose parts would read back as another one (a node
named `a/node/b`) cannot be made: the constructors raise InvalidIdentity.
"""

import re
from dataclasses import dataclass

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,253}")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_PREFIX = "spiffe://"


class InvalidIdentity(ValueError):
    """The text is no identity of ours."""


def _check(trust_domain: str, *segments: str) -> None:
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise InvalidIdentity(f"{trust_domain[:80]!r} is not a trust domain")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise InvalidIdentity(f"{segment[:80]!r} cannot be a part of an identity")


@dataclass(frozen=True, slots=True)
class NodeId:
    """One box's agent."""

    trust_domain: str
    site: str
    node: str

    def __post_init__(self) -> None:
        _check(self.trust_domain, self.site, self.node)

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/site/{self.site}/node/{self.node}"


@dataclass(frozen=True, slots=True)
class MemberId:
    """One orchestrator process."""

    trust_domain: str
    region: str
    member: str

    def __post_init__(self) -> None:
        _check(self.trust_domain, self.region, self.member)

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/region/{self.region}/orchestrator/{self.member}"


@dataclass(frozen=True, slots=True)
class OperatorId:
    """A person or a program that operates."""

    trust_domain: str
    name: str

    def __post_init__(self) -> None:
        _check(self.trust_domain, self.name)

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain}/operator/{self.name}"


Identity = NodeId | MemberId | OperatorId


def parse(text: str) -> Identity:
    """The identity that a SPIFFE URI names. Raises InvalidIdentity."""
    if not text.startswith(_PREFIX) or len(text) > 2048:
        raise InvalidIdentity(f"{text[:80]!r} is not a SPIFFE identity")
    trust_domain, *segments = text[len(_PREFIX) :].split("/")
    match segments:
        case ["site", site, "node", node]:
            return NodeId(trust_domain, site, node)
        case ["region", region, "orchestrator", member]:
            return MemberId(trust_domain, region, member)
        case ["operator", name]:
            return OperatorId(trust_domain, name)
    raise InvalidIdentity(f"{text[:80]!r} names neither a node, a member nor an operator")
