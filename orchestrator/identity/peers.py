"""From a connection's certificate to a Caller, or a refusal. Called by the front door (rpc.py).

gRPC has verified the chain and the key at the handshake. What is left to ask: is the serial on the
allow-list now, and has the certificate not run out since the connection was made?
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID

from orchestrator.authz import ANONYMOUS, Caller
from orchestrator.cache import Cache
from orchestrator.identity.authority import serial_text
from orchestrator.records import IdentityRecord
from orchestrator.refusals import unauthenticated
from orchestrator.store import keys
from orchestrator.store.port import Store
from polder.identity import Identity, InvalidIdentity, MemberId, NodeId
from polder.roles import Role, parse_role
from polder.signing import identity_of

_PARSED_MAX = 4096
_DENIED_MAX = 4096
_DENIED_FOR_S = 1.0


class HasPeer(Protocol):
    """The part of a servicer context that is needed here."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...


@dataclass(frozen=True, slots=True)
class _Certificate:
    identity: Identity
    serial: str
    roles: tuple[Role, ...]
    expires_at: float


class Peers:
    """Knows the certificates seen lately, so that a call costs a hash and two look-ups."""

    def __init__(
        self, store: Store, cache: Cache, trust_domain: str, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._cache = cache
        self._trust_domain = trust_domain
        self._clock = clock
        self._parsed: OrderedDict[bytes, _Certificate] = OrderedDict()
        self._denied: OrderedDict[str, float] = OrderedDict()

    async def authenticate(self, context: HasPeer) -> Caller:
        """Raises Refused (BadCertificate, WrongTrustDomain, CertificateExpired, Revoked) and
        StoreError, when an identity is not in the mirror and the Store cannot be asked."""
        shown: Any = context.auth_context().get("x509_pem_cert")
        if not shown:
            return ANONYMOUS
        certificate = self._parse(shown[0])
        identity = certificate.identity
        if identity.trust_domain != self._trust_domain:
            raise unauthenticated(
                "WrongTrustDomain", f"{identity} does not belong to {self._trust_domain}"
            )
        caller = Caller(identity, certificate.serial, certificate.roles, certificate.expires_at)
        if isinstance(identity, MemberId):
            check_expiry(caller, None, self._clock())
            return caller
        record = self._cache.identity(*record_name(identity))
        if record is None or not record.accepts(caller.serial):
            record = await self._ask_store(caller)
        check_record(caller, record)
        check_expiry(caller, record, self._clock())
        return caller

    def _parse(self, pem: bytes) -> _Certificate:
        digest = hashlib.sha256(pem).digest()
        found = self._parsed.get(digest)
        if found is not None:
            self._parsed.move_to_end(digest)
            return found
        found = self._parsed[digest] = _read_certificate(pem)
        if len(self._parsed) > _PARSED_MAX:
            self._parsed.popitem(last=False)
        return found

    async def _ask_store(self, caller: Caller) -> IdentityRecord | None:
        """The mirror may be a moment behind a join. A refusal is remembered for a second, so that
        a stray certificate cannot turn every call into a read."""
        assert caller.identity is not None
        kind, name = record_name(caller.identity)
        if self._denied.get(caller.serial, 0.0) > self._clock():
            return self._cache.identity(kind, name)
        entry = await self._store.get(keys.identity(kind, name))
        record = IdentityRecord.from_bytes(entry.value, entry.mod_revision) if entry else None
        if record is None or not record.accepts(caller.serial):
            self._denied[caller.serial] = self._clock() + _DENIED_FOR_S
            if len(self._denied) > _DENIED_MAX:
                self._denied.popitem(last=False)
        return record


def record_name(identity: Identity) -> tuple[str, str]:
    """(kind, name) of an identity's record."""
    if isinstance(identity, NodeId):
        return "node", identity.node
    if isinstance(identity, MemberId):
        return "orchestrator", identity.member
    return "operator", identity.name


def check_record(caller: Caller, record: IdentityRecord | None) -> None:
    """Raises Refused unless the allow-list holds the caller's certificate."""
    identity = caller.identity
    if record is not None and record.revoked_at_ms:
        raise unauthenticated("Revoked", f"{identity} was revoked: {record.revoked_reason}")
    wrong_site = (
        record is not None and isinstance(identity, NodeId) and record.site != identity.site
    )
    if record is None or wrong_site or not record.accepts(caller.serial):
        raise unauthenticated(
            "Revoked",
            f"the certificate of {identity} does not count (any more)",
            "join again with a new token, or ask an admin for a new certificate",
        )


def check_expiry(caller: Caller, record: IdentityRecord | None, now: float) -> None:
    """Raises Refused when the certificate has run out since the handshake.

    A node that renewed over a connection keeps it: the handshake proved the old key in time, and
    the renewal was asked for over that very connection.
    """
    expires_at = caller.expires_at
    if record is not None and isinstance(caller.identity, NodeId):
        expires_at = max(expires_at, max(record.serials.values(), default=0) / 1000)
    if now >= expires_at:
        raise unauthenticated(
            "CertificateExpired", f"the certificate of {caller.identity} has expired"
        )


def _read_certificate(pem: bytes) -> _Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        identity = identity_of(certificate)
        names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        roles = tuple(parse_role(str(name.value)) for name in names)
    except (InvalidIdentity, ValueError) as error:
        raise unauthenticated("BadCertificate", f"the certificate names nobody: {error}") from error
    return _Certificate(
        identity, serial_text(certificate), roles, certificate.not_valid_after_utc.timestamp()
    )
