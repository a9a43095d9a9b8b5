"""What happens to a site in one seed: a calm start, a bad time, quiet, and what must then be so.

In the bad time links break one way or both, agents crash, hang and are upgraded, boxes lose their
power one by one or all at once, clocks change their pace, disks are slow or full, containers crash,
switches die, uplinks come and go, and the leader moves replicas, changes who votes and deletes
what runs. Then nothing fails any more, but those that are dead stay dead, and at times the
orchestrator, too.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from agent.domain.roster import Key
from orchestrator.records import GroupRecord
from tests.sim.site_checks import Checks
from tests.sim.site_hard import happen
from tests.sim.site_leader import Leader, Replica, template
from tests.sim.site_liar import LiarChecks, lying
from tests.sim.site_node import Machine, Node
from tests.sim.site_operators import Operators
from tests.sim.site_world import CLEAR, Network, Violation, Weather, World

START_S = 45.0
BAD_S = (20.0, 80.0)
QUIET_S = 75.0
SETTLED_S = 5.0
GRACES = ("0s", "1s", "5s")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a story may be about. `exclusive`: how probable it is of a replica. `hard`: how probable
    it is that what happens next is rare and bad (`site_hard.py`); `operators`: that an operator
    at the site does something (`site_operators.py`). `liar`: one of three or more nodes breaks its
    word as a voter (`site_liar.py`)."""

    exclusive: float = 0.5
    torn: float = 0.3
    chaos: float = 0.3
    leader: bool = True
    hard: float = 0.0
    operators: float = 0.0
    liar: bool = False


class Story:
    """One seed."""

    def __init__(self, seed: int, make: Callable[[str], Machine], kind: Kind = Kind()) -> None:
        self.world = world = World(seed)
        dice = self.dice = world.dice
        self.kind = kind
        self.calm = False
        self.hard_dice = world.own_dice("hard")  # so that other kinds play as ever
        self.operators = Operators(self) if kind.operators else None
        self.liar = ""
        self.checks = LiarChecks(world) if kind.liar else Checks(world)
        self.network = Network(world)
        count = dice.choice((1, 2, 3, 3, 3, 3, 4, 5))
        if isinstance(self.checks, LiarChecks) and count > 2:
            self.liar = self.checks.liar = f"n{world.own_dice('liar').randrange(count)}"
        self.nodes = [Node(f"n{i}", world, self.network, self.checks, make) for i in range(count)]
        self.nodes = [node if node.name != self.liar else lying(node) for node in self.nodes]
        self.by_name = {node.name: node for node in self.nodes}
        self.checks.armed = lambda node, uid: self.by_name[node].switch.armed(uid)
        self.leader = Leader(world, self.nodes)
        for number in range(dice.choice((1, 1, 2))):
            self._add_replica(number)
        for node in self.nodes:
            node.runtime.slow_s = dice.choice((0.05, 0.4, 2.0))
            node.runtime.warm_s = dice.choice((0.1, 1.0, 4.0))
            node.disk.slow_s = dice.choice((0.002, 0.02, 0.3))
            world.after(self.dice.between(0, 3), node.start)

    def _weather(self) -> Weather:
        dice = self.dice
        if dice.random() >= self.kind.chaos:
            return CLEAR
        return Weather(
            latency_s=dice.choice(((0.0002, 0.004), (0.001, 0.3))),
            spike=dice.choice((0.0, 0.02)),
            lost=dice.choice((0.0, 0.02, 0.2)),
            twice=dice.choice((0.0, 0.05)),
            late=dice.choice((0.0, 0.05)),
        )

    def _add_replica(self, number: int) -> None:
        dice = self.dice
        exclusive = dice.random() < self.kind.exclusive
        replica = Replica(
            key=(f"w{number}", f"r{number}-0"),
            exclusive=exclusive,
            on_return=dice.choice(("older", "older", "newer")),
            stop_after_s=dice.choice((0.0, 0.0, 0.0, 30.0)) if exclusive else 0.0,
            template=template(dice.choice(GRACES), probed=dice.random() < 0.6),
        )
        if exclusive:
            self.checks.exclusive.add(replica.key)
        members, witnesses = self._some_group(exclusive)
        self.leader.place(replica, members, witnesses)

    def _some_group(self, exclusive: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        names = [node.name for node in self.nodes]
        self.dice.shuffle(names)
        members = names[: self.dice.randint(1, len(names))]
        rest = names[len(members) :]
        witnesses: list[str] = []
        while exclusive and rest and (len(members) + len(witnesses)) % 2 == 0:
            witnesses.append(rest.pop())
        while exclusive and len(rest) > 1 and len(members) + len(witnesses) < 3:
            witnesses += [rest.pop(), rest.pop()]
        return tuple(members), tuple(witnesses)

    # ---- the telling ----

    def tell(self) -> None:
        """Raises Violation."""
        world = self.world
        world.run(SETTLED_S)
        self._settle(START_S, "after a calm start")
        self._get_bad()
        over = world.now + self.dice.between(*BAD_S)
        while world.now < over:
            self._something()
            world.run(world.now + self.dice.choice((0.05, 0.5, 2.0, 6.0, 12.0)))
        self._calm()
        self._settle(QUIET_S, "after quiet")

    def _settle(self, seconds: float, when: str) -> None:
        """Until all has been as it should for a moment; so much time there is for that."""
        until, good_since = self.world.now + seconds, self.world.now
        while self.world.now < good_since + SETTLED_S:
            self.world.run(self.world.now + 1.0)
            if wrong := self._wrong():
                good_since = self.world.now
                if self.world.now >= until:
                    raise Violation(f"{wrong} {when}")

    def _get_bad(self) -> None:
        self.network.weather = self._weather()
        for node in self.nodes:
            node.torn = 0.002 if self.dice.random() < self.kind.torn else 0.0

    def _something(self) -> None:
        if self.operators is not None and self.operators.dice.random() < self.kind.operators:
            self.operators.happen()
            return
        if self.kind.hard and self.hard_dice.random() < self.kind.hard:
            happen(self)
            return
        happenings: list[tuple[int, Callable[[], None]]] = [
            (6, self._cut),
            (4, self._part),
            (4, self._mend),
            (5, self._crash),
            (2, self._restart),
            (4, self._freeze),
            (4, self._power),
            (1, self._power_cycle),
            (2, self._drift),
            (2, self._ability),
            (2, self._container),
            (1, self._switch),
            (1, self._disk),
            (3, self._uplink),
            (4, self._lead),
            (2, self._nothing),
        ]
        weights = [weight for weight, _ in happenings]
        self.dice.choices([what for _, what in happenings], weights)[0]()

    def _nothing(self) -> None:
        """Time passes."""

    def later(self, delay: float, what: Callable[..., None], *given: object) -> None:
        """What ends by itself, unless all is calm before."""
        self.world.after(delay, self._if_bad, what, given)

    def _if_bad(self, what: Callable[..., None], given: tuple[object, ...]) -> None:
        if not self.calm:
            what(*given)

    def _some_node(self) -> Node:
        return self.dice.choice(self.nodes)

    # ---- links ----

    def _cut(self) -> None:
        if len(self.nodes) < 2:
            return
        one, two = self.dice.sample([node.name for node in self.nodes], 2)
        self.sever(one, two, both=self.dice.random() < 0.5)

    def _part(self) -> None:
        """Some from the others, one way or both."""
        names = [node.name for node in self.nodes]
        if len(names) < 2:
            return
        self.dice.shuffle(names)
        size = self.dice.randint(1, len(names) - 1)
        both = self.dice.random() < 0.8
        for one in names[:size]:
            for two in names[size:]:
                self.sever(one, two, both=both)

    def sever(self, one: str, two: str, *, both: bool, mend: bool = True) -> None:
        self.world.tell(f"cut {one} {'<->' if both else '->'} {two}")
        self.network.cut(one, two)
        if both:
            self.network.cut(two, one)
        if mend and self.dice.random() < 0.7:
            delay = self.dice.choice((1.0, 4.0, 15.0, 40.0))
            self.later(delay, self._unsever, one, two)

    def _unsever(self, one: str, two: str) -> None:
        self.world.tell(f"mend {one} <-> {two}")
        self.network.mend(one, two)
        self.network.mend(two, one)

    def _mend(self) -> None:
        self.world.tell("mend all links")
        self.network.mend_all()

    # ---- boxes ----

    def _crash(self) -> None:
        node = self._some_node()
        self.world.tell(f"{node.name}: the agent crashes")
        node.crash(self.dice.choice((0.1, 1.0, 4.0, 10.0, 40.0)))

    def _restart(self) -> None:
        self._some_node().restart(self.dice.choice((0.5, 2.0, 5.0, 12.0)))

    def _freeze(self) -> None:
        self._some_node().freeze(self.dice.choice((0.3, 1.0, 2.5, 3.5, 8.0, 25.0)))

    def _power(self) -> None:
        node = self._some_node()
        node.power_off()
        if self.dice.random() < 0.8:
            off_s, agent_after = (
                self.dice.choice((1.0, 5.0, 20.0)),
                self.dice.choice((0.2, 1.0, 5.0)),
            )
            self.later(off_s, node.power_on, agent_after)

    def _power_cycle(self) -> None:
        """The whole site."""
        for node in self.nodes:
            node.power_off()
        for node in self.nodes:
            off_s, agent_after = (
                self.dice.choice((1.0, 2.0, 6.0)),
                self.dice.choice((0.2, 1.0, 5.0)),
            )
            self.later(off_s, node.power_on, agent_after)

    def _drift(self) -> None:
        for node in self.nodes:
            node.drift()

    def _ability(self) -> None:
        node, key = self._some_node(), self._some_key()
        node.set_able(key, self.dice.choice(("", "ImagePull", "Frozen")))

    def _container(self) -> None:
        self._some_node().runtime.crash_one()

    def _switch(self) -> None:
        self._some_node().switch_dies(self.dice.choice((0.1, 0.5, 3.0)))

    def _disk(self) -> None:
        node = self._some_node()
        node.disk.failing = self.dice.choice((0.0, 0.5, 1.0))
        self.later(self.dice.between(1, 10), setattr, node.disk, "failing", 0.0)

    # ---- the orchestrator ----

    def _uplink(self) -> None:
        leader, dice = self.leader, self.dice
        what = dice.choice(("all", "one", "back", "back"))
        self.world.tell(f"uplink: {what}")
        if what == "all":
            leader.present = False
        elif what == "one":
            leader.reachable.discard(self._some_node().name)
        else:
            leader.present = True
            leader.reachable = set(self.by_name)

    def _some_key(self) -> Key:
        return self.dice.choice(list(self.leader.replicas))

    def _lead(self) -> None:
        """It decides something whether or not anybody hears it."""
        if not self.kind.leader or not self.leader.present:
            return
        key, dice = self._some_key(), self.dice
        what = dice.choice(("move", "move", "regroup", "regroup", "delete"))
        if self.leader.replicas[key].deleted:
            return
        if what == "move":
            self.leader.move(key, self._some_node().name)
        elif what == "regroup":
            self.leader.regroup(key, *self._some_group(self.leader.replicas[key].exclusive))
        elif dice.random() < 0.3:
            self.leader.delete(key)

    # ---- the end ----

    def _calm(self) -> None:
        self.world.tell("quiet")
        self.calm = True
        dice = self.dice
        self.network.mend_all()
        self.network.weather = CLEAR
        dead = dice.randint(0, len(self.nodes) - 1) if dice.random() < 0.5 else 0
        for index, node in enumerate(dice.sample(self.nodes, len(self.nodes))):
            node.torn = node.disk.failing = 0.0
            node.wake()
            node.unable.clear()
            if index < dead:
                node.power_off()
                continue
            if node.agent is not None and node.agent.frozen:
                node._thaw(node.agent)
            if node.agent is not None:
                node.agent.do(node.agent.able)
            node.power_on(0.5)
            if node.agent is None:
                self.world.after(1.0, node.start)
        if self.operators is not None:
            self.operators.calm()
        if dice.random() < 0.6:
            self.leader.present = True
            self.leader.reachable = set(self.by_name)
        else:
            self.leader.present = False

    def alive(self) -> set[str]:
        return {node.name for node in self.nodes if node.agent is not None}

    def _wrong(self) -> str:
        """What is not as it should be by now; empty: nothing."""
        for key, replica in self.leader.replicas.items():
            runs = {(p.node, p.uid) for p in self.checks.running.get(key, {}).values()}
            if replica.deleted:
                if self.leader.present and runs:
                    return f"{key[1]} is deleted and runs on {sorted(runs)}"
            elif self.operators is not None and (wrong := self.operators.wrong(key, runs)):
                return wrong
            elif replica.stop_after_s and not self.leader.present:
                continue
            elif self.must_run(key, replica):
                if not self.is_ready(key):
                    return f"{key[1]} is lost: {sorted(runs)} run, none is ready"
                if len(runs) > 1 and self.acquainted({node for node, _ in runs}):
                    return f"{key[1]} runs on {sorted(runs)}"
        return ""

    def is_ready(self, key: Key) -> bool:
        """Whether a stay of it runs and is shown as ready."""
        runs = {(p.node, p.uid) for p in self.checks.running.get(key, {}).values()}
        stays = self.checks.stays.get(key, {})
        return any(place in runs and seen.ready for place, seen in stays.items())

    def acquainted(self, names: set[str]) -> bool:
        """Whether the plans of these let them speak with each other."""
        return all(self.by_name[a].knows(b) for a in names for b in names - {a})

    def must_run(self, key: Key, replica: Replica) -> bool:
        """As far as anybody can ask for: somebody lives who may hold it by the word of every group
        that was ever formed, and who reaches a majority of each."""
        if self.operators is not None and self.operators.is_stopped(key):
            return False
        groups = self.leader.groups[key]
        return any(
            all(
                name in group.members
                and (not replica.exclusive or self.reaches(name, group) >= group.majority)
                for group in groups
            )
            for name in self.alive()
            if self._able_to_follow(self.by_name[name])
        )

    def _able_to_follow(self, node: Node) -> bool:
        """It has a plan, and was not alone for longer than a site may take over by itself."""
        over = node.agent is not None and node.agent.conditions.get("AutonomyOver")
        return node.plan is not None and not over

    def reaches(self, name: str, group: GroupRecord, but: Collection[str] = ()) -> int:
        """How many of its voters live, do not lie and are acquainted with it: one that was away
        when the group was made goes by a plan that may not name the others, and does not speak
        with them."""
        alive = (self.alive() & set(group.voters)) - {*but, self.liar}
        return sum(voter == name or self.acquainted({name, voter}) for voter in alive)
