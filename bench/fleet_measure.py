"""Numbers of `bench fleet`: pure arithmetic, and what the kernel says of processes and sockets."""

import math
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.footprint import cpu_seconds, rss_mb
from bench.report import percentile

IP_AND_TCP_BYTES = 20 + 32
"""Of every packet: IPv4, and TCP with its timestamps."""
_FIELD = re.compile(r"\b(bytes_sent|bytes_received|segs_out|segs_in):(\d+)")


# --- arithmetic ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slope:
    """Of a straight line through the points, by least squares, with its standard error."""

    per_unit: float
    error: float

    @property
    def is_zero(self) -> bool:
        """Within two standard errors: with independent residuals, chance alone in 1 of 20."""
        return abs(self.per_unit) <= 2 * self.error


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Of three points or more, not all at one x. Raises ValueError.

    Neighbouring samples of a process's memory resemble each other, which a plain standard error
    would take for certainty. It is widened for their correlation (lag one): Newey and West's idea
    in its simplest form, n_effective = n (1 - r) / (1 + r).
    """
    n = len(points)
    if n < 3:
        raise ValueError("a slope with an error needs three points")
    mean_x = math.fsum(x for x, _ in points) / n
    mean_y = math.fsum(y for _, y in points) / n
    sxx = math.fsum((x - mean_x) ** 2 for x, _ in points)
    if sxx == 0:
        raise ValueError("all points are at one moment")
    per_unit = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / sxx
    rest = [y - mean_y - per_unit * (x - mean_x) for x, y in points]
    squares = math.fsum(r * r for r in rest)
    if squares == 0:
        return Slope(per_unit, 0.0)
    likeness = math.fsum(a * b for a, b in pairwise(rest)) / squares
    likeness = min(0.99, max(0.0, likeness))
    plain = squares / (n - 2) / sxx
    return Slope(per_unit, math.sqrt(plain * (1 + likeness) / (1 - likeness)))


def percentile_or_none(values: Sequence[float], share: float) -> float | None:
    """As `bench.report.percentile`; None of nothing."""
    return percentile(values, share) if values else None


def peak_per_s(moments: Iterable[float], window_s: float = 1.0) -> int:
    """The most that fell into any window of that length."""
    ordered = sorted(moments)
    best = first = 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] >= window_s:
            first += 1
        best = max(best, last - first + 1)
    return best


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process until now."""

    cpu_s: float
    rss_mb: float


def use_of(pid: int) -> Use:
    """Raises OSError when there is no such process."""
    return Use(cpu_seconds(pid), rss_mb(pid))


def open_files(pid: int) -> int:
    """How many files a process holds open; 0 when it is gone."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


# --- sockets ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of some connections until now, both directions. `payload_bytes`: TLS included."""

    connections: int
    payload_bytes: int
    packets: int

    @property
    def wire_bytes(self) -> int:
        """With the headers of IP and TCP, of acknowledgements too."""
        return self.payload_bytes + self.packets * IP_AND_TCP_BYTES


def parse_sockets(text: str) -> dict[str, Traffic]:
    """By peer's address, from the output of `ss -tinHO state established`: one socket per line."""
    found = {}
    for line in text.splitlines():
        columns = line.split(maxsplit=4)
        if len(columns) < 4:
            continue
        facts = {name: int(value) for name, value in _FIELD.findall(line)}
        found[columns[3]] = Traffic(
            1,
            facts.get("bytes_sent", 0) + facts.get("bytes_received", 0),
            facts.get("segs_out", 0) + facts.get("segs_in", 0),
        )
    return found


def sockets_of(address: str, port: int) -> dict[str, Traffic]:
    """Connections to a listener of this machine, seen from its side. Raises OSError."""
    command = ["ss", "-tinHO", "state", "established", "src", f"{address}:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return parse_sockets(done.stdout)


def between(before: dict[str, Traffic], after: dict[str, Traffic]) -> Traffic:
    """What went over the connections that were there both times."""
    both = before.keys() & after.keys()
    return Traffic(
        len(both),
        sum(after[peer].payload_bytes - before[peer].payload_bytes for peer in both),
        sum(after[peer].packets - before[peer].packets for peer in both),
    )
