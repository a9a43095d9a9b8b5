"""A small world for rollouts: ticks of the leader, its records and memory, agents that obey."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.rollout_state import RolloutState, from_dict
from orchestrator.records import KeptRecord, NodePlacement, TemplateRevision
from orchestrator.scheduling import steer as steering
from orchestrator.scheduling.apply import applied, by_node
from orchestrator.scheduling.demands import Demands
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import Observed
from orchestrator.scheduling.steer import Memory, Moment, Steering, steer
from orchestrator.store import keys
from polder.manifest import PodTemplate, decode, digest
from tests.unit.scheduling_world import SMALL, World

TEMPLATE: dict[str, Any] = {"containers": [{"name": "app", "image": "app:1"}]}


def template(image: str, restarted_at: str = "") -> dict[str, Any]:
    extra = {"restartedAt": restarted_at} if restarted_at else {}
    return {"containers": [{"name": "app", "image": image}], **extra}


@dataclass
class RolloutWorld:
    """`bad`: images that never become ready; `crashing`: images that crash again and again."""

    world: World = field(default_factory=World)
    kept: dict[str, KeptRecord] = field(default_factory=dict)
    revisions: dict[tuple[str, int], TemplateRevision] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    bad: set[str] = field(default_factory=set)
    crashing: set[str] = field(default_factory=set)
    restarts: dict[str, int] = field(default_factory=dict)
    now: float = 1_000_000.0
    steady: float = 50.0
    store: int = 10
    told: list[str] = field(default_factory=list)
    writes: int = 0

    def apply(self, name: str, image: str, restarted_at: str = "", **facts: Any) -> None:
        """Create a workload, or give it another template."""
        uid = f"uid-{name}"
        if uid in self.world.workloads:
            self.world.update(name, SMALL)
            self.world.want(name, **facts)
        else:
            self.world.want(name, **facts)
        number, body = self.world.workloads[uid].revision, template(image, restarted_at)
        text = digest(decode(PodTemplate, body, "template"))
        self.revisions[(uid, number)] = TemplateRevision(uid, number, body, text, 0)

    def look(self) -> steering.World:
        snapshot = self.world.snapshot()
        return steering.World(snapshot, (), dict(self.revisions), dict(self.kept))

    def tick(self, seconds: float = 0.0, *, refuse: bool = False) -> Steering:
        """Time passes, and the leader acts once; `refuse`: its writes fail."""
        self.now, self.steady = self.now + seconds, self.steady + seconds
        seen = self.look()
        decided = steer(seen, self.memory, Moment(self.now, self.steady))
        self.memory = decided.memory
        self.told += [tell.reason for tell in decided.tells]
        if refuse and decided.batches:
            return decided
        for write in (write for batch in decided.batches for write in batch.writes):
            before = self.kept.get(write.key)
            assert write.expected == (before.store_revision if before is not None else 0)
            self.store += 1
            self.writes += 1
            if write.value is None:
                del self.kept[write.key]
            else:
                self.kept[write.key] = KeptRecord(write.key, json.loads(write.value), self.store)
        self.told += [tell.reason for batch in decided.batches for tell in batch.tells]
        for node, change in by_node(decided.plan).items():
            before_placed = self.world.placements.get(node, NodePlacement(node))
            after = applied(before_placed, change, now_ms=0)
            self.world.placements[node] = replace(
                after,
                secrets_digest=Carried(seen.snapshot).digest(node, after.assignments),
                demands_digest=Demands(seen.snapshot).digest(node, after.assignments),
            )
            self.world.gone -= {(node, uid) for uid in change.prune}
        self.world.revision += 1
        return decided

    def obey(self) -> None:
        """Agents run what they are told to, as well as the images let them."""
        world = self.world
        world.obey()
        for placement in world.placements.values():
            for item in placement.assignments:
                key = (placement.node, item.replica_uid)
                found = self.revisions.get((item.workload_uid, item.revision))
                image = found.template["containers"][0]["image"] if found is not None else ""
                if key not in world.observed:
                    continue
                if image in self.crashing:
                    self.restarts[item.replica_uid] = self.restarts.get(item.replica_uid, 0) + 1
                trouble = "CrashLoop" if image in self.crashing else "ImagePull"
                fine = image not in self.bad | self.crashing
                world.observed[key] = Observed(
                    running=fine,
                    ready=fine,
                    revision=item.revision,
                    ready_for_s=1e6 if fine else 0.0,
                    restarts=self.restarts.get(item.replica_uid, 0),
                    reason="" if fine else trouble,
                )

    def goes_on(self, seconds: float, step_s: float = 1.0) -> None:
        """Ticks, with agents that obey between them."""
        for _ in range(int(seconds / step_s)):
            self.obey()
            self.tick(step_s)
        self.obey()

    def state(self, name: str) -> RolloutState:
        """As recorded, with the clocks that are only in memory."""
        uid = f"uid-{name}"
        followed = self.memory.rollouts.followed.get(uid)
        if followed is not None:
            return followed.state
        return from_dict(self.kept[keys.rollout(uid)].body)

    def versions(self, name: str) -> dict[str, int]:
        """Replica -> revision of its newest stay."""
        found: dict[str, tuple[int, int]] = {}
        for placement in self.world.placements.values():
            for item in placement.assignments:
                if item.workload == name:
                    found[item.replica] = max(
                        found.get(item.replica, (-1, 0)), (item.epoch, item.revision)
                    )
        return {replica: revision for replica, (_, revision) in sorted(found.items())}
