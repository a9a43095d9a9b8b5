"""Tables, ages and moments as operators read them. Pure; times are unix milliseconds.

Cells may come from a box that nobody watches: control characters never reach the terminal.
"""

from collections.abc import Sequence
from datetime import datetime

from polder.manifest.quantity import format_duration

NONE = "<none>"
_GAP = "   "
_DAY_MS = 86_400_000
# C0 and C1 controls, and the marks that reorder text.
_UNSAFE = dict.fromkeys(
    (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "?"
)
_UNSAFE[ord("\n")] = _UNSAFE[ord("\t")] = " "


def safe(text: object) -> str:
    """One line without control characters."""
    return str(text).translate(_UNSAFE)


class Table:
    """Rows below headers. Widths only grow, so that a watch stays readable."""

    def __init__(self, headers: Sequence[str], *, show_headers: bool = True) -> None:
        self._headers = list(headers)
        self._widths = [len(header) if show_headers else 0 for header in headers]
        self._pending_headers = show_headers

    def lines(self, rows: Sequence[Sequence[object]]) -> list[str]:
        """The next lines; the first time with the headers."""
        cells = [[safe(cell) for cell in row] for row in rows]
        for row in cells:
            self._widths = [max(w, len(c)) for w, c in zip(self._widths, row, strict=True)]
        if self._pending_headers:
            self._pending_headers = False
            cells.insert(0, self._headers)
        return [self._line(row) for row in cells]

    def _line(self, row: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)]
        return _GAP.join(padded).rstrip()


def age(since_ms: int, now_ms: int) -> str:
    """`5s`, `12m`, `3d`; `<unknown>` for no time."""
    if not since_ms:
        return "<unknown>"
    return format_duration((now_ms - since_ms) / 1000)


def clock(at_ms: int, now_ms: int) -> str:
    """Local time: `14:02:11`, with the date when it was not within the last 20 hours."""
    if not at_ms:
        return "<unknown>"
    moment = datetime.fromtimestamp(at_ms / 1000)
    if abs(now_ms - at_ms) < _DAY_MS * 20 // 24:
        return f"{moment:%H:%M:%S}"
    return f"{moment:%Y-%m-%d %H:%M}"


def since(at_ms: int, now_ms: int) -> str:
    """`since 14:02:11 (3m ago)`."""
    if not at_ms:
        return ""
    return f"since {clock(at_ms, now_ms)} ({age(at_ms, now_ms)} ago)"


def moment(at_ms: int, now_ms: int) -> str:
    """For describe: `2026-01-31 14:02:11 (3m ago)`, or `(in 6d)`."""
    if not at_ms:
        return NONE
    shown = f"{datetime.fromtimestamp(at_ms / 1000):%Y-%m-%d %H:%M:%S}"
    if at_ms > now_ms:
        return f"{shown} (in {format_duration((at_ms - now_ms) / 1000)})"
    return f"{shown} ({age(at_ms, now_ms)} ago)"
