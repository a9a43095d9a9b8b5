"""Whether a history is linearizable: one order of its operations that explains every answer.

The search of Wing and Gong with Lowe's memory of configurations, as in porcupine (Athalye): walk
the calls and returns in time; take any operation whose call has come and whose answer fits the
state; when a return comes of one that was not taken, go back and take another one first. A set of
taken operations together with the state that they left is searched once. Keys are independent of
each other and searched one by one, which keeps the sets small.

Operations with unknown outcome never return: they may be taken at any time after their call, or at
the very end, which is as good as never.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.faults.history import NEVER, Operation
from tests.faults.model import ABSENT, State
from tests.faults.model import step as step_of_model

S = TypeVar("S", bound=Hashable)

CONFIGURATIONS_MAX = 2_000_000


class TooLong(Exception):
    """The search was given up: neither proven nor refuted."""


@dataclass(frozen=True, slots=True)
class Violation:
    """`explained`: the longest order that was found; `stuck` is what could not come after it."""

    key: str
    explained: tuple[Operation, ...]
    stuck: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = [f"no order of the calls explains the answers about {self.key}; after"]
        lines += [f"  {one}" for one in self.explained[-12:]]
        lines += ["none of these fits, and the first must:", *(f"  {one}" for one in self.stuck)]
        return "\n".join(lines)


def check(history: Iterable[Operation]) -> list[Violation]:
    """What is wrong, a violation for each key; empty: the history is linearizable.

    Raises TooLong.
    """
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    found = (_check_key(key, own) for key, own in sorted(by_key.items()))
    return [violation for violation in found if violation is not None]


def _check_key(key: str, operations: list[Operation]) -> Violation | None:
    # A get without an answer says nothing.
    told = [o for o in operations if not (o.kind == "get" and o.outcome == "unknown")]
    ordered = sorted(told, key=lambda o: o.begins)
    spans = [(o.begins, NEVER if o.outcome == "unknown" else o.returned) for o in ordered]
    initial: State = ABSENT
    result = search(spans, initial, lambda state, n: step_of_model(state, ordered[n]))
    if result is None:
        return None
    explained, stuck = result
    return Violation(key, tuple(ordered[n] for n in explained), tuple(ordered[n] for n in stuck))


class _Events:
    """Calls and returns in time, as a list from which both of an operation can be lifted out."""

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        count = len(spans)
        # Of two at one moment the call comes first: they overlap.
        marks = [(begin, 0, n) for n, (begin, _) in enumerate(spans)]
        marks += [(end, 1, n) for n, (_, end) in enumerate(spans)]
        marks.sort()
        self.operation = [n for _, _, n in marks]
        self.is_return = [bool(kind) for _, kind, _ in marks]
        self.call_at, self.return_at = [0] * count, [0] * count
        for place, (_, kind, n) in enumerate(marks):
            (self.return_at if kind else self.call_at)[n] = place
        self.head = len(marks)  # also the end
        self.next = [*range(1, len(marks) + 1), 0]
        self.before = [self.head, *range(len(marks))]

    def lift(self, n: int) -> None:
        for place in (self.call_at[n], self.return_at[n]):
            self.next[self.before[place]] = self.next[place]
            self.before[self.next[place]] = self.before[place]

    def unlift(self, n: int) -> None:
        for place in (self.return_at[n], self.call_at[n]):
            self.next[self.before[place]] = place
            self.before[self.next[place]] = place

    @property
    def first(self) -> int:
        return self.next[self.head]


def search(
    spans: Sequence[tuple[float, float]], initial: S, step: Callable[[S, int], S | None]
) -> tuple[list[int], list[int]] | None:
    """None: an order exists. Otherwise the longest that was found, and what was open behind it.

    `spans` are begin and end of each operation, the end infinite when it has none. Raises TooLong.
    """
    events = _Events(spans)
    state, taken = initial, 0
    order: list[tuple[int, S]] = []  # each with the state before it
    best: list[int] = []
    stuck: list[int] = []
    known: set[tuple[int, S]] = set()
    place = events.first
    left = sum(1 for _, end in spans if end < NEVER)
    while left:
        n = events.operation[place]
        if not events.is_return[place]:
            after = step(state, n)
            mark = taken | 1 << n
            if after is not None and (mark, after) not in known:
                known.add((mark, after))
                if len(known) > CONFIGURATIONS_MAX:
                    raise TooLong(f"{len(spans)} operations on one key")
                order.append((n, state))
                state, taken = after, mark
                left -= spans[n][1] < NEVER
                events.lift(n)
                place = events.first
            else:
                place = events.next[place]
            continue
        if len(order) >= len(best):
            best, stuck = [m for m, _ in order], _open(events, n)
        if not order:
            return best, stuck
        n, state = order.pop()
        taken &= ~(1 << n)
        left += spans[n][1] < NEVER
        events.unlift(n)
        place = events.next[events.call_at[n]]
    return None


def _open(events: _Events, overdue: int) -> list[int]:
    """The operation whose return has come, then the others that were called before that."""
    found = [overdue]
    place = events.first
    while place != events.return_at[overdue]:
        if not events.is_return[place] and events.operation[place] != overdue:
            found.append(events.operation[place])
        place = events.next[place]
    return found
