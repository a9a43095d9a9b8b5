"""Signatures of what operators decide, by the one-shot process. `deciding.py` asks for them.

The agent's long-running process has no cryptography (ADR 3).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from agent.identity_store import CALL_TIMEOUT_S, IdentityFailure, IdentityStore, from_pem
from polder.overrides import Override, Proof, signed_bytes, to_body


class Proofs(Protocol):
    """Of this node. Both raise IdentityFailure."""

    async def sign(self, override: Override) -> Override:
        """With this node's proof."""
        ...

    async def unproven(self, overrides: Sequence[Override]) -> Mapping[int, str]:
        """Which of them, by their place, their writers did not sign, and why not."""
        ...


class NodeProofs:
    """With the key and the roots that are in use at that moment."""

    def __init__(self, store: IdentityStore) -> None:
        self._store = store

    async def sign(self, override: Override) -> Override:
        identity = self._store.load()
        parts = [identity.key_pem, signed_bytes(override, identity.id.site)]
        _, (signature,) = await self._store.credentials("sign", {}, parts, timeout_s=CALL_TIMEOUT_S)
        return replace(override, proof=Proof(signature, tuple(_certificates(identity.chain_pem))))

    async def unproven(self, overrides: Sequence[Override]) -> Mapping[int, str]:
        identity = self._store.load()
        header: dict[str, object] = {
            "at": time.time(),
            "trust_domain": identity.id.trust_domain,
            "site": identity.id.site,
            "overrides": [to_body(override) for override in overrides],
        }
        roots = _certificates(identity.roots_pem)
        found, _ = await self._store.credentials(
            "verify-overrides", header, roots, timeout_s=CALL_TIMEOUT_S
        )
        unproven = found["unproven"]
        assert isinstance(unproven, dict)
        return {int(place): str(why) for place, why in unproven.items()}


def _certificates(pem: bytes) -> list[bytes]:
    """Raises IdentityFailure."""
    try:
        return from_pem(pem)
    except ValueError as error:
        raise IdentityFailure(f"the node's certificates cannot be read: {error}") from error
