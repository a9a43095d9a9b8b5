"""Wall time of `edgectl --help` and `edgectl get nodes`, as an operator feels it."""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from bench.report import emit, percentile, progress
from devcluster.installation import EDGECTL, Installation


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench cli", description=__doc__)
    parser.add_argument("--count", type=int, default=15, help="runs of each")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        installation = Installation(Path(folder))
        try:
            progress("starting an orchestrator and one agent with a simulated runtime")
            installation.start_orchestrator()
            installation.apply_site()
            installation.add_agent("bench-1", runtime="simulated")
            help_s = wall_times([EDGECTL, "--help"], options.count, installation)
            get_s = wall_times([EDGECTL, "get", "nodes"], options.count, installation)
        finally:
            installation.stop()
    emit(
        "cli",
        {
            "help_s": round(percentile(help_s, 0.5), 3),
            "get_s": round(percentile(get_s, 0.5), 3),
            "help_max_s": round(max(help_s), 3),
            "get_max_s": round(max(get_s), 3),
            "count": options.count,
        },
    )
    return 0


def wall_times(command: list[str], count: int, installation: Installation) -> list[float]:
    """Seconds of each run; the first, which fills the page cache, is not counted."""
    times = []
    for _ in range(count + 1):
        started = time.perf_counter()
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=installation.environment()
        )
        times.append(time.perf_counter() - started)
    return times[1:]
