"""The questions about placement, and the stories, wired: what OperatorService asks of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.api.apply import Applier
from orchestrator.api.catalog import Catalog
from orchestrator.api.compliance import Compliance
from orchestrator.api.concentration import Concentration
from orchestrator.api.explaining import Explaining, Explains
from orchestrator.api.planning import Planning
from orchestrator.api.rollout_view import state_of
from orchestrator.api.simulating import Simulating
from orchestrator.api.telling import Telling
from orchestrator.api.thinking import Leads, Thinking
from orchestrator.api.whying import Whying, facts_met
from orchestrator.domain.rollout_state import RolloutState
from orchestrator.events import EventRecorder
from orchestrator.store import keys


class Leader(Explains, Leads, Protocol):
    """What is asked of the leader, wherever it is."""

    def rollout(self, workload_uid: str) -> RolloutState | None: ...


@dataclass(frozen=True, slots=True)
class Insight:
    """Each with the method that serves its RPC."""

    why: Whying
    plan: Planning
    simulate: Simulating
    concentration: Concentration
    compliance: Compliance
    story: Telling


def build_insight(
    thinking: Thinking,
    catalog: Catalog,
    explaining: Explaining,
    applier: Applier,
    events: EventRecorder,
    leader: Leader,
    timer: Callable[[], float],
) -> Insight:
    """`timer` is a monotonic clock, in seconds."""
    cache = catalog.cache

    def because(key: tuple[str, str], node: str) -> tuple[str, ...]:
        return facts_met(thinking.snapshot(), key, node, thinking.now())

    def rollout_of(uid: str) -> RolloutState | None:
        """With the leader's clocks as last heard; they are written only now and then."""
        return leader.rollout(uid) or state_of(cache.kept_at(keys.rollout(uid)))

    return Insight(
        why=Whying(thinking, applier, leader, catalog),
        plan=Planning(thinking, applier, timer),
        simulate=Simulating(thinking, timer),
        concentration=Concentration(thinking, cache),
        compliance=Compliance(thinking, events),
        story=Telling(catalog, explaining, events, thinking.now, because, rollout_of),
    )
