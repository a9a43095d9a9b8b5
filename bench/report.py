"""What every benchmark prints: its numbers, and what they ran on."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The machine in words: enough to judge a number by."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(total_kib / 2**20, 1),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the closest ranks. `share` from 0 to 1."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50_s": round(percentile(values, 0.5), 4),
        "p99_s": round(percentile(values, 0.99), 4),
        "mean_s": round(statistics.fmean(values), 4),
        "max_s": round(max(values), 4),
    }


def progress(text: str) -> None:
    """On stderr, so that stdout is one JSON object."""
    print(text, file=sys.stderr, flush=True)


def emit(name: str, result: dict[str, Any]) -> None:
    body = {"benchmark": name, **result}
    body["measured_at"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body["machine"] = machine()
    print(json.dumps(body))
