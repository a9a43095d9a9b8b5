"""Progress of the quickstart: one line a step, with the time it took."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Steps:
    """Prints `[2/8] what ... 0.4 s`."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def run(self, what: str, action: Callable[[], T], *, chatty: bool = False) -> T:
        """Do it, show how long it took, and pass on what it returns or raises.

        chatty: it prints lines of its own, which then stand below.
        """
        self._done += 1
        end = "\n" if chatty else " ... "
        print(f"[{self._done}/{self._total}] {what}", end=end, flush=True)
        started = time.monotonic()
        try:
            result = action()
        except BaseException:
            print("failed", flush=True)
            raise
        indent = "      " if chatty else ""
        print(f"{indent}{time.monotonic() - started:.1f} s", flush=True)
        return result
