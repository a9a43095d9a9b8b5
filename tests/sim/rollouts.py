"""Seeded simulation of everything that changes what runs, over the code that decides it.

    python -m tests.sim rollouts --seeds 500 [--first N]
    python -m tests.sim rollouts --seed N -v
    python -m tests.sim rollouts --exclusive    # replicas of which two must never run

Small worlds in virtual time: edits, bad images, scaling, undo, pauses, drains, cordons, windows of
maintenance, deletions, crashes, silent and dead nodes, new leaders, stale commits, freezes, and
wall clocks that jump by a day. `steer`, the plan, the placements and the leader's commits are the
real ones; agents are a model (`rollouts_agents.py`). What must hold at every step is in
`rollouts_checks.py`; at the end, when the disturbances stop, everything must come to rest as asked
or with a reason. A failing seed is printed and replays.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.sim.rollouts_alone import Alone
from tests.sim.rollouts_events import Events
from tests.sim.rollouts_rest import check_rest, heal
from tests.sim.rollouts_world import Violation, World

EVENTS_MAX = 30
REST_S = 3600.0
LOOK_S = 20.0


class Life:
    """One seed's story. `run` raises Violation."""

    def __init__(self, seed: int, verbose: bool = False, made: type[World] = World) -> None:
        self.world = made(seed, verbose)
        self.events = Events(self.world)

    def run(self) -> None:
        world = self.world
        try:
            self.events.begin()
            world.run_for(world.dice.uniform(1, 60))
            for _ in range(world.dice.randint(5, EVENTS_MAX)):
                self.events.happen()
                world.run_for(world.dice.choice([0.0, 0.3, 2.0, 8.0, 20.0, 45.0]))
            heal(world)
            self._rest()
        finally:
            world.close()

    def _rest(self) -> None:
        """Until all is as asked or explained, for a bounded time; then it must stay so."""
        world = self.world
        world.note("--- the disturbances stop")
        end = world.steady + REST_S
        problems = check_rest(world)
        while problems and world.steady < end:
            world.run_for(LOOK_S)
            problems = check_rest(world)
        if problems:
            world.broken(f"no rest after {REST_S:.0f} s: " + "; ".join(problems))
        revision = world.store.revision_now
        world.note(f"--- at rest, store revision {revision}")


def check(seed: int, made: type[World] = World) -> World:
    """Play one seed; returns its world for statistics. Raises Violation."""
    life = Life(seed, made=made)
    life.run()
    return life.world


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim rollouts")
    parser.add_argument("--seeds", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--exclusive", action="store_true", help="replicas that never run twice")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell everything that happens")
    given = parser.parse_args(arguments)
    first = given.first if given.seed is None else given.seed
    count = given.seeds if given.seed is None else 1
    began, failed, ticks, stops, taken = time.monotonic(), [], 0, 0, 0
    for seed in range(first, first + count):
        life = Life(seed, given.verbose, Alone if given.exclusive else World)
        try:
            life.run()
        except Exception as error:
            failed.append(seed)
            report(seed, life.world, error)
        ticks += life.world.ticks
        stops += life.world.checks.stops
        taken += life.world.checks.voluntary_stops
    spent = time.monotonic() - began
    print(
        f"{count} seeds in {spent:.0f} s: {ticks} ticks of the leader, {stops} stops or changes of"
        f" replicas, {taken} of them of one that served; {len(failed)} seeds failed"
    )
    if failed:
        print("failed:", *failed)
    return 1 if failed else 0


def report(seed: int, world: World, error: Exception) -> None:
    """The last that happened, and how to see it again."""
    print(f"seed {seed} FAILED: {type(error).__name__}: {error}")
    if not isinstance(error, Violation):
        import traceback

        traceback.print_exception(error)
    for line in world.story:
        print("   ", line[:220])
    print(f"    replay: python -m tests.sim rollouts --seed {seed} -v\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
