"""What waits to be sent to one agent: bounded, and never two plans.

The session's writer takes from it; plans, relays and renewals put into it. A slow reader therefore
costs one plan and a few small messages, whatever happens meanwhile.
"""

import asyncio

from polder.v1 import agent_pb2, plan_pb2

MAX_WAITING = 64


class OutboxFull(Exception):
    """The agent does not read what it is sent."""


class Outbox:
    """One writer takes; anybody puts. After `close` only what waits is still handed out.

    There are ten thousand, nearly always empty: a deque or an Event has room for 64 from the start.
    """

    __slots__ = ("_closed", "_limit", "_plan", "_waiting", "_wake")

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._waiting: list[agent_pb2.SessionResponse] = []
        self._plan: plan_pb2.SignedNodePlan | None = None
        self._wake: asyncio.Future[None] | None = None  # while the writer waits
        self._closed = False

    def put(self, message: agent_pb2.SessionResponse) -> None:
        """Raises OutboxFull: the caller closes the session."""
        if self._closed:
            return
        if len(self._waiting) >= self._limit:
            raise OutboxFull(f"{self._limit} messages wait for an agent that does not read")
        self._waiting.append(message)
        self._wake_writer()

    def put_plan(self, plan: plan_pb2.SignedNodePlan) -> None:
        """A plan that still waits is replaced: only the newest matters."""
        if not self._closed:
            self._plan = plan
            self._wake_writer()

    def close(self, goodbye: agent_pb2.Goodbye | None = None) -> None:
        """Everything that waits is dropped; the goodbye, if any, is the last thing sent."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        self._plan = None
        if goodbye is not None:
            self._waiting.append(agent_pb2.SessionResponse(goodbye=goodbye))
        self._wake_writer()

    async def take(self) -> agent_pb2.SessionResponse | None:
        """The next message; None when closed and empty."""
        while True:
            if self._waiting:
                return self._waiting.pop(0)
            if self._plan is not None:
                plan, self._plan = self._plan, None
                return agent_pb2.SessionResponse(plan=plan)
            if self._closed:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
