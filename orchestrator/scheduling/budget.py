"""How much of a workload may change at once: `update`, `disruption`, and what of it is in use.

Used by `changes.py`. Counted in replicas by name: one that is served by its old holder or by the
replacement that starts beside it is available.
"""

from dataclasses import dataclass

from orchestrator.scheduling.snapshot import Workload
from polder.manifest.quantity import amount_of


@dataclass(slots=True)
class Budget:
    """`available` of `wanted` replicas serve; `surging` have a replacement beside them.

    `unavailable_max` holds for updates, `disruption_max` for moves and drains, `surge_max` for
    replacements under way. A share is of `wanted`: the first two round down, the last up.
    """

    wanted: int
    available: int
    surging: int
    unavailable_max: int
    disruption_max: int
    surge_max: int

    @property
    def may_surge(self) -> bool:
        return self.surging < self.surge_max

    def may_update(self, counted: bool) -> bool:
        """Whether a replica may stop serving to be updated; `counted`: it is among `available`."""
        return self.available - counted >= self.wanted - self.unavailable_max

    def may_disturb(self, counted: bool) -> bool:
        """The same of a replica that has to leave its node."""
        return self.available - counted >= self.wanted - self.disruption_max


def budget_of(workload: Workload, wanted: int, available: int, surging: int) -> Budget:
    """The amounts of the workload's manifest, resolved.

    Both amounts of `update` may come to nothing (of no replicas, 25% of 3 without surge, or where
    none may run twice): then one may be unavailable, or nothing could ever change.
    """
    update = workload.update
    unavailable = amount_of(update.max_unavailable, wanted, up=False)
    surge = amount_of(update.max_surge, wanted, up=True)
    if workload.failover.exclusive:
        surge = 0  # two never run beside each other
    if not unavailable and not surge:
        unavailable = 1
    stated = workload.disruption.max_unavailable
    return Budget(
        wanted=wanted,
        available=available,
        surging=surging,
        unavailable_max=unavailable,
        disruption_max=unavailable if stated is None else amount_of(stated, wanted, up=False),
        surge_max=surge,
    )
