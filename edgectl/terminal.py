"""The operator's terminal: its size, and for `exec -t` the raw mode, restored whatever happens."""

import atexit
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def size() -> tuple[int, int]:
    """(columns, rows) of the terminal on stdout."""
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 80, 24
    return found.columns or 80, found.lines or 24


def columns(descriptor: int) -> int:
    """How wide the terminal behind a descriptor is."""
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except (OSError, ValueError):
        return 80


class RawTerminal:
    """A context manager: raw mode on stdin, `on_resize` at SIGWINCH.

    Restores the mode on leaving, at exit, and when a signal ends edgectl.
    """

    def __init__(self, on_resize: Callable[[], None]) -> None:
        self._on_resize = on_resize
        self._saved: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "RawTerminal":
        descriptor = sys.stdin.fileno()
        self._saved = termios.tcgetattr(descriptor)
        atexit.register(self._restore)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, self._end)
        self._handlers[signal.SIGWINCH] = signal.signal(
            signal.SIGWINCH, lambda *_: self._on_resize()
        )
        tty.setraw(descriptor, termios.TCSADRAIN)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        atexit.unregister(self._restore)

    def _restore(self) -> None:
        if self._saved is not None:
            saved, self._saved = self._saved, None
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, saved)

    def _end(self, number: int, _: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
