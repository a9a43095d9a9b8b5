"""The world of a simulation of rollouts: virtual time, the Store, agents, and a leader's ticks.

Used by `rollouts.py`. The leader here composes what `orchestrator/leader.py` composes, in the same
order: the world from mirror and fleet, `steer`, its writes, the plan through the real committer.
Two clocks: the steady one moves with the events, the wall clock jumps when told to.
"""

import asyncio
import heapq
import random
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from orchestrator.domain.freezes import Freeze
from orchestrator.domain.holds import holds_in
from orchestrator.election import Term
from orchestrator.fleet import Fleet
from orchestrator.gateway.roles import RoleBook
from orchestrator.leader_commit import Committed, Committer
from orchestrator.leader_world import WorldBuilder
from orchestrator.records import NodeStatusRecord
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.steer import Memory, Moment, Steering, steer
from orchestrator.scheduling.steer import World as LeaderView
from orchestrator.scheduling.tick import Tell
from orchestrator.store import keys
from orchestrator.store.port import Delete, Op, Put
from tests.sim.rollouts_agents import Agent, Image, Rec
from tests.sim.rollouts_checks import Checks
from tests.sim.rollouts_store import FakeStore, Mirror, Operator

START = 1_700_000_000.0
IDLE_S = 5.0
DEBOUNCE_S = 0.05
STORY_LINES = 60
UNEXPECTED = ("RolloutUnreadable", "JobUnreadable")
"""Events that tell of an error in the leader, which it survives: every record here is its own."""


class Violation(AssertionError):
    """What must hold does not."""


class World:
    """One seed's world. `at` and `later` schedule; `run_until` lets time pass."""

    exclusive = False
    """Whether workloads are."""

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.steady = 1000.0
        self.skew = 0.0
        self._jumped_at = 0.0
        self.ticks = 0
        self.idle_s = IDLE_S
        self.refused = False  # some of the last tick's writes
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._verbose = verbose
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._made = 0
        self._tick_due = float("inf")
        self._loop = asyncio.new_event_loop()
        self.images: dict[str, Image] = {}
        self.agents: dict[str, Agent] = {}
        self.store = FakeStore()
        self.mirror = Mirror(self.store, lambda: self.wall)
        self.roles = RoleBook(self.mirror)
        self.operator = Operator(self.store, self.mirror, lambda: self.wall)
        self.checks = Checks(self)
        self.last: Steering = Steering(Plan(0))
        self.mirror.subscribe(lambda _changes: self.wake())
        self._unfollow: Callable[[], None] = lambda: None
        self.lead()

    def close(self) -> None:
        self._loop.close()

    @property
    def wall(self) -> float:
        return START + self.steady + self.skew

    def note(self, text: str) -> None:
        line = f"{self.steady - 1000:9.2f} {text}"
        self.story.append(line)
        if self._verbose:
            print(line)

    def broken(self, what: str) -> None:
        self.note(f"VIOLATION {what}")
        raise Violation(what)

    def image(self, name: str) -> Image:
        return self.images.get(name, Image(name))

    def plan_taken(self, agent: Agent) -> None:
        """It got what is in the Store."""

    def may_start(self, agent: Agent, rec: Rec) -> bool:
        """Whether its site lets a stay start."""
        return True

    def served(self, rec: Rec, serves: bool, order: str) -> None:
        self.checks.served(rec, serves, order)

    # --- time ------------------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[[], object]) -> None:
        self._made += 1
        heapq.heappush(self._queue, (self.steady + delay_s, self._made, action))

    def wake(self) -> None:
        self._expect_tick(DEBOUNCE_S)

    def _expect_tick(self, delay_s: float) -> None:
        due = self.steady + delay_s
        if due < self._tick_due:
            self._tick_due = due
            self.later(delay_s, self._on_due)

    def _on_due(self) -> None:
        if self.steady >= self._tick_due:
            self._tick_due = float("inf")
            self.tick()

    def run_for(self, seconds: float) -> None:
        self.run_until(self.steady + seconds)

    def run_until(self, end: float) -> None:
        while self._queue and self._queue[0][0] <= end:
            at, _, action = heapq.heappop(self._queue)
            self.steady = max(self.steady, at)
            action()
        self.steady = end

    # --- leading ---------------------------------------------------------------------------------

    def lead(self) -> None:
        """A member begins to lead: it remembers nothing, and every agent dials it anew."""
        self._unfollow()
        self.fleet = Fleet(self.wall, lambda: self.steady)
        self.builder = WorldBuilder(self.mirror, self.fleet, roles=self.roles)
        self._unfollow = self.mirror.subscribe(self.builder.on_changes)
        self.memory = Memory()
        self.led_at = self.steady
        result = self.store.transact([], [Put(keys.LEADER, b"sim")])
        self.term = Term(result.revision, 0)
        self.committer = Committer(
            self.store,  # type: ignore[arg-type]
            self.mirror,
            self.fleet,
            lambda: self.wall,
            self.roles,
        )
        self.checks.forget_reports()
        for agent in self.agents.values():
            if agent.connected:
                agent.connected = False
                self.later(self.dice.uniform(0.2, 5.0), agent.connect)
        self.wake()

    def decide(self) -> Steering:
        """The whole of the leader's thinking."""
        self.seen = self.distorted(self.builder.build(self.wall, self.led_at, self.steady))
        return steer(self.seen, self.memory, Moment(self.wall, self.steady))

    def distorted(self, seen: LeaderView) -> LeaderView:
        """What the leader sees. The self-check of the simulation makes it believe something."""
        return seen

    def tick(self) -> None:
        """One turn of the leader, in the order of `orchestrator/leader.py`."""
        self.ticks += 1
        decided = self.last = self.decide()
        self.memory = decided.memory
        before = {item.node: item for item in self.mirror.placements()}
        done = self._loop.run_until_complete(self._commit(decided))
        refused = bool(done.refused)
        self.refused = refused
        self.checks.committed(before, decided.plan)
        for name, agent in self.agents.items():
            now, then = self.mirror.placement(name), before.get(name)
            if now.generation != (then.generation if then is not None else 0):
                agent.expect_plan()
        for node in decided.plan.finished_nodes:
            if self.mirror.resource("Node", "", node) is None and node in self.agents:
                self.agents.pop(node).power_off()
                self.note(f"node {node} is gone")
        due_s = 0.0 if refused else min(self.idle_s, decided.due_s)
        self._expect_tick(max(DEBOUNCE_S, due_s))

    async def _commit(self, decided: Steering) -> Committed:
        """The writes, then the plan, which counts on them."""
        self._hear(decided.tells)
        for write in [write for batch in decided.batches for write in batch.writes]:
            self.note(f"write {write.key} {(write.value or b'deleted').decode()[:300]}")
        done = await self.committer.write(decided.batches, self.term, self._hear)
        if done.refused:
            self.note(f"REFUSED {done.refused}")
            return done
        if not decided.plan.changes_nothing:
            done = await self.committer.commit(decided.plan, self.seen.snapshot, self.term)
            self._tell(decided.plan)
            if done.refused:
                self.note(f"REFUSED {done.refused}")
        return done

    def _hear(self, tells: Iterable[Tell]) -> None:
        for tell in tells:
            self.note(f"tell {tell.kind}/{tell.name} {tell.reason}: {tell.message}")
            if tell.reason in UNEXPECTED:
                self.broken(f"{tell.name}: {tell.message}")

    def collect(self) -> int:
        """Template revisions that nobody needs are deleted, as the leader does now and then."""
        return self._loop.run_until_complete(self.committer.collect_revisions(self.wall, self.term))

    def _tell(self, plan: Plan) -> None:
        for place in plan.place:
            item = place.assignment
            text = f" replacing because {item.because}" if item.replaces else ""
            self.note(f"place {item.replica} r{item.revision} on {place.node}{text}")
        for stop in plan.stop:
            self.note(f"stop {stop.assignment.replica} on {stop.node}: {stop.cause} {stop.message}")
        for revise in plan.revise:
            was = revise.assignment
            self.note(f"revise {was.replica} on {revise.node} r{was.revision}->r{revise.revision}")

    # --- boxes -----------------------------------------------------------------------------------

    def add_node(self, name: str, site: str) -> Agent:
        """A box joins: its record, its inventory, its session."""
        self.operator.apply("Node", "", name, {"site": site})
        amounts = {"cpuMillis": 4000, "memoryBytes": 8 << 30, "diskBytes": 64 << 30}
        inventory = {
            "arch": "arm64",
            "capacity": amounts,
            "allocatable": amounts,
            "siteEndpoints": [f"{name}:7445"],
            "siteCertificate": b64encode(name.encode()).decode(),
        }
        status = NodeStatusRecord(name, "1", "b", inventory, int(self.wall * 1000))
        self.store.transact([], [Put(keys.node_status(name), status.to_bytes())])
        agent = self.agents[name] = Agent(self, name, site)
        agent.connect()
        return agent

    def refuse_next(self, share: float) -> None:
        """For one second some of the leader's transactions on placements and records are stale."""
        end = self.steady + 1.0

        def refuse(ops: Sequence[Op]) -> bool:
            if self.steady > end:
                return False
            watched = (keys.PLACEMENTS, *keys.KEPT)
            return ops[0].key.startswith(watched) and self.dice.random() < share

        self.store.refuse = refuse

    # --- operators' words that are records of their own -----------------------------------------

    def freeze(self, namespace: str) -> None:
        record = Freeze(namespace, "operator/sim", "", int(self.wall * 1000)).record()
        self.store.transact([], [Put(record.key, record.to_bytes())])

    def thaw(self, namespace: str) -> None:
        self.store.transact([], [Delete(keys.freeze(namespace))])

    def approve_all(self) -> None:
        """Whatever waits for an operator's word."""
        for hold in holds_in(self.mirror.kept(keys.HOLDS)).values():
            if not hold.approved:
                self.note(f"approve {hold.id}: {hold.message}")
                approved = hold.by("operator/sim", self.wall).record()
                self.store.transact([], [Put(hold.key, approved.to_bytes())])

    # --- what the checks ask ---------------------------------------------------------------------

    def is_frozen(self, namespace: str) -> bool:
        return any(self.mirror.kept_at(keys.freeze(name)) for name in ("", namespace))

    def jump(self, seconds: float) -> None:
        """The wall clock is set."""
        self.skew += seconds
        self._jumped_at = self.steady
        self.wake()

    def jumped_since(self, steady: float) -> bool:
        return self._jumped_at >= steady

    def region(self, site: str) -> str:
        record = self.mirror.resource("Site", "", site)
        return str(record.spec.get("region", "")) if record is not None else ""
