"""Progress on stderr: one line that is rewritten on a terminal, plain lines elsewhere."""

import sys

from edgectl.text import safe


class Progress:
    """Use as a context manager: it leaves the terminal with a clean line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, text: str) -> None:
        """The state now. Repeated text is not printed again."""
        line = safe(text)
        if line == self._last:
            return
        if self._terminal:
            print(f"\r\x1b[K{line[:200]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        self._last = line

    def result(self, text: str) -> None:
        """A line that stays, on stdout."""
        self._clear()
        print(safe(text), flush=True)

    def note(self, text: str) -> None:
        """A line that stays, on stderr."""
        self._clear()
        print(safe(text), file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._terminal and self._last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._last = ""
