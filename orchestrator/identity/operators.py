"""Certificates of people and programs that operate.

Called by IssueOperator, by the first start, and by `edge-orchestrator operator create` on an
installation that does not run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.identity.allowlist import change_identity
from orchestrator.identity.authority import Authority, Issued, LeafRequest
from orchestrator.records import IdentityRecord
from orchestrator.refusals import exhausted, invalid
from orchestrator.store.port import Store
from polder.identity import OperatorId
from polder.manifest.names import LABEL, LABEL_HELP
from polder.manifest.quantity import format_duration
from polder.roles import parse_role

OPERATOR_LIFE_S = 90 * 86_400.0
LIVE_CERTIFICATES_MAX = 8
ROLES_MAX = 64


class OperatorIdentities:
    """Issues operator certificates; roles stand in them as subject O."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        clock: Callable[[], float],
        life_s: float = OPERATOR_LIFE_S,
    ) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._life_s = life_s

    async def issue(
        self, name: str, roles: Sequence[str], key: ec.EllipticCurvePublicKey, ttl_s: float = 0.0
    ) -> tuple[Issued, int]:
        """A certificate (`ttl_s` 0: the default life, which is also the longest), and the Store's
        revision that admits it.

        An operator that was revoked comes back with this certificate alone. Raises Refused
        (BadName, BadRole, BadTtl, TooManyCertificates) and StoreError.
        """
        texts = _checked_roles(name, roles)
        if not 0 <= ttl_s <= self._life_s:
            most = format_duration(self._life_s)
            raise invalid(f"a certificate lives {most} at most", reason="BadTtl")
        now = self._clock()
        identity = OperatorId(self._authority.trust_domain, name)
        request = LeafRequest(identity, key, ttl_s or self._life_s, organizations=texts)
        issued = self._authority.issue(request, now)

        def add(record: IdentityRecord | None) -> IdentityRecord:
            record = record or IdentityRecord("operator", name, joined_at_ms=int(now * 1000))
            live = {} if record.revoked_at_ms else _unexpired(record.serials, now)
            if len(live) >= LIVE_CERTIFICATES_MAX:
                raise exhausted(
                    "TooManyCertificates",
                    f"operator {name} has {len(live)} valid certificates",
                    f"edgectl revoke operator/{name}, then issue one again",
                )
            return replace(
                record,
                serials={**live, issued.serial: issued.expires_at_ms},
                roles=texts,
                revoked_at_ms=0,
                revoked_reason="",
                former=_unexpired(record.refused_serials, now),
            )

        return issued, await change_identity(self._store, "operator", name, add)


def _unexpired(serials: dict[str, int], now: float) -> dict[str, int]:
    return {serial: expiry for serial, expiry in serials.items() if expiry > now * 1000}


def _checked_roles(name: str, roles: Sequence[str]) -> tuple[str, ...]:
    if LABEL.fullmatch(name) is None:
        raise invalid(f"the operator's name {name[:80]!r} is not {LABEL_HELP}", reason="BadName")
    if not 0 < len(roles) <= ROLES_MAX:
        raise invalid(f"{len(roles)} roles; give 1 to {ROLES_MAX}", reason="BadRole")
    try:
        return tuple(dict.fromkeys(str(parse_role(role)) for role in roles))
    except ValueError as error:
        raise invalid(str(error), reason="BadRole") from error
