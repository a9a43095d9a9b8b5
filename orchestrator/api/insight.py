"""The five questions about placement, wired: what OperatorService asks of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.api.apply import Applier
from orchestrator.api.compliance import Compliance
from orchestrator.api.concentration import Concentration
from orchestrator.api.explaining import Explains
from orchestrator.api.planning import Planning
from orchestrator.api.simulating import Simulating
from orchestrator.api.thinking import Leads, Thinking
from orchestrator.api.whying import Whying
from orchestrator.cache import Cache
from orchestrator.events import EventRecorder


class Leader(Explains, Leads, Protocol):
    """What is asked of the leader of this process."""


@dataclass(frozen=True, slots=True)
class Insight:
    """Each with the method that serves its RPC."""

    why: Whying
    plan: Planning
    simulate: Simulating
    concentration: Concentration
    compliance: Compliance


def build_insight(
    thinking: Thinking,
    cache: Cache,
    applier: Applier,
    events: EventRecorder,
    leader: Leader,
    timer: Callable[[], float],
) -> Insight:
    """`timer` is a monotonic clock, in seconds."""
    return Insight(
        why=Whying(thinking, applier, leader),
        plan=Planning(thinking, applier, timer),
        simulate=Simulating(thinking, timer),
        concentration=Concentration(thinking, cache),
        compliance=Compliance(thinking, events),
    )
