"""This member's own certificate: made at start and renewed in the process.

It is renewed at a third of its life, and when the region's CA is rotated (`rotation.py`).

The servers take it through `server_credentials`, which asks for the current one at each handshake;
the gateway signs plans with `MemberIdentity.current`. Nothing is kept on disk: a start makes a new
one from the region's CA.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.identity.authority import Authority, LeafRequest
from orchestrator.identity.pem import UnusableFile, key_pem, new_key, pem_of
from polder.identity import MemberId

log = logging.getLogger(__name__)

SERVER_NAME = "orchestrator.polder.internal"
"""What clients verify, whatever the address that they dialled: addresses change, the name stays."""

MEMBER_LIFE_S = 30 * 86_400.0
_LOCAL_HOSTS = (SERVER_NAME, "localhost", "127.0.0.1", "::1")
_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class MemberCredentials:
    """The certificate in use, its key and what it is trusted by. Chains are leaf first."""

    member_id: MemberId
    key: ec.EllipticCurvePrivateKey
    chain_der: list[bytes]
    roots_der: list[bytes]
    key_pem: bytes
    chain_pem: bytes
    roots_pem: bytes
    issued_at: float  # unix seconds
    expires_at: float

    @property
    def due_at(self) -> float:
        """When to renew: a third of the life that it really got, so that two thirds remain."""
        return self.issued_at + (self.expires_at - self.issued_at) / 3


def issue_member(
    authority: Authority,
    member_id: MemberId,
    now: float,
    *,
    life_s: float = MEMBER_LIFE_S,
    hosts: tuple[str, ...] = (),
) -> MemberCredentials:
    """Raises UnusableFile when the region's CA has expired."""
    key = new_key()
    names = tuple(dict.fromkeys((*_LOCAL_HOSTS, *hosts)))
    request = LeafRequest(member_id, key.public_key(), life_s, hosts=names, server=True)
    issued = authority.issue(request, now)
    roots = list(authority.roots_der)
    return MemberCredentials(
        member_id=member_id,
        key=key,
        chain_der=list(issued.chain_der),
        roots_der=roots,
        key_pem=key_pem(key),
        chain_pem=pem_of(issued.chain_der),
        roots_pem=pem_of(roots),
        issued_at=now,
        expires_at=issued.expires_at_ms / 1000,
    )


class MemberIdentity:
    """Holds the current credentials. `run` renews them until it is cancelled."""

    def __init__(
        self,
        authority: Authority,
        member_id: MemberId,
        clock: Callable[[], float],
        *,
        life_s: float = MEMBER_LIFE_S,
        hosts: tuple[str, ...] = (),
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._life_s = life_s
        self._hosts = hosts
        self.member_id = member_id
        self.current = self._issue()

    def _issue(self) -> MemberCredentials:
        return issue_member(
            self._authority,
            self.member_id,
            self._clock(),
            life_s=self._life_s,
            hosts=self._hosts,
        )

    def renew(self) -> None:
        """New key, new certificate; connections that exist keep theirs. Raises UnusableFile."""
        self.current = self._issue()
        log.info("renewed the member's certificate", extra={"expires_at": self.current.expires_at})

    async def run(self) -> None:
        """Renews what is due. A rotation may have renewed it meanwhile."""
        while True:
            await asyncio.sleep(max(0.05, self.current.due_at - self._clock()))
            if self._clock() < self.current.due_at:
                continue
            try:
                self.renew()
            except UnusableFile as error:
                log.error("the member's certificate cannot be renewed: %s", error)
                await asyncio.sleep(_RETRY_S)

    def server_credentials(self, *, client_certificate: bool) -> grpc.ServerCredentials:
        """TLS for one listener, with the certificate that is current at each handshake.

        What has not changed is not given again: gRPC replaces what it holds without regard for
        handshakes under way in its other threads, and a storm of agents that connect ended the
        process (a check of reference counts fails in its core).
        """
        served = self.current

        def configuration() -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration(
                [(served.key_pem, served.chain_pem)],
                root_certificates=served.roots_pem if client_certificate else None,
            )

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            if served is self.current:
                return None
            served = self.current
            return configuration()

        return grpc.dynamic_ssl_server_credentials(
            configuration(),
            cast(Callable[[], grpc.ServerCertificateConfiguration], changed),  # by stubs
            require_client_authentication=client_certificate,
        )
