"""What the leader does for upgrades of agents: gathers what is known of each, and takes a step.

Called by the leader in each tick; `known_agents` also by the operator API, which shows the same.
The decisions are pure (`domain/upgrades_step.py`). A step walks over all nodes, and agents speak
all the time: it is taken at most once in a second, and of large fleets more rarely, so that it
costs the sessions little. With many nodes it is thought through in a thread.
"""

import asyncio
import time
from collections.abc import Iterable
from math import inf

from orchestrator.cache import Cache
from orchestrator.domain.upgrade_state import Said
from orchestrator.domain.upgrades_step import Agent, at_work, upgrade_batches
from orchestrator.fleet import Fleet
from orchestrator.scheduling.snapshot import Node
from orchestrator.scheduling.tick import Batch, Moment, World
from orchestrator.store import keys

EVERY_S = 1.0
BUSY_SHARE_MAX = 0.05
INLINE_MAX = 500
"""Nodes."""


class LeaderUpgrades:
    """`due_s`: look again in at most so long."""

    def __init__(self, cache: Cache, fleet: Fleet) -> None:
        self._cache = cache
        self._fleet = fleet
        self._next_at = -inf
        self.due_s = inf

    async def batches(self, world: World, moment: Moment) -> tuple[Batch, ...]:
        """What is to be written now; as a rule nothing."""
        self.due_s = inf
        orders = self._cache.kept(keys.AGENT_VERSIONS)
        if not at_work(self._cache.kept(keys.UPGRADES), orders):
            return ()
        self.due_s = EVERY_S
        if moment.steady < self._next_at:
            return ()
        started = time.perf_counter()
        agents = known_agents(self._cache, self._fleet, world.snapshot.nodes)
        if len(agents) <= INLINE_MAX:
            found = upgrade_batches(world, agents, moment)
        else:
            found = await asyncio.to_thread(upgrade_batches, world, agents, moment)
        spent_s = time.perf_counter() - started
        self._next_at = moment.steady + max(EVERY_S, spent_s / BUSY_SHARE_MAX)
        return found


def known_agents(cache: Cache, fleet: Fleet, nodes: Iterable[Node]) -> dict[str, Agent]:
    """By node: what its agent said last of itself."""
    return {node.name: _agent(cache, fleet, node.name) for node in nodes}


def _agent(cache: Cache, fleet: Fleet, node: str) -> Agent:
    seen = fleet.get(node)
    if seen is None or not seen.agent_version:
        reported = cache.node_status(node)
        return Agent(reported.agent_version if reported is not None else "")
    if seen.upgrade is None:
        return Agent(seen.agent_version)
    said = seen.upgrade
    return Agent(
        seen.agent_version,
        Said(said.id, said.attempt, said.phase, said.reason, said.message, said.at_ms),
    )
