"""What operators did through this node, on the disk: for the orchestrator, and for those who come.

`door.py`, `reach.py` and `changing.py` write it, the session carries up what was not taken yet
(`affairs.py`), Recall shows it. Bounded, and how many went unheard is told: whoever has most
entries loses its own, first that it entered, so that nobody pushes out what others did.

Its form is that of the site's memory (`agent/site/memory.py`): a name for each entry.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.local.callers import Caller
from agent.local.tries import Tries
from agent.site.memory import Memory
from polder.v1 import agent_pb2

ENTRIES_MAX = 1_000
KEPT = 200  # that were taken, for Recall
BATCH = 100  # in one message
REFUSALS = 10  # of one caller, in a minute
TEXT_MAX = 500
NAME_MAX = 253
ENTER = "enter"
_PREFIX = "entry/"
_TAKEN, _DROPPED = "taken", "dropped"


@dataclass(frozen=True, slots=True)
class Target:
    """A replica that something is done to; empty: the node, or the whole site."""

    namespace: str = ""
    workload: str = ""
    workload_uid: str = ""
    replica: str = ""


NOWHERE = Target()


def named(namespace: str, replica: str) -> Target:
    """A replica of which nothing is known but what the caller said."""
    return Target(namespace[:NAME_MAX], replica=replica[:NAME_MAX])


class NotWritten(Exception):
    """The disk refuses. What is not journaled is not done."""


class Journal:
    """`bodies`: what the memory held at the start. `on_change`: there is something to carry up."""

    def __init__(self, memory: Memory, bodies: Mapping[str, Any]) -> None:
        self._memory = memory
        self.on_change: Callable[[], None] = lambda: None
        found = [_entry(body) for name, body in bodies.items() if name.startswith(_PREFIX)]
        sound = (entry for entry in found if entry is not None)
        self._entries = deque(sorted(sound, key=lambda entry: entry.sequence))
        self._taken = _number(bodies.get(_TAKEN))
        self._dropped = _number(bodies.get(_DROPPED))
        self._told_dropped = 0
        self._refusals = Tries(REFUSALS)
        self._turn = asyncio.Lock()

    def __iter__(self) -> Iterator[agent_pb2.JournalEntry]:
        """Oldest first."""
        return iter(self._entries)

    async def write(
        self,
        caller: Caller,
        verb: str,
        *,
        target: Target = NOWHERE,
        detail: str = "",
        reason: str = "",
        refused: str = "",
    ) -> None:
        """Durably, with the next sequence number. Raises NotWritten."""
        async with self._turn:
            written = agent_pb2.JournalEntry(
                sequence=1 + max(self._last(), self._taken),
                at_ms=int(time.time() * 1000),
                by=caller.by,
                purpose=caller.purpose,
                verb=verb,
                namespace=target.namespace,
                replica=target.replica,
                workload_uid=target.workload_uid,
                detail=detail[:TEXT_MAX],
                reason=reason[:TEXT_MAX],
                refused=refused[:TEXT_MAX],
            )
            trouble = await self._memory.save(_name(written.sequence), _body(written))
            if trouble:
                raise NotWritten(f"the journal cannot be written: {trouble}")
            self._entries.append(written)
            await self._make_room()
        self.on_change()

    async def refuse(
        self,
        caller: Caller,
        verb: str,
        refused: str,
        *,
        target: Target = NOWHERE,
        detail: str = "",
        reason: str = "",
    ) -> None:
        """What somebody who was let in wanted and did not get. So many in a minute: what was done
        is not to be pushed out by what was not. A disk that refuses is not worth a word then."""
        now = asyncio.get_running_loop().time()
        if self._refusals.wait_s(caller.by, now) > 0:
            return
        self._refusals.note(caller.by, now)
        with contextlib.suppress(NotWritten):
            await self.write(
                caller, verb, target=target, detail=detail, reason=reason, refused=refused
            )

    async def taken(self, sequence: int) -> None:
        """The orchestrator has the entries up to this one. A number that was not written here (this
        box lost its disk meanwhile) says nothing."""
        async with self._turn:
            if self._taken < sequence <= self._last():
                self._taken = sequence
                await self._memory.save(_TAKEN, {"n": sequence})
            if self._told_dropped:
                self._dropped -= self._told_dropped
                self._told_dropped = 0
                await self._memory.save(_DROPPED, {"n": self._dropped})
            await self._make_room()
        if self._last() > self._taken:
            self.on_change()

    def waiting(self) -> tuple[list[agent_pb2.JournalEntry], int]:
        """Those that were not taken, oldest first and bounded, and how many were lost."""
        entries = [entry for entry in self._entries if entry.sequence > self._taken]
        self._told_dropped = self._dropped
        return entries[:BATCH], self._dropped

    def _last(self) -> int:
        return self._entries[-1].sequence if self._entries else 0

    async def _make_room(self) -> None:
        while (gone := self._superfluous()) is not None:
            if gone.sequence > self._taken:
                self._dropped += 1
                await self._memory.save(_DROPPED, {"n": self._dropped})
            self._entries.remove(gone)
            await self._memory.save(_name(gone.sequence), {})

    def _superfluous(self) -> agent_pb2.JournalEntry | None:
        """What is taken goes first, then of whoever has most: that it entered, then the oldest."""
        size = len(self._entries)
        if size > KEPT and self._entries[0].sequence <= self._taken:
            return self._entries[0]
        if size <= ENTRIES_MAX:
            return None
        ((most, _),) = Counter(entry.by for entry in self._entries).most_common(1)
        theirs = [entry for entry in self._entries if entry.by == most]
        older = theirs[:-1] or theirs  # the newest has the number after which the next is counted
        return next((entry for entry in older if entry.verb == ENTER), older[0])


def _name(sequence: int) -> str:
    return f"{_PREFIX}{sequence}"


def _body(entry: agent_pb2.JournalEntry) -> dict[str, Any]:
    return {field.name: value for field, value in entry.ListFields()}


def _entry(body: Any) -> agent_pb2.JournalEntry | None:
    """None for one that another version wrote, and that this one cannot read."""
    try:
        return agent_pb2.JournalEntry(**body)
    except (TypeError, ValueError):
        return None


def _number(body: Any) -> int:
    try:
        return max(0, int(body["n"]))
    except (KeyError, TypeError, ValueError):
        return 0
