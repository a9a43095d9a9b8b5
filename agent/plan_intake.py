"""Plans that arrive, one at a time: the latest wins while another is being verified.

`agent/session_stream.py` offers, `agent/state.py` decides, and the acknowledgement goes back over
whichever session is open by then.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from polder.v1 import agent_pb2, plan_pb2

VERIFY_TRIES = 4
VERIFY_RETRY_S = 1.0


class Keeper(Protocol):
    """The plan in use."""

    @property
    def generation(self) -> int: ...

    async def offer(self, signed: plan_pb2.SignedNodePlan) -> agent_pb2.PlanAck: ...


class PlanIntake:
    """Holds at most one plan: a node with a slow disk never works off a queue of old plans."""

    def __init__(
        self,
        keeper: Keeper,
        acknowledge: Callable[[agent_pb2.PlanAck], None],
        *,
        retry_s: float = VERIFY_RETRY_S,
    ) -> None:
        self._keeper = keeper
        self._acknowledge = acknowledge
        self._retry_s = retry_s
        self._waiting: plan_pb2.SignedNodePlan | None = None
        self._newest = 0
        self._arrived = asyncio.Event()

    @property
    def lag(self) -> int:
        """How many generations the plan in use is behind the newest one that arrived."""
        return max(0, self._newest - self._keeper.generation)

    def offer(self, signed: plan_pb2.SignedNodePlan) -> None:
        """Replaces one that waits, unless that is of a newer generation."""
        if self._waiting is not None and self._waiting.generation > signed.generation:
            return
        self._waiting = signed
        self._newest = max(self._newest, signed.generation)
        self._arrived.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            signed, self._waiting = self._waiting, None
            if signed is not None:
                ack = await self._settle(signed)
                if not ack.accepted:
                    self._newest = self._keeper.generation
                self._acknowledge(ack)

    async def _settle(self, signed: plan_pb2.SignedNodePlan) -> agent_pb2.PlanAck:
        """When nothing could be learned about the plan, try again, unless a newer one waits."""
        ack = await self._keeper.offer(signed)
        for attempt in range(1, VERIFY_TRIES):
            if ack.accepted or ack.reason != "VerifierFailed" or self._waiting is not None:
                break
            await asyncio.sleep(self._retry_s * attempt)
            ack = await self._keeper.offer(signed)
        return ack
