"""What time it is where operators are let in: a box that was cut off may have a wrong clock.

A clock that was set back must not make a credential good again. So the time is at least that of the
plan in use, and at least that of every credential that was proven here: authorities do not date
ahead. It goes on from there as the kernel counts. A clock that runs ahead keeps good credentials
out; nothing here knows better.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """Unix seconds. `heard_at`: when an orchestrator was last heard, if the promised autonomy has
    not run out since; else the same as `at`."""

    at: float
    heard_at: float


class Moments:
    """`alone_s`: for how long no orchestrator was heard. `autonomy_s`: for how long that is to be
    borne. `plan_at`: when the plan in use was issued, unix seconds. `clock`: seconds, also of a
    suspended box."""

    def __init__(
        self,
        alone_s: Callable[[], float],
        autonomy_s: Callable[[], float],
        plan_at: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._alone_s = alone_s
        self._autonomy_s = autonomy_s
        self._plan_at = plan_at
        self._clock = clock
        self._wall = wall
        self._proven, self._proven_at = 0.0, 0.0

    def __call__(self) -> Moment:
        proven = self._proven + self._clock() - self._proven_at
        at = max(self._wall(), self._plan_at(), proven)
        alone_s = self._alone_s()
        return Moment(at, at - alone_s if alone_s <= self._autonomy_s() else at)

    def prove(self, begins: float) -> None:
        """It is later than that for sure."""
        now = self._clock()
        if begins > self._proven + now - self._proven_at:
            self._proven, self._proven_at = begins, now
