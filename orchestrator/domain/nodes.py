"""A node from joining to being lost: what is heard of it in, states and instructions out. Pure.

The leader takes a step with every node in every tick (`orchestrator/scheduling/guards_step.py`).
How long a node has been silent comes in as `Liveness`, measured on a steady clock; whether its
silence proves anything comes from `orchestrator/domain/silence.py`.

    NeverSeen --Heard--> Live --Quiet--> Silent --Gone--> Lost
                          ^                |                |
                          +----- Heard ----+----------------+

Doubted (it would be lost, but too many are silent with it) leads to Silent, also from Lost: nothing
is moved off a node that is only silent. `TRANSITIONS` is the whole of it; docs/node-lifecycle.md
shows it to operators.

A node that comes and goes is told of once per episode: from the third fall within ten minutes on it
is Flapping, and the single falls and returns are not told, until ten minutes passed without any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from orchestrator.domain.liveness import FLAP_WINDOW_S, Liveness

FALLS_MIN = 3
"""So many falls within the window are flapping."""
_FALLS_KEPT = 64


class Word(StrEnum):
    """What is heard of a node at one moment."""

    HEARD = "Heard"  # within silent_after_s
    QUIET = "Quiet"  # nothing for longer than silent_after_s
    GONE = "Gone"  # nothing for longer than lost_after_s
    DOUBTED = "Doubted"  # the same, but so many are silent that it proves nothing
    NEVER = "Never"  # no agent of it has ever connected


class Effect(Enum):
    """What a transition brings about."""

    TELL_SILENT = "TellSilent"
    TELL_READY = "TellReady"
    MARK_LOST = "MarkLost"  # from now on its replicas move
    SPARE = "Spare"  # no more replicas move off it


_NEVER, _LIVE = Liveness.NEVER_SEEN, Liveness.LIVE
_SILENT, _LOST = Liveness.SILENT, Liveness.LOST

TRANSITIONS: Mapping[tuple[Liveness, Word], tuple[Liveness, tuple[Effect, ...]]] = {
    (_NEVER, Word.NEVER): (_NEVER, ()),
    (_NEVER, Word.HEARD): (_LIVE, ()),
    (_NEVER, Word.QUIET): (_SILENT, ()),
    (_NEVER, Word.GONE): (_LOST, (Effect.MARK_LOST,)),
    (_NEVER, Word.DOUBTED): (_SILENT, ()),
    (_LIVE, Word.HEARD): (_LIVE, ()),
    (_LIVE, Word.QUIET): (_SILENT, (Effect.TELL_SILENT,)),
    (_LIVE, Word.GONE): (_LOST, (Effect.MARK_LOST,)),
    (_LIVE, Word.DOUBTED): (_SILENT, (Effect.TELL_SILENT,)),
    (_LIVE, Word.NEVER): (_NEVER, ()),  # it was deleted, and joined again under its name
    (_SILENT, Word.HEARD): (_LIVE, (Effect.TELL_READY,)),
    (_SILENT, Word.QUIET): (_SILENT, ()),
    (_SILENT, Word.GONE): (_LOST, (Effect.MARK_LOST,)),
    (_SILENT, Word.DOUBTED): (_SILENT, ()),
    (_SILENT, Word.NEVER): (_NEVER, ()),
    (_LOST, Word.HEARD): (_LIVE, (Effect.TELL_READY,)),
    (_LOST, Word.QUIET): (_SILENT, ()),  # it spoke, and fell silent again between two looks
    (_LOST, Word.GONE): (_LOST, ()),
    (_LOST, Word.DOUBTED): (_SILENT, (Effect.SPARE,)),
    (_LOST, Word.NEVER): (_NEVER, ()),
}


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What was seen of one node. Moments are seconds of the steady clock.

    `told`: people know that it is silent or lost. `falls`: when it fell silent lately, the newest
    last. `spared_until`: others that were silent with it have spoken, and it has so long to follow.
    """

    state: Liveness
    changed_at: float = 0.0
    told: bool = False
    falls: tuple[float, ...] = ()
    flapping: bool = False
    spared_until: float = 0.0

    @property
    def at_rest(self) -> bool:
        """Live, and nothing to remember about it that ends by itself."""
        return self.state is Liveness.LIVE and not self.flapping

    def falls_since(self, moment: float) -> int:
        return sum(1 for fall in self.falls if fall >= moment)


@dataclass(frozen=True, slots=True)
class Announce:
    """An event about a node."""

    node: str
    warning: bool
    reason: str
    message: str


def first(word: Word, steady: float) -> NodeMemory:
    """A node that nobody has watched until now. What it was before is not told again."""
    state = {Word.HEARD: _LIVE, Word.GONE: _LOST, Word.NEVER: _NEVER}.get(word, _SILENT)
    return NodeMemory(state, steady, told=state is _LOST)


_WORDS = {_LIVE: Word.HEARD, _SILENT: Word.QUIET, _LOST: Word.GONE, _NEVER: Word.NEVER}


def heard(liveness: Liveness, *, doubted: bool) -> Word:
    """`doubted`: its silence proves nothing."""
    return Word.DOUBTED if doubted and liveness is _LOST else _WORDS[liveness]


def step(
    node: str, before: NodeMemory, word: Word, steady: float
) -> tuple[NodeMemory, tuple[Announce, ...]]:
    """One node, one moment: the new memory, and what to tell."""
    state, effects = TRANSITIONS[before.state, word]
    if state is before.state and not before.flapping:
        return before, ()
    after = before
    if state is not before.state:
        fell = before.state is _LIVE and state in (_SILENT, _LOST)
        falls = (*before.falls, steady)[-_FALLS_KEPT:] if fell else before.falls
        after = replace(before, state=state, changed_at=steady, falls=falls)
    return _told(node, before, after, effects, steady)


def _told(
    node: str, before: NodeMemory, after: NodeMemory, effects: tuple[Effect, ...], steady: float
) -> tuple[NodeMemory, tuple[Announce, ...]]:
    lately = after.falls_since(steady - FLAP_WINDOW_S)
    if before.flapping:
        if lately:
            return after, ()
        after = replace(after, flapping=False, falls=())
        return _settled(node, after)
    if lately >= FALLS_MIN:
        text = (
            f"it fell silent {lately} times within {FLAP_WINDOW_S / 60:g} minutes; a replica that "
            "was moved for that is not moved for it again until it has been silent for long"
        )
        return replace(after, flapping=True, told=True), (
            Announce(node, True, "NodeFlapping", text),
        )
    said = []
    for effect in effects:
        if effect is Effect.TELL_SILENT:
            text = "nothing is heard of it; its replicas are left where they are for now"
            said.append(Announce(node, True, "NodeSilent", text))
        elif effect is Effect.MARK_LOST:
            said.append(_lost(node))
        elif effect is Effect.TELL_READY and before.told:
            said.append(Announce(node, False, "NodeReady", "is heard again"))
    bad = after.state in (_SILENT, _LOST)
    return replace(after, told=bad and (before.told or bool(said))), tuple(said)


def _settled(node: str, after: NodeMemory) -> tuple[NodeMemory, tuple[Announce, ...]]:
    """The end of an episode, told as what it came to."""
    minutes = f"{FLAP_WINDOW_S / 60:g} minutes"
    if after.state is _LIVE:
        text = f"is heard again, and did not fall silent for {minutes}"
        return replace(after, told=False), (Announce(node, False, "NodeReady", text),)
    if after.state is _LOST:
        return replace(after, told=True), (_lost(node),)
    return after, ()


def _lost(node: str) -> Announce:
    text = "nothing has been heard of it for long; its replicas move where they can"
    return Announce(node, True, "NodeLost", text)


def remark(memory: NodeMemory, steady: float) -> str:
    """What `describe node` adds of a node that comes and goes; empty of others."""
    if not memory.flapping:
        return ""
    times = memory.falls_since(steady - FLAP_WINDOW_S)
    return f"it fell silent {times} times in the last {FLAP_WINDOW_S / 60:g} minutes"
