"""Break-glass tokens: made offline, from the files of a CA, for one purpose at one site.

Called by `edge-orchestrator ca break-glass`. No orchestrator runs or is asked: the token is for the
day on which none can be reached. Agents check it alone (`polder/local_proofs.py`, ADR 26).
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from orchestrator.identity.authority import signing_key, trust_domain_of
from orchestrator.identity.pem import der
from polder.local_access import BreakGlassToken, Grant
from polder.local_proofs import sign_grant


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for; `life_s` counts from now."""

    site: str
    namespace: str
    workload: str
    allow: tuple[str, ...]
    purpose: str
    life_s: float


def issue(directory: Path, region: str, wish: Wish, now: float) -> tuple[Grant, BreakGlassToken]:
    """Signed by the region's CA, or without a region by the root.

    Raises UnusableFile when that key is not here, and InvalidGrant for what no token may allow.
    """
    root, key, chain = signing_key(directory, region, now)
    grant = Grant(
        trust_domain=trust_domain_of(root),
        site=wish.site,
        namespace=wish.namespace,
        workload=wish.workload,
        allow=wish.allow,
        purpose=wish.purpose,
        serial=secrets.token_hex(16),
        issued_at_ms=int(now * 1000),
        expires_at_ms=int((now + wish.life_s) * 1000),
    )
    return grant, sign_grant(grant, key, chain, der(root))
