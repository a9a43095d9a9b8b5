"""Leases in worlds where anything goes wrong at any moment: never two holders, and epochs rise.

`lease_world.World` asserts both whenever a desk says that it holds the replica. Clocks are as wrong
as they may be. When all is well again, somebody holds it soon.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agent.domain.roster import Group
from agent.domain.site.lease import LEASE_MAX_S
from tests.emulated import EMULATED
from tests.unit.lease_world import World, after, group

NAMES = "abcde"
names = st.sampled_from(NAMES)


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(NAMES, drift=0.01)
        self.groups: list[Group] = []

    @initialize(members=st.sampled_from(["ab", "abc", "a", "bc"]), witness=st.booleans())
    def begin(self, members: str, witness: bool) -> None:
        self.groups = [group(7, members, "d" if witness else "")]
        self.world.boot(NAMES)
        self.world.run(LEASE_MAX_S * 1.05)
        self.world.plan(NAMES, self.groups[0])

    @rule(name=names, wants=st.booleans())
    def want(self, name: str, wants: bool) -> None:
        self.world.want(name, wants)

    @rule(index=st.integers(0, 30), keep=st.booleans())
    def deliver(self, index: int, keep: bool) -> None:
        """In any order, and twice."""
        if self.world.words:
            self.world.deliver(index % len(self.world.words), keep)

    @rule(indices=st.lists(st.integers(0, 30), min_size=1, max_size=12))
    def deliver_many(self, indices: list[int]) -> None:
        for index in indices:
            self.deliver(index, False)

    @rule(index=st.integers(0, 30))
    def lose(self, index: int) -> None:
        if self.world.words:
            self.world.words.pop(index % len(self.world.words))

    @rule(name=names, ok=st.booleans())
    def save(self, name: str, ok: bool) -> None:
        if self.world.boxes[name].saving:
            self.world.save(name, ok)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.5, 3.5]))
    def jump(self, seconds: float) -> None:
        """Time passes while nothing is delivered."""
        self.world.t += seconds
        for name in NAMES:
            if self.world.boxes[name].desk is not None:
                self.world._tick(self.world.t + 1e-6)
                break

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.5, 4.0]))
    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(name=names, node=st.booleans())
    def crash(self, name: str, node: bool) -> None:
        self.world.crash(name, node=node)

    @rule(name=names)
    def boot(self, name: str) -> None:
        if self.world.boxes[name].desk is None:
            self.world.boot(name, same_boot=self.world.boxes[name].runs)

    @rule(name=names)
    def stop(self, name: str) -> None:
        self.world.stop(name)

    @rule(name=names)
    def restarting(self, name: str) -> None:
        desk = self.world.boxes[name].desk
        if desk is not None:
            self.world.act(name, desk.restarting(self.world.now(name)))

    @rule(name=names)
    def bound(self, name: str) -> None:
        self.world.bound(name)

    @rule(pair=st.tuples(names, names), cut=st.booleans())
    def line(self, pair: tuple[str, str], cut: bool) -> None:
        (self.world.cut.add if cut else self.world.cut.discard)(pair)

    @precondition(lambda self: 0 < len(self.groups) < 4)
    @rule(members=st.sampled_from(["ab", "b", "cde", "ae", "bcd"]), witness=st.sampled_from("ace"))
    def change(self, members: str, witness: str) -> None:
        last = self.groups[-1]
        witnesses = "" if witness in members else witness
        self.groups.append(after(last, (last.number >> 16) + 2, members, witnesses))

    @rule(name=names, index=st.integers(0, 3))
    def plan(self, name: str, index: int) -> None:
        """A node is told of a change at any time, or never; not of an older one than it knows."""
        index = min(index, len(self.groups) - 1)
        known = self.world.boxes[name].plan
        if known is None or known.generation <= index + 1:
            self.world.plan(name, self.groups[index], index + 1)

    @rule()
    def all_is_well_in_the_end(self) -> None:
        """Everybody is up, hears everybody, and knows the newest plan. Whoever is no member any
        more gives it back when its lease is over: one for a restart is long. A voter without
        memory waits for 20 s, and anew if it restarts meanwhile."""
        world = self.world
        world.cut.clear()
        last = self.groups[-1]
        for name in NAMES:
            if world.boxes[name].desk is None:
                world.boot(name)
        world.plan(NAMES, last, len(self.groups))
        for name in NAMES:
            world.want(name, wants=name in last.members)
        assert world.run(30.0, lambda: world.holder() is not None), world.story()
        assert world.run(20.0, lambda: world.holder() in last.members), world.story()


Leases.TestCase.settings = settings(
    max_examples=15 if EMULATED else 60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLeases = Leases.TestCase
