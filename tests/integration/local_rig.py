"""Operators at a site, as a test has them: certificates, break-glass tokens, and a plain client of
LocalService. It shares no code with edgectl."""

import itertools
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity_store import to_pem
from polder.errors import parse_detail
from polder.local_access import SERVER_NAME, SESSION_KEY, Grant, entry, introduction
from polder.local_proofs import ProvenNode, sign_grant, verify_introduction
from polder.signing import sign
from polder.v1 import agent_pb2, local_pb2, local_pb2_grpc
from tests.integration.agent_fakes import DOMAIN, Ca

HOUR_MS = 3_600_000


class Person:
    """An operator with a key and a certificate."""

    def __init__(
        self, ca: Ca, name: str, *roles: str, life_s: float = 3600.0, age_s: float = 0.0
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        uri = f"spiffe://{DOMAIN}/operator/{name}"
        self.chain = [ca.issue(self.key.public_key(), uri, life_s=life_s, age_s=age_s, roles=roles)]


def token(ca: Ca, allow: str, namespace: str = "", workload: str = "", **changes: Any) -> str:
    """Signed by the root."""
    now_ms = int(time.time() * 1000)
    facts: dict[str, Any] = {
        "trust_domain": DOMAIN,
        "site": "s1",
        "namespace": namespace,
        "workload": workload,
        "allow": tuple(allow.split(",")),
        "purpose": "ward 3 floods",
        "serial": os.urandom(16).hex(),
        "issued_at_ms": now_ms,
        "expires_at_ms": now_ms + HOUR_MS,
    }
    return str(sign_grant(Grant(**(facts | changes)), ca.key, (), ca.der))


class Refusal(Exception):
    """What a call was refused with."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        detail = parse_detail(tuple(error.trailing_metadata()))
        self.reason = detail.reason if detail is not None else ""
        self.hint = detail.hint if detail is not None else ""
        self.code, self.message = error.code(), error.details() or ""
        super().__init__(f"{self.reason}: {self.message}")


class Client:
    """Speaks with one node, whose site certificate (DER) it pins."""

    def __init__(self, endpoint: str, certificate: bytes, ca: Ca) -> None:
        self._certificate = certificate
        self._ca = ca
        self.channel = grpc.aio.secure_channel(
            endpoint,
            grpc.ssl_channel_credentials(to_pem([certificate])),
            options=[
                ("grpc.ssl_target_name_override", SERVER_NAME),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = local_pb2_grpc.LocalServiceStub(self.channel)
        self.session = ""
        self.challenge = b""
        self._ids = itertools.count(1)

    async def introduce(self) -> ProvenNode:
        """Who answers. Raises UntrustedSignature."""
        nonce = os.urandom(32)
        said = await self._call(self._stub.Introduce, local_pb2.IntroduceRequest(nonce=nonce))
        self.challenge = said.challenge
        return verify_introduction(
            introduction(nonce, self._certificate),
            said.signature,
            list(said.certificate_chain),
            [self._ca.der],
            time.time(),
            DOMAIN,
        )

    def proof(self, person: Person) -> local_pb2.OperatorProof:
        return local_pb2.OperatorProof(
            certificate_chain=person.chain,
            challenge=self.challenge,
            signature=sign(entry(self.challenge, self._certificate), person.key),
        )

    async def enter(self, credential: Person | str) -> local_pb2.EnterResponse:
        if isinstance(credential, str):
            return await self.try_with(local_pb2.EnterRequest(break_glass_token=credential))
        await self.introduce()
        return await self.try_with(local_pb2.EnterRequest(operator=self.proof(credential)))

    async def try_with(self, request: local_pb2.EnterRequest) -> local_pb2.EnterResponse:
        said: local_pb2.EnterResponse = await self._call(self._stub.Enter, request)
        self.session = said.session
        return said

    async def show(self, namespace: str = "") -> local_pb2.ShowResponse:
        request = local_pb2.ShowRequest(namespace=namespace)
        said: local_pb2.ShowResponse = await self._call(self._stub.Show, request)
        return said

    async def recall(self, **wanted: Any) -> local_pb2.RecallResponse:
        request = local_pb2.RecallRequest(**wanted)
        said: local_pb2.RecallResponse = await self._call(self._stub.Recall, request)
        return said

    async def change(self, verb: str, replica: str = "", **more: Any) -> local_pb2.ChangeResponse:
        """`replica`: NAMESPACE/NAME."""
        namespace, _, name = replica.partition("/")
        facts = {"id": f"change-{next(self._ids)}-{time.monotonic_ns()}", **more}
        request = local_pb2.ChangeRequest(verb=verb, namespace=namespace, replica=name, **facts)
        said: local_pb2.ChangeResponse = await self._call(self._stub.Change, request)
        return said

    async def reach(
        self, opened: local_pb2.ReachOpen, *inputs: agent_pb2.RelayResponse
    ) -> AsyncIterator[agent_pb2.RelayRequest]:
        """What comes back, to its end. Input is sent at once, and then no more."""

        async def requests() -> AsyncIterator[local_pb2.ReachRequest]:
            yield local_pb2.ReachRequest(open=opened)
            for one in inputs:
                yield local_pb2.ReachRequest(input=one)

        try:
            async for message in self._stub.Reach(requests(), metadata=self._metadata, timeout=60):
                yield message
        except grpc.aio.AioRpcError as error:
            raise Refusal(error) from error

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        return [(SESSION_KEY, self.session)] if self.session else []

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise Refusal(error) from error

    async def close(self) -> None:
        await self.channel.close()
