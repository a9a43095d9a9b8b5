"""Durations and moments of the command line. Pure; times are unix milliseconds."""

from datetime import datetime

from edgectl.errors import UsageError
from polder.manifest.quantity import duration_s


def option_seconds(text: str, option: str) -> float:
    """`30s`, `10m`, `90d` or seconds. Raises UsageError that names the option."""
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def since_seconds(text: str, now_s: float) -> float:
    """How long ago: a duration, or a moment in ISO 8601 (local time if it names no zone)."""
    try:
        return duration_s(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since: {text!r} is neither a duration such as 10m nor a time such as "
            "2026-01-31T14:00Z"
        ) from None
    return max(0.0, now_s - moment)
