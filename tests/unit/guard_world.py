"""A small world with guard rails, on two clocks: the wall's, which may jump, and a steady one.

Ticks are those of the leader, without jobs and rollouts. Writes and plans are carried out at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.domain.guard import DEFAULT, GuardSettings
from orchestrator.domain.holds import Hold, holds_in
from orchestrator.domain.liveness import Liveness, liveness
from orchestrator.records import KeptRecord, NodePlacement, StoredResource
from orchestrator.scheduling.apply import applied, by_node
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.guards_step import GuardMemory, after_plan, before_plan
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Node, Snapshot
from orchestrator.scheduling.tick import Batch, Moment, Tell
from orchestrator.scheduling.tick import World as Seen
from tests.unit.scheduling_world import World, box

START = 1_700_000_000.0
HEARTBEAT_S = 5.0


@dataclass
class GuardedWorld:
    """`heard`: when each node was last heard, steady. `jump`: the wall clock's error."""

    world: World = field(default_factory=World)
    kept: dict[str, KeptRecord] = field(default_factory=dict)
    memory: GuardMemory = field(default_factory=GuardMemory)
    settings: GuardSettings = DEFAULT
    heard: dict[str, float] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    steady: float = 1_000.0
    listening_since: float = 0.0
    jump: float = 0.0
    told: list[tuple[str, str, str]] = field(default_factory=list)
    generations: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    revision: int = 1

    def sites(self, **sizes: int) -> "GuardedWorld":
        """Nodes named SITE-N, all heard of."""
        for site, count in sizes.items():
            for number in range(count):
                self.add(box(f"{site}-{number}", site))
        return self

    def add(self, *nodes: Node) -> None:
        self.world.add(*nodes)
        for node in nodes:
            self.heard[node.name] = self.steady

    def want(self, name: str, **facts: object) -> None:
        """As an operator's apply: every change is a new generation."""
        self.world.want(name, **facts)  # type: ignore[arg-type]
        uid = f"uid-{name}"
        self.generations[uid] = self.generations.get(uid, 0) + 1

    @property
    def now(self) -> float:
        return START + self.steady + self.jump

    def snapshot(self) -> Snapshot:
        for name, node in self.world.nodes.items():
            silence_s = self.steady - self.heard[name] if name in self.heard else None
            state = liveness(silence_s, name in self.heard, self.steady - self.listening_since)
            since = self.now - (silence_s or 0.0)
            self.world.nodes[name] = replace(node, liveness=state, since=since)
        return replace(self.world.snapshot(), complete=self.complete)

    def tick(self) -> Plan:
        """One tick, as the leader takes it; then live agents obey."""
        found = Seen(
            self.snapshot(),
            tuple(
                StoredResource("Workload", w.namespace, w.name, w.uid, {}, self._generation(w.uid))
                for w in self.world.workloads.values()
            ),
            kept=dict(self.kept),
        )
        moment = Moment(self.now, self.steady)
        guarded = before_plan(found, self.memory, moment, self.settings)
        self.memory = guarded.memory
        if guarded.refused:
            self._write(guarded.batches, guarded.tells)
            return Plan(0)
        decided = plan(guarded.world.snapshot, self.now)
        decided, held, self.memory = after_plan(decided, guarded, moment, self.settings)
        self._write((*guarded.batches, *held), guarded.tells)
        self._carry_out(decided)
        return decided

    def _generation(self, uid: str) -> int:
        return self.generations.get(uid, 1)

    def _write(self, batches: Iterable[Batch], tells: Iterable[Tell]) -> None:
        tells = [*tells, *(tell for batch in batches for tell in batch.tells)]
        for write in (write for batch in batches for write in batch.writes):
            stands = self.kept.get(write.key)
            assert write.expected == (stands.store_revision if stands is not None else 0)
            if write.value is None:
                del self.kept[write.key]
            else:
                self.revision += 1
                self.kept[write.key] = KeptRecord.from_bytes(write.key, write.value, self.revision)
        self.told += [(tell.reason, tell.name, tell.message) for tell in tells]

    def _carry_out(self, decided: Plan) -> None:
        for node, change in by_node(decided).items():
            before = self.world.placements.get(node, NodePlacement(node))
            self.world.placements[node] = applied(before, change, now_ms=int(self.now * 1000))
            self.world.gone -= {(node, uid) for uid in change.prune}
        for uid in decided.finished_workloads:
            del self.world.workloads[uid]
        for name in decided.finished_nodes:
            del self.world.nodes[name]
            self.world.placements.pop(name, None)
        self.world.obey()
        self.world.revision += 1

    def run(self, seconds: float, *, step: float = 1.0) -> int:
        """Time passes; nodes that are not silent beat. Returns how many stops were planned."""
        stops = 0
        end = self.steady + seconds
        while self.steady < end:
            self.steady += step
            for name in self.world.nodes:
                if name not in self.silent and self.steady - self.heard[name] >= HEARTBEAT_S:
                    self.heard[name] = self.steady
            stops += len(self.tick().stop)
        return stops

    def settle(self) -> None:
        for _ in range(20):
            if self.tick().changes_nothing:
                return
        raise AssertionError("the world does not settle")

    def fall_silent(self, *names: str) -> None:
        self.silent |= set(names)

    def speak(self, *names: str) -> None:
        self.silent -= set(names)
        for name in names:
            self.heard[name] = self.steady

    def new_leader(self) -> None:
        """Another member leads: it watched nothing, and knows what is in the Store."""
        self.memory = GuardMemory()
        self.listening_since = self.steady

    def restart(self) -> None:
        """The only member: nobody is heard yet."""
        self.new_leader()
        for name in self.heard:
            self.heard[name] = -1e9

    @property
    def holds(self) -> list[Hold]:
        return list(holds_in(self.kept).values())

    def approve(self, hold: Hold, by: str = "operator/ann") -> None:
        self.put(hold.by(by, self.now).record())

    def put(self, record: KeptRecord) -> None:
        self.revision += 1
        self.kept[record.key] = replace(record, store_revision=self.revision)

    def reasons(self) -> list[str]:
        return [reason for reason, _, _ in self.told]

    def state(self, node: str) -> Liveness:
        """As the leader takes it to be."""
        return self.memory.nodes[node].state
