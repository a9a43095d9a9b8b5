"""What this member says to those that follow it: built once, and the same bytes go to all.

`service.py` serves a follower's call with `serve`; the gateway's sessions come in through the
fleet's listeners, the leader's words through `say`. A follower that does not read loses its stream
and starts whole again: what waits for it is bounded, whatever happens meanwhile.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from orchestrator.fleet import Fleet
from orchestrator.mesh.nodes_told import NodesTold
from orchestrator.refusals import exhausted
from polder.v1 import member_pb2

log = logging.getLogger(__name__)

WAITING_BYTES_MAX = 16 << 20
"""Of one follower. More than a member's whole state may pass; a queue may not be that long."""
FOLLOWERS_MAX = 64
BATCH_BYTES_MAX = 256 << 10
COALESCE_S = 0.05
PULSE_S = 1.0
_WRITE_TIMEOUT_S = 10.0
_REFRESH_S = 60.0  # within so long every node's usage is told again

Write = Callable[[bytes], Awaitable[None]]


class Words(Protocol):
    """What a member says of itself as the leader, and hears of another that leads."""

    def whole(self) -> Iterable[member_pb2.LeaderSaid]:
        """For a follower that connects, in this order; nothing while this member does not lead."""
        ...

    def heard(self, member: str, said: member_pb2.LeaderSaid) -> None:
        """Another member said it. Must be quick."""
        ...


class Silence(Protocol):
    """One agent's session, as far as a pulse tells of it."""

    @property
    def node(self) -> str: ...

    @property
    def last_heard(self) -> float:
        """Seconds of the fleet's steady clock."""


@dataclass(frozen=True, slots=True)
class StoreState:
    """Of this member's mirror of the Store. `age_s` 0: it is current."""

    healthy: bool
    revision: int
    age_s: float


class NotRead(Exception):
    """A follower's stream must end, for what it does not read."""


class Follower:
    """One member that follows this one: what waits to be sent to it."""

    def __init__(self, member: str) -> None:
        self.member = member
        self.hears_leader = False  # not before it is told the whole
        self._later: list[bytes] | None = None  # what comes after that
        self._later_bytes = 0
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._failed = ""
        self._finished = False
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, raw: bytes) -> None:
        """What does not fit ends the stream: see `take`."""
        if self._failed:
            return
        if self._waiting and self._bytes + len(raw) > WAITING_BYTES_MAX:
            self.fail(f"{WAITING_BYTES_MAX >> 20} MB wait for it")
            return
        self._waiting.append(raw)
        self._bytes += len(raw)
        self._empty.clear()
        self._news.set()

    def begin_words(self) -> None:
        """It is being told all that the leader says."""
        if not self.hears_leader:
            self.hears_leader, self._later = True, []

    def put_words(self, raw: bytes) -> None:
        """What the leader says to all; as `put`, after the whole."""
        if self._later is None:
            self.put(raw)
            return
        self._later_bytes += len(raw)
        if self._later_bytes > WAITING_BYTES_MAX:
            self.fail(f"{WAITING_BYTES_MAX >> 20} MB wait for it")
        else:
            self._later.append(raw)

    def end_words(self) -> None:
        """That was the whole."""
        self.begin_words()
        later, self._later = self._later or (), None
        for raw in later:
            self.put(raw)

    def fail(self, why: str) -> None:
        """Its stream ends without what still waits."""
        self._failed = why
        self._waiting.clear()
        self._news.set()

    def finish(self) -> None:
        """Its stream ends after what still waits."""
        self._finished = True
        self._news.set()

    async def take(self) -> bytes | None:
        """None: that was all. Raises NotRead."""
        while not self._waiting:
            if self._failed:
                raise NotRead(self._failed)
            if self._finished:
                return None
            self._empty.set()
            self._news.clear()
            await self._news.wait()
        raw = self._waiting.popleft()
        self._bytes -= len(raw)
        return raw

    async def emptied(self) -> None:
        """Until nothing waits."""
        await self._empty.wait()


class Telling:
    """One per member. `run` until cancelled; `use` gives it the leader's words."""

    def __init__(
        self,
        fleet: Fleet,
        sessions: Iterable[Silence],
        hello: member_pb2.MemberHello,
        store_state: Callable[[], StoreState],
        clock: Callable[[], float],
        heartbeat_s: float,
    ) -> None:
        """`sessions`: those open now. `hello` names this member; its time is filled in."""
        self._fleet = fleet
        self._sessions = sessions
        self._hello = hello
        self._store_state = store_state
        self._clock = clock
        # A little more than between two heartbeats of an agent that is well.
        self._silent_s = heartbeat_s * 1.2 + 0.3
        self._told = NodesTold(fleet)
        self._followers: set[Follower] = set()
        self._words: Words | None = None
        self._news = asyncio.Event()
        self._refreshing: list[str] = []
        fleet.subscribe(self._on_node)

    @property
    def followers(self) -> list[str]:
        """Members that follow this one now."""
        return sorted(follower.member for follower in self._followers)

    def use(self, words: Words) -> None:
        """Whose `whole` a follower gets when it connects."""
        self._words = words

    def say(self, said: member_pb2.LeaderSaid) -> None:
        """To all who follow, in order; to one that has just connected after `Words.whole`."""
        if not self._followers:
            return
        raw = _raw(member_pb2.FollowResponse(leader=said))
        for follower in self._followers:
            if follower.hears_leader:
                follower.put_words(raw)

    def end(self) -> None:
        """This member stops: those that follow hear of the last session's end, and that is all."""
        self._tell_changed()
        for follower in self._followers:
            follower.finish()

    async def run(self) -> None:
        """Tells what changes, and each second that this member lives."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell_changes(), name="mesh-changes")
            group.create_task(self._pulse(), name="mesh-pulse")

    # --- a follower ------------------------------------------------------------------------------

    async def serve(self, member: str, write: Write) -> None:
        """Until the follower goes, or does not read. Raises Refused and what `write` raises."""
        with self._following(member) as follower:
            whole = asyncio.create_task(self._tell_whole(follower), name=f"mesh-whole-{member}")
            try:
                while (raw := await follower.take()) is not None:
                    async with asyncio.timeout(_WRITE_TIMEOUT_S):
                        await write(raw)
            except (NotRead, TimeoutError) as error:
                why = str(error) or "a message takes too long to be read"
                facts = {"follower": member, "reason": why}
                log.warning("a member that follows must start again", extra=facts)
                raise exhausted("NotRead", why, "") from error
            finally:
                whole.cancel()

    @contextmanager
    def _following(self, member: str) -> Iterator[Follower]:
        if len(self._followers) >= FOLLOWERS_MAX:
            raise exhausted("TooManyFollowers", f"{FOLLOWERS_MAX} members follow this one", "")
        follower = Follower(member)
        hello = member_pb2.MemberHello()
        hello.CopyFrom(self._hello)
        hello.now_ms = int(self._clock() * 1000)
        # Before anything that is told to all.
        follower.put(_raw(member_pb2.FollowResponse(hello=hello)))
        follower.put(self._pulse_now())
        self._told.start()
        self._followers.add(follower)
        log.info("a member follows", extra={"follower": member})
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            if not self._followers:
                self._told.stop()
            log.info("a member follows no more", extra={"follower": member})

    async def _tell_whole(self, follower: Follower) -> None:
        """What changes while this goes on is told in between, and is then part of what follows."""
        try:
            await self._whole(follower)
        except Exception:
            log.exception("a member cannot be told everything")
            follower.fail("it could not be told everything")

    async def _whole(self, follower: Follower) -> None:
        self._tell_changed()
        batch = _Batch()
        for node in self._told.nodes():
            for said in self._told.whole(node):
                if batch.add(said):
                    continue
                follower.put(batch.raw())
                batch = _Batch()
                batch.add(said)
                await follower.emptied()
        follower.put(batch.raw(complete=True))
        for words in self._words.whole() if self._words is not None else ():
            follower.begin_words()  # at the first: what is said to all from now on is not in it
            follower.put(_raw(member_pb2.FollowResponse(leader=words)))
            await follower.emptied()  # ten thousand explanations are not told in one go
        follower.end_words()

    # --- changes ---------------------------------------------------------------------------------

    def _on_node(self, node: str) -> None:
        if self._told.changed(node):
            self._news.set()

    async def _tell_changes(self) -> None:
        """The first change after a quiet time goes at once; a burst goes together."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._tell_changed()
            await asyncio.sleep(COALESCE_S)

    def _tell_changed(self) -> None:
        batch = _Batch()
        for said in self._told.differences():
            if not batch.add(said):
                self._broadcast(batch.raw())
                batch = _Batch()
                batch.add(said)
        if batch.size:
            self._broadcast(batch.raw())

    def _broadcast(self, raw: bytes) -> None:
        for follower in self._followers:
            follower.put(raw)

    # --- pulses ----------------------------------------------------------------------------------

    async def _pulse(self) -> None:
        while True:
            started = time.monotonic()
            if self._followers:
                self._broadcast(self._pulse_now())
                self._refresh()
            await asyncio.sleep(max(0.1, PULSE_S - (time.monotonic() - started)))

    def _pulse_now(self) -> bytes:
        steady, state = self._fleet.steady(), self._store_state()
        pulse = member_pb2.Pulse(
            now_ms=int(self._clock() * 1000),
            store_healthy=state.healthy,
            store_revision=state.revision,
            store_age_ms=int(state.age_s * 1000),
        )
        limit, count = steady - self._silent_s, 0
        for session in self._sessions:
            count += 1
            if session.last_heard < limit:
                silence_ms = int((steady - session.last_heard) * 1000)
                pulse.silent.add(node=session.node, silence_ms=silence_ms)
        pulse.sessions = count
        return _raw(member_pb2.FollowResponse(pulse=pulse))

    def _refresh(self) -> None:
        """What heartbeats alone bring (usage) is told again now and then, a few nodes at a time."""
        if not self._refreshing:
            self._refreshing = self._told.nodes()
        share = max(1, int(len(self._refreshing) * PULSE_S / _REFRESH_S))
        if len(self._refreshing) > share:
            share = max(share, int(self._told.count * PULSE_S / _REFRESH_S))
        for node in self._refreshing[-share:]:
            self._on_node(node)
        del self._refreshing[-share:]


class _Batch:
    """Nodes that go in one message."""

    def __init__(self) -> None:
        self.size = 0
        self._nodes = member_pb2.NodesSaid()

    def add(self, said: member_pb2.NodeSaid) -> bool:
        """False: it does not fit. One alone always does."""
        size = said.ByteSize()
        if self.size and self.size + size > BATCH_BYTES_MAX:
            return False
        self.size += max(1, size)
        self._nodes.nodes.append(said)
        return True

    def raw(self, *, complete: bool = False) -> bytes:
        self._nodes.complete = complete
        return _raw(member_pb2.FollowResponse(nodes=self._nodes))


def _raw(message: member_pb2.FollowResponse) -> bytes:
    return message.SerializeToString()
