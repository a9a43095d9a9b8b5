"""A small fleet and a leader without I/O, for tests of jobs and schedules.

The store, its mirror, the leader's thinking and its committer are the real ones; agents do at once
what a plan says, and containers end when a test says so. Two clocks, as the leader has them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from orchestrator.domain.jobs import JobState
from orchestrator.domain.jobs_step import JOB, SCHEDULE
from orchestrator.domain.schedules import ScheduleState
from orchestrator.election import Term
from orchestrator.fleet import Fleet
from orchestrator.leader_commit import Committer
from orchestrator.leader_world import WorldBuilder
from orchestrator.records import AssignmentRecord, NodeStatusRecord, StoredResource
from orchestrator.scheduling.steer import Memory, Moment, Steering, Tell, steer
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2
from tests.sim.rollouts_store import FakeStore, Mirror, Operator

# 2026-11-22 00:00 UTC.
START = 1_795_305_600.0
TEMPLATE = {"containers": [{"name": "main", "image": "job:1"}]}

Ended = agent_pb2.REPLICA_PHASE_SUCCEEDED, agent_pb2.REPLICA_PHASE_FAILED


class JobsWorld:
    """`tick` once, or `settle` until nothing changes; `pass_s` lets time pass on both clocks."""

    def __init__(self, *nodes: str) -> None:
        self.steady = 5_000.0
        self.wall = START
        self.store = FakeStore()
        self.mirror = Mirror(self.store, lambda: self.wall)
        self.operator = Operator(self.store, self.mirror, lambda: self.wall)
        self.tells: list[Tell] = []
        self.stops: list[tuple[str, str]] = []  # replica, cause
        self.nodes = nodes or ("n1", "n2", "n3")
        self.silent: set[str] = set()
        self.operator.apply("Namespace", "", "default", {})
        self.operator.apply("Provider", "", "telco", {"legalName": "T", "seatCountry": "NL"})
        self.operator.apply("Site", "", "s1", {"provider": "telco", "country": "NL"})
        for node in self.nodes:
            self._join(node)
        self.fleet: Fleet
        self.lead()

    def _join(self, node: str) -> None:
        self.operator.apply("Node", "", node, {"site": "s1"})
        amounts = {"cpuMillis": 8000, "memoryBytes": 8 << 30, "diskBytes": 64 << 30}
        inventory = {"arch": "arm64", "capacity": amounts, "allocatable": amounts}
        status = NodeStatusRecord(node, "1", "b", inventory, int(self.wall * 1000))
        self.store.transact([], [Put(keys.node_status(node), status.to_bytes())])

    def lead(self, *, agents_report: bool = True) -> None:
        """Another member leads: it remembers nothing, and hears of agents anew."""
        before = getattr(self, "fleet", None)
        self.fleet = Fleet(self.wall, lambda: self.steady)
        self.builder = WorldBuilder(self.mirror, self.fleet)
        self.mirror.subscribe(self.builder.on_changes)
        self.memory = Memory()
        self.led_at = self.steady
        result = self.store.transact([], [Put(keys.LEADER, b"test")])
        self.term = Term(result.revision, 0)
        self.committer = Committer(self.store, self.mirror, self.fleet, lambda: self.wall)  # type: ignore[arg-type]
        for node in self.nodes if agents_report else ():
            seen = self.fleet.observe(node)
            old = before.get(node) if before is not None else None
            if old is not None:
                seen.replicas.update(old.replicas)
        self.hear()

    # --- time and ticks --------------------------------------------------------------------------

    def pass_s(self, seconds: float, *, wall: float | None = None) -> None:
        """`wall`: by how much the wall clock moves, if not by as much."""
        self.steady += seconds
        self.wall += seconds if wall is None else wall
        self.hear()

    def hear(self) -> None:
        for node in self.nodes:
            if node not in self.silent:
                seen = self.fleet.heard(node, self.wall)
                seen.connected = seen.complete = True

    def tick(self, *, agents: bool = True, meddle: Callable[[], None] = lambda: None) -> Steering:
        """`meddle`: what others write between the look and the write."""
        world = self.builder.build(self.wall, self.led_at, self.steady)
        decided = steer(world, self.memory, Moment(self.wall, self.steady))
        self.memory = decided.memory
        self.tells += decided.tells
        meddle()
        written = asyncio.run(self.committer.write(decided.batches, self.term, self.tells.extend))
        if not written.refused:
            asyncio.run(self.committer.commit(decided.plan, world.snapshot, self.term))
            self.stops += [(s.assignment.replica, s.cause.value) for s in decided.plan.stop]
        if agents:
            self.agents()
        return decided

    def settle(self, ticks: int = 20) -> None:
        """Until a tick changes nothing."""
        for _ in range(ticks):
            before = self.store.revision_now
            self.tick()
            if self.store.revision_now == before:
                return
        raise AssertionError("it does not settle")

    def run(self, seconds: float, every: float = 5.0) -> None:
        """Time passes in steps, with a tick each; then it settles."""
        for _ in range(int(seconds / every)):
            self.pass_s(every)
            self.tick()
        self.settle()

    # --- agents ----------------------------------------------------------------------------------

    def agents(self) -> None:
        """Every box that is heard does what its placement says."""
        for node in self.nodes:
            if node in self.silent:
                continue
            seen, placement = self.fleet.observe(node), self.mirror.placement(node)
            seen.acked_generation = placement.generation
            for item in placement.assignments:
                if item.replica_uid not in seen.replicas:
                    seen.replicas[item.replica_uid] = agent_pb2.ReplicaStatus(
                        replica=item.replica,
                        replica_uid=item.replica_uid,
                        phase=agent_pb2.REPLICA_PHASE_RUNNING,
                        ready=True,
                        revision=item.revision,
                    )
            for stop in placement.stops:
                seen.replicas.pop(stop.replica_uid, None)
                seen.gone.add(stop.replica_uid)

    def end(self, replica: str, *, ok: bool = True, reason: str = "Error", node: str = "") -> str:
        """The containers of its running stay end; returns the uid."""
        for name, item in self.placed():
            replicas = self.fleet.observe(name).replicas
            status = replicas.get(item.replica_uid)
            if item.replica != replica or status is None or node not in ("", name):
                continue
            if status.phase in Ended:
                continue
            replicas[item.replica_uid] = agent_pb2.ReplicaStatus(
                replica=item.replica,
                replica_uid=item.replica_uid,
                phase=Ended[0] if ok else Ended[1],
                reason="" if ok else reason,
                revision=item.revision,
            )
            return item.replica_uid
        raise AssertionError(f"{replica} does not run")

    # --- looking ---------------------------------------------------------------------------------

    def job(self, name: str = "job", **spec: Any) -> StoredResource:
        body = {"template": TEMPLATE, "run": "once", **spec}
        return self.operator.apply("Workload", "default", name, body)

    def workload(self, name: str = "job") -> StoredResource | None:
        return self.mirror.resource("Workload", "default", name)

    def workloads(self) -> list[str]:
        return sorted(record.name for record in self.mirror.resources("Workload"))

    def state(self, name: str = "job") -> JobState:
        return JobState.from_body(self._kept(name)[JOB])

    def schedule(self, name: str = "job") -> ScheduleState:
        return ScheduleState.from_body(self._kept(name)[SCHEDULE])

    def _kept(self, name: str) -> dict[str, Any]:
        record = self.workload(name)
        assert record is not None
        kept = self.mirror.kept_at(keys.job(record.uid))
        assert kept is not None
        return kept.body

    def placed(self) -> list[tuple[str, AssignmentRecord]]:
        return [
            (placement.node, item)
            for placement in self.mirror.placements()
            for item in placement.assignments
        ]

    def running(self) -> list[str]:
        """Names of the replicas whose containers run, on boxes that are heard or not."""
        return sorted(
            item.replica
            for node, item in self.placed()
            if (status := self.fleet.observe(node).replicas.get(item.replica_uid)) is not None
            and status.phase == agent_pb2.REPLICA_PHASE_RUNNING
        )

    def told(self, reason: str) -> list[str]:
        return [tell.message for tell in self.tells if tell.reason == reason]
