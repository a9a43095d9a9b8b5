"""What something costs, told in pieces of plain Python's work: seconds would tell of the machine.

A slow core, or one that others share, is slow for both, and they are measured by turns.
"""

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass

_CALLS = 20
_TURNS = 30


@dataclass(frozen=True)
class _Pair:
    name: str
    value: int


def piece() -> int:
    """Names, values, small objects: about 100 microseconds of an idle core."""
    pairs = [_Pair(f"name-{number}", number) for number in range(175)]
    by_name = {pair.name: pair for pair in pairs if isinstance(pair.value, int)}
    return sum(by_name[pair.name].value for pair in pairs)


def pieces(call: Callable[[], object]) -> float:
    """That one call costs, at best."""
    best, unit = float("inf"), float("inf")
    for _ in range(_TURNS):
        best = min(best, _took(call))
        unit = min(unit, _took(piece))
    return best / unit


def _took(call: Callable[[], object]) -> float:
    """The process's own time: what others have of the core in between is not ours."""
    return timeit.timeit(call, timer=time.process_time, number=_CALLS)
