"""Heavy questions: off the event loop, few at a time, on the leader's picture of the world.

Why, Plan, Simulate, Concentration and Compliance ask here. Building a snapshot is a walk over the
mirror and happens on the loop; what is concluded from it runs in a thread and touches nothing else.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, cast

from orchestrator.api.overlay import Overlay
from orchestrator.cache import Cache
from orchestrator.domain.freezes import freezes_in
from orchestrator.domain.guard import GuardSettings
from orchestrator.domain.jobs_runs import step_jobs
from orchestrator.domain.jobs_step import JobsMemory
from orchestrator.domain.liveness import DEFAULT_PERIODS, Periods
from orchestrator.fleet import Fleet
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.refusals import exhausted, unavailable
from orchestrator.scheduling.guards_step import as_seen
from orchestrator.scheduling.rollouts import as_rolled_out
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.tick import Moment, World
from orchestrator.store import keys

T = TypeVar("T")

RUNNING_MAX = 2
WAITING_MAX = 8


class Leads(Protocol):
    """What is known of the leader, here or elsewhere: `orchestrator.mesh.voice.Voice`."""

    @property
    def led_since(self) -> float: ...

    @property
    def doubted(self) -> Mapping[str, str]: ...

    @property
    def guards(self) -> GuardSettings: ...


class Thinking:
    """`close` ends its threads; what runs by then is not waited for."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        clock: Callable[[], float],
        leader: Leads,
        periods: Periods = DEFAULT_PERIODS,
    ) -> None:
        self._cache = cache
        self._overlay = Overlay(cache)
        # It reads the mirror through the overlay, which is one in all that a builder asks.
        self._builder = SnapshotBuilder(cast(Cache, self._overlay), fleet, periods)
        self._clock = clock
        self._leader = leader
        self._pool = ThreadPoolExecutor(RUNNING_MAX, thread_name_prefix="thinking")
        self._under_way = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def guards(self) -> GuardSettings:
        """How much the leader lets stop at once."""
        return self._leader.guards

    def now(self) -> float:
        return self._clock()

    def snapshot(
        self,
        unwritten: Iterable[StoredResource] = (),
        revisions: Iterable[TemplateRevision] = (),
    ) -> Snapshot:
        """The world as the leader would see it now, with these records as if they were written.

        Raises Refused while nothing has been read from the Store.
        """
        with self._overlay.showing(unwritten, revisions):
            found = self._builder.build(self._clock(), self._leader.led_since)
            records = tuple(self._overlay.resources("Workload"))
        if not found.complete:
            text = "the store has not been read yet, so nothing can be said"
            raise unavailable("NotReady", text, "try again in a moment")
        freezes = freezes_in(self._cache.kept(keys.FREEZES))
        found = as_seen(found, freezes, self._leader.doubted)
        prefixes = (keys.JOBS, keys.ROLLOUTS)
        kept = {record.key: record for prefix in prefixes for record in self._cache.kept(prefix)}
        world = World(found, records, kept=kept)
        found = step_jobs(world, JobsMemory(), Moment(self._clock(), 0.0)).snapshot
        return as_rolled_out(found, kept)

    async def ask(self, question: Callable[[], T]) -> T:
        """The answer, from a thread. Raises Refused (Busy) when too many wait already."""
        if self._under_way >= RUNNING_MAX + WAITING_MAX:
            text = f"{self._under_way} questions of this kind are being worked on"
            raise exhausted("Busy", text, "try again in a moment")
        self._under_way += 1
        future = self._pool.submit(question)
        loop = asyncio.get_running_loop()
        # Counted until the thread is done with it, also when the caller has gone.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less))
        return await asyncio.wrap_future(future)

    def _one_less(self) -> None:
        self._under_way -= 1
