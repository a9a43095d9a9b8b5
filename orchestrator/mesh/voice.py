"""What the leader says, on every member: of the leader here while it leads, else as it was heard.

The links of the mesh give `Hearsay` what members say over their Follow streams. `Voice` is what the
operator API asks instead of the leader of its own process. A leader that is gone falls silent: its
last words stay until another one speaks, and grow old in plain sight.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from orchestrator.cache import Cache
from orchestrator.domain.guard import GuardSettings
from orchestrator.domain.rollout_state import RolloutState, from_dict
from orchestrator.mesh.speaking import Speaker, Speaks
from orchestrator.mesh.words import (
    Clocks,
    Key,
    Remarks,
    Words,
    clocks_of,
    differing,
    remarks_of,
    workload_of,
)
from orchestrator.records import KeptRecord
from orchestrator.scheduling.decisions import Explanation
from orchestrator.store import keys
from polder.v1 import member_pb2

log = logging.getLogger(__name__)

_UNFINISHED_MAX = 10_000
"""Messages of one telling: a hundred times what ten thousand workloads need."""
SUSPECT = "Suspect"
OnChange = Callable[[Iterable[Key], Iterable[str]], None]


@dataclass(slots=True)
class Heard:
    """The last words of one leader. `told_at` is unix seconds by this member's clock, and
    `told_steady` by its steady one, so that a member whose clock is wrong ages nothing."""

    member: str
    term: int
    told_at: float = 0.0
    told_steady: float = -inf
    told_at_ms: int = 0  # as its leader dates it: the same for one and the same telling
    desired: dict[Key, int] = field(default_factory=dict)
    explanations: dict[Key, tuple[Explanation, ...]] = field(default_factory=dict)
    remarks: dict[str, Remarks] = field(default_factory=dict)
    clocks: dict[str, Clocks] = field(default_factory=dict)

    def take(self, part: "_Part") -> None:
        """What a message adds, changes and takes away."""
        for key, desired, explanations in part.workloads:
            _put(self.desired, key, desired)
            _put(self.explanations, key, explanations or None)
        for node, remarks in part.nodes:
            _put(self.remarks, node, remarks or None)
        for uid, clocks in part.rollouts:
            _put(self.clocks, uid, clocks)


class _Part:
    """One message, read when it comes: a telling of many leaves room for other work between two."""

    def __init__(self, message: member_pb2.LeaderSaid) -> None:
        self.term = message.term
        self.whole = message.whole
        self.told_at_ms = message.told_at_ms
        self.told_ago_s = max(0, message.told_ago_ms) / 1000
        self.workloads = [workload_of(said) for said in message.workloads]
        self.nodes = [(said.node, remarks_of(said)) for said in message.nodes]
        self.rollouts = [(said.workload_uid, clocks_of(said)) for said in message.rollouts]


class Hearsay:
    """What other members that lead, or led, said.

    `clock`: unix seconds; `steady`: seconds of a clock that never jumps. `on_change` gets the
    workloads of which another number is wanted and the nodes with other remarks; explanations are
    looked at by those who show them.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: OnChange = lambda _workloads, _nodes: None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._steady = steady
        self._unfinished: dict[str, list[_Part]] = {}
        self.newest: Heard | None = None
        self.began_steady = 0.0
        """When another leader than the one before was first heard; 0: that never happened."""

    def heard(self, member: str, message: member_pb2.LeaderSaid) -> None:
        """A message from a member's Follow stream, in order."""
        if not message.term:
            self._unfinished.pop(member, None)  # it leads no more; what it said in full stays
            return
        parts = self._unfinished.setdefault(member, [])
        if message.whole:
            parts.clear()  # changes to what was not told to this member yet
        parts.append(_Part(message))
        if message.more and len(parts) < _UNFINISHED_MAX:
            return
        del self._unfinished[member]
        if message.more:
            log.warning("a leader's telling has no end and is dropped", extra={"member": member})
            return
        self._take(member, parts)

    def keep(self, member: str, words: Words, told_ago_s: float) -> None:
        """The last words of the leader of this process, which leads no more."""
        if self.newest is None or self.newest.term < words.term:
            self.newest = Heard(
                member,
                words.term,
                words.told_at,
                self._steady() - told_ago_s,
                int(words.told_at * 1000),
                dict(words.desired),
                dict(words.explanations),
                dict(words.remarks),
                dict(words.clocks),
            )

    def _take(self, member: str, parts: list[_Part]) -> None:
        first, last = parts[0], parts[-1]
        known = self.newest
        if known is not None and first.term < known.term:
            return  # deposed, and does not know it yet
        if first.whole:
            fresh = Heard(member, first.term)
            if known is not None and (known.member, known.term) == (member, first.term):
                fresh.told_at, fresh.told_steady = known.told_at, known.told_steady
                fresh.told_at_ms = known.told_at_ms
            elif known is not None:
                self.began_steady = self._steady()
            known = fresh
        elif known is None or (known.member, known.term) != (member, first.term):
            return  # changes to what is still to be told whole
        before = known if self.newest is None else self.newest
        desired, remarks = dict(before.desired), dict(before.remarks)
        for part in parts:
            known.take(part)
        if last.told_at_ms != known.told_at_ms:
            known.told_at_ms = last.told_at_ms
            known.told_at = self._clock() - last.told_ago_s
            known.told_steady = self._steady() - last.told_ago_s
        self.newest = known
        workloads, nodes = differing(desired, known.desired), differing(remarks, known.remarks)
        if workloads or nodes:
            self._on_change(workloads, nodes)


class Leads(Speaks, Protocol):
    """The leader of this process: `orchestrator.leader.Leader`."""

    @property
    def explanations(self) -> Mapping[Key, tuple[Explanation, ...]]: ...

    @property
    def told_at(self) -> float: ...

    @property
    def is_leading(self) -> bool: ...

    @property
    def member(self) -> str: ...

    @property
    def led_since(self) -> float: ...

    @property
    def guards(self) -> GuardSettings: ...

    @property
    def doubted(self) -> Mapping[str, str]: ...

    def remarks(self, node: str) -> list[tuple[str, str]]: ...

    def rollout(self, workload_uid: str) -> RolloutState | None: ...

    def wants(self, namespace: str, name: str) -> int | None: ...


class Voice:
    """Answers for whichever leader spoke last in the highest term. `run` tells the other members;
    `whole` and `heard` are the mesh's two ends of that."""

    def __init__(
        self,
        leader: Leads,
        hearsay: Hearsay,
        cache: Cache,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leader = leader
        self._hearsay = hearsay
        self._cache = cache
        self._steady = steady
        self._speaker = Speaker(leader, steady)

    async def run(
        self, say: Callable[[member_pb2.LeaderSaid], None], has_audience: Callable[[], bool]
    ) -> None:
        """Until cancelled."""
        await self._speaker.run(say, has_audience)

    def whole(self) -> Iterator[member_pb2.LeaderSaid]:
        """For a member that connects."""
        return self._speaker.whole()

    def heard(self, member: str, said: member_pb2.LeaderSaid) -> None:
        """Another member said it."""
        self._hearsay.heard(member, said)

    def keep_last_words(self) -> None:
        """Called when the leader of this process stops leading, before it forgets."""
        words = self._leader.words()
        if words is not None:
            self._hearsay.keep(self._leader.member, words, self._leader.told_ago_s)

    @property
    def _heard(self) -> Heard | None:
        """None: the leader of this process speaks."""
        heard, leader = self._hearsay.newest, self._leader
        if heard is None:
            return None
        speaks = leader.is_leading and leader.told_ago_s < inf
        return None if speaks and leader.term >= heard.term else heard

    @property
    def member(self) -> str:
        """Who said it; empty: nobody has said anything."""
        if (heard := self._heard) is not None:
            return heard.member
        return self._leader.member if self._leader.is_leading else ""

    @property
    def term(self) -> int:
        """0: no leader was heard."""
        return heard.term if (heard := self._heard) is not None else self._leader.term

    @property
    def explanations(self) -> Mapping[Key, tuple[Explanation, ...]]:
        return (
            heard.explanations if (heard := self._heard) is not None else self._leader.explanations
        )

    @property
    def desired(self) -> Mapping[Key, int]:
        return heard.desired if (heard := self._heard) is not None else self._leader.desired

    @property
    def told_at(self) -> float:
        """Unix seconds by this member's clock; 0: never."""
        return heard.told_at if (heard := self._heard) is not None else self._leader.told_at

    @property
    def told_ago_s(self) -> float:
        if (heard := self._heard) is not None:
            return self._steady() - heard.told_steady
        return self._leader.told_ago_s

    @property
    def led_since(self) -> float:
        """Seconds of the steady clock; silence of nodes from before does not count."""
        if self._heard is not None:
            return self._hearsay.began_steady
        return self._leader.led_since

    @property
    def guards(self) -> GuardSettings:
        return self._leader.guards

    @property
    def doubted(self) -> Mapping[str, str]:
        """Nodes whose silence proves nothing, and why."""
        if (heard := self._heard) is None:
            return self._leader.doubted
        said = ((node, dict(remarks)) for node, remarks in heard.remarks.items())
        return {node: found[SUSPECT] for node, found in said if SUSPECT in found}

    def remarks(self, node: str) -> list[tuple[str, str]]:
        """(condition, message) of what the leader has to add about a node."""
        if (heard := self._heard) is None:
            return self._leader.remarks(node)
        return list(heard.remarks.get(node, ()))

    def wants(self, namespace: str, name: str) -> int | None:
        return self.desired.get((namespace, name))

    def rollout(self, workload_uid: str) -> RolloutState | None:
        """With its clocks as they were last told; None: only its record, if any, is known."""
        if (heard := self._heard) is None:
            return self._leader.rollout(workload_uid)
        clocks = heard.clocks.get(workload_uid)
        if clocks is None:
            return None
        return clocks.set(_recorded(self._cache.kept_at(keys.rollout(workload_uid))))


def _recorded(record: KeptRecord | None) -> RolloutState | None:
    try:
        return from_dict(record.body) if record is not None else None
    except (ValueError, KeyError, TypeError):
        return None


def _put(where: dict[Any, Any], key: Any, value: object | None) -> None:
    """None takes it away."""
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
