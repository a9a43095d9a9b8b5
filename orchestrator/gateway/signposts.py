"""Tells connected agents where members are: in the Welcome, and when that changes.

The service asks for each Welcome and runs it beside the plans. A plan names the same addresses, but
is not sent again as long as its generation stays; and most changes of members change no plan.
"""

import asyncio
import logging
from weakref import WeakKeyDictionary

from orchestrator.cache import Cache, Change
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.whereabouts import CONCERNED, Whereabouts
from polder.v1 import agent_pb2

log = logging.getLogger(__name__)

_COALESCE_S = 0.5
_BATCH = 50
_PAUSE_S = 0.1
"""Between batches: ten thousand agents hear of a new member within twenty seconds."""


class Signposts:
    """Remembers what each session was told, and tells it only what differs."""

    def __init__(self, cache: Cache, sessions: Sessions, whereabouts: Whereabouts) -> None:
        self._cache = cache
        self._sessions = sessions
        self._whereabouts = whereabouts
        self._told: WeakKeyDictionary[LiveSession, tuple[str, ...]] = WeakKeyDictionary()
        self._same: dict[tuple[str, ...], tuple[str, ...]] = {}  # lists that many were told
        self._wake = asyncio.Event()

    def for_welcome(self, session: LiveSession) -> tuple[str, ...]:
        """What the session's Welcome says."""
        found = self._list(session)
        self._told[session] = found
        return found

    async def run(self) -> None:
        """Tells of changes until cancelled."""
        unsubscribe = self._cache.subscribe(self._on_changes)
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(_COALESCE_S)
                self._wake.clear()
                await self._tell_all()
        finally:
            unsubscribe()

    def _on_changes(self, changes: list[Change]) -> None:
        if any(change.key.startswith(CONCERNED) for change in changes):
            self._wake.set()

    async def _tell_all(self) -> None:
        self._same = {}
        told = 0
        for count, session in enumerate(self._sessions):
            if count % _BATCH == 0:
                await asyncio.sleep(0)  # composing ten thousand lists must not delay a heartbeat
            before = self._told.get(session)
            if before is None or session.is_closed():
                continue  # not welcomed yet, or gone
            found = self._list(session)
            if found == before:
                continue
            self._told[session] = found
            message = agent_pb2.Endpoints(endpoints=found)
            session.send(agent_pb2.SessionResponse(endpoints=message))
            told += 1
            if told % _BATCH == 0:
                await asyncio.sleep(_PAUSE_S)
        if told:
            log.info("agents were told where members are", extra={"agents": told})

    def _list(self, session: LiveSession) -> tuple[str, ...]:
        identity = session.identity
        found = self._whereabouts.for_node(identity.node, identity.site)
        return self._same.setdefault(found, found)
