"""What agent and switch cost a box when nothing happens: memory and CPU with containers running.

A site of nodes in namespaces, each with an agent, a containerd and as many containers; on the
measured one, one of them is exclusive, so that the dead-man's switch runs there, too. Memory is
that of agent and switch together on a box where nothing else is in Python (`bench/memory.py`).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import memory
from bench.report import emit, progress
from devcluster import residue
from devcluster.client import apply_request, workload
from devcluster.image import HELLO, hello_image, host_architecture
from devcluster.site import LocalSite
from devcluster.site_watch import answering, lacking
from polder.v1 import operator_pb2_grpc

EXCLUSIVE_PORT = 18081
WHOLE_S = 180.0
SAMPLE_S = 5.0
SETTLE_S = 45.0
"""The start's own work, and until the agent has given back what only the start needed."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench footprint", description=__doc__)
    parser.add_argument("--containers", type=int, default=10, help="on each node")
    parser.add_argument("--peers", type=int, default=2, help="other nodes of its site")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--arch", choices=("amd64", "arm64"), help="arm64 is emulated elsewhere")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    if options.arch not in (None, host_architecture()):
        return _emulated(parser, options)
    nodes = [f"node-{letter}" for letter in "abcdefghi"[: 1 + options.peers]]
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        site = LocalSite(Path(folder), nodes=nodes)
        try:
            result = measure(site, options.containers, options.seconds)
        finally:
            site.stop()
    emit("footprint", {**result, "containers": options.containers, "peers": options.peers})
    return 0


def _emulated(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from bench import footprint_arm

    if options.arch != footprint_arm.ARCH:
        parser.error(f"{options.arch} is not emulated on this machine")
    emit("footprint", footprint_arm.measure(options.containers))
    return 0


def measure(site: LocalSite, containers: int, seconds: float) -> dict[str, Any]:
    progress(f"starting a site of {len(site.nodes)} nodes, {containers} containers on each")
    site.start(images=(hello_image(),), told=progress)
    deploy(site.context().stub(), containers, len(site.nodes))
    await_whole(site, containers)
    progress(f"waiting {SETTLE_S:.0f} s, then measuring for {seconds:.0f} s")
    time.sleep(SETTLE_S)
    (holder,) = answering(site, EXCLUSIVE_PORT)
    agent, switch = site.agents[holder].pid, switch_pid(site, holder)
    pids = (agent, switch)
    before, started = [cpu_seconds(pid) for pid in pids], time.monotonic()
    samples = []
    while time.monotonic() - started < seconds:
        time.sleep(min(SAMPLE_S, seconds))
        samples.append(memory.alone(pids).pss_mb)
    took = time.monotonic() - started
    cpu = [(cpu_seconds(pid) - was) / took for pid, was in zip(pids, before, strict=True)]
    both, agents, switches = memory.alone(pids), memory.alone([agent]), memory.alone([switch])
    return {
        "pss_mb": round(both.pss_mb, 1),
        "pss_max_mb": round(max(samples), 1),
        "agent_pss_mb": round(agents.pss_mb, 1),
        "agent_private_mb": round(agents.private_mb, 1),
        "agent_rss_mb": round(rss_mb(agent), 1),
        "switch_pss_mb": round(switches.pss_mb, 1),
        "cpu_percent": round(100 * cpu[0], 3),
        "switch_cpu_percent": round(100 * cpu[1], 3),
        "seconds": seconds,
    }


def deploy(stub: operator_pb2_grpc.OperatorServiceStub, containers: int, nodes: int) -> None:
    for number in range(containers - 1):
        manifest = workload(f"idle-{number}", image=HELLO)
        del manifest["spec"]["replicas"]
        manifest["spec"]["perNode"] = 1
        stub.Apply(apply_request(manifest), timeout=10)
    one = workload("one", image=HELLO, host_port=EXCLUSIVE_PORT)
    one["spec"]["failover"] = {"standbys": nodes - 1, "exclusive": True}
    stub.Apply(apply_request(one), timeout=10)


def await_whole(site: LocalSite, containers: int) -> None:
    """Raises TimeoutError with what is missing."""
    deadline = time.monotonic() + WHOLE_S
    while True:
        wrong = lacking(site, [EXCLUSIVE_PORT])
        running = sum(len(site.containers_of(node)) for node in site.nodes)
        expected = (containers - 1) * len(site.nodes) + 1
        if running == expected and not wrong:
            return
        if time.monotonic() > deadline:
            told = "; ".join([*wrong, f"{running} of {expected} containers run"])
            raise TimeoutError(f"the site is not whole: {told}")
        time.sleep(0.5)


def switch_pid(site: LocalSite, node: str) -> int:
    """Raises LookupError when there is none."""
    place = str(site.agents[node].state_dir / "site")
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            words = residue.command_line(int(folder.name))
            if place in words and any(word.endswith("agent/switch.py") for word in words):
                return int(folder.name)
    raise LookupError(f"no switch runs on {node}")


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and of the helpers that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
