"""For how long this node has heard no orchestrator. Part of `machine.py`.

Counted by the clock that never jumps; what was before the agent's start comes with Booted.
"""

SIGNS_EVERY_S = 5.0
HEARD_FOR_S = 2.4 * SIGNS_EVERY_S  # two signs may get lost


class Isolation:
    def __init__(self) -> None:
        self._since = 0.0  # by `now`; may lie before the boot

    def began(self, isolated_s: float, now: float) -> None:
        self._since = now - isolated_s

    def heard(self, now: float) -> None:
        self._since = now

    def for_s(self, now: float) -> float:
        """Since the last sign of an orchestrator."""
        return now - self._since

    def told_s(self, now: float) -> float:
        """For our beat: 0 as long as signs come."""
        isolated_s = self.for_s(now)
        return isolated_s if isolated_s > HEARD_FOR_S else 0.0

    def alone_since(self, now: float) -> float | None:
        """None: signs come."""
        return self._since if self.told_s(now) else None
