"""The port through which the agent checks who signed a NodePlan.

`agent/session.py` calls it for every plan that arrives, `agent/state.py` for the plans on disk. The
adapter (`agent/credentials.py`) verifies in a one-shot process, because the cryptography library
costs more memory than the agent's long-running process can spare.
"""

from typing import Protocol

from polder.v1 import plan_pb2


class PlanRejected(Exception):
    """The plan must not be used.

    `reason` is CamelCase, for acks and events: BadChain, ExpiredChain, WrongSigner, BadSignature,
    VerifierFailed (nothing is known about the plan; trying again may help).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class PlanVerifier(Protocol):
    """Tells a plan that an orchestrator of our trust domain signed from any other bytes."""

    async def verify(self, signed: plan_pb2.SignedNodePlan, *, at: float) -> bytes:
        """The serialized NodePlan, exactly as it was signed. Raises PlanRejected.

        `at` (unix seconds) is the moment at which the signer's chain must be valid. For a plan that
        just arrived that is now. For one read from disk it is when the plan was issued: the chain
        was checked on receipt, and a node that is cut off for weeks must still start what it was
        told, although its signer's certificate has run out meanwhile.
        """
        ...
