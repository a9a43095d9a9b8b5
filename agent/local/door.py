"""Who is let in at the site: proves this node to operators, and operators to this node. See ADR 26.

`server.py` calls it for Introduce and Enter, and before every other call for the Caller behind the
session. It asks nobody else: what it goes by are its own roots, the plan in use for what time it is
at least, and the serials that the orchestrator had revoked when it was last heard. Signatures are
made and checked in the one-shot process (`agent/credentials.py`); few at once, since that is what
somebody without a credential could use up.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.identity_store import (
    CALL_TIMEOUT_S,
    CredentialsRefused,
    IdentityFailure,
    IdentityStore,
    from_pem,
)
from agent.local.callers import Caller
from agent.local.directory import Directory
from agent.local.journal import ENTER, Journal, NotWritten
from agent.local.moments import Moments
from agent.local.refusals import (
    Code,
    Refused,
    exhausted,
    invalid,
    not_allowed,
    unauthenticated,
    unavailable,
)
from agent.local.tries import Tries
from polder import __version__
from polder.local_access import NONCE_BYTES, entry, introduction, read_grant
from polder.roles import parse_role
from polder.v1 import local_pb2

log = logging.getLogger(__name__)

CHALLENGE_S = 60.0
CHALLENGES_MAX = 256
SESSION_S = 600.0
SESSIONS_MAX = 16
WRONG_TRIES = 3  # a minute and address; see Tries for networks
CALLS = 60  # likewise, of Introduce and Enter together, right or wrong
PROOFS_AT_ONCE = 2
PROOFS_WAITING = 8
CHAIN_MAX = 4
_REASONS = {"ExpiredChain": "Expired", "ExpiredGrant": "Expired", "WrongSite": "WrongSite"}
_HINTS = {
    "Expired": "a break-glass token (edge-orchestrator ca break-glass) needs no orchestrator",
    "WrongSite": "a break-glass token is for one site: have one made for this",
}


@dataclass(frozen=True, slots=True)
class Session:
    """`until` by the door's clock."""

    caller: Caller
    until: float


class Door:
    """`certificate`: what the server shows, DER. `clock`: seconds that go on in a suspended box.
    `report(reason, message)`: to operators elsewhere."""

    def __init__(
        self,
        store: IdentityStore,
        certificate: bytes,
        directory: Directory,
        journal: Journal,
        moments: Moments,
        clock: Callable[[], float],
        report: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._certificate = certificate
        self._directory = directory
        self._journal = journal
        self._moments = moments
        self._clock = clock
        self._report = report
        self._challenges: dict[bytes, float] = {}
        self._sessions: dict[str, Session] = {}
        self._wrong = Tries(WRONG_TRIES)
        self._calls = Tries(CALLS)
        self._proofs = asyncio.Semaphore(PROOFS_AT_ONCE)
        self._waiting = 0

    # ---- this node, to whoever calls ----

    async def introduce(self, address: str, nonce: bytes) -> local_pb2.IntroduceResponse:
        """Raises Refused."""
        if len(nonce) != NONCE_BYTES:
            raise invalid(f"the nonce has {len(nonce)} bytes, not {NONCE_BYTES}")
        self._count(address)
        try:
            identity = self._store.load()
            parts = [identity.key_pem, introduction(nonce, self._certificate)]
            async with self._proof():
                _, (signature,) = await self._store.credentials(
                    "sign", {}, parts, timeout_s=CALL_TIMEOUT_S
                )
            chain = from_pem(identity.chain_pem)
        except (IdentityFailure, ValueError) as error:
            raise _cannot_prove(error) from error
        return local_pb2.IntroduceResponse(
            certificate_chain=chain,
            signature=signature,
            challenge=self._challenge(),
            agent_version=__version__,
            now_ms=int(time.time() * 1000),
        )

    def _challenge(self) -> bytes:
        challenge = os.urandom(NONCE_BYTES)
        self._challenges[challenge] = self._clock() + CHALLENGE_S
        if len(self._challenges) > CHALLENGES_MAX:
            del self._challenges[next(iter(self._challenges))]
        return challenge

    # ---- whoever calls, to this node ----

    async def enter(self, address: str, request: local_pb2.EnterRequest) -> local_pb2.EnterResponse:
        """Raises Refused and NotWritten. Who was proven and is not let in stands in the journal; of
        others only an event tells: anybody could fill the journal."""
        self._count(address)
        now = self._clock()
        self._slow_down(self._wrong, address, now)
        self._wrong.note(address, now)  # before it is checked: many at once are many
        try:
            caller, warning = await self._prove(request)
        except Refused as refused:
            if refused.code is Code.UNAVAILABLE:
                self._wrong.forgive(address)
            else:
                text = f"somebody at {address} was not let in: {refused.message}"
                self._report("LocalEntryRefused", text)
            raise
        self._wrong.forgive(address)
        try:
            self.check(caller)
            if not caller.roles and caller.grant is None:
                raise not_allowed(f"the certificate of {caller.by} gives it no role")
        except Refused as refused:
            detail = f"from {address}"
            await self._journal.write(caller, ENTER, detail=detail, refused=refused.message)
            raise
        warnings = [warning] if warning else []
        warnings += await self._note(caller, address)
        key, left_s = self._admit(caller)
        return local_pb2.EnterResponse(
            session=key,
            by=caller.by,
            roles=caller.described(),
            expires_in_ms=int(left_s * 1000),
            warnings=warnings,
        )

    async def _note(self, caller: Caller, address: str) -> list[str]:
        """A full disk does not keep those out who come to look after it; but no break-glass token
        is used without a trace. Raises NotWritten."""
        try:
            await self._journal.write(caller, ENTER, detail=f"from {address}")
        except NotWritten as error:
            if caller.grant is not None:
                raise
            return [str(error)]
        return []

    async def _prove(self, request: local_pb2.EnterRequest) -> tuple[Caller, str]:
        """Who it is, and a warning or nothing. Raises Refused."""
        try:
            match request.WhichOneof("credential"):
                case "operator":
                    return await self._operator(request.operator)
                case "break_glass_token":
                    return await self._grant(request.break_glass_token)
                case _:
                    raise invalid("neither a certificate nor a break-glass token was shown")
        except CredentialsRefused as error:
            reason = _REASONS.get(error.reason, "BadCredential")
            raise unauthenticated(reason, str(error), _HINTS.get(reason, "")) from error
        except (IdentityFailure, ValueError) as error:
            raise _cannot_prove(error) from error

    def _admit(self, caller: Caller) -> tuple[str, float]:
        """A session, and for how many seconds. Of too many the one that ends first makes room, of
        whoever has most: nobody pushes the others out. A certificate that is let in although it
        expired ends no session."""
        now = self._clock()
        self._sessions = {key: one for key, one in self._sessions.items() if one.until > now}
        while len(self._sessions) >= SESSIONS_MAX:
            of = Counter([caller.by, *(one.caller.by for one in self._sessions.values())])
            ranks = {key: (-of[one.caller.by], one.until) for key, one in self._sessions.items()}
            del self._sessions[min(ranks, key=lambda key: ranks[key])]
        length_s = min(SESSION_S, self.left_s(caller))
        key = os.urandom(32).hex()
        self._sessions[key] = Session(caller, now + length_s)
        return key, length_s

    def caller(self, key: str) -> Caller:
        """Who is behind a session. Raises Refused."""
        found = self._sessions.get(key)
        if found is None or found.until <= self._clock():
            self._sessions.pop(key, None)
            raise unauthenticated(
                "UnknownSession", "this node knows no such session, or it has ended", "enter again"
            )
        self.check(found.caller)
        return found.caller

    def left_s(self, caller: Caller) -> float:
        """For how long its credential is good. One that is let in although it expired is so for
        a session at a time."""
        left_s = caller.left_s(self._moments().at)
        return SESSION_S if left_s is None else left_s

    def check(self, caller: Caller) -> None:
        """Raises Refused once the caller was revoked, or would not be let in any more; also for
        what runs since before that."""
        if self._directory.revoked(caller.serial):
            text = f"{caller.by} was revoked meanwhile"
            raise unauthenticated("Revoked", text, "have a new certificate issued")
        if not caller.good(self._moments()):
            raise unauthenticated("Expired", f"{caller.by} has expired", _HINTS["Expired"])

    async def _operator(self, proof: local_pb2.OperatorProof) -> tuple[Caller, str]:
        deadline = self._challenges.pop(proof.challenge, 0.0)
        if deadline <= self._clock():
            text = "the challenge is none of this node's, too old, or was used before"
            raise unauthenticated("BadChallenge", text, "ask for another one with Introduce")
        if not 0 < len(proof.certificate_chain) <= CHAIN_MAX:
            raise invalid(f"a chain of {len(proof.certificate_chain)} certificates")
        moment, identity = self._moments(), self._store.load()
        roots = from_pem(identity.roots_pem)
        header: dict[str, object] = {
            "at": moment.at,
            "heard_at": moment.heard_at,
            "trust_domain": identity.id.trust_domain,
            "roots": len(roots),
        }
        message = entry(proof.challenge, self._certificate)
        parts = [message, proof.signature, *roots, *proof.certificate_chain]
        async with self._proof():
            found, _ = await self._store.credentials(
                "verify-operator", header, parts, timeout_s=CALL_TIMEOUT_S
            )
        roles = found["roles"]
        assert isinstance(roles, list)
        self._moments.prove(float(str(found["begins"])))
        caller = Caller(
            by=f"operator/{found['name']}",
            serial=str(found["serial"]),
            ends_at=float(str(found["ends"])),
            roles=tuple(parse_role(role) for role in roles),
        )
        return caller, str(found["warning"])

    async def _grant(self, token: str) -> tuple[Caller, str]:
        identity = self._store.load()
        header: dict[str, object] = {
            "at": self._moments().at,
            "trust_domain": identity.id.trust_domain,
            "site": identity.id.site,
            "token": token,
        }
        async with self._proof():
            found, _ = await self._store.credentials(
                "verify-break-glass", header, from_pem(identity.roots_pem), timeout_s=CALL_TIMEOUT_S
            )
        grant = read_grant(str(found["grant"]).encode())
        self._moments.prove(grant.issued_at_ms / 1000)
        by, ends_at = f"break-glass/{grant.serial}", grant.expires_at_ms / 1000
        return Caller(by, grant.serial, ends_at, grant=grant), str(found["warning"])

    # ---- limits ----

    def _count(self, address: str) -> None:
        now = self._clock()
        self._slow_down(self._calls, address, now)
        self._calls.note(address, now)

    def _slow_down(self, tries: Tries, address: str, now: float) -> None:
        wait_s = tries.wait_s(address, now)
        if wait_s > 0:
            text = f"too many tries from {address or 'there'}"
            raise exhausted("TooManyTries", text, f"try again in {wait_s:.0f} s")

    @asynccontextmanager
    async def _proof(self) -> AsyncIterator[None]:
        if self._waiting >= PROOFS_WAITING:
            raise unavailable("Busy", "others are being let in", "try again in a second")
        self._waiting += 1
        try:
            async with self._proofs:
                yield
        finally:
            self._waiting -= 1


def _cannot_prove(error: Exception) -> Refused:
    log.warning("nothing can be proven", extra={"error": str(error)})
    return unavailable("Unavailable", "this node cannot check signatures now; its log says why")
