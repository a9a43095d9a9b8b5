"""One tick of the leader, without I/O, clock or dice: the world in, what to write and do out.

The leader (`orchestrator/leader.py`) calls `steer` for every tick and commits what it answers; the
simulation in `tests/sim` plays whole stories with it. This module only composes: each machine lives
in its own module and knows nothing of the others.
"""

from dataclasses import dataclass, replace

from orchestrator.domain.adoption_step import adopt
from orchestrator.domain.fences import sweep
from orchestrator.domain.guard import DEFAULT, GuardSettings
from orchestrator.domain.images import learn
from orchestrator.domain.jobs_runs import step_jobs
from orchestrator.domain.jobs_step import JobsMemory
from orchestrator.domain.overrides_step import settle
from orchestrator.domain.site_freezes import set_aside
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.guards_step import GuardMemory, after_plan, before_plan
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.rollouts import RolloutMemory, steer_rollouts
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.strays import recall, unrecorded
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write

__all__ = ["Batch", "Memory", "Moment", "Steering", "Tell", "World", "Write", "steer"]

RIPE_CHECK_S = 1.0
DUE_MAX_S = 60.0
"""However quiet it is, the leader looks again after so long."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known only from watching, between the ticks of one leader.

    A new leader starts with `Memory()`, and it is kept when a write is refused: so it may hold what
    was seen, and never what was decided.
    """

    guards: GuardMemory = GuardMemory()
    jobs: JobsMemory = JobsMemory()
    rollouts: RolloutMemory = RolloutMemory()


@dataclass(frozen=True, slots=True)
class Steering:
    """`batches` come before the plan, which counts on them: when one is refused the plan is
    dropped. `tells`: what was seen, with nothing to write; they are told once the memory is kept.
    `due_s`: look again in at most so long."""

    plan: Plan
    batches: tuple[Batch, ...] = ()
    tells: tuple[Tell, ...] = ()
    memory: Memory = Memory()
    due_s: float = DUE_MAX_S


def steer(
    world: World, memory: Memory, moment: Moment, seed: int = 0, guards: GuardSettings = DEFAULT
) -> Steering:
    """What to write, to do and to tell. `seed` breaks ties between nodes that are equally good.

    A world that is incomplete, or that cannot be true, changes nothing; one that knows no node at
    all stops nothing.
    """
    guarded = before_plan(world, memory.guards, moment, guards)
    memory = replace(memory, guards=guarded.memory)
    if guarded.refused:
        nothing = Plan(world.snapshot.revision)
        return Steering(nothing, guarded.batches, guarded.tells, memory)
    adopted = adopt(guarded.world, moment)
    recalled = (
        *adopted.batches,
        *recall(adopted.world, moment),
        *sweep(guarded.world),
        *settle(adopted.world, moment),
        *learn(guarded.world, moment),
    )
    jobs = step_jobs(adopted.world, memory.jobs, moment)
    seen = replace(world, snapshot=jobs.snapshot)
    left = memory.guards.held | set_aside(seen.snapshot)
    rollouts = steer_rollouts(seen, memory.rollouts, moment, left)
    apart = unrecorded(guarded.world.strays, rollouts.snapshot)
    decided = plan(replace(rollouts.snapshot, unrecorded=apart), moment.now, seed)
    decided, held, guarding = after_plan(decided, guarded, moment, guards)
    return Steering(
        decided,
        batches=(*guarded.batches, *recalled, *jobs.batches, *rollouts.batches, *held),
        tells=(*guarded.tells, *jobs.tells, *rollouts.tells),
        memory=Memory(guarding, jobs.memory, rollouts.memory),
        due_s=min(DUE_MAX_S, jobs.due_s, rollouts.due_s, _ripens_s(decided, rollouts.snapshot)),
    )


def _ripens_s(decided: Plan, snapshot: Snapshot) -> float:
    """Look again soon where a step waits until a replica has been ready for `minReady`: nobody
    tells when that is over."""
    codes = ("ReplacementWaits", "DrainBlocked")
    waits = {(e.namespace, e.workload) for e in decided.explanations if e.code in codes}
    if waits and any(
        (workload.namespace, workload.name) in waits and workload.update.min_ready
        for workload in snapshot.workloads
    ):
        return RIPE_CHECK_S
    return DUE_MAX_S
