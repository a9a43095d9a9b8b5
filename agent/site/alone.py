"""For how long no orchestrator was heard, counted over restarts of the agent and of the box.

`agent/site/loop.py` saves it now and then: the promise "takes over for so long" must not begin anew
with every power cut. What was heard after that counts as time alone; where a replica stops after a
while alone it is saved more often, as a crash of the agent would stop it. Time while the box was
off counts if its clock knows of it; a clock that was set back adds nothing, and one that was set
forward ends the promise early, which stops nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.domain.plan import ParsedPlan

NAME = "_alone"
SAVE_EVERY_S = 600.0
OF_STOP_AFTER = 1 / 3


def save_every_s(plan: ParsedPlan | None) -> float:
    """For a node with this plan."""
    if plan is None:
        return SAVE_EVERY_S
    shares = (*plan.assignments.values(), *(role.assignment for role in plan.roles.values()))
    limits = (share.group.stop_after_s for share in shares if share.group is not None)
    return min((SAVE_EVERY_S, *(limit * OF_STOP_AFTER for limit in limits if limit)))


@dataclass(slots=True)
class Alone:
    """All times are given: `now` in seconds of CLOCK_BOOTTIME, `wall` in unix seconds."""

    boot_id: str
    since: float
    """When one was heard last, by `now`; may lie before the boot."""
    saved_at: float = 0.0
    saved_s: float = 0.0

    @staticmethod
    def read(body: Mapping[str, Any], boot_id: str, now: float, wall: float) -> "Alone":
        """From what was saved; a node that never saved anything has just joined."""
        try:
            alone_s = float(body["alone_s"])
            same_boot = body["boot_id"] == boot_id
            passed_s = now - float(body["at"]) if same_boot else wall - float(body["wall"])
        except (KeyError, TypeError, ValueError):
            return Alone(boot_id, now)
        return Alone(boot_id, now - max(0.0, alone_s) - max(0.0, passed_s))

    def heard(self, now: float) -> None:
        self.since = now

    def for_s(self, now: float) -> float:
        return max(0.0, now - self.since)

    def to_save(
        self, now: float, wall: float, every_s: float = SAVE_EVERY_S
    ) -> Mapping[str, Any] | None:
        """None while what is saved is good enough."""
        alone_s = self.for_s(now)
        ended = alone_s < SAVE_EVERY_S <= self.saved_s
        if self.saved_at and now - self.saved_at < every_s and not ended:
            return None
        self.saved_at, self.saved_s = now, alone_s
        return {"alone_s": alone_s, "boot_id": self.boot_id, "at": now, "wall": wall}
