"""A member of a region whose loss is rehearsed: it refuses everyone while the drill lasts.

Made by server.py, which also says what else is cut: the leader's candidacy, the links to other
members, the member's presence in the Store. It goes on reading the Store, and nothing else. When it
ends is decided in `orchestrator/domain/drill.py`, by this process's own steady clock.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from orchestrator.cache import Cache, Change
from orchestrator.calls import LiveCalls
from orchestrator.domain.drill import Playing, follow, read
from orchestrator.refusals import Refused, unavailable
from orchestrator.store import keys

log = logging.getLogger(__name__)

Cut = Callable[[bool], object]
"""Called with True when the member falls silent, with False when it is back. Must be quick."""


class PlayingDead:
    """One per member. Call `look` once before serving: a drill may be under way."""

    def __init__(
        self,
        region: str,
        cache: Cache,
        calls: LiveCalls,
        clock: Callable[[], float],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._cache = cache
        self._calls = calls
        self._clock = clock
        self._steady = steady
        self._state = Playing()
        self._changed = asyncio.Event()
        self._cuts: list[Cut] = []
        self._alive, self._silent = asyncio.Event(), asyncio.Event()
        self._alive.set()
        self.active = False
        cache.subscribe(self._on_changes)

    def also(self, cut: Cut) -> None:
        """Something else that falls silent, and comes back."""
        self._cuts.append(cut)
        if self.active:
            cut(True)

    async def around(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs what must not run while the member plays dead: cancels it then, and begins anew
        after. Ends when the work ends by itself."""
        while True:
            await self._alive.wait()
            working = asyncio.create_task(work())
            silence = asyncio.create_task(self._silent.wait())
            both = {working, silence}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended = working.done()
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            if ended:
                return working.result()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            due = self._state.next_at(self._steady())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - self._steady()):
                    await self._changed.wait()

    def look(self) -> None:
        """At the record and the clock."""
        steady = self._steady()
        drill = read(self._cache.kept_at(keys.drill(self._region)))
        self._state = follow(self._state, drill, self._clock(), steady)
        active = self._state.dead(steady)
        if active == self.active:
            return
        self.active = active
        if active:
            left_s = round(self._state.until - steady, 1)
            log.warning("a drill: refusing everyone", extra={"drill": str(drill), "for_s": left_s})
        else:
            log.warning("the drill is over: serving again")
        for cut in self._cuts:
            cut(active)
        now_set, now_clear = self._alive, self._silent
        if active:
            now_set, now_clear = now_clear, now_set
        now_set.set()
        now_clear.clear()
        self._calls.refuse(self._refusal if active else None)

    def _refusal(self) -> Refused:
        left_s = max(1, round(self._state.until - self._steady()))
        return unavailable(
            "Drill",
            f"region {self._region} plays dead for another {left_s} s: its loss is rehearsed",
            "use a member of another region; edgectl does by itself when its context names one",
        )

    def _on_changes(self, changes: list[Change]) -> None:
        if any(change.key == keys.drill(self._region) for change in changes):
            self._changed.set()
