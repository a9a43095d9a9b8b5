"""One tick of the leader, without I/O, clock or dice: the world in, what to write and do out.

The leader (`orchestrator/leader.py`) calls `steer` for every tick and commits what it answers; the
simulation in `tests/sim` plays whole stories with it. This module only composes: each machine lives
in its own module and knows nothing of the others.
"""

from dataclasses import dataclass, replace

from orchestrator.domain.jobs_runs import step_jobs
from orchestrator.domain.jobs_step import JobsMemory
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.tick import Moment, Tell, World, Write

__all__ = ["Memory", "Moment", "Steering", "Tell", "World", "Write", "steer"]

DUE_MAX_S = 60.0
"""However quiet it is, the leader looks again after so long."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known only from watching, between the ticks of one leader.

    A new leader starts with `Memory()`, and it is kept when a write is refused: so it may hold what
    was seen, and never what was decided.
    """

    jobs: JobsMemory = JobsMemory()


@dataclass(frozen=True, slots=True)
class Steering:
    """Each inner tuple of `writes` is one transaction. They come before the plan, which counts on
    them: when one is refused the plan is dropped. `due_s`: look again in at most so long."""

    plan: Plan
    writes: tuple[tuple[Write, ...], ...] = ()
    tells: tuple[Tell, ...] = ()
    memory: Memory = Memory()
    due_s: float = DUE_MAX_S


def steer(world: World, memory: Memory, moment: Moment, seed: int = 0) -> Steering:
    """What to write, to do and to tell. `seed` breaks ties between nodes that are equally good.

    A world that is incomplete, or that knows no node at all, stops nothing.
    """
    jobs = step_jobs(world, memory.jobs, moment)
    return Steering(
        plan(jobs.snapshot, moment.now, seed),
        writes=jobs.writes,
        tells=jobs.tells,
        memory=replace(memory, jobs=jobs.memory),
        due_s=min(DUE_MAX_S, jobs.due_s),
    )
