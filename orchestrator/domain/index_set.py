"""A set of replica numbers as ranges: a job of 100,000 completions is a short record. Pure.

Used by `jobs.py` for what succeeded.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexSet:
    """`ranges` are (first, last), ascending, disjoint and not adjacent."""

    ranges: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(indexes: Iterable[int]) -> "IndexSet":
        found = IndexSet()
        for index in indexes:
            found = found.with_index(index)
        return found

    @staticmethod
    def parse(text: str) -> "IndexSet":
        """As `str()` writes it. Raises ValueError."""
        ranges = []
        for part in text.split(",") if text else ():
            first, _, last = part.partition("-")
            ranges.append((int(first), int(last or first)))
        return IndexSet(tuple(ranges))

    def __str__(self) -> str:
        return ",".join(
            str(first) if first == last else f"{first}-{last}" for first, last in self.ranges
        )

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __contains__(self, index: int) -> bool:
        at = self._at(index)
        return at >= 0 and index <= self.ranges[at][1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def _at(self, index: int) -> int:
        """The last range that begins at or before `index`; -1: none does."""
        return bisect_right(self.ranges, index, key=lambda r: r[0]) - 1

    def with_index(self, index: int) -> "IndexSet":
        if index in self:
            return self
        at = self._at(index)
        first = last = index
        before, after = list(self.ranges[: at + 1]), list(self.ranges[at + 1 :])
        if before and before[-1][1] == index - 1:
            first = before.pop()[0]
        if after and after[0][0] == index + 1:
            last = after.pop(0)[1]
        return IndexSet((*before, (first, last), *after))

    def missing(self, count: int) -> Iterator[int]:
        """Of 0 up to `count`, those that are not in it, ascending."""
        start = 0
        for first, last in self.ranges:
            yield from range(start, min(first, count))
            start = last + 1
        yield from range(start, count)

    def below(self, count: int) -> int:
        """How many of it are less than `count`."""
        return sum(max(0, min(last, count - 1) - first + 1) for first, last in self.ranges)
