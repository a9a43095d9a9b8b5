"""A site alone in virtual time: nobody holds twice what may run but once, and nothing is lost.

    python -m tests.sim site [--seeds N] [--seed S] [--only KIND] [--story]

`agent/domain/site/` decides, with the agent's own reconciler below it and the orchestrator's roles
above; boxes, links, clocks, disks, the dead-man's switch and the orchestrator are models
(`site_world.py`, `site_box.py`, `site_node.py`, `site_leader.py`). What must hold is in
`site_checks.py` and at the end of `site_story.py`. A seed that fails is printed and replays; with
`--story` it is told what happened when. What kind of story a seed tells is its own choice, if
--only does not say:

    plain   links, agents, boxes, disks that fail for a while, uplinks, what a leader decides
    hard    also lost disks, suspended boxes, wrong wall clocks, weeks away
    operators   also people at the site who stop, start, move and freeze
    liar    one of the voters grants what it must not; all exclusive
    desk    the leases alone, asked for by all members all the time; only if asked for
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from agent.domain.site.machine import SiteMachine
from tests.sim.site_desk import DeskMachine
from tests.sim.site_endings import end
from tests.sim.site_node import Machine
from tests.sim.site_story import Kind, Story
from tests.sim.site_world import Dice, Violation

MAKERS: dict[str, tuple[Callable[[str], Machine], Kind]] = {
    "plain": (SiteMachine, Kind()),
    "hard": (SiteMachine, Kind(hard=0.25)),
    "operators": (SiteMachine, Kind(operators=0.3)),
    "liar": (SiteMachine, Kind(exclusive=1.0, liar=True)),
    "desk": (DeskMachine, Kind(exclusive=1.0)),
}
SITE = "site"  # any of these, as the seed has it
KINDS = {"plain": 5, "hard": 2, "operators": 2, "liar": 1}
ENDED = ("plain", "hard", "operators")  # kinds that end as `site_endings.py` says
STORY_LINES = 400


def kind_of(seed: int) -> str:
    """What `site` plays with it. By dice of its own: each kind plays on as it did when another
    is added."""
    return Dice(f"{seed}/kind").choices(list(KINDS), list(KINDS.values()))[0]


def check(seed: int, only: str = SITE) -> Story:
    """Raises Violation, or whatever the machines raised; the story is in its notes."""
    only = kind_of(seed) if only == SITE else only
    make, kind = MAKERS[only]
    story = Story(seed, make, kind)
    try:
        story.tell()
        if only in ENDED:
            end(story)
    except Exception as error:
        for line in story.world.story[-STORY_LINES:]:
            error.add_note(line)
        raise
    return story


def _try(seed: int, only: str) -> tuple[int, str, list[str]]:
    """For a pool: what failed, in words; empty if nothing did."""
    try:
        check(seed, only)
    except Violation as error:
        return seed, str(error), _story_of(error)
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}", _story_of(error)
    return seed, "", []


def _story_of(error: Exception) -> list[str]:
    return getattr(error, "__notes__", [])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim site")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--only", choices=[SITE, *MAKERS], default=SITE)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--story", action="store_true", help="tell what happened when")
    given = parser.parse_args(arguments)
    began, failed = time.monotonic(), 0
    seeds = range(given.seed, given.seed + given.seeds)
    with multiprocessing.Pool(min(given.jobs, given.seeds)) as pool:
        for seed, error, story in pool.imap(partial(_try, only=given.only), seeds, chunksize=4):
            if error:
                failed += 1
                if given.story:
                    print("\n".join(story))
                print(f"seed {seed} FAILED: {error}")
                print(f"replay: python -m tests.sim site --only {given.only} --seed {seed} "
                      f"--seeds 1 --story", flush=True)  # fmt: skip
    print(f"{given.seeds} seeds, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0
