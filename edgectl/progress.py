"""Progress on stderr: one line that is rewritten on a terminal, plain lines elsewhere."""

import sys

from edgectl.terminal import columns
from edgectl.text import safe


class Progress:
    """Use as a context manager: it leaves the terminal with a clean line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._key: object = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, text: str, key: object = None) -> None:
        """The state now. Repeated text is not printed again.

        `key`: what makes it news where lines stay; a countdown is none.
        """
        line = safe(text)
        if line == self._last:
            return
        if self._terminal:
            print(f"\r\x1b[K{_fit(line)}", end="", file=sys.stderr, flush=True)
        elif key is None or key != self._key:
            print(line, file=sys.stderr, flush=True)
        self._last, self._key = line, key

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
        self._last, self._key = "", None


def _fit(line: str) -> str:
    """A line that wraps cannot be rewritten."""
    width = max(20, columns(sys.stderr.fileno()) - 1)
    return line if len(line) <= width else line[: width - 3] + "..."
