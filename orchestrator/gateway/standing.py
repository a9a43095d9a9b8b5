"""Tells connected agents whether this member is itself cut off from the Store.

A member that reads nothing from the Store hears of no decision: its agents keep a session that
nobody leads through, while the leader may be counting them among the silent. A site that stops
something when it is alone (`stopAfter`) must count such time, so each Welcome says how this member
stands, and a change is told to all.
"""

import asyncio
import logging
from collections.abc import Callable

from orchestrator.gateway.sessions import LiveSession, Sessions
from polder.v1 import agent_pb2

log = logging.getLogger(__name__)

CUT_OFF_AFTER_S = 10.0
"""As long as a member's presence lasts that it cannot renew (`members.TTL_S`): only after that do
others take the silence of its agents for theirs."""
LOOK_EVERY_S = 1.0
_BATCH = 200
"""Sessions that are told without a pause: heartbeats wait for nobody's news."""


class Standing:
    """One per member. The service asks for each Welcome, and runs it beside the sessions."""

    def __init__(self, sessions: Sessions, behind_s: Callable[[], float]) -> None:
        """`behind_s`: how long ago the Store last answered, when it does not now; else 0."""
        self._sessions = sessions
        self._behind_s = behind_s
        self._cut_off = False

    def for_welcome(self) -> agent_pb2.MemberStanding:
        """As those that were welcomed before know it: who comes now is told of changes as well."""
        return agent_pb2.MemberStanding(cut_off=self._cut_off)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Once. What changes while many are told is seen the next time."""
        behind_s = self._behind_s()
        cut_off = behind_s > CUT_OFF_AFTER_S
        if cut_off == self._cut_off:
            return
        self._cut_off = cut_off
        if cut_off:
            facts = {"agents": len(self._sessions), "behind_s": round(behind_s, 1)}
            log.warning("cut off from the store: agents are told to count on nobody", extra=facts)
        else:
            log.info(
                "the store answers again: agents are told", extra={"agents": len(self._sessions)}
            )
        message = agent_pb2.SessionResponse(standing=self.for_welcome())
        sessions: list[LiveSession] = list(self._sessions)
        for count, session in enumerate(sessions, start=1):
            session.send(message)
            if count % _BATCH == 0:
                await asyncio.sleep(0)
