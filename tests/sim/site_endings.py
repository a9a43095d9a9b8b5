"""How a seed's story ends, once all is quiet and as it should be: one thing more happens, and what
that calls for must follow, in time, and nothing else.

    a node dies            its replicas run on others within five seconds and a start
    an agent restarts      nothing begins and nothing ends: peers and leases are patient
    the site has no power  all runs again within fifteen seconds of the agents and a start
    a link stays cut       nothing is lost, and nobody takes over again and again
    nothing                nothing

or an operator at the site moves something, or stops and starts it (`site_operators.py`).
"""

from collections.abc import Iterable

from agent.domain.roster import Group, Key
from tests.sim.site_leader import Replica
from tests.sim.site_node import Node
from tests.sim.site_story import Story
from tests.sim.site_world import Violation

SETTLED_S = 25.0  # a voter that remembers nothing votes again; moves that began are over
TAKEOVER_S = 5.0
COLD_BOOT_S = 15.0
AWAY_S = 8.0
RESTART_S = 30.0
CUT_S = 80.0
OPERATORS = 0.6  # how probable it is that they do that one thing, where there are any
ROUNDS_MAX = 6  # new processes of one replica while a link stays cut


def end(story: Story) -> None:
    """Raises Violation."""
    story.world.run(story.world.now + SETTLED_S)
    if story.operators is not None and story.operators.dice.random() < OPERATORS:
        story.operators.end(_expected(story), _starts_s(story))
        return
    endings = (_a_node_dies, _an_agent_restarts, _no_power, _a_link_stays_cut, _nothing)
    story.dice.choice(endings)(story)


def _start_s(node: Node) -> float:
    """What a start takes at most: an image, a sandbox, a container, its probe; and being seen."""
    return 2.3 * node.runtime.slow_s + node.runtime.warm_s + 2.5


def _starts_s(story: Story) -> float:
    return max(_start_s(node) for node in story.nodes)


def _agreed(story: Story, key: Key) -> bool:
    """Whether all voters of it that live know the same group."""
    groups: dict[str, Group] = {}
    for name in story.alive():
        plan = story.by_name[name].plan
        if plan is not None:
            items = [a for a in plan.assignments.values() if a.key == key]
            items += [role.assignment for k, role in plan.roles.items() if k == key]
            found = [item.group for item in items if item.group is not None]
            groups |= dict.fromkeys((name,), found[-1]) if found else {}
    if len({group.number for group in groups.values()}) != 1:
        return False
    voters = next(iter(groups.values())).voters
    return all(name in groups for name in story.alive() & set(voters))


def _wait_for(story: Story, keys: dict[Key, Replica], seconds: float, what: str) -> None:
    world = story.world
    until = world.now + seconds
    while not all(story.is_ready(key) for key in keys):
        if world.now >= until:
            lost = [key[1] for key in keys if not story.is_ready(key)]
            raise Violation(f"{what}: after {seconds:.1f} s {', '.join(lost)} is not ready")
        world.run(world.now + 0.1)


def _expected(story: Story) -> dict[Key, Replica]:
    """What must run with those that live, by plans that agree."""
    return {
        key: replica
        for key, replica in story.leader.replicas.items()
        if not replica.deleted
        and (story.leader.present or not replica.stop_after_s)
        and story.must_run(key, replica)
        and _agreed(story, key)
    }


def _a_node_dies(story: Story) -> None:
    living = sorted(story.alive())
    if not living:
        return
    node = story.by_name[story.dice.choice(living)]
    node.power_off()
    _wait_for(story, _expected(story), TAKEOVER_S + _starts_s(story), f"{node.name} died")


def _an_agent_restarts(story: Story) -> None:
    living = sorted(story.alive())
    if not living:
        return
    node = story.by_name[story.dice.choice(living)]
    away_s = story.dice.uniform(0.2, AWAY_S)
    spared = [key for key in _expected(story) if not _depends_on(story, key, node.name)]
    before = _doings(story, spared)
    node.restart(away_s)
    story.world.run(story.world.now + RESTART_S)
    if before != (after := _doings(story, spared)):
        raise Violation(f"{node.name} restarts its agent: {before} became {after}")


def _depends_on(story: Story, key: Key, name: str) -> bool:
    """Whether there is no majority without this node: its holder cannot renew meanwhile."""
    holders = {process.node for process in story.checks.running.get(key, {}).values()}
    group = story.leader.groups[key][-1]
    others = story.alive() & set(group.voters) - {name}
    return group.exclusive and name not in holders and len(others) < group.majority


def _doings(story: Story, keys: Iterable[Key]) -> dict[str, tuple[int, list[str]]]:
    """How often something of these began so far, and what runs of them."""
    checks = story.checks
    return {key[1]: (checks.begun.get(key, 0), sorted(checks.running.get(key, {}))) for key in keys}


def _no_power(story: Story) -> None:
    """All at once, with no orchestrator; those that were dead stay dead."""
    story.leader.present = False
    living = [story.by_name[name] for name in sorted(story.alive())]
    for node in living:
        node.power_off()
    expected_later = 3.0
    for node in living:
        story.world.after(expected_later, node.power_on, story.dice.uniform(0.1, 1.0))
    story.world.run(story.world.now + expected_later + 1.1)
    _wait_for(story, _expected(story), COLD_BOOT_S + _starts_s(story), "the power is back")


def _a_link_stays_cut(story: Story) -> None:
    living = sorted(story.alive())
    if len(living) < 2:
        return
    one, two = story.dice.sample(living, 2)
    story.sever(one, two, both=True, mend=False)
    expected = {
        key
        for key, replica in _expected(story).items()
        if not replica.exclusive or _somebody_reaches_a_majority(story, key, {one, two})
    }
    story.world.run(story.world.now + CUT_S / 2)
    before = dict(story.checks.begun)
    story.world.run(story.world.now + CUT_S / 2)
    for key in expected:
        if not story.is_ready(key):
            raise Violation(f"{key[1]} is lost while {one} and {two} are cut off from each other")
        rounds = story.checks.begun.get(key, 0) - before.get(key, 0)
        if rounds > ROUNDS_MAX:
            raise Violation(f"{key[1]} began {rounds} times while {one} and {two} are cut")


def _somebody_reaches_a_majority(story: Story, key: Key, cut: set[str]) -> bool:
    """Who may hold it, with the link between these two cut."""
    return any(
        all(
            name in group.members
            and story.reaches(name, group, but=cut - {name} if name in cut else ())
            >= group.majority
            for group in story.leader.groups[key]
        )
        for name in story.alive()
    )


def _nothing(story: Story) -> None:
    keys = list(_expected(story))
    before = _doings(story, keys)
    story.world.run(story.world.now + RESTART_S)
    if before != (after := _doings(story, keys)):
        raise Violation(f"nothing happens: {before} became {after}")
