"""Quantities as operators write them: CPU, bytes, durations. Called by the manifest decoder.

The suffixes are those of Kubernetes (`500m`, `256Mi`) and of Go (`1m30s`): operators know them.
"""

import re
from decimal import Decimal, InvalidOperation

MAX_CPU_MILLIS = 10_000_000  # ten thousand cores
MAX_BYTES = 1 << 60
MAX_DURATION_S = 10 * 365 * 86_400.0

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
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _split(raw: object, example: str) -> tuple[Decimal, str]:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"expected a quantity such as {example}, found {_describe(raw)}")
    match = _NUMBER.fullmatch(str(raw).strip())
    if match is None:
        raise ValueError(f"{raw!r} is not a quantity such as {example}")
    try:
        number = Decimal(match.group(1))
    except InvalidOperation:  # pragma: no cover - the pattern admits only decimals
        raise ValueError(f"{raw!r} is not a quantity such as {example}") from None
    if number < 0:
        raise ValueError(f"{raw!r} is negative")
    return number, match.group(2)


def cpu_millis(raw: object) -> int:
    """`500m`, `0.5` or `2` in thousandths of a core. Raises ValueError, also when finer."""
    number, suffix = _split(raw, "500m or 2")
    if suffix not in ("", "m"):
        raise ValueError(f"{raw!r} has the unknown suffix {suffix!r}; CPU is written as 500m or 2")
    millis = number if suffix == "m" else number * 1000
    if millis != millis.to_integral_value():
        raise ValueError(f"{raw!r} is finer than 1m, a thousandth of a core")
    if millis > MAX_CPU_MILLIS:
        raise ValueError(f"{raw!r} is more than {MAX_CPU_MILLIS // 1000} cores")
    return int(millis)


def memory_bytes(raw: object) -> int:
    """`256Mi`, `1G` or `1048576` in bytes. Raises ValueError."""
    number, suffix = _split(raw, "256Mi or 1G")
    factor = _BYTE_SUFFIXES.get(suffix)
    if factor is None:
        hint = " (m means thousandths; did you mean M or Mi?)" if suffix == "m" else ""
        raise ValueError(f"{raw!r} has the unknown suffix {suffix!r}{hint}")
    total = number * factor
    if total > MAX_BYTES:
        raise ValueError(f"{raw!r} is absurdly large (over 1 EiB)")
    return int(total)


def duration_s(raw: object) -> float:
    """`30s`, `1m30s`, `500ms` or a number of seconds. Raises ValueError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"expected a duration such as 30s, found {_describe(raw)}")
    text = str(raw).strip()
    if text.startswith("-"):
        raise ValueError(f"{raw!r} is negative")
    try:
        total = float(text)
    except ValueError:
        parts = _DURATION_PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{raw!r} is not a duration such as 30s or 1m30s") from None
        total = sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    if not 0 <= total <= MAX_DURATION_S:  # NaN fails this too
        raise ValueError(f"{raw!r} is not a duration between 0 and ten years")
    return total


def format_cpu(millis: int) -> str:
    """`1500` -> `1500m`, `2000` -> `2`."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def format_bytes(count: int) -> str:
    """For tables: `268435456` -> `256Mi`; three significant figures at most, so not for storage."""
    value = float(count)
    for suffix in ("", "Ki", "Mi", "Gi", "Ti"):
        if abs(value) < 1024 or suffix == "Ti":
            return f"{value:.3g}{suffix}" if value < 1000 else f"{value:.0f}{suffix}"
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


def _describe(raw: object) -> str:
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, dict):
        return "a mapping"
    if isinstance(raw, list):
        return "a list"
    return repr(raw)
