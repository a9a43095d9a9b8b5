"""Desks of leases in one small world: true time, clocks that drift, lines, disks and switches.

A box runs the replica from when its desk says that it holds it until its switch ends it: at the
armed time by its own clock, or when it stops by itself. No two boxes may do so in true time, and
each that begins has a higher epoch than all before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count

from agent.domain.plan import Assignment, ParsedPlan, Role
from agent.domain.roster import Electorate, Group, Key
from agent.domain.site.lease import LeaseDesk
from agent.domain.site.messages import (
    Beat,
    Booted,
    Event,
    Instruction,
    PeerSaid,
    PlanInUse,
    Said,
    Save,
    Saved,
    Send,
    Tell,
    Tick,
)
from polder.epochs import decided_at

KEY: Key = ("w-1", "plant-0")
LINE_S = 0.002


def group(revision: int, members: str, witnesses: str = "", **more: object) -> Group:
    """Members are named by one letter each."""
    plain = Group(decided_at(revision), tuple(members), tuple(witnesses), exclusive=True)
    return replace(plain, **more)  # type: ignore[arg-type]


def after(older: Group, revision: int, members: str, witnesses: str = "", **more: object) -> Group:
    """The group that follows, as the leader names what is before it."""
    before = (*older.before, Electorate(older.number, older.voters))
    return group(revision, members, witnesses, **({"before": before} | more))


def plan_of(node: str, found: Group | None, generation: int = 1) -> ParsedPlan:
    def item(policy: Group) -> Assignment:
        return Assignment(
            "default", "plant", KEY[0], KEY[1], f"u-{policy.number}", policy.number, 1, None, "",
            group=policy,
        )  # fmt: skip

    plan = ParsedPlan(generation, 0.0, {}, {}, {}, (), b"")
    if found is None or node not in found.voters:
        return plan
    if node == found.members[0]:
        return replace(plan, assignments={f"u-{found.number}": item(found)})
    return replace(plan, roles={KEY: Role(item(found), found.members[0])})


@dataclass
class Box:
    """One node. `disk` lasts; the rest of it is lost with a crash."""

    name: str
    rate: float = 1.0
    offset: float = 0.0
    desk: LeaseDesk | None = None
    disk: dict[str, object] = field(default_factory=dict)
    saving: list[Save] = field(default_factory=list)
    plan: ParsedPlan | None = None
    wants: bool = False
    runs: bool = False
    epoch: int = 0
    armed: float = 0.0  # by its own clock
    told: list[Tell] = field(default_factory=list)


@dataclass
class Word:
    sender: str
    to: str
    said: Said
    due: float


class World:
    def __init__(self, names: str, drift: float = 0.0) -> None:
        self.t = 1000.0
        self.words: list[Word] = []
        self.cut: set[tuple[str, str]] = set()
        self.epochs: list[int] = []
        self.log: list[str] = []
        signs = [1.0, -1.0, 0.0]
        self.boxes = {
            name: Box(name, 1.0 + drift * signs[i % 3], 50.0 * i) for i, name in enumerate(names)
        }
        self.filter: Callable[[Word], bool] = lambda word: True

    def now(self, name: str) -> float:
        box = self.boxes[name]
        return box.offset + box.rate * self.t

    # ---- what happens ----

    def boot(self, names: Iterable[str], *, same_boot: bool = False) -> None:
        for name in names:
            box = self.boxes[name]
            if not same_boot:
                box.runs = False
            box.desk, box.saving = LeaseDesk(name, count(1)), []
            self.event(name, Booted(name, dict(box.disk), same_boot))
            if box.plan is not None:
                self.event(name, PlanInUse(box.plan))

    def crash(self, name: str, *, node: bool = True) -> None:
        """`node` False: only the agent; what runs goes on until its switch ends it."""
        box = self.boxes[name]
        box.desk, box.saving, box.wants = None, [], False
        if node:
            box.runs = False

    def plan(self, names: Iterable[str], found: Group | None, generation: int = 1) -> None:
        for name in names:
            box = self.boxes[name]
            box.plan = plan_of(name, found, generation)
            if box.desk is not None:
                self.event(name, PlanInUse(box.plan))

    def want(self, names: Iterable[str], wants: bool = True) -> None:
        for name in names:
            box = self.boxes[name]
            box.wants = wants
            if box.desk is not None:
                self.act(name, box.desk.want({KEY} if wants else set(), self.now(name)))

    def stop(self, name: str) -> None:
        """It stops gracefully, and gives the lease back."""
        box = self.boxes[name]
        box.runs = box.wants = False
        if box.desk is not None:
            self.act(name, box.desk.release(KEY, self.now(name)))

    def event(self, name: str, event: Event) -> None:
        desk = self.boxes[name].desk
        if desk is not None:
            self.act(name, desk.handle(event, self.now(name)))

    def act(self, name: str, instructions: list[Instruction]) -> None:
        box = self.boxes[name]
        for item in instructions:
            if isinstance(item, Send):
                if (name, item.node) not in self.cut:
                    self.words.append(Word(name, item.node, item.said, self.t + LINE_S))
            elif isinstance(item, Save):
                box.saving.append(item)
            elif isinstance(item, Tell):
                box.told.append(item)
        self._look(box)

    def bound(self, name: str) -> None:
        """Its switch is armed for sooner, if it was for later, and then voters are told."""
        box = self.boxes[name]
        held = box.desk.held(KEY, self.now(name)) if box.desk is not None else None
        if box.desk is not None and held is not None and self.running(box):
            box.armed = held.until
            self.act(name, box.desk.bounded(KEY, held.epoch, self.now(name)))

    def save(self, name: str, ok: bool = True) -> None:
        """The first save that waits is done."""
        box = self.boxes[name]
        item = box.saving.pop(0)
        if ok:
            box.disk[item.name] = item.body
        self.event(name, Saved(item.token, ok))

    def deliver(self, index: int, keep: bool = False) -> None:
        word = self.words[index] if keep else self.words.pop(index)
        if (word.sender, word.to) not in self.cut and self.filter(word):
            self.event(word.to, PeerSaid(word.sender, word.said))

    # ---- what must hold ----

    def running(self, box: Box) -> bool:
        if box.runs and self.now(box.name) >= box.armed:
            box.runs = False  # its switch
        return box.runs

    def _look(self, box: Box) -> None:
        held = box.desk.held(KEY, self.now(box.name)) if box.desk is not None else None
        if held is None:
            return
        if held.epoch != box.epoch or not self.running(box):
            others = [o.name for o in self.boxes.values() if o is not box and self.running(o)]
            assert not others, f"{box.name} begins at {self.t} while {others} runs\n" + self.story()
            if not (box.wants and held.epoch):
                return
            last = self.epochs[-1] if self.epochs else 0
            assert held.epoch > last, f"epoch {held.epoch} after {last}\n" + self.story()
            self.epochs.append(held.epoch)
            self.log.append(f"{self.t:.3f} {box.name} begins as {held.epoch}")
        box.armed = max(box.armed, held.until) if box.runs else held.until
        box.runs, box.epoch = True, held.epoch

    def story(self) -> str:
        return "\n".join(self.log[-30:])

    # ---- time that passes by itself ----

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """With lines and disks that work. True when `until` came to be."""
        end = self.t + seconds
        beat_at = self.t
        while self.t < end:
            if until():
                return True
            if self.t >= beat_at:
                beat_at = self.t + 1.0
                self._beat()
            for box in self.boxes.values():
                while box.saving and box.desk is not None:
                    self.save(box.name)
            due = [i for i, word in enumerate(self.words) if word.due <= self.t]
            if due:
                self.deliver(due[0])
                continue
            self._tick(min(beat_at, end))
        return until()

    def _beat(self) -> None:
        for box in self.boxes.values():
            if box.desk is not None:
                since, now = box.desk.alone_since, self.now(box.name)
                beat = Beat(isolated_s=now - since if since is not None else 0.0)
                self.act(box.name, [Send(o, beat) for o in self.boxes if o != box.name])

    def _tick(self, limit: float) -> None:
        times = [limit, *(word.due for word in self.words)]
        for box in self.boxes.values():
            due = box.desk.next_due() if box.desk is not None else None
            if due is not None:
                times.append((due - box.offset) / box.rate)
        self.t = max(min(times), self.t + 1e-6)
        for name in self.boxes:
            self.event(name, Tick())

    def holder(self) -> str | None:
        return next((box.name for box in self.boxes.values() if self.running(box)), None)
