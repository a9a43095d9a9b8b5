"""Some nodes of a site on a bench: real SiteMachines, instant links, a runtime that obeys at once.

For examples that can be read; what may go wrong in a thousand ways is `tests/sim/site.py`'s.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from typing import Any

from agent.domain.plan import Assignment, ParsedPlan, Role, Stop
from agent.domain.roster import Group, Key, Neighbourhood, Peer
from agent.domain.site.machine import SiteMachine
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
    OperatorDecided,
    PeerClosed,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    RunsHere,
    Said,
    Save,
    Saved,
    Send,
    Stay,
    SwitchChanged,
    Tell,
    Tick,
)
from agent.domain.site.overlay import overlay
from agent.domain.view import ContainerView, Phase, ReplicaView
from polder import epochs
from polder.manifest import Container, PodTemplate
from polder.overrides import FROZEN, Override

KEY: Key = ("wu", "web-0")
E1 = epochs.decided_at(1)
TEMPLATE = PodTemplate(containers=(Container(name="app", image="app:1"),))
LATENCY_S = 0.002


def group(*members: str, exclusive: bool = False, **more: Any) -> Group:
    return Group(E1, members, exclusive=exclusive, **more)


def assigned(
    who: Group | None, uid: str = "p1", epoch: int = E1, template: PodTemplate | None = TEMPLATE
) -> Assignment:
    return Assignment("ns", "web", KEY[0], KEY[1], uid, epoch, 1, template, "digest", group=who)


def planned(
    node: str,
    who: Group,
    *,
    primary: str = "a",
    uid: str = "p1",
    epoch: int = E1,
    generation: int = 1,
    roster: Iterable[str] | None = None,
    stops: Iterable[str] = (),
    autonomy_s: float = 7 * 86_400.0,
) -> ParsedPlan:
    """The plan of one node: the replica itself, or a role in it."""
    names = who.voters if roster is None else roster
    peers = {name: Peer(name, ("192.0.2.1:7445",), b"der") for name in names if name != node}
    item = assigned(who, uid, epoch)
    if node not in who.members:
        item = replace(item, template=None)
    mine = node == primary
    return ParsedPlan(
        generation=generation,
        issued_at=0.0,
        assignments={uid: item} if mine else {},
        stops={u: Stop("ns", KEY[1], u, "Moved", "", 0.0) for u in stops},
        secrets={},
        endpoints=(),
        payload=b"",
        site=Neighbourhood(peers, autonomy_s),
        roles={} if mine else {KEY: Role(item, primary)},
    )


def view(uid: str, epoch: int = E1, **more: Any) -> ReplicaView:
    fields: dict[str, Any] = {
        "namespace": "ns",
        "workload": "web",
        "workload_uid": KEY[0],
        "replica": KEY[1],
        "uid": uid,
        "phase": Phase.RUNNING,
        "ready": True,
        "reason": "",
        "message": "",
        "revision": 1,
        "epoch": epoch,
        "restarts": 0,
        "pod_ip": "",
        "started_at": 0.0,
        "digest": "digest",
        "containers": (ContainerView("app", "c1", "running", ready=True, restarts=0),),
    }
    return ReplicaView(**(fields | more))


@dataclass
class Running:
    """A stay that runs. `ready_at`: when its probe succeeds."""

    epoch: int
    ready_at: float
    takes_over: str = ""


@dataclass
class Box:
    """A node: its disk and its runtime outlive its agent."""

    name: str
    plan: ParsedPlan
    machine: SiteMachine
    on: bool = False
    disk: dict[str, Any] = field(default_factory=dict)
    writable: bool = True
    running: dict[str, Running] = field(default_factory=dict)
    armed: dict[str, float] = field(default_factory=dict)
    effective: ParsedPlan | None = None
    decided: tuple[Stay, ...] = ()
    tells: list[Tell] = field(default_factory=list)
    conditions: dict[str, str] = field(default_factory=dict)
    said: list[tuple[float, str, Said]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    life: int = 0
    switch_answers: bool = True

    def told(self) -> list[str]:
        return [tell.reason for tell in self.tells]


class Lab:
    """`warm_s`: from the start of a replica until it is ready."""

    def __init__(self, plans: dict[str, ParsedPlan], warm_s: float = 1.0) -> None:
        self.now = 1000.0
        self.warm_s = warm_s
        self.save_s = LATENCY_S
        self.boxes = {n: Box(n, plan, SiteMachine(n)) for n, plan in plans.items()}
        self.cut: set[tuple[str, str]] = set()
        self.unable: dict[str, str] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what))

    def run(self, seconds: float) -> None:
        """Events in order, ticks when they are due."""
        until = self.now + seconds
        while True:
            dues = [(b.machine.next_due(), b) for b in self.boxes.values() if b.on]
            due = min((d for d, _ in dues if d is not None), default=inf)
            if self._queue and self._queue[0][0] <= min(due, until):
                self.now, _, what = heapq.heappop(self._queue)
                what()
                continue
            if due > until or not dues:
                break
            self.now = max(self.now, due)
            for box_due, box in dues:
                if box_due is not None and box_due <= self.now:
                    self.feed(box.name, Tick())
        self.now = until

    # ---- what happens to boxes ----

    def start(self, *names: str, same_boot: bool = False) -> None:
        for name in names or tuple(self.boxes):
            box = self.boxes[name]
            box.machine, box.on, box.life = SiteMachine(name), True, box.life + 1
            self.feed(name, Booted(name, dict(box.disk), same_boot))
            self.feed(name, SwitchChanged(True, dict(box.armed)))
            self.feed(name, PlanInUse(box.plan))
            self._able(box)
            self._report(box)
        for name in names or tuple(self.boxes):
            for other in self.boxes:
                if other != name and self.boxes[other].on:
                    self._link(name, other)

    def stop_agent(self, name: str) -> None:
        """Its process only; replicas run on."""
        self.boxes[name].on = False
        for other, box in self.boxes.items():
            if box.on and name in box.plan.site.peers:
                self.feed(other, PeerClosed(name))

    def kill(self, name: str) -> None:
        """The whole box."""
        self.stop_agent(name)
        self.boxes[name].running.clear()
        self.boxes[name].armed.clear()

    def give(self, name: str, plan: ParsedPlan) -> None:
        box = self.boxes[name]
        box.plan = plan
        if box.on:
            self.feed(name, PlanInUse(plan))
            self._able(box)

    def decide(self, node: str, what: str, value: str = "true", id: str = "") -> Answer:
        """An operator at that node, who waits for the answer."""
        box = self.boxes[node]
        uid, replica = ("", "") if what == FROZEN else KEY
        namespace = "" if what == FROZEN else "ns"
        id = id or f"change-{next(self._order)}"
        wanted = Override(what, value, uid, namespace, replica, id, by="operator/ann")
        self.feed(node, OperatorDecided(wanted))
        self.run(10 * LATENCY_S + self.save_s)
        return next(answer for answer in reversed(box.answers) if answer.id == id)

    def part(self, one: str, two: str) -> None:
        self.cut |= {(one, two), (two, one)}

    def mend(self) -> None:
        self.cut.clear()

    def runs(self) -> dict[str, list[str]]:
        """Node -> stays that run there."""
        return {n: sorted(b.running) for n, b in self.boxes.items() if b.running}

    # ---- the world of one box ----

    def feed(self, name: str, event: Event) -> None:
        box = self.boxes[name]
        for instruction in box.machine.handle(event, self.now):
            self._do(box, instruction)

    def _do(self, box: Box, instruction: object) -> None:
        match instruction:
            case Send(node, said):
                box.said.append((self.now, node, said))
                self.at(self.now + LATENCY_S, lambda: self._deliver(box.name, node, said))
            case Save(token, name, body):
                life, writable = box.life, box.writable
                if writable:
                    box.disk[name] = body
                self.at(self.now + self.save_s, lambda: self._saved(box, life, token, writable))
            case Decide(stays):
                box.decided = stays
                box.effective = overlay(box.plan, stays)
                self._obey(box)
            case Arm(uid, deadline, tell):
                box.armed[uid] = deadline
                if tell:
                    life = box.life
                    self.at(self.now + LATENCY_S, lambda: self._armed(box, life, uid))
            case Disarm(uid):
                box.armed.pop(uid, None)
            case Answer():
                box.answers.append(instruction)
            case Tell():
                box.tells.append(instruction)
            case Condition(type_, message):
                box.conditions[type_] = message

    def _deliver(self, sender: str, to: str, said: Said) -> None:
        if self.boxes[to].on and (sender, to) not in self.cut and self.boxes[sender].on:
            self.feed(to, PeerSaid(sender, said))

    def _saved(self, box: Box, life: int, token: int, ok: bool) -> None:
        if box.on and box.life == life:
            self.feed(box.name, Saved(token, ok))

    def _armed(self, box: Box, life: int, uid: str) -> None:
        if box.on and box.life == life and box.switch_answers:
            self.feed(box.name, Armed(uid))

    def _link(self, one: str, two: str) -> None:
        for name, other in ((one, two), (two, one)):
            if other in self.boxes[name].plan.site.peers:
                instance = f"{other}-{self.boxes[other].life}"
                self.feed(name, PeerOpened(other, instance))

    def _able(self, box: Box) -> None:
        why = self.unable.get(box.name, "")
        roles = [k for k, role in box.plan.roles.items() if role.assignment.template is not None]
        self.feed(box.name, AbleTo(tuple(Ability(key, not why, why) for key in roles)))

    def set_unable(self, name: str, why: str) -> None:
        self.unable[name] = why
        self._able(self.boxes[name])

    def _obey(self, box: Box) -> None:
        """The runtime starts and stops at once."""
        assert box.effective is not None
        before = set(box.running)
        for uid in box.effective.stops:
            box.running.pop(uid, None)
        for uid, item in box.effective.assignments.items():
            hold = box.effective.held.get(uid)
            if hold is not None:
                if not hold.waits:
                    box.running.pop(uid, None)
            elif uid in box.running:
                box.running[uid].epoch = item.epoch
            else:
                box.running[uid] = Running(item.epoch, self.now + self.warm_s, item.takes_over)
                self.at(self.now + self.warm_s, lambda: self._report(box))
        if before != set(box.running):
            self.at(self.now, lambda: self._report(box))

    def _report(self, box: Box) -> None:
        if not box.on:
            return
        views = tuple(
            view(
                uid,
                one.epoch,
                ready=self.now >= one.ready_at,
                ready_since=one.ready_at if self.now >= one.ready_at else 0.0,
                takes_over=one.takes_over,
            )
            for uid, one in box.running.items()
        )
        self.feed(box.name, RunsHere(views, settled=True, steady=self.now))


def lab(who: Group, *nodes: str, warm_s: float = 1.0, **more: Any) -> Lab:
    """All nodes of the group, or those named, with the plans that an orchestrator would give."""
    names = nodes or who.voters
    return Lab({name: planned(name, who, **more) for name in names}, warm_s)
