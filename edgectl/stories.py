"""A story as `edgectl describe` shows it: what happened, in order, and what comes next. Pure."""

from collections.abc import Iterator, Sequence

from edgectl.text import NONE, Table, age, clock, safe
from polder.manifest.quantity import format_duration
from polder.v1 import operator_pb2


def lines(story: operator_pb2.StoryResponse) -> Iterator[str]:
    """Without anything to tell: nothing."""
    if story.entries:
        yield "Story:"
        table = Table(("WHEN", "", "WHAT", "SOURCE", "MESSAGE"))
        rows = [_row(entry, story.now_ms) for entry in story.entries]
        yield from (f"  {line}" for line in table.lines(rows))
    if story.next:
        yield "Next:"
        yield from (f"  {safe(line)}" for line in _ahead(story.next, story.now_ms))
    elif story.entries:
        yield "Next: nothing, as far as is known"


def _row(entry: operator_pb2.StoryEntry, now_ms: int) -> tuple[str, ...]:
    when = "<unknown>"
    if entry.at_ms:
        when = f"{clock(entry.at_ms, now_ms)} ({age(entry.at_ms, now_ms)} ago)"
    message = entry.message
    if entry.count > 1:
        message += f" (x{entry.count})"
    return when, "!" if entry.warning else " ", entry.reason, entry.source or NONE, message


def _ahead(entries: Sequence[operator_pb2.StoryEntry], now_ms: int) -> Iterator[str]:
    for entry in entries:
        when = ""
        if entry.at_ms > now_ms:
            when = f" in {format_duration((entry.at_ms - now_ms) / 1000)}"
        mark = "! " if entry.warning else "  "
        source = f" [{entry.source}]" if entry.source else ""
        yield f"{mark}{entry.reason}{when}: {entry.message}{source}"
