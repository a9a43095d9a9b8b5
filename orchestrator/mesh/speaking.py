"""Tells the other members what the leader of this one says: whole at first, then what changed.

`voice.py` runs it beside the mesh's `Telling`, which takes each message to all who follow. What
changed is found out here, a few times a second at most, and not in the leader's tick.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Protocol

from orchestrator.mesh.words import Words, differing
from polder.v1 import member_pb2

LOOK_EVERY_S = 0.2
_SHARE_MAX = 0.05
"""Of the time, for finding out what changed."""
_ITEMS_PER_MESSAGE = 200
_BYTES_PER_MESSAGE = 256 << 10


class Speaks(Protocol):
    """The part of the leader that is needed here."""

    @property
    def desired(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def term(self) -> int: ...

    @property
    def told_ago_s(self) -> float: ...

    def words(self) -> Words | None: ...


class _Kind(Enum):
    WORKLOAD = 1
    NODE = 2
    ROLLOUT = 3


_Item = tuple[_Kind, Any]


class Speaker:
    """`steady`: seconds of a clock that never jumps."""

    def __init__(self, leader: Speaks, steady: Callable[[], float] = time.monotonic) -> None:
        self._leader = leader
        self._steady = steady
        self._told: Words | None = None
        self._told_steady = 0.0

    async def run(
        self, say: Callable[[member_pb2.LeaderSaid], None], has_audience: Callable[[], bool]
    ) -> None:
        """Until cancelled."""
        while True:
            started = self._steady()
            if has_audience():
                for message in self.news():
                    say(message)
                    await asyncio.sleep(0)  # ten thousand explanations are not told in one go
            else:
                self._told = None
            spent_s = self._steady() - started
            await asyncio.sleep(max(LOOK_EVERY_S, spent_s / _SHARE_MAX))

    def news(self) -> Iterator[member_pb2.LeaderSaid]:
        """What is to be said to all; each message is made when it is asked for."""
        before = self._told
        if before is not None and before.term != self._leader.term:
            self._told = None
            yield member_pb2.LeaderSaid()
            before = None
        # A tick that said anything made a new mapping, also when it says the same.
        if before is not None and self._leader.desired is before.desired:
            return
        words = self._take()
        if words is None:
            return
        items = _everything(words) if before is None else _changed(before, words)
        yield from self._messages(words, before is None, items)

    def whole(self) -> Iterator[member_pb2.LeaderSaid]:
        """For one who has heard nothing yet; nothing while this member does not lead."""
        # What was told last: what changed since is still to be said, to this one like to all.
        words = self._told or self._take()
        if words is not None:
            yield from self._messages(words, True, _everything(words))

    def _take(self) -> Words | None:
        self._told = words = self._leader.words()
        if words is not None:
            self._told_steady = self._steady() - self._leader.told_ago_s
        return words

    def _messages(
        self, words: Words, whole: bool, items: Iterable[_Item]
    ) -> Iterator[member_pb2.LeaderSaid]:
        message = member_pb2.LeaderSaid(term=words.term, whole=whole)
        told_steady = self._told_steady  # newer words may be taken before the last message is made
        count = size = 0
        for kind, name in items:
            if count == _ITEMS_PER_MESSAGE or size > _BYTES_PER_MESSAGE:
                message.more = True
                yield message
                message = member_pb2.LeaderSaid(term=words.term)
                count = size = 0
            count += 1
            size += _add(message, words, kind, name)
        message.told_at_ms = int(words.told_at * 1000)
        message.told_ago_ms = int((self._steady() - told_steady) * 1000)
        yield message


def _add(message: member_pb2.LeaderSaid, words: Words, kind: _Kind, name: Any) -> int:
    """Returns how large it is."""
    match kind:
        case _Kind.WORKLOAD:
            workload = words.workload(name)
            message.workloads.append(workload)
            return workload.ByteSize()
        case _Kind.NODE:
            node = words.node(name)
            message.nodes.append(node)
            return node.ByteSize()
        case _Kind.ROLLOUT:
            rollout = words.rollout(name)
            message.rollouts.append(rollout)
            return rollout.ByteSize()


def _everything(words: Words) -> Iterator[_Item]:
    yield from ((_Kind.WORKLOAD, key) for key in {**words.desired, **words.explanations})
    yield from ((_Kind.NODE, node) for node in words.remarks)
    yield from ((_Kind.ROLLOUT, uid) for uid in words.clocks)


def _changed(before: Words, after: Words) -> Iterator[_Item]:
    workloads = dict.fromkeys(differing(before.desired, after.desired))
    workloads.update(dict.fromkeys(differing(before.explanations, after.explanations)))
    yield from ((_Kind.WORKLOAD, key) for key in workloads)
    yield from ((_Kind.NODE, node) for node in differing(before.remarks, after.remarks))
    yield from ((_Kind.ROLLOUT, uid) for uid in differing(before.clocks, after.clocks))
