"""Which members come and go, and who leads, as events: what an operator who was away looks for.

Run by `server.py` on every member; the one that leads writes. What was told last stands in the
events themselves, so that the next leader neither repeats it nor forgets what its predecessor's own
loss kept it from telling.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from orchestrator.cache import Cache
from orchestrator.event_records import EventRecord
from orchestrator.events import Recorder
from polder.v1 import common_pb2

LOOK_EVERY_S = 1.0
GONE_AFTER_S = 3.0
"""After the Store was away members make their presence again one after the other."""
GONE, BACK = "MemberGone", "MemberBack"


class Events(Recorder, Protocol):
    def list(
        self, *, kind: str = "", namespace: str = "", name: str = "", limit: int = 0
    ) -> list[EventRecord]: ...


class RollCall:
    """`term`: of the leader here; 0 while another member leads. `run` until cancelled."""

    def __init__(self, member: str, cache: Cache, events: Events, term: Callable[[], int]) -> None:
        self._member = member
        self._cache = cache
        self._events = events
        self._term = term
        self._told_term = 0
        self._absent: dict[str, float] = {}  # since, in steady seconds

    async def run(self) -> None:
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self, steady: float) -> None:
        """An installation of one member has no use for it."""
        others = [r for r in self._cache.members() if r.name != self._member]
        term = self._term()
        if not term or not self._cache.healthy or not others:
            self._absent.clear()
            return
        if term != self._told_term:
            self._told_term = term
            self._tell(self._member, "Leads", f"leads now (term {term})")
        for record in others:
            self._look_at(record.name, record.region, steady)

    def _look_at(self, name: str, region: str, steady: float) -> None:
        gone = self._last(name) == GONE
        if self._cache.present(name) is not None:
            self._absent.pop(name, None)
            if gone:
                self._tell(name, BACK, f"is there again, in region {region}")
        elif not gone and steady - self._absent.setdefault(name, steady) >= GONE_AFTER_S:
            text = f"is gone from region {region}: it ended, or its lease in the store ran out"
            self._tell(name, GONE, text, common_pb2.EVENT_TYPE_WARNING)

    def _last(self, name: str) -> str:
        told = self._events.list(kind="Member", name=name)
        return next((e.reason for e in reversed(told) if e.reason in (GONE, BACK)), "")

    def _tell(
        self, name: str, reason: str, text: str, severity: int = common_pb2.EVENT_TYPE_NORMAL
    ) -> None:
        source = f"leader/{self._member}"
        self._events.record("Member", "", name, severity, reason, text, source)
