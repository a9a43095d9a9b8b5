"""Times of a node by the clock of this machine. Pure.

A box that was without network and power may believe in another year. What several nodes told is
shown together, so each one's times are moved by what its clock differs from ours: ages stay right.
"""

from collections.abc import Iterator
from typing import Any

from polder.manifest.quantity import format_duration
from polder.v1 import plan_pb2

TOLERATED_MS = 5_000
"""Below this a difference is the time that the answer took; times are left as they are."""
NOTABLE_MS = 60_000
_LATEST_MS = 253_402_300_799_000
"""The end of the year 9999: what a node makes up is to break nothing here."""
_ENDS = ("at_ms", "since_ms", "now_ms")


def offset(ours_ms: int, theirs_ms: int) -> int:
    """What to add to their times."""
    found = ours_ms - theirs_ms
    return found if abs(found) > TOLERATED_MS else 0


def warning(node: str, offset_ms: int) -> str:
    """Empty: the clock is near enough to ours."""
    if abs(offset_ms) < NOTABLE_MS:
        return ""
    way = "behind" if offset_ms > 0 else "ahead of"
    return f"the clock of {node} is {format_duration(abs(offset_ms) / 1000)} {way} this machine's"


def shift(message: Any, offset_ms: int) -> None:
    """Every time in the message, in place; not of overrides, whose writer may be another node."""
    for part in _parts(message):
        for field, value in part.ListFields():
            if field.message_type is None and field.name.endswith(_ENDS):
                setattr(part, field.name, min(max(value + offset_ms, 0), _LATEST_MS))


def _parts(message: Any) -> Iterator[Any]:
    """The message, and every message in it."""
    if isinstance(message, plan_pb2.Override):
        return
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else (value,):
                yield from _parts(inner)
