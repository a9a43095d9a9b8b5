"""One node of the site: the real state machines in a process that crashes, hangs and comes back.

`Agent` is one life of the agent's process, and does what `agent/site/loop.py` and
`agent/supervisor.py` do with what the machines ask for: what is armed is armed before what is
decided starts, and what was saved is said to be saved after it is. `Node` is the box around it.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from agent.domain import labels
from agent.domain.compose import Settings
from agent.domain.instructions import (
    Cancel,
    DeleteLogs,
    Emit,
    Failed,
    ListPods,
    Operation,
    Outcome,
    PlanAccepted,
    PodsListed,
    Publish,
    PublishGone,
    RunPod,
    StartContainer,
)
from agent.domain.instructions import Event as RuntimeEvent
from agent.domain.instructions import Tick as RuntimeTick
from agent.domain.plan import ParsedPlan
from agent.domain.reconcile import Reconciler
from agent.domain.site.lease_record import JOINED, NAME
from agent.domain.site.messages import (
    Ability,
    AbleTo,
    Answer,
    Arm,
    Armed,
    Booted,
    Condition,
    Decide,
    Disarm,
    Event,
    Instruction,
    OrchestratorHeard,
    PlanInUse,
    RunsHere,
    Save,
    Saved,
    Send,
    Stay,
    Stopping,
    SwitchChanged,
    Tell,
    Tick,
)
from agent.domain.site.overlay import overlay
from agent.domain.view import ReplicaView
from agent.site.alone import NAME as ALONE
from agent.site.alone import Alone, save_every_s
from polder.overrides import Override
from tests.sim.site_box import Disk, Runtime, Switch
from tests.sim.site_checks import Checks
from tests.sim.site_world import Clock, Network, Violation, World

WALL = 1_795_305_600.0
LIST_EVERY_S = 1.0
HOT_TURNS = 2000  # events in one second of one agent: nobody is that busy


class Machine(Protocol):
    """What decides: SiteMachine, or something around a part of it."""

    def handle(self, event: Event, now: float) -> list[Instruction]: ...

    def next_due(self) -> float | None: ...

    def overrides(self) -> tuple[Override, ...]: ...


class Agent:
    """One life of the process. Nothing reaches it while it is frozen, and all of it after."""

    def __init__(self, node: "Node", machine: Machine) -> None:
        self.node = node
        self.world = node.world
        self.machine = machine
        self.alive = True
        self.frozen = False
        self.plan: ParsedPlan | None = None
        self.stays: tuple[Stay, ...] = ()
        self.effective: ParsedPlan | None = None
        self.conditions: dict[str, str] = {}
        self.reconciler = Reconciler(Settings(node=node.name, site="s", log_root="/logs"))
        self._backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timer: float | None = None
        self._runtime_timer: float | None = None
        self.views: tuple[ReplicaView, ...] = ()
        self.settled = False
        self._dirty = self._saying = False
        self._second, self._turns = 0, 0

    # ---- the process ----

    def do(self, what: Callable[..., None], *given: Any) -> None:
        """Now, when it is thawed, or never."""
        if self.frozen:
            self._backlog.append((what, given))
        elif self.alive:
            what(*given)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        while self._backlog and self.alive and not self.frozen:
            what, given = self._backlog.popleft()
            what(*given)

    def start(self, *, same_boot: bool) -> None:
        node = self.node
        kept = node.disk.kept()
        node.alone = Alone.read(kept.pop(ALONE, {}), node.boot_id, node.now(), node.wall())
        isolated_s = node.alone.for_s(node.now())
        self.do(self.feed, Booted(node.name, kept, same_boot, isolated_s))
        if node.switch.alive:
            self.do(self.feed, SwitchChanged(True, node.switch.deadlines()))
        if node.plan is not None:
            self.do(self.use, node.plan)
        self._list()

    # ---- the site's machine ----

    def feed(self, event: Event) -> None:
        """Whatever it asks for is done before the next event, unless it freezes in between."""
        node = self.node
        now = node.now()
        self._count()
        self._act(deque(self.machine.handle(event, now)))
        if self.plan is not None:  # what a plan says is known with the plan
            overrides = self.machine.overrides()
            self.node.checks.heeded.heeds(self.node.name, overrides, self.world.now)
        self._set_timer()
        ends = isinstance(event, Stopping)
        every_s = 0.0 if ends else save_every_s(self.plan)
        if (body := node.alone.to_save(now, node.wall(), every_s)) is not None:
            node.disk.put(ALONE, body)

    def _count(self) -> None:
        if (second := int(self.world.now)) != self._second:
            self._second, self._turns = second, 0
        self._turns += 1
        if self._turns > HOT_TURNS:
            raise Violation(f"{self.node.name} turns in circles")

    def _act(self, instructions: deque[Instruction]) -> None:
        torn = self.node.torn
        while instructions:
            if torn and self.node.dice.random() < torn:
                self._backlog.appendleft((self._act, (instructions,)))
                self.node.freeze(self.node.dice.between(0.05, 12.0))
                return
            self._act_on(instructions.popleft())

    def _act_on(self, instruction: Instruction) -> None:
        node = self.node
        match instruction:
            case Send(peer, said):
                node.network.send(node.name, peer, said)
            case Save(token, name, body):
                node.disk.write(name, body, lambda ok: self.do(self.feed, Saved(token, ok)))
            case Arm(uid, deadline, tell):
                if node.switch.arm(uid, deadline) and tell:
                    self.world.after(0.001, self.do, self.feed, Armed(uid))
            case Disarm(uid):
                node.switch.disarm(uid)
            case Decide(stays):
                node.checks.decided(node.name, self.stays, stays)
                self.stays = stays
                self._use()
            case Tell(reason, message, key, _):
                self.world.tell(f"{node.name} tells {reason} {key[1] if key else ''}: {message}")
                node.checks.told(node.name, reason, message)
            case Answer(id):
                node.answers[id] = instruction
            case Condition(type_, message):
                self.conditions[type_] = message

    def _set_timer(self) -> None:
        due = self.machine.next_due()
        if due is None or (self._timer is not None and self._timer <= due):
            return
        self._timer = due
        self.world.at(self.node.clock.when(due) + self.node.late(), self._tick, due)

    def _tick(self, due: float) -> None:
        if self.alive and self._timer == due:
            self.do(self._ticked, due)

    def _ticked(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self.feed(Tick())

    # ---- plans, abilities ----

    def use(self, plan: ParsedPlan) -> None:
        """A plan that was accepted, or read from disk."""
        self.plan = plan
        self.feed(PlanInUse(plan))
        self.node.network.roster_changed(self.node.name)
        self.do(self.able)

    def _use(self) -> None:
        """What the site decided is laid over it."""
        if self.plan is not None:
            self.effective = overlay(self.plan, self.stays)
            self.node.checks.effective(self.node.name, self.effective)
            self.supervise(PlanAccepted(self.effective))

    def able(self) -> None:
        """Of every role of the plan."""
        if self.plan is None:
            return
        unable = self.node.unable
        roles = [key for key, role in self.plan.roles.items() if role.assignment.template]
        self.feed(
            AbleTo(tuple(Ability(key, key not in unable, unable.get(key, "")) for key in roles))
        )

    # ---- the supervisor ----

    def supervise(self, event: RuntimeEvent) -> None:
        now = self.node.now()
        for instruction in self.reconciler.handle(event, now, self.node.wall()):
            match instruction:
                case ListPods():
                    self.world.after(0.01, self.do, self._list_once)
                case Publish() | PublishGone():
                    self._dirty = True
                case Emit(reason="UnexpectedTransition" | "Internal"):
                    raise Violation(f"{self.node.name}: {instruction.message}")
                case Emit() | Cancel() | DeleteLogs():
                    pass
                case operation:
                    self._perform(operation)
        self._set_runtime_timer()
        self._say_what_runs()

    def _perform(self, operation: Operation) -> None:
        """What is exclusive starts only under the switch, as in `agent/operations.py`."""
        node = self.node
        node.checks.ordered(node.name, operation)
        if isinstance(operation, RunPod | StartContainer):
            spec = operation.spec if isinstance(operation, RunPod) else operation.pod
            guarded = labels.CGROUP_PARENT in spec.annotations
            why = node.switch.objection(operation.uid) if guarded else ""
            if why:
                failed = Failed(operation, Outcome.FAILED, "NotGuarded", why)
                self.world.after(0.001, self._answered, failed)
                return
        node.runtime.perform(operation, self._answered)

    def _answered(self, event: RuntimeEvent) -> None:
        self.do(self.supervise, event)

    def _set_runtime_timer(self) -> None:
        due = self.reconciler.next_due()
        if due is None or (self._runtime_timer is not None and self._runtime_timer <= due):
            return
        self._runtime_timer = due
        self.world.at(self.node.clock.when(due) + 0.001, self.do, self._runtime_tick, due)

    def _runtime_tick(self, due: float) -> None:
        if self._runtime_timer == due:
            self._runtime_timer = None
            self.supervise(RuntimeTick())

    def _list(self) -> None:
        """Again and again."""
        if self.alive:
            self.do(self._list_once)
            self.world.after(LIST_EVERY_S, self._list)

    def _list_once(self) -> None:
        token = self.reconciler.listing_token()
        pods = self.node.runtime.listed()
        delay = self.node.dice.between(0.001, 0.05)
        self.world.after(delay, self.do, self.supervise, PodsListed(pods, token))

    def _say_what_runs(self) -> None:
        """What changes in one turn is said together, after it."""
        settled = self.settled or self.reconciler.settled(self.node.now())
        if (self._dirty or settled != self.settled) and not self._saying:
            self._saying = True
            self.world.after(0.0, self.do, self._runs_here)

    def _runs_here(self) -> None:
        self._dirty = self._saying = False
        self.settled = self.settled or self.reconciler.settled(self.node.now())
        self.views = tuple(self.reconciler.views())
        self.node.checks.views(self.node.name, self.views)
        self.feed(RunsHere(self.views, self.settled))


class Node:
    """A box with a name. `torn`: how probable it is that the agent freezes between two steps."""

    def __init__(
        self,
        name: str,
        world: World,
        network: Network,
        checks: Checks,
        make: Callable[[str], Machine],
    ) -> None:
        self.name = name
        self.skew = 0.0  # of the wall clock
        self._lives = self._boots = 0
        self.world, self.network, self.checks = world, network, checks
        self.make = make
        self.dice = dice = world.own_dice(name)
        self.clock = Clock(world.now, dice.between(5, 1e6), dice.rate())
        self.disk = Disk(world, dice)
        self.disk.put(NAME, JOINED)
        self.runtime = Runtime(world, name, dice, checks.began, checks.ended)
        self.runtime.changed = self._runtime_changed
        self.runtime.wall = self.wall
        self.switch = Switch(world, dice, lambda: self.clock, self.runtime)
        self.agent: Agent | None = None
        self.powered = True
        self.plan: ParsedPlan | None = None  # on the disk, as accepted last
        self.unable: dict[tuple[str, str], str] = {}
        self.torn = 0.0
        self.sluggish = 0.02
        self.instance = ""
        self.answers: dict[str, Answer] = {}
        self.suspended = False
        self.alone = Alone(self.boot_id, self.now())
        self._same_boot = False
        network.add(self)

    def now(self) -> float:
        return self.clock.at(self.world.now)

    def wall(self) -> float:
        return WALL + self.world.now + self.skew

    @property
    def boot_id(self) -> str:
        return f"{self.name}-{self._boots}"

    def late(self) -> float:
        """How late a timer fires."""
        return self.dice.between(0, self.sluggish)

    # ---- as the network sees it ----

    def listening(self) -> bool:
        return self.agent is not None and not self.agent.frozen

    def knows(self, peer: str) -> bool:
        return self.plan is not None and peer in self.plan.site.peers

    def feed(self, event: Event) -> None:
        if self.agent is not None:
            self.agent.do(self.agent.feed, event)

    # ---- what happens to it ----

    def start(self) -> None:
        """The agent's process; nothing if it runs, or if there is no power."""
        if self.agent is not None or not self.powered:
            return
        if self.suspended:
            self.world.after(1.0, self.start)
            return
        self._lives += 1
        self.instance = f"{self.name}-{self._lives}"
        self.world.tell(f"{self.name} starts its agent")
        self.agent = Agent(self, self.make(self.name))
        same_boot, self._same_boot = self._same_boot, True
        self.agent.start(same_boot=same_boot)

    def crash(self, back_after: float | None) -> None:
        """The agent's process dies; what it started lives on."""
        if self.suspended:
            return
        self._end_agent(with_the_box=False)
        if back_after is not None:
            self.world.after(back_after, self.start)

    def restart(self, back_after: float) -> None:
        """It is told to stop, as for an upgrade: what it asks for by that is done yet."""
        if self.agent is not None and not self.agent.frozen:
            self.world.tell(f"{self.name} restarts its agent")
            self.agent.feed(Stopping())
            self.world.after(self.dice.between(0.7, 1.0), self._stopped, self.agent, back_after)

    def _stopped(self, agent: Agent, back_after: float) -> None:
        if self.suspended:
            self.world.after(1.0, self._stopped, agent, back_after)
        elif agent is self.agent:
            self.crash(back_after)

    def _end_agent(self, *, with_the_box: bool) -> None:
        if self.agent is not None:
            self.agent.alive = False
            self.agent = None
            self._switch_back()
            self.disk.writer_died()
            self.network.process_died(self.name, with_the_box=with_the_box)

    def freeze(self, seconds: float) -> None:
        if self.agent is None or self.agent.frozen:
            return
        self.world.tell(f"{self.name} freezes for {seconds:.3f} s")
        self._freeze(self.agent)
        self.world.after(seconds, self._thaw, self.agent)

    def _freeze(self, agent: Agent) -> None:
        self._switch_back()
        agent.freeze()
        for other in self.network.hosts:
            if other != self.name:
                self.network.disturbed(self.network.wire(self.name, other))

    def _thaw(self, agent: Agent) -> None:
        if self.suspended:
            self.world.after(1.0, self._thaw, agent)
        elif agent is self.agent:
            self.world.tell(f"{self.name} goes on")
            agent.thaw()

    def suspend(self) -> None:
        """The whole box, until `wake`: nothing on it does anything, and CLOCK_BOOTTIME goes on."""
        if not self.powered or self.suspended:
            return
        self.world.tell(f"{self.name} is suspended")
        self.suspended = True
        if self.agent is not None:
            self._freeze(self.agent)
        self._switch_back()
        self.switch.sleep()
        self.runtime.sleep()

    def wake(self) -> None:
        if not self.suspended:
            return
        self.world.tell(f"{self.name} wakes up")
        self.suspended = False
        self.switch.wake()
        self.runtime.wake()
        if self.agent is not None:
            self.agent.thaw()

    def lose_disk(self) -> None:
        """What the agent kept; it has joined again, and gets a plan when an orchestrator hears it.
        While its process is away."""
        self.world.tell(f"{self.name} loses what its agent kept")
        self.disk.wipe()
        self.checks.forgot(self.name)
        if self.dice.random() < 0.8:  # its join could not write it
            self.disk.put(NAME, JOINED)
        self.plan = None
        self.checks.heeded.lost_its_disk(self.name)

    def away(self, seconds: float) -> None:
        """So much time passes here that nobody else sees pass: a week, in no time."""
        self.world.tell(f"{self.name} was away for {seconds / 86_400:g} days")
        self.clock.passed(seconds)
        self.skew += seconds

    def power_off(self) -> None:
        if not self.powered:
            return
        self.world.tell(f"{self.name} loses its power")
        self.powered = self._same_boot = self.suspended = False
        self._end_agent(with_the_box=True)
        self.disk.writer_died()
        self.switch.lose_power()
        self.runtime.lose_power()

    def power_on(self, agent_after: float) -> None:
        if self.powered:
            return
        self.powered = True
        self._boots += 1
        self.world.tell(f"{self.name} has power")
        self.clock = Clock(self.world.now, self.dice.between(3, 20), self.dice.rate())
        self.switch.begin()
        self.world.after(agent_after, self.start)

    def switch_dies(self, back_after: float) -> None:
        """It is started again, and finds its table. Not while the agent hangs, and at once when
        that begins to: nobody would end a replica in time if both failed (ADR 23)."""
        if self.switch.alive and self.powered and self.listening():
            self.switch.die()
            self.feed(SwitchChanged(False))
            self.world.after(back_after, self._switch_back)

    def _switch_back(self) -> None:
        if self.powered and not self.switch.alive:
            self.switch.begin()
            self.feed(SwitchChanged(True, self.switch.deadlines()))

    def accept(self, plan: ParsedPlan) -> None:
        """It is on the disk before it is used."""
        self.checks.planned(plan)
        self.plan = plan
        if self.agent is not None:
            self.agent.do(self.agent.use, plan)

    def hear_orchestrator(self) -> None:
        self.alone.heard(self.now())
        self.feed(OrchestratorHeard())

    def set_able(self, key: tuple[str, str], reason: str) -> None:
        """An empty reason: it could start it."""
        if reason:
            self.unable[key] = reason
        else:
            self.unable.pop(key, None)
        if self.agent is not None:
            self.agent.do(self.agent.able)

    def drift(self) -> None:
        self.clock.drift(self.world.now, self.dice.rate())

    def _runtime_changed(self) -> None:
        """The runtime's own events bring the next listing forward."""
        if self.agent is not None:
            self.world.after(self.dice.between(0.005, 0.1), self._list_for, self.agent)

    def _list_for(self, agent: Agent) -> None:
        agent.do(agent._list_once)
