"""A small world for scheduling tests: apply a plan, let agents obey, plan again.

It plays the Store and the agents as values, without I/O, so that many plans run in milliseconds.
"""

from dataclasses import dataclass, field, replace

from orchestrator.domain.liveness import Liveness
from orchestrator.domain.overrides import LocalOverride, decisions
from orchestrator.records import NodePlacement
from orchestrator.scheduling.apply import applied, by_node
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.demands import Demands
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import (
    Namespace,
    Node,
    Observed,
    Resources,
    Site,
    Snapshot,
    Template,
    Workload,
)

SMALL = Template(Resources(cpu_millis=100, memory_bytes=64 << 20))


def box(name: str, site: str = "s1", **facts: object) -> Node:
    defaults = {
        "country": "NL",
        "region": "eu",
        "provider": "p",
        "arch": "arm64",
        "allocatable": Resources(1000, 1 << 30, 10 << 30),
    }
    return Node(name, site, **{**defaults, **facts})  # type: ignore[arg-type]


@dataclass
class World:
    nodes: dict[str, Node] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    templates: dict[tuple[str, int], Template] = field(default_factory=dict)
    placements: dict[str, NodePlacement] = field(default_factory=dict)
    observed: dict[tuple[str, str], Observed] = field(default_factory=dict)
    gone: set[tuple[str, str]] = field(default_factory=set)
    secrets: dict[tuple[str, str], str] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    volumes: dict[tuple[str, str], str] = field(default_factory=dict)
    using: set[str] = field(default_factory=set)
    fenced: set[str] = field(default_factory=set)
    local: list[LocalOverride] = field(default_factory=list)
    revision: int = 1
    now: float = 0.0

    def add(self, *nodes: Node) -> "World":
        self.nodes.update({node.name: node for node in nodes})
        return self

    def change(self, name: str, **facts: object) -> None:
        self.nodes[name] = replace(self.nodes[name], **facts)  # type: ignore[arg-type]

    def want(self, name: str, template: Template = SMALL, **facts: object) -> None:
        uid = f"uid-{name}"
        before = self.workloads.get(uid)
        if before is None:
            self.workloads[uid] = Workload(uid, "ns", name, **facts)  # type: ignore[arg-type]
            self.templates[(uid, 1)] = template
        else:
            self.workloads[uid] = replace(before, **facts)  # type: ignore[arg-type]

    def update(self, name: str, template: Template) -> None:
        uid = f"uid-{name}"
        number = self.workloads[uid].revision + 1
        self.workloads[uid] = replace(self.workloads[uid], revision=number)
        self.templates[(uid, number)] = template

    def snapshot(self) -> Snapshot:
        return Snapshot(
            revision=self.revision,
            nodes=tuple(self.nodes.values()),
            workloads=tuple(self.workloads.values()),
            placements=dict(self.placements),
            templates=dict(self.templates),
            observed=dict(self.observed),
            foreign=frozenset(key for key, seen in self.observed.items() if seen.is_foreign),
            gone=frozenset(self.gone),
            secrets=dict(self.secrets),
            sites=dict(self.sites),
            namespaces=dict(self.namespaces),
            volumes=dict(self.volumes),
            using=frozenset(self.using),
            fenced=frozenset(self.fenced),
            local=decisions(override.record() for override in self.local),
        )

    def step(self) -> Plan:
        """Plan and commit everything."""
        snapshot = self.snapshot()
        decided = plan(snapshot, self.now)
        for node, change in by_node(decided).items():
            before = self.placements.get(node, NodePlacement(node))
            after = applied(before, change, now_ms=0)
            digest = Carried(snapshot).digest(node, after.assignments)
            demands = Demands(snapshot).digest(node, after.assignments)
            self.placements[node] = replace(after, secrets_digest=digest, demands_digest=demands)
            self.gone -= {(node, uid) for uid in change.prune}
            self._change_plans_around(node, before, after)
        self.volumes |= {(bind.namespace, bind.replica): bind.node for bind in decided.bind}
        for unbind in decided.unbind:
            del self.volumes[(unbind.namespace, unbind.replica)]
        for uid in decided.finished_workloads:
            del self.workloads[uid]
        for name in decided.finished_nodes:
            del self.nodes[name]
            self.placements.pop(name, None)
        self.revision += 1
        return decided

    def _change_plans_around(self, node: str, before: NodePlacement, after: NodePlacement) -> None:
        """A node uses its plan until it is another; so do those whose part in its replicas is."""
        self.using.discard(node)
        shared = [
            {item.replica_uid: item.group for item in placement.assignments if item.group}
            for placement in (before, after)
        ]
        for uid in shared[0].keys() | shared[1].keys():
            groups = [found.get(uid) for found in shared]
            if groups[0] != groups[1]:
                named = {name for group in groups if group for name in group.voters}
                self.using -= named
                for name in named - {node}:
                    self.placements.setdefault(name, NodePlacement(name, 1))

    def obey(self, *, ready: bool = True) -> None:
        """Every live agent runs what its plan says, and has stopped what it says."""
        for name, placement in self.placements.items():
            if name not in self.nodes or self.nodes[name].liveness is not Liveness.LIVE:
                continue
            for item in placement.assignments:
                self.observed[(name, item.replica_uid)] = Observed(True, ready, item.revision)
            self.gone |= {(name, stop.replica_uid) for stop in placement.stops}
            self.using.add(name)

    def settle(self, rounds: int = 50) -> list[Plan]:
        """Obey and step until nothing changes; the plans on the way."""
        plans = []
        for _ in range(rounds):
            self.obey()
            plans.append(self.step())
            if plans[-1].changes_nothing:
                return plans
        raise AssertionError("the world does not settle")

    def where(self) -> dict[str, str]:
        """Replica -> node."""
        return {
            item.replica: name
            for name, placement in sorted(self.placements.items())
            for item in placement.assignments
        }
