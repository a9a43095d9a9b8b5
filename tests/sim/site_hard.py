"""What is rare and bad at a site: lost disks, suspended boxes, wrong wall clocks, weeks away.

Drawn by `site_story.py` in the kind "hard", with dice of its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.site_node import Node
    from tests.sim.site_story import Story

DAY_S = 86_400.0
SKEWS_S = (-365 * DAY_S, -600.0, 600.0, 9 * DAY_S)
WEEK_S = 8 * DAY_S  # longer than a plan lets a site take over by itself


def happen(story: "Story") -> None:
    """One of these."""
    happenings: tuple[Callable[[Story, Node], None], ...] = (
        _suspended,
        _suspended,
        _disk_lost,
        _wall_clock,
        _week_away,
    )
    dice = story.hard_dice
    dice.choice(happenings)(story, dice.choice(story.nodes))


def _suspended(story: "Story", node: "Node") -> None:
    node.suspend()
    story.world.after(story.hard_dice.choice((0.5, 2.0, 4.0, 10.0, 30.0)), node.wake)


def _disk_lost(story: "Story", node: "Node") -> None:
    """With the box, or with its agent's directory alone: then what it started runs on."""
    dice = story.hard_dice
    node.wake()
    if dice.random() < 0.5:
        node.power_off()
        story.later(dice.choice((1.0, 10.0)), node.power_on, 0.5)
    else:
        node.crash(dice.choice((0.2, 2.0, 10.0)))
    node.lose_disk()
    story.leader.joins_again(node.name)
    if dice.random() < 0.5:  # and its agent begins anew while it waits for what it forgot
        story.later(dice.choice((3.0, 9.0, 16.0)), node.crash, 0.3)


def _wall_clock(story: "Story", node: "Node") -> None:
    """Of one node or of all: where they have no battery they begin somewhere."""
    dice = story.hard_dice
    skew = dice.choice(SKEWS_S)
    for one in story.nodes if dice.random() < 0.3 else (node,):
        story.world.tell(f"the wall clock of {one.name} is wrong by {skew / DAY_S:g} days")
        one.skew = skew


def _week_away(story: "Story", node: "Node") -> None:
    """Its agent comes back after a week with the plan of then, and what it started still runs;
    meanwhile the leader gave what it had to others."""
    dice, leader = story.hard_dice, story.leader
    node.wake()
    node.crash(dice.choice((5.0, 15.0)))
    node.away(WEEK_S)
    others = [other.name for other in story.nodes if other is not node]
    for key, replica in leader.replicas.items():
        if leader.present and others and not replica.deleted and dice.random() < 0.7:
            leader.move(key, dice.choice(others))
