"""Quantities as operators write them: CPU, bytes, durations. Called by the manifest decoder.

The suffixes are those of Kubernetes (`500m`, `256Mi`) and of Go (`1m30s`): operators know them.
Everything is computed in whole numbers, so that `0.1` means a tenth and equal amounts are equal
however they are written.
"""

import math
import re
from datetime import UTC, datetime

from polder.manifest.text import describe, shown

MAX_CPU_MILLIS = 10_000_000  # ten thousand cores
# The sum over a pod's containers must fit a signed 64-bit integer with room to spare.
MAX_BYTES = 1 << 50
MAX_DURATION_S = 10 * 365 * 86_400.0
MAX_AMOUNT = 1_000_000
MAX_TEXT = 64
_MAX_BITS = 128

_BYTE_SUFFIXES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
}
_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?([A-Za-z]*)")
_DURATION_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?(ms|s|m|h|d)")
_AMOUNT = re.compile(r"([0-9]{1,9})(%?)")
_NANOS = 1_000_000_000
_DURATION_UNITS_NS = {
    "ms": 1_000_000,
    "s": _NANOS,
    "m": 60 * _NANOS,
    "h": 3600 * _NANOS,
    "d": 86_400 * _NANOS,
}


def _text(raw: object, what: str) -> str:
    """`raw` as text to parse: not negative, not huge. Raises ValueError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"expected {what}, found {describe(raw)}")
    if isinstance(raw, int) and raw.bit_length() > _MAX_BITS:
        raise ValueError("is a number with far too many digits")
    text = str(raw).strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"{shown(raw)} is not {what}")
    if text.startswith("-") and text[1:2].isdecimal():
        raise ValueError(f"{shown(raw)} is negative")
    return text


def _fraction(whole: str, decimals: str | None) -> tuple[int, int]:
    """Numerator and denominator of `whole.decimals`."""
    decimals = decimals or ""
    return int(whole + decimals), 10 ** len(decimals)


def _split(raw: object, example: str) -> tuple[int, int, str]:
    """Numerator, denominator and suffix. Raises ValueError."""
    match = _NUMBER.fullmatch(_text(raw, f"a quantity such as {example}"))
    if match is None:
        raise ValueError(f"{shown(raw)} is not a quantity such as {example}")
    return *_fraction(match[1], match[2]), match[3]


def cpu_millis(raw: object) -> int:
    """`500m`, `0.5` or `2` in thousandths of a core. Raises ValueError, also when finer."""
    number, divisor, suffix = _split(raw, "500m or 2")
    if suffix not in ("", "m"):
        raise ValueError(
            f"{shown(raw)} has the unknown suffix {suffix!r}; CPU is written as 500m or 2"
        )
    millis, finer = divmod(number if suffix == "m" else number * 1000, divisor)
    if finer:
        raise ValueError(f"{shown(raw)} is finer than 1m, a thousandth of a core")
    if millis > MAX_CPU_MILLIS:
        raise ValueError(f"{shown(raw)} is more than {MAX_CPU_MILLIS // 1000} cores")
    return millis


def memory_bytes(raw: object) -> int:
    """`256Mi`, `1G` or `1048576` in bytes, rounded up. Raises ValueError.

    Up, because 0 means "no limit" and nobody who writes a small number means that.
    """
    number, divisor, suffix = _split(raw, "256Mi or 1G")
    factor = _BYTE_SUFFIXES.get(suffix)
    if factor is None:
        hint = " (m means thousandths; did you mean M or Mi?)" if suffix == "m" else ""
        raise ValueError(f"{shown(raw)} has the unknown suffix {suffix!r}{hint}")
    total = -(-number * factor // divisor)
    if total > MAX_BYTES:
        raise ValueError(f"{shown(raw)} is absurdly large (over 1 PiB)")
    return total


def duration_s(raw: object) -> float:
    """`30s`, `1m30s`, `500ms` or a number of seconds, to the nanosecond. Raises ValueError."""
    text = _text(raw, "a duration such as 30s or 1m30s")
    if isinstance(raw, float):
        nanos = round(raw * 1e9) if math.isfinite(raw) and raw < 2 * MAX_DURATION_S else -1
    else:
        nanos = _duration_ns(raw, text)
    if not 0 <= nanos <= MAX_DURATION_S * _NANOS:
        raise ValueError(f"{shown(raw)} is not a duration between 0 and ten years")
    return nanos / _NANOS


def _duration_ns(raw: object, text: str) -> int:
    plain = _NUMBER.fullmatch(text)
    if plain is not None and not plain[3]:
        number, divisor = _fraction(plain[1], plain[2])
        return number * _NANOS // divisor
    total, end = 0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != end:
            break
        number, divisor = _fraction(part[1], part[2])
        total += number * _DURATION_UNITS_NS[part[3]] // divisor
        end = part.end()
    if not text or end != len(text):
        raise ValueError(f"{shown(raw)} is not a duration such as 30s or 1m30s")
    return total


def format_cpu(millis: int) -> str:
    """`1500` -> `1500m`, `2000` -> `2`."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def format_bytes(count: int) -> str:
    """For tables: `268435456` -> `256Mi`; about three significant figures, so not for storage."""
    value = float(count)
    for suffix in ("", "Ki", "Mi", "Gi", "Ti"):
        if abs(value) < 1023.5 or suffix == "Ti":
            return f"{value:.3g}{suffix}" if abs(value) < 999.5 else f"{value:.0f}{suffix}"
        value /= 1024
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """For tables: `5.2` -> `5s`, `90` -> `90s`, `4000` -> `66m`, as kubectl writes ages."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 3 * 3600:
        return f"{whole // 60}m"
    if whole < 3 * 86_400:
        return f"{whole // 3600}h"
    return f"{whole // 86_400}d"


def amount(raw: object) -> str:
    """A count or a share of a whole, as `2` or `25%`, in one spelling. Raises ValueError."""
    text = _text(raw, "a number such as 1 or a share such as 25%")
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(raw)} is neither a number such as 1 nor a share such as 25%")
    number = int(match[1])
    if match[2] and number > 100:
        raise ValueError(f"{shown(raw)} is more than 100%")
    if number > MAX_AMOUNT:
        raise ValueError(f"{shown(raw)} is more than {MAX_AMOUNT}")
    return f"{number}{match[2]}"


def amount_of(text: str, total: int, *, up: bool) -> int:
    """What an amount comes to of `total`; `up` says to which side a share is rounded."""
    if not text.endswith("%"):
        return int(text)
    share = total * int(text[:-1])
    return -(-share // 100) if up else share // 100


def timestamp_s(raw: object) -> float:
    """`2026-11-22T03:00:00Z` in unix seconds. Raises ValueError, also without a time zone."""
    if not isinstance(raw, str) or len(raw) > MAX_TEXT:
        raise ValueError(f"expected a time such as 2026-11-22T03:00:00Z, found {describe(raw)}")
    try:
        found = datetime.fromisoformat(raw.strip())
    except ValueError:
        raise ValueError(f"{shown(raw)} is not a time such as 2026-11-22T03:00:00Z") from None
    if found.tzinfo is None:
        raise ValueError(f"{shown(raw)} has no time zone; add Z or an offset such as +01:00")
    try:
        return found.timestamp()
    except (OverflowError, OSError):
        raise ValueError(f"{shown(raw)} is out of range") from None


def format_timestamp(unix_s: float) -> str:
    """Unix seconds as `2026-11-22T03:00:00Z`, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
