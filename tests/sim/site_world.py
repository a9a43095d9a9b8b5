"""True time, the clocks of the boxes, and the network of a site: what the simulation stands on.

Everything happens at a moment of true time that no box knows. A box has a steady clock of its own,
which is wrong by up to the drift bound, changes its mind about how much, and begins anew when the
box does. Links lose and delay; a link that is cut in one direction holds back what is on its way,
as TCP does, and delivers it all at once when it is whole again, or never.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.domain.site.messages import (
    Beat,
    Event,
    LeaseAnswer,
    LeaseRequest,
    PeerClosed,
    PeerOpened,
    PeerSaid,
    Said,
)

DRIFT_MAX = 0.01
LATENCY_S = (0.0002, 0.004)
KEEPALIVE_S = (2.0, 15.0)
REDIAL_S = (0.2, 1.0)


class Violation(AssertionError):
    """What must hold does not."""


class Clock:
    """A steady clock. `at` and `when` translate between true time and what it shows."""

    def __init__(self, true: float, shows: float, rate: float) -> None:
        self._true, self._shows, self._rate = true, shows, rate

    def at(self, true: float) -> float:
        return self._shows + (true - self._true) * self._rate

    def when(self, shown: float) -> float:
        return self._true + (shown - self._shows) / self._rate

    def passed(self, seconds: float) -> None:
        """So much more than anybody else saw: for what was away for long."""
        self._shows += seconds

    def drift(self, true: float, rate: float) -> None:
        """From now on it runs at another rate. It does not jump."""
        self._shows, self._true, self._rate = self.at(true), true, rate


class Dice(random.Random):
    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def rate(self) -> float:
        """Of a clock: at times at the very bound, where a protocol's margins are used up."""
        if self.random() < 0.5:
            return self.choice((1 - DRIFT_MAX, 1 + DRIFT_MAX))
        return self.between(1 - DRIFT_MAX, 1 + DRIFT_MAX)


class World:
    """A queue of what will happen. Equal moments come in the order in which they were planned."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = Dice(seed)
        self.now = 0.0
        self.story: list[str] = []
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[..., None], *given: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what, given))

    def after(self, delay: float, what: Callable[..., None], *given: Any) -> None:
        self.at(self.now + delay, what, *given)

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, what, given = heapq.heappop(heap)
            what(*given)
        self.now = until

    def tell(self, text: str) -> None:
        """For whoever reads the story of a seed that failed."""
        self.story.append(f"{self.now:9.3f}  {text}")

    def own_dice(self, *names: str) -> "Dice":
        """For one part of the world: what it draws does not depend on the order in which others
        draw, and so not on how the machines order what they ask for at one moment."""
        return Dice("/".join((str(self.seed), *names)))


class Host(Protocol):
    """What the network knows of a node."""

    name: str
    instance: str
    powered: bool

    def listening(self) -> bool:
        """Its agent runs, and is not frozen."""
        ...

    def knows(self, peer: str) -> bool:
        """Its roster names the peer."""
        ...

    def feed(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a story's network is. Probabilities are per message of the kind that may be lost,
    repeated or late beyond what a stream allows: a protocol step must bear that."""

    latency_s: tuple[float, float] = LATENCY_S
    spike: float = 0.0
    spike_s: float = 1.0
    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    late_s: float = 8.0


CLEAR = Weather()


@dataclass
class Wire:
    """One pair of nodes: at most one stream, known to each end by its number."""

    ends: tuple[str, str]
    dice: Dice
    stream: int = 0
    open: dict[str, int] = field(default_factory=dict)  # by end, the stream that it has
    cut: set[str] = field(default_factory=set)  # senders whose words do not get through
    last: dict[str, float] = field(default_factory=dict)  # by sender, the last arrival
    held: dict[str, list[tuple[int, Said]]] = field(default_factory=dict)

    def other(self, end: str) -> str:
        return self.ends[1] if end == self.ends[0] else self.ends[0]


class Network:
    """All wires of the site. `hosts` are given by whoever builds the nodes."""

    def __init__(self, world: World, weather: Weather = CLEAR) -> None:
        self.world = world
        self.weather = weather
        self.hosts: dict[str, Host] = {}
        self._wires: dict[tuple[str, str], Wire] = {}
        self.sent = 0

    def add(self, host: Host) -> None:
        for name in self.hosts:
            low, high = sorted((name, host.name))
            wire = self._wires[low, high] = Wire((low, high), self.world.own_dice(low, high))
            self._redial(wire)
        self.hosts[host.name] = host

    def wire(self, one: str, two: str) -> Wire:
        return self._wires[(one, two) if one < two else (two, one)]

    def wires(self) -> list[Wire]:
        return list(self._wires.values())

    # ---- streams ----

    def _passable(self, wire: Wire) -> bool:
        return not wire.cut and all(self.hosts[end].listening() for end in wire.ends)

    def _redial(self, wire: Wire) -> None:
        self.world.after(wire.dice.between(*REDIAL_S), self._dial, wire)

    def _dial(self, wire: Wire) -> None:
        """The first end tries, as long as it has no stream."""
        low, high = wire.ends
        if low in wire.open:
            return
        willing = self.hosts[low].knows(high) and self.hosts[high].knows(low)
        if not willing or not self._passable(wire):
            self._redial(wire)
            return
        wire.stream += 1
        if high in wire.open:
            self._close(wire, high)
        for end in wire.ends:
            wire.open[end] = wire.stream
            wire.last[end] = 0.0
            wire.held.pop(end, None)
            delay = wire.dice.between(*self.weather.latency_s)
            self.world.after(delay, self._opened, wire, end, wire.stream)

    def _opened(self, wire: Wire, end: str, stream: int) -> None:
        if wire.open.get(end) == stream:
            other = wire.other(end)
            self.hosts[end].feed(PeerOpened(other, self.hosts[other].instance))

    def _close(self, wire: Wire, end: str) -> None:
        """One end gives its stream up; the other hears of it if it can."""
        stream = self._drop(wire, end)
        if stream is None:
            return
        self.hosts[end].feed(PeerClosed(wire.other(end)))
        if end not in wire.cut:
            delay = wire.dice.between(*self.weather.latency_s)
            self.world.after(delay, self._hang_up, wire, wire.other(end), stream)

    def _drop(self, wire: Wire, end: str) -> int | None:
        stream = wire.open.pop(end, None)
        if stream is not None and end == wire.ends[0]:
            self._redial(wire)
        return stream

    def _hang_up(self, wire: Wire, end: str, stream: int) -> None:
        if wire.open.get(end) == stream:
            self._close(wire, end)

    def disturbed(self, wire: Wire) -> None:
        """Something may keep the ends from hearing each other: their keepalives will notice."""
        for end in wire.ends:
            if (stream := wire.open.get(end)) is not None:
                delay = wire.dice.between(*KEEPALIVE_S)
                self.world.after(delay, self._keepalive, wire, end, stream)

    def _keepalive(self, wire: Wire, end: str, stream: int) -> None:
        there = wire.open.get(wire.other(end)) == stream
        if wire.open.get(end) == stream and not (there and self._passable(wire)):
            self._close(wire, end)

    def process_died(self, name: str, *, with_the_box: bool) -> None:
        """Its kernel closes its streams; a box without power does not."""
        for wire in self.wires():
            if name in wire.ends:
                stream = self._drop(wire, name)
                other = wire.other(name)
                if stream is not None and not with_the_box and name not in wire.cut:
                    self.world.after(0.001, self._hang_up, wire, other, stream)
                self.disturbed(wire)

    def roster_changed(self, name: str) -> None:
        """Streams with whom its plan does not name any more are closed."""
        for wire in self.wires():
            if name in wire.ends and not self.hosts[name].knows(wire.other(name)):
                self._close(wire, name)

    # ---- cuts ----

    def cut(self, sender: str, receiver: str) -> None:
        wire = self.wire(sender, receiver)
        if sender not in wire.cut:
            wire.cut.add(sender)
            self.disturbed(wire)

    def mend(self, sender: str, receiver: str) -> None:
        """What was held back arrives, if both ends still have the stream that it was sent on."""
        wire = self.wire(sender, receiver)
        wire.cut.discard(sender)
        for stream, said in wire.held.pop(sender, ()):
            self._carry(wire, sender, stream, said)

    def mend_all(self) -> None:
        for wire in self.wires():
            for sender in sorted(wire.cut):
                self.mend(sender, wire.other(sender))

    # ---- messages ----

    def send(self, sender: str, receiver: str, said: Said) -> None:
        wire = self._wires.get((sender, receiver) if sender < receiver else (receiver, sender))
        stream = wire.open.get(sender) if wire is not None else None
        if wire is None or stream is None:
            return
        self.sent += 1
        if isinstance(said, LeaseRequest | LeaseAnswer | Beat) and self._mishap(
            wire, sender, stream, said
        ):
            return
        if sender in wire.cut:
            wire.held.setdefault(sender, []).append((stream, said))
        else:
            self._carry(wire, sender, stream, said)

    def _mishap(self, wire: Wire, sender: str, stream: int, said: Said) -> bool:
        """Beyond what a stream does: whether the message is dealt with by that."""
        weather, dice = self.weather, wire.dice
        if not (weather.lost or weather.twice or weather.late):
            return False
        chance = dice.random()
        if chance < weather.lost:
            return True
        if sender not in wire.cut and chance < weather.lost + weather.late + weather.twice:
            delay = dice.between(0, weather.late_s)
            self.world.after(delay, self._arrive, wire, sender, 0, said)
            return chance < weather.lost + weather.late
        return False

    def _carry(self, wire: Wire, sender: str, stream: int, said: Said) -> None:
        weather, world, dice = self.weather, self.world, wire.dice
        delay = dice.between(*weather.latency_s)
        if weather.spike and dice.random() < weather.spike:
            delay += dice.between(0, weather.spike_s)
        when = max(wire.last[sender], world.now + delay)
        wire.last[sender] = when
        world.at(when, self._arrive, wire, sender, stream, said)

    def _arrive(self, wire: Wire, sender: str, stream: int, said: Said) -> None:
        """`stream` 0: a stray; it only needs some stream to come in by."""
        end = wire.other(sender)
        open_ = wire.open.get(end)
        if open_ is not None and stream in (0, open_):
            self.hosts[end].feed(PeerSaid(sender, said))
        elif stream and self.hosts[end].powered and end not in wire.cut:
            self._hang_up(wire, sender, stream)  # its kernel knows of no such stream
