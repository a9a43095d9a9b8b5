"""How old an answer from the mirror is: none, as a rule, since the Store is asked first.

The front door (`rpc.py`) asks before an operator's call runs. The mirror of a member may lag behind
what another member has acknowledged; it is current when it holds the revision that the Store told
after the call had come. A Store that only this process writes needs no question. If it cannot be
asked the mirror still answers, and the answer says how old it may be (ADR 18).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from orchestrator.cache import Cache
from orchestrator.store.port import Store, StoreError

log = logging.getLogger(__name__)

READ_S = 2.0
"""A reader waits this long for a current mirror."""
READ_AGAIN_S = 0.5
"""And this long when the last question failed: nobody shall wait for each of many reads."""
WRITE_S = 5.0
"""A writer, who gets nothing else: an election of etcd's fits in."""
WRITE_AGAIN_S = 1.0
"""And this long where the Store has been away for that time already: whoever writes goes on to the
other members, and shall hear within ten seconds if none of them can."""
_ASKED_AT_ONCE_MAX = 2
_PAUSE_S = 0.5
_UNASKED_S = 2.0
"""Without callers the Store is asked this often, so that the age of an idle mirror is true, and
/readyz and those who watch hear soon of a Store that is away."""


class Freshness:
    """One per process. `run` keeps the age true while nobody calls."""

    def __init__(
        self, store: Store, cache: Cache, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._cache = cache
        self._monotonic = monotonic
        self._gate = asyncio.Semaphore(_ASKED_AT_ONCE_MAX)
        self._coming: asyncio.Task[tuple[float, int]] | None = None  # not sent yet
        self._current_at = monotonic()
        self._failing = False

    @property
    def age_s(self) -> float:
        """Seconds since the mirror was last known to be current."""
        return max(0.0, self._monotonic() - self._current_at)

    @property
    def behind_s(self) -> float:
        """0: the Store answered when it was last asked. Otherwise `age_s`."""
        return self.age_s if self._failing else 0.0

    async def to_read(self) -> float:
        """0: the mirror holds all that was acknowledged anywhere before this call. Otherwise how
        many seconds ago that was last so."""
        return await self._reach(READ_AGAIN_S if self._failing else READ_S)

    async def to_write(self) -> float:
        """As `to_read`, for who decides by the mirror what to write, and waits longer for it."""
        left_s = WRITE_S - self.age_s if self._failing else WRITE_S
        return await self._reach(max(WRITE_AGAIN_S, left_s))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(max(_PAUSE_S, _UNASKED_S - self.age_s))
            if self.age_s >= _UNASKED_S:
                await self.to_read()

    async def _reach(self, limit_s: float) -> float:
        asked_at, revision = self._monotonic(), self._store.known_revision()
        if revision and self._cache.revision >= revision:
            return self._is_current(asked_at)
        try:
            async with asyncio.timeout(limit_s):
                if not revision:
                    asked_at, revision = await asyncio.shield(self._question())
                await self._cache.wait_for(revision)
        except (StoreError, TimeoutError) as error:
            if not self._failing:
                log.warning("the mirror cannot be brought up to date: %s", error or "no answer")
            self._failing = True
            return self.age_s
        return self._is_current(asked_at)

    def _is_current(self, asked_at: float) -> float:
        if self._failing:
            log.info("the mirror is current again")
        self._failing = False
        self._current_at = max(self._current_at, asked_at)
        return 0.0

    def _question(self) -> "asyncio.Task[tuple[float, int]]":
        """One that is sent after now; shared with all who come before it is sent."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._ask(), name="freshness")
            # Those who waited may all be gone when it fails: then nobody else takes note.
            self._coming.add_done_callback(_note_failure)
        return self._coming

    async def _ask(self) -> tuple[float, int]:
        """It is not ended with its callers: only so does the Store's client notice who is dead."""
        try:
            async with self._gate:
                self._coming = None
                asked_at, seen = self._monotonic(), self._cache.revision
                revision = await self._store.revision()
                if revision < seen:
                    raise StoreError(f"the store went back from revision {seen} to {revision}")
                return asked_at, revision
        finally:
            if self._coming is asyncio.current_task():
                self._coming = None


def _note_failure(task: "asyncio.Task[tuple[float, int]]") -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
