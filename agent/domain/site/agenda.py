"""When each of many things is due next, so that one event costs one replica.

Used by `lease.py` and `exclusive.py`. A heap in which what was put off stays until its old time
comes up; whoever asks twice for the same time changes nothing.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from agent.domain.roster import Key

STALE_MAX = 64  # entries beyond four for each key, before the heap is made anew


class Agenda:
    """Times are seconds of any one clock. Two that are due together come in the order of keys."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def put(self, key: Key, at: float | None) -> None:
        """None: not at all."""
        if at is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heappush(self._heap, (at, key))
            if len(self._heap) > 4 * len(self._at) + STALE_MAX:
                self._heap = [(due, name) for name, due in self._at.items()]
                heapify(self._heap)

    def first(self) -> float | None:
        """The earliest time; None: nothing is due, ever."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> Iterator[Key]:
        """All that is due, each once; it is on the agenda again when it is put there."""
        while (at := self.first()) is not None and at <= now:
            key = heappop(self._heap)[1]
            del self._at[key]
            yield key
