"""Operators at the nodes of a site, who stop, start, move and freeze, and what must hold of that.

Drawn by `site_story.py` in the kind "operators", with dice of their own:

- what is stopped begins nowhere where that is known, and runs nowhere once all have heard of it;
- no node forgets what was decided, through whatever happens to it;
- a node that knows that the site is frozen takes nothing over;
- of the nodes that share a replica all come to know the same;
- what is moved to a node that is able comes to run there, and stays there;
- once the site goes on and what was stopped is started, all is as if nothing had been.

That what is exclusive never runs twice is checked anyway.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.domain.roster import Key
from agent.domain.site.messages import Answer, OperatorDecided
from polder.overrides import FROZEN, PLACED_ON, SITE, STOPPED, TRUE, Override, newer
from tests.sim.site_world import Violation

if TYPE_CHECKING:
    from tests.sim.site_node import Node
    from tests.sim.site_story import Story

ANSWER_S = 5.0
STOP_S = 15.0  # until nobody is sent there any more, and the grace that it has
MOVE_S = 10.0
HOLDS_S = 40.0
STARTED_S = (2.0, 12.0, 25.0)  # after all is quiet


class Operators:
    """Those of one story."""

    def __init__(self, story: "Story") -> None:
        self.story = story
        self.dice = story.world.own_dice("operators")
        self._changes = 0

    # ---- what they do ----

    def happen(self) -> None:
        """One thing, at a node that may not know the newest, or not answer at all."""
        dice, node = self.dice, self.dice.choice(self.story.nodes)
        key = dice.choice(list(self.story.leader.replicas))
        what = dice.choice((STOPPED, STOPPED, "start", PLACED_ON, PLACED_ON, FROZEN, "unfreeze"))
        if what in (FROZEN, "unfreeze"):
            self.change_all(FROZEN, TRUE if what == FROZEN else "", miss=0.3)
        elif what == PLACED_ON:
            self.change(node, PLACED_ON, dice.choice(self.story.nodes).name, key)
        else:
            self.change(node, STOPPED, TRUE if what == STOPPED else "", key)

    def change(self, node: "Node", field: str, value: str, key: Key = SITE, id: str = "") -> str:
        """Says it to one node; at times twice. Its answer comes later, if at all."""
        self._changes += 1
        id = id or f"change-{self._changes}"
        namespace = "d" if key != SITE else ""
        wanted = Override(field, value, key[0], namespace, key[1], id, by="operator/sim")
        self.story.world.tell(f"operator at {node.name}: {field}={value!r} of {key[1]}")
        for _ in range(self.dice.choice((1, 1, 1, 2))):
            node.feed(OperatorDecided(wanted))
        return id

    def change_all(self, field: str, value: str, *, miss: float = 0.0) -> None:
        """Freezing is said to each node: those that share nothing do not speak with each other."""
        self._changes += 1
        for node in self.story.nodes:
            if self.dice.random() >= miss:
                self.change(node, field, value, id=f"all-{self._changes}")

    def calm(self) -> None:
        """The site goes on, and some of what was stopped is started."""
        started = [key for key in self.story.leader.replicas if self.dice.random() < 0.7]
        for delay in STARTED_S:
            self.story.world.after(delay, self._go_on, started)

    def _go_on(self, started: Iterable[Key]) -> None:
        for node in self._alive():
            if self.known([node], SITE, FROZEN):
                self.change(node, FROZEN, "")
        for key in started:
            knowing = [node for node in self._alive() if self.known([node], key, STOPPED)]
            if knowing:
                self.change(self.dice.choice(knowing), STOPPED, "", key)

    # ---- what is known ----

    def _alive(self) -> list["Node"]:
        return [self.story.by_name[name] for name in sorted(self.story.alive())]

    def known(self, nodes: Iterable["Node"], key: Key, field: str) -> str:
        """What counts, of what these know; empty: nothing stands."""
        found = [
            override
            for node in nodes
            if node.agent is not None
            for override in node.agent.machine.overrides()
            if override.register == (*key, field)
        ]
        return next((override.value for override in newer(found, {})), "")

    def concerned(self, key: Key) -> list["Node"]:
        """Living nodes that run it, may take it over or vote on it, by their own plans."""
        return [
            node
            for node in self._alive()
            if node.plan is not None
            and (
                key in node.plan.roles or any(a.key == key for a in node.plan.assignments.values())
            )
        ]

    def is_stopped(self, key: Key) -> bool:
        return self.known(self.concerned(key), key, STOPPED) == TRUE

    def wrong(self, key: Key, runs: set[tuple[str, str]]) -> str:
        """Of one replica, once all is quiet; empty: nothing is."""
        nodes = self.concerned(key)
        if not self.story.acquainted({node.name for node in nodes}):
            return ""
        for field in (STOPPED, PLACED_ON):
            values = {node.name: self.known([node], key, field) for node in nodes}
            if len(set(values.values())) > 1:
                return f"{field} of {key[1]} is {values}"
        where = {name for name, _ in runs}
        if self.is_stopped(key) and where & {node.name for node in nodes}:
            return f"{key[1]} is stopped, and runs on {sorted(runs)}"
        return ""

    # ---- how it ends ----

    def end(self, keys: Iterable[Key], starts_s: float) -> None:
        """One thing more, while all is well. Raises Violation."""
        keys = [key for key in keys if not self.is_stopped(key) and self._holders(key)]
        if keys:
            key = self.dice.choice(keys)
            self.dice.choice((self._is_moved, self._is_stopped_and_started))(key, starts_s)

    def _holders(self, key: Key) -> list[str]:
        return sorted({p.node for p in self.story.checks.running.get(key, {}).values()})

    def _said(self, node: "Node", id: str) -> Answer:
        world = self.story.world
        until = world.now + ANSWER_S
        while id not in node.answers:
            if world.now >= until:
                raise Violation(f"{node.name} does not answer its operator")
            world.run(world.now + 0.05)
        return node.answers[id]

    def _is_moved(self, key: Key, starts_s: float) -> None:
        story, holder = self.story, self._holders(key)[0]
        members = story.leader.groups[key][-1].members
        know = {node.name for node in self.concerned(key)}
        others = sorted((know & set(members)) - {holder})
        if not others:
            return
        target = self.dice.choice(others)
        at = story.by_name[self.dice.choice((holder, target))]
        answer = self._said(at, self.change(at, PLACED_ON, target, key))
        if answer.refusal is not None:
            if answer.refusal.reason not in ("NodeUnable", "NodeSilent"):
                raise Violation(f"{key[1]} is not moved to {target}: {answer.refusal}")
            return
        until = story.world.now + MOVE_S + STOP_S + starts_s
        while self._holders(key) != [target] or not story.is_ready(key):
            if story.world.now >= until:
                raise Violation(f"{key[1]} was moved to {target} and is on {self._holders(key)}")
            story.world.run(story.world.now + 0.1)
        story.world.run(story.world.now + HOLDS_S)
        if self._holders(key) != [target]:
            raise Violation(f"{key[1]} was moved to {target} and left it: {self._holders(key)}")

    def _is_stopped_and_started(self, key: Key, starts_s: float) -> None:
        story, world = self.story, self.story.world
        at = self.dice.choice(self.concerned(key))
        if self._said(at, self.change(at, STOPPED, TRUE, key)).override is None:
            raise Violation(f"{at.name} does not stop {key[1]}")
        world.run(world.now + STOP_S)
        for _ in range(20):
            if self._holders(key):
                raise Violation(f"{key[1]} is stopped, and runs on {self._holders(key)}")
            world.run(world.now + 1.0)
        at = self.dice.choice(self.concerned(key))
        if self._said(at, self.change(at, STOPPED, "", key)).override is None:
            raise Violation(f"{at.name} does not start {key[1]}")
        until = world.now + MOVE_S + starts_s
        while not story.is_ready(key):
            if world.now >= until:
                raise Violation(f"{key[1]} was started, and is not ready")
            world.run(world.now + 0.1)


class Heeded:
    """Since when each node knows that a replica is stopped, or the site frozen. Told by
    `site_node.py` after each event of its machine; asked by `site_checks.py` when something begins.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Override, ...]] = {}
        self._since: dict[tuple[str, Key], float] = {}

    def heeds(self, node: str, overrides: tuple[Override, ...], now: float) -> None:
        """Also through a restart: what was in force once is never forgotten."""
        before = self._seen.get(node, ())
        if before is overrides:
            return
        ranks = {override.register: override.rank for override in overrides}
        for known in before:
            if known.stands and ranks.get(known.register, (0, "", "")) < known.rank:
                raise Violation(f"{node} forgets {known}")
        self._seen[node] = overrides
        stopped = {o.subject for o in overrides if o.field != PLACED_ON and o.stands}
        gone = [known for known in self._since if known[0] == node and known[1] not in stopped]
        for known in gone:
            del self._since[known]
        for key in stopped:
            self._since.setdefault((node, key), now)

    def lost_its_disk(self, node: str) -> None:
        """What it knew it has to hear again."""
        self._seen.pop(node, None)
        for known in [known for known in self._since if known[0] == node]:
            del self._since[known]

    def for_s(self, node: str, key: Key, now: float) -> float:
        """0: it does not know of it."""
        return now - self._since.get((node, key), now)
