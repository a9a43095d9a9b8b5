"""Windows of maintenance as operators write and read them. Pure; times are unix seconds."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from edgectl.errors import CliError, UsageError
from edgectl.text import moment
from polder.manifest.quantity import duration_s, format_timestamp, timestamp_s

Window = dict[str, Any]


def at(text: str, option: str, now_s: float) -> float:
    """`now`, `+2h`, or a time in ISO 8601 (local if it names no zone). Raises UsageError."""
    if text == "now":
        return now_s
    if text.startswith("+"):
        try:
            return now_s + duration_s(text[1:])
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option}: {text!r} is not a time",
            "write now, +2h, 2026-11-22T03:00 (local time) or 2026-11-22T03:00:00Z",
        ) from None


def window(start_s: float, end_s: float, *, drain: bool, now_s: float) -> Window:
    """As a Site's spec has it. Raises CliError for one that is over or ends before it begins."""
    if end_s <= start_s:
        raise CliError("the window ends before it begins")
    if end_s <= now_s:
        raise CliError(
            f"the window is over already: it ended {moment(int(end_s * 1000), int(now_s * 1000))}",
            "+2h in --until counts from --from",
        )
    made: Window = {"start": format_timestamp(start_s), "end": format_timestamp(end_s)}
    return {**made, "drain": True} if drain else made


def added(windows: Sequence[Window], new: Window, now_s: float) -> list[Window]:
    """In order of their beginning; without those that are over, and without a second of `new`."""
    kept = [w for w in windows if span(w)[1] > now_s and span(w) != span(new)]
    return sorted([*kept, new], key=span)


def span(found: Window) -> tuple[float, float]:
    """Start and end; (0, 0) for what cannot be read."""
    try:
        return timestamp_s(found.get("start")), timestamp_s(found.get("end"))
    except ValueError:
        return 0.0, 0.0


def listed(spec: dict[str, Any]) -> list[Window]:
    """Of a Site's spec."""
    found = spec.get("maintenance")
    return [w for w in found if isinstance(w, dict)] if isinstance(found, list) else []


def lines(spec: dict[str, Any], now_ms: int) -> Iterator[str]:
    """Such as `open until 2026-11-22 05:00:00 (in 2h), drains`."""
    for found in sorted(listed(spec), key=span):
        start_s, end_s = span(found)
        start, end = (moment(int(s * 1000), now_ms) for s in (start_s, end_s))
        if end_s * 1000 <= now_ms:
            text = f"ended {end}"
        elif start_s * 1000 <= now_ms:
            text = f"open until {end}"
        else:
            text = f"from {start} until {end}"
        yield f"{text}, {'drains' if found.get('drain') else 'cordons'}"


def open_until(spec: dict[str, Any], now_ms: int) -> tuple[float, bool]:
    """When the windows that are open now end, and whether one drains; (0, False) for none."""
    spans = [(span(w), bool(w.get("drain"))) for w in listed(spec)]
    open_now = [
        (end, drain) for (start, end), drain in spans if start * 1000 <= now_ms < end * 1000
    ]
    if not open_now:
        return 0.0, False
    return max(end for end, _ in open_now), any(drain for _, drain in open_now)
