"""Which of several stays of one replica stays on: one rule, for sites and for orchestrators.

What one decides the other would have decided, too. Called by `agent/domain/site/takeover.py` when a
partition is over and two are ready, and by `orchestrator/domain/adoption.py` for what a site did
alone. Not for exclusive replicas: there the lease decides.

    1. what an orchestrator decided at a later revision comes before all that was before it
    2. of those the one that has been ready for longest; with `newer`, for the shortest time
    3. of those within two seconds of it the one whose node sorts first

Who is not ready is never the keeper: nobody is stopped for one that does not serve. The last rule
does not look at epochs, since the keeper raises its own, which would turn the rule around.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from polder import epochs

TIE_S = 2.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One stay. `ready_for_s` by the clock of its own node, 0 when it is not ready."""

    node: str
    uid: str
    epoch: int
    ready: bool
    ready_for_s: float = 0.0

    @property
    def rank(self) -> tuple[int, str]:
        """Of two claims the greater one is newer."""
        return (self.epoch, self.node)


def decided_in(epoch: int) -> int:
    """The revision of the Store that an epoch counts on from."""
    return epoch >> epochs.LOCAL_BITS


def keeper(contenders: Iterable[Contender], on_return: str) -> Contender | None:
    """The one that stays; None while none is ready. `on_return`: "older" or "newer"."""
    ready = [c for c in contenders if c.ready]
    if not ready:
        return None
    latest = max(decided_in(c.epoch) for c in ready)
    ready = [c for c in ready if decided_in(c.epoch) == latest]
    sign = -1 if on_return == "newer" else 1
    best = max(sign * c.ready_for_s for c in ready)
    tied = [c for c in ready if best - sign * c.ready_for_s <= TIE_S]
    return min(tied, key=lambda c: (c.node, c.uid))
