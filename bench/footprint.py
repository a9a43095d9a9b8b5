"""What the agent costs when nothing happens: memory and CPU with some containers running.

PSS is the sum over the process of its private pages and its share of shared ones. Here that share
is that of a box with nothing else in Python: the orchestrator is stopped during the measurement,
unless `--connected`, since it maps the same files and would make the agent look smaller.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from bench.report import emit, progress
from devcluster.client import apply_request, workload
from devcluster.image import HELLO
from devcluster.installation import Installation
from polder.v1 import operator_pb2


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench footprint", description=__doc__)
    parser.add_argument("--containers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        installation = Installation(Path(folder))
        try:
            result = measure(installation, options.containers, options.seconds)
        finally:
            installation.stop()
    emit("footprint", result)
    return 0


def measure(installation: Installation, containers: int, seconds: float) -> dict[str, object]:
    progress(f"starting an orchestrator, a containerd, one agent and {containers} containers")
    installation.start_orchestrator()
    installation.apply_site()
    # As on a box, where operators can come to the node itself.
    agent = installation.add_agent("bench-1", settings='local_listen = "127.0.0.1:7446"\n')
    stub = installation.context().stub()
    manifests = [workload(f"idle-{n}", image=HELLO) for n in range(containers)]
    for manifest in manifests:
        stub.Apply(apply_request(manifest), timeout=10)
    wait_ready(installation, containers)
    time.sleep(5)  # the start's own work settles
    progress(f"measuring for {seconds:.0f} s with a live session")
    before, started = cpu_seconds(agent.pid), time.monotonic()
    samples = []
    while time.monotonic() - started < seconds:
        time.sleep(min(5.0, seconds))
        samples.append(pss_mb(agent.pid))
    cpu = (cpu_seconds(agent.pid) - before) / (time.monotonic() - started)
    progress("measuring memory alone, with no other Python process that shares its pages")
    installation.stop_orchestrator()
    time.sleep(3)
    alone = pss_mb(agent.pid)
    return {
        "pss_mb": round(alone, 1),
        "pss_shared_mb": round(max(samples), 1),
        "cpu_percent": round(100 * cpu, 3),
        "rss_mb": round(rss_mb(agent.pid), 1),
        "containers": containers,
        "seconds": seconds,
    }


def wait_ready(installation: Installation, count: int) -> None:
    import json

    stub = installation.context().stub()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        listed = stub.List(operator_pb2.ListRequest(kind="Replica"), timeout=10).resources
        if sum(bool(json.loads(item.status_json).get("ready")) for item in listed) == count:
            return
        time.sleep(0.2)
    raise TimeoutError(f"not all {count} containers are ready")


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no Pss line")


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and of the helpers that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
