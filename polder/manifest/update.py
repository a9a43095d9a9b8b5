"""How a Workload changes: rollouts, and what may be disturbed at once.

Read by the leader's rollouts (`orchestrator/domain/rollout.py`) and the scheduler.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.quantity import amount, duration_s
from polder.manifest.schema import Violation, spec

AMOUNT_TYPE = "number such as 1, or share such as 25%"


@dataclass(frozen=True, slots=True)
class Canary:
    """Where a new revision goes first."""

    sites: int = spec("At so many sites.", default=1, minimum=1, maximum=1000)
    soak: float = spec(
        "How long it is watched there, and again after the wave to those sites' regions.",
        default=60.0,
        parse=duration_s,
        shown_type="duration such as 30s",
        unit="s",
        maximum=30 * 86_400.0,
    )


@dataclass(frozen=True, slots=True)
class Update:
    """How a changed template reaches the replicas."""

    max_unavailable: str = spec(
        "Replicas that may be unavailable at once because of updates, moves and drains.",
        default="1",
        parse=amount,
        shown_type=AMOUNT_TYPE,
    )
    max_surge: str = spec(
        "Replicas that may run beside those that they replace.",
        default="1",
        parse=amount,
        shown_type=AMOUNT_TYPE,
    )
    min_ready: float = spec(
        "A replica counts as available when it has been ready for so long.",
        default=0.0,
        parse=duration_s,
        shown_type="duration such as 10s",
        unit="s",
        maximum=3600.0,
    )
    progress_deadline: float = spec(
        "A rollout in which nothing becomes available for so long has failed.",
        default=600.0,
        parse=duration_s,
        shown_type="duration such as 10m",
        unit="s",
        minimum=1,
        maximum=30 * 86_400.0,
    )
    canary: Canary | None = spec(
        "Some sites first, then their regions, then everywhere. Default: everywhere at once.",
        default=None,
    )
    proven_after: float = spec(
        "A revision that ran everywhere so long without failing is one to return to.",
        default=600.0,
        parse=duration_s,
        shown_type="duration such as 10m",
        unit="s",
        maximum=30 * 86_400.0,
    )
    auto_rollback: bool = spec(
        "Return to the last proven revision when the new one fails.", default=True
    )
    paused: bool = spec("Change no further replica (`edgectl rollout pause`).", default=False)

    def violations(self) -> Iterator[Violation]:
        if self.max_unavailable in ("0", "0%") and self.max_surge in ("0", "0%"):
            yield Violation("maxUnavailable", "and maxSurge are both 0: nothing could ever change")


@dataclass(frozen=True, slots=True)
class Disruption:
    """What maintenance may take away at once."""

    max_unavailable: str | None = spec(
        "Replicas that may be unavailable because of drains. Default: update.maxUnavailable.",
        default=None,
        parse=amount,
        shown_type=AMOUNT_TYPE,
    )
