"""Looks once a second for what no message tells: streams that are half open, nodes fallen silent.

The rule is `orchestrator/domain/liveness.py`; this makes its changes visible to the leader (through
the fleet's listeners) and to people (as events).
"""

import asyncio
import logging
from collections.abc import Callable

from orchestrator.cache import Cache
from orchestrator.domain.liveness import Liveness, liveness
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.sessions import Sessions
from orchestrator.gateway.settings import GatewaySettings
from polder.v1 import common_pb2

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_WORDS = {
    Liveness.SILENT: "nothing is heard of it; its replicas are left where they are for now",
    Liveness.LOST: "nothing has been heard of it for long; its replicas move where they can",
    Liveness.LIVE: "is heard again",
}
_REASONS = {
    Liveness.SILENT: "NodeSilent",
    Liveness.LOST: "NodeLost",
    Liveness.LIVE: "NodeReady",
}


class Monitor:
    """One per member. `run` until cancelled; `look` is one round."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        sessions: Sessions,
        events: Recorder,
        clock: Callable[[], float],
        settings: GatewaySettings,
    ) -> None:
        self._cache = cache
        self._fleet = fleet
        self._sessions = sessions
        self._events = events
        self._clock = clock
        self._settings = settings
        self._states: dict[str, Liveness] = {}
        self._announced: set[str] = set()

    async def run(self) -> None:
        """A round that fails is logged, and the next one comes."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                self.look(self._clock())
            except Exception:
                log.exception("a look at the nodes failed; trying again")

    def look(self, now: float) -> None:
        """One round at `now`, unix seconds."""
        self._close_half_open(now)
        states: dict[str, Liveness] = {}
        for resource in self._cache.resources("Node"):
            name = resource.name
            seen = self._fleet.get(name)
            found = liveness(
                seen.last_seen if seen is not None else 0.0,
                self._cache.node_status(name) is not None,
                self._fleet.started_at,
                now,
                self._settings.periods,
            )
            states[name] = found.state
            if found.state is not self._states.get(name, found.state):
                self._changed(name, found.state)
        self._states = states
        self._announced &= states.keys()

    def _changed(self, node: str, state: Liveness) -> None:
        log.info("node is %s", state.value, extra={"node": node})
        self._fleet.touch(node)
        bad = state in (Liveness.SILENT, Liveness.LOST)
        if bad or node in self._announced:
            severity = common_pb2.EVENT_TYPE_WARNING if bad else common_pb2.EVENT_TYPE_NORMAL
            source = f"gateway/{self._settings.member}"
            words = _WORDS.get(state, "")
            self._events.record("Node", "", node, severity, _REASONS[state], words, source)
        if bad:
            self._announced.add(node)
        else:
            self._announced.discard(node)

    def _close_half_open(self, now: float) -> None:
        settings = self._settings
        limit_s = settings.heartbeat_s * settings.heartbeats_missed_max
        for session in self._sessions:
            if now - session.last_heard > limit_s and not session.closed.is_set():
                log.info("closing a half-open session", extra={"node": session.node})
                message = f"no heartbeat for {limit_s:g} s"
                session.close("HeartbeatTimeout", message)
