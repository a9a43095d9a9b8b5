"""Who may come in: join tokens, operator certificates, revocation, and "who am I"."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.authz import Caller
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.catching_up import catch_up
from orchestrator.events import EventRecorder
from orchestrator.identity.allowlist import BREAK_GLASS, revoke_identity
from orchestrator.identity.authority import Authority
from orchestrator.identity.join_tokens import JoinTokens
from orchestrator.identity.operators import OperatorIdentities
from orchestrator.identity.requests import public_key_of
from orchestrator.refusals import invalid
from orchestrator.store.port import Store
from orchestrator.whereabouts import Whereabouts
from polder.identity import MemberId
from polder.v1 import common_pb2, operator_pb2

_REVOCABLE = {"Node": "node", "Operator": "operator", "BreakGlass": BREAK_GLASS}
_SERIAL = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Access:
    """Serves CreateJoinToken, IssueOperator, Revoke and WhoAmI."""

    store: Store
    cache: Cache
    authority: Authority
    tokens: JoinTokens
    operators: OperatorIdentities
    calls: LiveCalls
    events: EventRecorder
    clock: Callable[[], float]
    member: MemberId
    version: str

    async def create_join_token(
        self, caller: Caller, request: operator_pb2.CreateJoinTokenRequest
    ) -> operator_pb2.CreateJoinTokenResponse:
        """Raises Refused (NotFound, BadName, BadTtl) and StoreError."""
        token = await self.tokens.create(
            request.site, request.node, request.ttl_ms / 1000, caller.source
        )
        return operator_pb2.CreateJoinTokenResponse(
            token=str(token), expires_at_ms=token.expires_at_ms
        )

    async def issue_operator(
        self, caller: Caller, request: operator_pb2.IssueOperatorRequest
    ) -> operator_pb2.IssueOperatorResponse:
        """Raises Refused (BadCsr, BadName, BadRole, BadTtl, TooManyCertificates), StoreError."""
        key = public_key_of(request.csr)
        issued, revision = await self.operators.issue(
            request.name, request.roles, key, request.ttl_ms / 1000
        )
        roles = ", ".join(request.roles)
        self._record(caller, "Operator", request.name, "Issued", f"roles {roles}")
        await catch_up(self.cache, revision)
        return operator_pb2.IssueOperatorResponse(
            certificate_chain=issued.chain_der,
            trust_bundle=self.authority.roots_der,
            expires_at_ms=issued.expires_at_ms,
            endpoints=Whereabouts(self.cache).for_operator(request.name, self.member.region),
        )

    async def revoke(
        self, caller: Caller, request: operator_pb2.RevokeRequest
    ) -> operator_pb2.RevokeResponse:
        """Open streams on this member are closed when this returns. Raises Refused, StoreError."""
        kind, name = request.ref.kind, request.ref.name
        if kind not in _REVOCABLE:
            raise invalid(f"a {kind[:80]!r} has no identity: only Node and Operator do")
        if kind == "BreakGlass" and _SERIAL.fullmatch(name) is None:
            raise invalid(f"{name[:80]!r} is not the serial of a break-glass token")
        reason = request.reason or f"revoked by {caller.source}"
        known = _REVOCABLE[kind]
        open_streams = self.calls.count(known, name)
        revision = await revoke_identity(self.store, known, name, reason, self.clock())
        self._record(caller, kind, name, "Revoked", reason, common_pb2.EVENT_TYPE_WARNING)
        await catch_up(self.cache, revision)
        return operator_pb2.RevokeResponse(closed_streams=open_streams)

    def who_am_i(self, caller: Caller) -> operator_pb2.WhoAmIResponse:
        return operator_pb2.WhoAmIResponse(
            identity=str(caller.identity),
            roles=[str(role) for role in caller.roles],
            expires_at_ms=int(caller.expires_at * 1000),
            server_version=self.version,
            member=self.member.member,
            region=self.member.region,
            now_ms=int(self.clock() * 1000),
        )

    def _record(
        self,
        caller: Caller,
        kind: str,
        name: str,
        reason: str,
        message: str,
        type: int = common_pb2.EVENT_TYPE_NORMAL,
    ) -> None:
        self.events.record(kind, "", name, type, reason, message, caller.source)
