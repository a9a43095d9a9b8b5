"""Keeps what the leader decides above all that its agents know, also after a restore from a backup.

Used by `leader_snapshot.py` before each plan; the rule is `domain/restored.py`. What is raised is
in memory: the next leader takes it from the placements, and from agents.
"""

import logging
from collections.abc import Iterable

from orchestrator.cache import Cache
from orchestrator.domain.restored import is_credible, to_raise
from orchestrator.scheduling.tick import Stray
from polder.epochs import shown

log = logging.getLogger(__name__)


class EpochCount:
    """One per leader's snapshots."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._leapt = False

    def surpass(self, named: int, strays: Iterable[Stray], *, ahead: bool) -> None:
        """`named`: the highest epoch that is said of stays that records name. `ahead`: a node uses
        a plan that the Store never made."""
        cache = self._cache
        said = (stray.epoch for stray in strays if is_credible(stray.epoch, cache.epoch))
        heard = max((named, *said))
        by = to_raise(cache.epoch, cache.placed_epoch, heard, ahead=ahead, leapt=self._leapt)
        if by:
            cache.epoch_base += by
            self._leapt |= ahead
            facts = {"by": by, "revision": cache.revision, "heard": shown(heard)}
            log.warning("epochs are raised: the store was restored from a backup", extra=facts)
