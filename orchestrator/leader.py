"""The leader's loop: look, steer, commit, tell. Started once per member by the server's main.

One member leads at a time (`election.py`). The loop wakes when the mirror of the Store or the fleet
changed, and looks every second whether time alone changed something. It is never silently dead: a
tick that raises is logged with its story and tried again.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf

from orchestrator.cache import Cache, Change
from orchestrator.domain.guard import DEFAULT, GuardSettings
from orchestrator.domain.liveness import DEFAULT_PERIODS, Periods
from orchestrator.domain.nodes import remark
from orchestrator.domain.rollout_state import SETTLED, RolloutState
from orchestrator.election import TTL_S, Deposed, Election, Term
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.roles import RoleBook
from orchestrator.leader_commit import Committed, Committer
from orchestrator.leader_report import Reporter
from orchestrator.leader_upgrades import LeaderUpgrades
from orchestrator.leader_world import WorldBuilder
from orchestrator.mesh.words import Clocks, Words
from orchestrator.scheduling.decisions import Explanation, Plan
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.steer import Memory, Moment, Steering, World, steer
from orchestrator.store import keys
from orchestrator.store.port import Store, StoreError
from polder.v1 import common_pb2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaderSettings:
    """Seconds, unless the name says otherwise."""

    member: str
    lease_ttl_s: float = TTL_S
    debounce_s: float = 0.02
    tick_interval_min_s: float = 0.05  # at most twenty plans a second
    busy_share_max: float = 0.2  # of the time; a plan that takes long comes less often
    # The same while plans change nothing (nothing fits, all runs), up to a wait of this long.
    vain_share_max: float = 0.05
    vain_wait_max_s: float = 2.0
    poll_s: float = 1.0
    idle_plan_every_s: float = 5.0  # time alone makes silent nodes lost
    collect_every_s: float = 300.0
    catch_up_max_s: float = 5.0
    retry_max_s: float = 10.0
    # Above this many nodes times workloads the plan is made in a thread, to keep sessions served.
    inline_size_max: int = 1_000
    seed: int = 0
    periods: Periods = DEFAULT_PERIODS
    guards: GuardSettings = DEFAULT


@dataclass(frozen=True, slots=True)
class LeaderStats:
    """For metrics: of the last tick, and counts since this member began to lead."""

    term: int = 0
    ticks: int = 0
    failures: int = 0
    plan_seconds: float = 0.0
    commit_seconds: float = 0.0
    refused: int = 0


class Leader:
    """`explanations` by (namespace, workload): why it is not as asked. `desired` counts replicas.

    Both are of the last plan, and empty while another member leads.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        fleet: Fleet,
        events: Recorder,
        clock: Callable[[], float],
        settings: LeaderSettings,
        steady: Callable[[], float] = time.monotonic,
        roles: RoleBook | None = None,
    ) -> None:
        """`clock` gives unix seconds and may jump; `steady` seconds that never do. `roles`: the
        member's, from which its gateway composes."""
        self._cache = cache
        self._fleet = fleet
        self._events = events
        self._clock = clock
        self._steady = steady
        self._settings = settings
        self._election = Election(store, settings.member, time.monotonic, settings.lease_ttl_s)
        self._roles = roles or RoleBook(cache)
        self._worlds = WorldBuilder(cache, fleet, settings.periods, self._roles)
        self._memory = Memory()
        self._due_s = settings.idle_plan_every_s
        self._upgrades = LeaderUpgrades(cache, fleet)
        self._committer = Committer(store, cache, fleet, clock, self._roles)
        self._reporter = Reporter(events, settings.member)
        self._term: Term | None = None
        self._wake = asyncio.Event()
        self._last_tick = 0.0
        self._last_collection: float | None = None
        self._in_vain = False
        self._led_since = 0.0
        self.stats = LeaderStats()
        self.explanations: Mapping[tuple[str, str], tuple[Explanation, ...]] = {}
        self.desired: Mapping[tuple[str, str], int] = {}
        self.told_at = 0.0  # unix seconds: when both were said
        self._told_steady: float | None = None
        self.resigns = True  # at the end; else the term's lease runs out, as in a crash
        self.on_end: Callable[[], None] = lambda: None  # before a term's words are forgotten
        # What the leader before said last.
        self.said_before: Callable[[], Mapping[tuple[str, str], tuple[Explanation, ...]]] = dict

    @property
    def is_leading(self) -> bool:
        return self._term is not None

    @property
    def term(self) -> int:
        """0 while another member leads."""
        return self._term.number if self._term is not None else 0

    @property
    def led_since(self) -> float:
        """Seconds of the fleet's steady clock; silence of nodes from before does not count."""
        return self._led_since

    @property
    def member(self) -> str:
        return self._settings.member

    @property
    def told_ago_s(self) -> float:
        """Seconds since `explanations` were said; infinite while they are nobody's."""
        return inf if self._told_steady is None else self._steady() - self._told_steady

    @property
    def guards(self) -> GuardSettings:
        return self._settings.guards

    @property
    def doubted(self) -> Mapping[str, str]:
        """Nodes whose silence proves nothing, and why. Empty while another member leads."""
        return self._memory.guards.doubted if self.is_leading else {}

    def remarks(self, node: str) -> list[tuple[str, str]]:
        """(condition, message) that the leader has to add about a node."""
        guards = self._memory.guards
        seen, found = guards.nodes.get(node), []
        if self.is_leading and seen is not None and (text := remark(seen, self._steady())):
            found.append(("Flapping", text))
        if text := self.doubted.get(node, ""):
            found.append(("Suspect", text))
        return found

    def rollout(self, workload_uid: str) -> RolloutState | None:
        """Of its last tick; None while another member leads, and of what it has not seen yet."""
        followed = self._memory.rollouts.followed.get(workload_uid)
        return followed.state if followed is not None and self.is_leading else None

    def wants(self, namespace: str, name: str) -> int | None:
        """How many replicas its last plan was for; None: it has made none."""
        return self.desired.get((namespace, name))

    def words(self) -> Words | None:
        """All that it says, for the other members. None: it has said nothing in this term."""
        if self._term is None or self._told_steady is None:
            return None
        flapping = [node for node, seen in self._memory.guards.nodes.items() if seen.flapping]
        remarks = {node: self.remarks(node) for node in (*flapping, *self.doubted)}
        clocks = {
            uid: Clocks.of(followed.state, recorded=followed.written is not None)
            for uid, followed in self._memory.rollouts.followed.items()
            if followed.state.phase not in SETTLED or followed.written is None
        }
        return Words(
            self._term.number, self.told_at, self.desired, self.explanations, remarks, clocks
        )

    async def run(self) -> None:
        """Until cancelled: stand for election, lead, lose, stand again."""
        unsubscribe = (
            self._cache.subscribe(self._on_changes),
            self._fleet.subscribe(self._on_node),
        )
        try:
            while True:
                term = await self._election.campaign()
                self._begin(term)
                try:
                    await self._serve(term)
                finally:
                    self._end()
        finally:
            for leave in unsubscribe:
                leave()

    # --- a term ----------------------------------------------------------------------------------

    async def _serve(self, term: Term) -> None:
        hold = asyncio.create_task(self._election.hold(term), name="leader-lease")
        lead = asyncio.create_task(self._lead(term), name="leader-loop")
        try:
            await asyncio.wait({hold, lead}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (hold, lead):
                task.cancel()
            results = await asyncio.gather(hold, lead, return_exceptions=True)
            deposed = any(isinstance(result, Deposed) for result in results)
            if not deposed and self.resigns:
                await self._election.resign(term)
        for result in results:
            if isinstance(result, Deposed):
                log.warning("does not lead any more: %s", result, extra={"term": term.number})
            elif not isinstance(result, asyncio.CancelledError):
                log.error("leading ended by itself", exc_info=result)
                await asyncio.sleep(1.0)

    def _begin(self, term: Term) -> None:
        self._term = term
        self._led_since = self._fleet.steady()
        self._memory = Memory()  # what another member did meanwhile was not watched
        self._reporter.begin(item for items in self.said_before().values() for item in items)
        self.stats = LeaderStats(term=term.number)
        self._wake.set()
        log.info("leads now", extra={"term": term.number, "member": self._settings.member})

    def _end(self) -> None:
        self.on_end()
        self._term = None
        self.explanations, self.desired = {}, {}
        self._told_steady = None

    async def _lead(self, term: Term) -> None:
        """Ticks until deposed. Raises Deposed."""
        failures = 0
        while True:
            await self._wait_for_cause()
            try:
                await self._tick(term)
                if failures:
                    log.info("the leader works again", extra={"failures": failures})
                failures = 0
            except Deposed:
                raise
            except StoreError as error:
                failures += 1
                if failures == 1:
                    log.warning("the store fails; the leader keeps trying: %s", error)
                await self._back_off(failures)
            except Exception as error:
                failures += 1
                self._tell_failure(error, failures)
                await self._back_off(failures)

    async def _wait_for_cause(self) -> None:
        """A change, debounced; or enough time that clocks alone may have changed something."""
        settings = self._settings
        idle_s = min(settings.idle_plan_every_s, self._due_s)
        while (left_s := self._last_tick + idle_s - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(settings.poll_s, left_s)):
                    await self._wake.wait()
                break
            except TimeoutError:
                continue
        # A long plan holds up everything else in the process: it may take its share and no more.
        spent_s = self.stats.plan_seconds + self.stats.commit_seconds
        interval_s = spent_s / settings.busy_share_max
        if self._in_vain:
            longer_s = min(spent_s / settings.vain_share_max, settings.vain_wait_max_s)
            interval_s = max(interval_s, longer_s)
        interval_s = max(settings.tick_interval_min_s, interval_s)
        rest = interval_s - (time.monotonic() - self._last_tick)
        await asyncio.sleep(max(settings.debounce_s, rest))

    async def _tick(self, term: Term) -> None:
        self._wake.clear()
        started = self._last_tick = time.monotonic()
        moment = Moment(self._clock(), self._steady())
        world = self._worlds.build(moment.now, self._led_since, moment.steady)
        decided = await self._steer(world, moment)
        upgrades = await self._upgrades.batches(world, moment)
        decided = replace(decided, batches=(*decided.batches, *upgrades))
        self._memory = decided.memory
        self._due_s = min(decided.due_s, self._upgrades.due_s)
        self._reporter.told(decided.tells)
        planned = time.monotonic()
        done = await self._commit(decided, world.snapshot, term)
        self._publish(world.snapshot, decided.plan, moment)
        self._reporter.committed(done)
        self._reporter.explained(decided.plan)
        self._count(planned - started, time.monotonic() - planned, len(done.refused))
        if done.refused:
            log.info("parts of a plan were stale", extra={"keys": done.refused[:10]})
            self._wake.set()
        if self._roles.pending:
            self._wake.set()
        await self._catch_up(done.revision)
        await self._collect(moment, term)

    async def _steer(self, world: World, moment: Moment) -> Steering:
        size = max(1, len(world.snapshot.nodes)) * len(world.snapshot.workloads)
        settings = self._settings
        asked = (world, self._memory, moment, settings.seed, settings.guards)
        if size <= settings.inline_size_max:
            return steer(*asked)
        return await asyncio.to_thread(steer, *asked)

    async def _commit(self, decided: Steering, snapshot: Snapshot, term: Term) -> Committed:
        """The writes, then the plan, which counts on them; events only of what stands."""
        written = await self._committer.write(decided.batches, term, self._reporter.told)
        self._in_vain = decided.plan.changes_nothing and not decided.batches
        if written.refused:
            return Committed(written.revision, refused=written.refused)
        done = Committed()
        if not decided.plan.changes_nothing:
            done = await self._committer.commit(decided.plan, snapshot, term)
        done.revision = max(done.revision, written.revision)
        return done

    async def _collect(self, moment: Moment, term: Term) -> None:
        """Now and then: template revisions and tombstones that nobody needs."""
        last, every_s = self._last_collection, self._settings.collect_every_s
        if last is None or moment.steady - last >= every_s:
            self._last_collection = moment.steady
            await self._committer.collect_revisions(moment.now, term)
            await self._committer.forget_deleted(moment.now, term)

    async def _catch_up(self, revision: int) -> None:
        """The next plan must see what this one wrote, or it would be refused as stale."""
        if not revision:
            return
        try:
            async with asyncio.timeout(self._settings.catch_up_max_s):
                await self._cache.wait_for(revision)
        except TimeoutError:
            log.warning("the mirror is behind the leader's writes", extra={"revision": revision})

    # --- telling ---------------------------------------------------------------------------------

    def _publish(self, snapshot: Snapshot, decided: Plan, moment: Moment) -> None:
        self.told_at, self._told_steady = moment.now, moment.steady
        explanations: defaultdict[tuple[str, str], list[Explanation]] = defaultdict(list)
        for explanation in decided.explanations:
            explanations[(explanation.namespace, explanation.workload)].append(explanation)
        self.explanations = {key: tuple(found) for key, found in explanations.items()}
        names = {workload.uid: workload for workload in snapshot.workloads}
        self.desired = {
            (names[uid].namespace, names[uid].name): count for uid, count in decided.desired
        }

    def _count(self, plan_seconds: float, commit_seconds: float, refused: int) -> None:
        before = self.stats
        self.stats = LeaderStats(
            term=before.term,
            ticks=before.ticks + 1,
            failures=before.failures,
            plan_seconds=plan_seconds,
            commit_seconds=commit_seconds,
            refused=before.refused + refused,
        )

    def _tell_failure(self, error: Exception, failures: int) -> None:
        story = {
            "term": self.term,
            "revision": self._cache.revision,
            "failures": failures,
            "ticks": self.stats.ticks,
        }
        log.error("the leader's tick failed; trying again", exc_info=error, extra=story)
        self.stats = LeaderStats(
            term=self.stats.term, ticks=self.stats.ticks, failures=self.stats.failures + 1
        )
        if failures == 1:
            self._events.record(
                "Member",
                "",
                self._settings.member,
                common_pb2.EVENT_TYPE_WARNING,
                "LeaderTickFailed",
                f"planning fails at revision {self._cache.revision}: {error!r:.300}",
                f"leader/{self._settings.member}",
            )

    async def _back_off(self, failures: int) -> None:
        self._wake.set()
        await asyncio.sleep(min(self._settings.retry_max_s, 0.1 * 2 ** min(failures, 10)))

    # --- waking ----------------------------------------------------------------------------------

    def _on_changes(self, changes: list[Change]) -> None:
        self._worlds.on_changes(changes)
        if any(not change.key.startswith(keys.IDENTITIES) for change in changes):
            self._wake.set()

    def _on_node(self, _node: str) -> None:
        self._wake.set()
