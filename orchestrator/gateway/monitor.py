"""Looks once a second for what no message tells: streams that are half open, nodes fallen silent.

The rule is `orchestrator/domain/liveness.py`; this makes its changes visible to the leader and to
those who watch, through the fleet's listeners. What follows from silence, and what people are told
of it, is the leader's (`orchestrator/domain/nodes.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator

from orchestrator.cache import Cache
from orchestrator.domain.attention import Attention
from orchestrator.domain.liveness import Liveness
from orchestrator.fleet import Fleet
from orchestrator.gateway.sessions import Sessions
from orchestrator.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_NODES_AT_ONCE = 500
_TOLD_MAX = 50


class Monitor:
    """One per member. `run` until cancelled; `look` is one round."""

    def __init__(
        self, cache: Cache, fleet: Fleet, sessions: Sessions, settings: GatewaySettings
    ) -> None:
        self._cache = cache
        self._fleet = fleet
        self._sessions = sessions
        self._settings = settings
        self._states: dict[str, Liveness] = {}
        self._attention = Attention(_EVERY_S)

    async def run(self) -> None:
        """A round that fails is logged, and the next one comes."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                for _ in self._round():
                    await asyncio.sleep(0)  # heartbeats wait for nobody's rounds
            except Exception:
                log.exception("a look at the nodes failed; trying again")

    def look(self) -> None:
        """One round at once."""
        for _ in self._round():
            pass

    def _round(self) -> Iterator[None]:
        """Pauses after some nodes each; what changes meanwhile the next round sees."""
        self._fleet.attend()
        self._attention.look(self._fleet.steady())
        self._close_half_open()
        states: dict[str, Liveness] = {}
        changed: Counter[Liveness] = Counter()
        for count, name in enumerate([node.name for node in self._cache.resources("Node")]):
            if count % _NODES_AT_ONCE == 0:
                yield
            found = states[name] = self._state(name)
            if found is self._states.get(name, found):
                continue
            seen = self._fleet.get(name)
            if seen is None or seen.peer is None:  # else the member that has it says so
                changed[found] += 1
                if changed[found] <= _TOLD_MAX:
                    log.info("node is %s", found.value, extra={"node": name})
            self._fleet.touch(name)
        self._states = states
        for state, nodes in changed.items():
            if nodes > _TOLD_MAX:  # a line for each of thousands would take longer than a heartbeat
                log.info("more nodes are %s", state.value, extra={"nodes": nodes - _TOLD_MAX})

    def _state(self, node: str) -> Liveness:
        """Asks the fleet in full only of those that are not well."""
        periods = self._settings.periods
        if self._fleet.is_live(node, periods.silent_after_s):
            return Liveness.LIVE
        ever_seen = self._cache.node_status(node) is not None
        return self._fleet.liveness(node, ever_seen, periods).state

    def _close_half_open(self) -> None:
        settings, steady = self._settings, self._fleet.steady()
        limit_s = settings.heartbeat_s * settings.heartbeats_missed_max
        for session in self._sessions:
            heard_at = max(session.last_heard, self._fleet.back_at)
            if steady - heard_at <= limit_s or session.is_closed():
                continue
            # What we had no time to read is no silence of the agent's.
            if steady - heard_at - self._attention.missed_since(heard_at) > limit_s:
                log.info("closing a half-open session", extra={"node": session.node})
                message = f"no heartbeat for {limit_s:g} s"
                session.close("HeartbeatTimeout", message)
