"""Progress of the quickstart: one line a step, with the time it took."""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Steps:
    """Prints `[2/8] what ... 0.4 s`."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def run(self, what: str, action: Callable[[], T]) -> T:
        """Do it, show how long it took, and pass on what it returns or raises."""
        self._done += 1
        print(f"[{self._done}/{self._total}] {what} ... ", end="", flush=True)
        started = time.monotonic()
        try:
            result = action()
        except BaseException:
            print("failed", flush=True)
            raise
        print(f"{time.monotonic() - started:.1f} s", flush=True)
        sys.stdout.flush()
        return result
