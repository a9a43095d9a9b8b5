"""What must hold of jobs and schedules in a simulation. Used by `rollouts_checks.py`."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.records import NodePlacement, StoredResource
from orchestrator.store import keys
from polder.v1 import agent_pb2
from tests.sim.rollouts_records import assignments

if TYPE_CHECKING:
    from tests.sim.rollouts_world import World

BURST_S = 50.0
SUCCEEDED = agent_pb2.REPLICA_PHASE_SUCCEEDED
ENDED = ("Complete", "Failed", "DeadlineExceeded")


class JobChecks:
    """No more at once than asked for; what succeeded never runs again; a schedule never bursts."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._succeeded: set[tuple[str, str]] = set()  # as the leader was told
        self._ended: set[str] = set()
        self._runs: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def check(
        self,
        workload: StoredResource,
        before: Mapping[str, NodePlacement],
        after: Mapping[str, NodePlacement],
    ) -> None:
        """Of one job, after a tick."""
        parent, dash, _ = workload.name.rpartition("-")
        if dash and parent.startswith("cron"):
            self._check_burst(parent, workload)
        were = {a.replica_uid for _, a in assignments(workload.uid, before)}
        ended = self._hear(workload, were)
        active = set()
        for _, item in assignments(workload.uid, after):
            again = (workload.uid, item.replica) in self._succeeded
            if again and item.replica_uid not in were:
                self._world.broken(f"{item.replica} has succeeded, and is started again")
            if item.replica_uid not in ended:
                active.add(item.replica)
        allowed = workload.decoded.job_rules.parallelism
        if len(active) > allowed and not workload.deletion_requested_at_ms:
            self._world.broken(f"{workload.name}: {sorted(active)} run, {allowed} may at once")

    def _hear(self, workload: StoredResource, assigned: set[str]) -> set[str]:
        """Stays that ended, as far as the leader was told at some time."""
        ended = self._ended
        for agent in self._world.agents.values():
            for rec in agent.recs.values():
                if rec.workload_uid == workload.uid and rec.pod is not None and rec.pod.ended:
                    ended.add(rec.uid)
        for seen in self._world.fleet.nodes():
            for status in seen.replicas.values():
                if status.replica_uid in assigned and status.phase == SUCCEEDED:
                    self._succeeded.add((workload.uid, status.replica))
        return ended

    def _check_burst(self, parent: str, run: StoredResource) -> None:
        runs = self._runs[parent]
        if run.name not in runs:
            now = self._world.steady
            # One may be late, after a freeze for example, and the next on time.
            last = sorted([-BURST_S, -BURST_S, *runs.values()])[-2]
            runs[run.name] = now
            if now - last < BURST_S and not self._world.jumped_since(last - BURST_S):
                self._world.broken(f"{run.name} is the third within {now - last:.0f} s")


def unfinished(world: "World", workload: StoredResource) -> list[str]:
    """Why a job is not at rest."""
    record = world.mirror.kept_at(keys.job(workload.uid))
    state = record.body.get("job", {}) if record is not None else {}
    phase = state.get("phase", "not begun")
    if phase not in ENDED:
        return [f"job {workload.name} is {phase}"]
    return [] if state.get("message") else [f"job {workload.name} is {phase} without a reason"]
