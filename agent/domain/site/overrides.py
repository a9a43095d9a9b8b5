"""What operators decided at this site, as this node knows it. Part of `machine.py`.

Decisions come from an operator at this node, from peers and with plans, and are merged by the rule
of `polder/overrides.py`. One of an operator or a peer takes effect, and is told on, once it stands
on the disk; what a plan says stands there with the plan. What could not be written down is taken
back when an operator waits for it, and tried again when a peer said it.

Tombstones go after a while, and sooner when there are too many, the lowest stamps first. Of each
node `floors` has the highest stamp that went so: an unknown tombstone of it at or below that is not
taken up again, or two nodes would keep each other's alive for ever.

Of what was decided at one node so many are kept (SHARE_MAX), and its own tombstones make room for
them: one that lies leaves the places of the others alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.domain.roster import Key
from agent.domain.site.messages import Answer, Refusal, Save
from polder.overrides import (
    FROZEN,
    OVERRIDES_MAX,
    PLACED_ON,
    SHARE_MAX,
    SITE,
    STAMP_FAR,
    STAMP_MAX,
    STOPPED,
    TOMBSTONE_S,
    BadOverride,
    Override,
    Register,
    from_body,
    newer,
    next_stamp,
    to_body,
)

NAME = "overrides"
DONE_MAX = 50  # changes that are answered alike when they are sent again
RETRY_S = 5.0

NOT_WRITABLE = Refusal("NotWritable", "this node cannot write it down: nothing was changed")
TOO_MANY = Refusal(
    "TooMany", f"{OVERRIDES_MAX} decisions of operators stand at this site: take some back first"
)
TOO_MANY_HERE = Refusal(
    "TooMany",
    f"{SHARE_MAX} decisions that were made at this node stand: take some back, or ask another node",
)
USED_UP = Refusal("StampsUsedUp", "no stamp is left: an orchestrator has to take this one back")
OVERTAKEN = Refusal("Overtaken", "something was decided, or happened, meanwhile: try again")


@dataclass(slots=True)
class _Waiting:
    """A change that its operator waits for. `before`: what it replaced."""

    override: Override
    before: Override | None


class Decisions:
    """All overrides: as they are to be, and those in force. `now`: seconds of CLOCK_BOOTTIME."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._wanted: dict[Register, Override] = {}
        self._force: dict[Register, Override] = {}
        self._buried: dict[Register, float] = {}  # tombstones, and since when they are known
        self._done: dict[str, Override] = {}  # by id, in the order in which they were made here
        self._waiting: dict[str, _Waiting] = {}
        self._asked: dict[int, dict[Register, Override]] = {}
        self._all: tuple[Override, ...] = ()
        self._floors: dict[str, int] = {}  # by node
        self._dirty = False
        self._retry_at = 0.0

    # ---- what is in force ----

    def all(self) -> tuple[Override, ...]:
        """Tombstones, too: for peers and for the orchestrator. The same tuple until any changes."""
        return self._all

    def get(self, key: Key, field: str) -> Override | None:
        """None: nobody decided it, or it was taken back."""
        found = self._force.get((*key, field))
        return found if found is not None and found.stands else None

    def stopped(self, key: Key) -> Override | None:
        return self.get(key, STOPPED)

    def frozen(self) -> Override | None:
        return self.get(SITE, FROZEN)

    def placed(self, key: Key) -> str:
        """Where it is wanted; empty: nobody said. As soon as it was heard: a claim of that node may
        come before our disk is done, and is not to be outbid."""
        found = self._wanted.get((*key, PLACED_ON))
        return found.value if found is not None else ""

    def target(self, key: Key, epochs: Iterable[int]) -> str:
        """The node that is to take it over from whoever holds it; empty: none, or not now. A move
        is of the holder that the operator saw: once a later epoch is known it is of the past."""
        found = self.get(key, PLACED_ON)
        if found is None or self.frozen() is not None or self.stopped(key) is not None:
            return ""
        return found.value if max(epochs, default=0) <= found.base_epoch else ""

    def base_epoch(self, key: Key) -> int:
        """Above this one is who takes it over by an operator's word."""
        found = self.get(key, PLACED_ON)
        return found.base_epoch if found is not None else 0

    def _changed(self) -> None:
        self._all = tuple(self._force[register] for register in sorted(self._force))

    def subjects(self) -> set[Key]:
        """Replicas about which something is decided."""
        return {found.subject for found in self._force.values() if found.stands} - {SITE}

    def next_due(self) -> float | None:
        buried = min(self._buried.values(), default=None)
        dues = [buried + TOMBSTONE_S] if buried is not None else []
        if self._dirty:
            dues.append(self._retry_at)
        return min(dues, default=None)

    # ---- what happens ----

    def read(self, body: Mapping[str, Any], now: float) -> None:
        """From what was kept. What cannot be read was written by another version."""
        for item in body.get("known", ()):
            if (found := _read(item)) is not None:
                self._put(found, now, force=True)
        for item in body.get("done", ()):
            if (found := _read(item)) is not None:
                self._done[found.id] = found
        floors = body.get("floors", {})
        if isinstance(floors, dict):
            self._floors = {node: one for node, one in floors.items() if isinstance(one, int)}
        self._changed()

    def draft(self, wanted: Override) -> Override | Refusal:
        """As `decide` would write it down, so that it can be signed before."""
        stamp = self._next_stamp(wanted.register)
        if stamp > STAMP_MAX:
            return USED_UP
        override = replace(wanted, stamp=stamp, node=self._node, conflict="")
        return self._no_room(override) or override

    def decide(self, wanted: Override, now: float) -> Answer | None:
        """An operator's change at this node; if it is signed, as it was drafted. None: it is
        answered once it is on the disk."""
        if wanted.id in self._waiting:
            return None
        if (done := self.made(wanted.id)) is not None:
            return Answer(wanted.id, done)
        override = self.draft(wanted)
        if isinstance(override, Refusal):
            return Answer(wanted.id, None, override)
        if override.proof is not None and override != wanted:
            return Answer(wanted.id, None, OVERTAKEN)
        self._waiting[wanted.id] = _Waiting(override, self._wanted.get(override.register))
        self._put(override, now, force=False)
        self._dirty, self._retry_at = True, now
        return None

    def _next_stamp(self, register: Register) -> int:
        """Above all that is known; of what nobody reached honestly only in the same register: a
        peer that lies must not use the numbers up for all others."""
        known = (*self._wanted.values(), *self._done.values())
        stamp = next_stamp(override for override in known if override.stamp < STAMP_FAR)
        floors = (floor for floor in self._floors.values() if floor < STAMP_FAR)
        stamp = max(stamp, 1 + max(floors, default=0))
        own = self._wanted.get(register)
        return max(stamp, next_stamp([own])) if own is not None else stamp

    def made(self, id: str) -> Override | None:
        """The change of that id, if it was made before: here, or at another node."""
        known = (found for found in self._force.values() if found.id == id)
        return self._done.get(id) or next(known, None)

    def heard(self, told: Iterable[Override], now: float) -> None:
        """From a peer. Above STAMP_MAX only the orchestrator writes, and its plans say so."""
        found = newer((one for one in told if one.stamp <= STAMP_MAX), self._wanted)
        # What takes the place of another one first: it may make room in somebody's share.
        for override in sorted(found, key=lambda one: one.register not in self._wanted):
            if self._welcome(override):
                self._put(override, now, force=False)
                self._dirty = True

    def planned(self, told: Iterable[Override], now: float) -> bool:
        """From the plan in use, which is on the disk. Whether anything changed. The orchestrator
        says of what it knows, too, what contradicts it."""
        known, changed = dict(self._wanted), False
        for override in told:
            was = known.get(override.register)
            says = was is not None and was.rank == override.rank and was != override
            later = was is None or override.rank > was.rank
            if says or (later and self._welcome(override)):
                self._put(override, now, force=True)
                self._dirty = changed = True
        if changed:
            self._changed()
        return changed

    def forget(self, now: float) -> bool:
        """Drop tombstones that are old, and those that are too many. Whether any went."""
        old = [register for register, at in self._buried.items() if now >= at + TOMBSTONE_S]
        if len(self._wanted) - len(old) > SHARE_MAX:
            old += self._too_many(set(old))
        for register in old:
            gone = self._wanted.pop(register)
            self._floors[gone.node] = max(self._floors.get(gone.node, 0), gone.stamp)
            del self._buried[register]
            self._force.pop(register, None)
        if old:
            self._dirty = True
            self._changed()
        return bool(old)

    def _too_many(self, old: set[Register]) -> list[Register]:
        """Tombstones that have to go beside those: first of nodes that have more than their share.
        The orchestrator is no node of the site."""
        buried = sorted(self._buried.keys() - old, key=lambda r: self._wanted[r].stamp)
        kept = [one.node for register, one in self._wanted.items() if register not in old]
        sizes, extra = Counter(kept), len(kept) - OVERRIDES_MAX
        found: dict[Register, None] = {}
        for register in buried:
            node = self._wanted[register].node
            if node and sizes[node] > SHARE_MAX:
                sizes[node] -= 1
                found[register] = None
        rest = [register for register in buried if register not in found]
        return [*found, *rest[: max(0, extra - len(found))]]

    def _welcome(self, override: Override) -> bool:
        """Whether what is new here is to be taken up."""
        if override.register in self._wanted:
            return True
        if override.stands:
            return self._no_room(override) is None
        return override.stamp > self._floors.get(override.node, 0)

    def _no_room(self, override: Override) -> Refusal | None:
        """Why there is no place for it; None: there is. What stands already has its own."""
        if not override.stands or override.register in self._wanted:
            return None
        if len(self._wanted) - len(self._buried) >= OVERRIDES_MAX:
            return TOO_MANY
        standing = (one for one in self._wanted.values() if one.stands)
        share = sum(one.node == override.node for one in standing)
        return TOO_MANY_HERE if override.node and share >= SHARE_MAX else None

    def _put(self, override: Override, now: float, *, force: bool) -> None:
        register = override.register
        self._wanted[register] = override
        if force:
            self._force[register] = override
        if override.stands:
            self._buried.pop(register, None)
        else:
            self._buried[register] = now

    # ---- the disk ----

    def save(self, token: int, now: float) -> Save | None:
        """What is to be written; None: nothing is, or not yet again."""
        if not self._dirty or now < self._retry_at:
            return None
        self._dirty = False
        self._asked[token] = dict(self._wanted)
        for waiting in self._waiting.values():
            self._done[waiting.override.id] = waiting.override
        self._done = dict(list(self._done.items())[-DONE_MAX:])
        body = {
            "known": [to_body(override) for override in self._wanted.values()],
            "done": [to_body(override) for override in self._done.values()],
            "floors": self._floors,
        }
        return Save(token, NAME, body)

    def saved(self, token: int, now: float, *, ok: bool) -> tuple[bool, list[Answer]]:
        """(whether anything came into force, what operators are told)"""
        asked = self._asked.pop(token, None)
        if asked is None:
            return False, []
        if not ok:
            self._dirty, self._retry_at = True, now + RETRY_S
            return False, self._take_back(asked, now)
        changed = False
        for register, override in asked.items():
            known = self._force.get(register)
            wanted = self._wanted.get(register)  # lower: it was taken back meanwhile
            if wanted is None or wanted.rank < override.rank:
                continue
            if known is None or override.rank > known.rank:
                self._force[register], changed = override, True
        if changed:
            self._changed()
        return changed, [
            Answer(id, self._waiting.pop(id).override) for id in self._covered_by(asked)
        ]

    def _covered_by(self, asked: Mapping[Register, Override]) -> list[str]:
        """The changes that a write was about, also where a later one stands by now."""
        return [
            id
            for id, waiting in self._waiting.items()
            if (found := asked.get(waiting.override.register)) is not None
            and found.rank >= waiting.override.rank
        ]

    def _take_back(self, asked: Mapping[Register, Override], now: float) -> list[Answer]:
        """Nobody is told that something failed which then happens."""
        answers = []
        for id in reversed(self._covered_by(asked)):  # the latest first: it replaced the others
            waiting = self._waiting.pop(id)
            register = waiting.override.register
            self._done.pop(id, None)
            if self._wanted.get(register) is waiting.override:
                del self._wanted[register]
                self._buried.pop(register, None)
                if waiting.before is not None:
                    self._put(waiting.before, now, force=False)
            answers.append(Answer(id, None, NOT_WRITABLE))
        return answers


def _read(item: Any) -> Override | None:
    try:
        return from_body(item)
    except (BadOverride, TypeError, ValueError):
        return None
