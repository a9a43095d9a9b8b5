"""From the kill of a node to the first HTTP 200 of its standby, with and without an uplink.

A site of three nodes in namespaces, each with an agent and a containerd. Two replicas run there,
one exclusive and one not; in every run the node of one of them (or of both) loses its power, and is
switched on when what ran there has been taken over. A register outside watches the exclusive one:
an overlap is two containers of it that ran at the same time.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import emit, percentile, progress
from devcluster.client import apply_request
from devcluster.register import Register
from devcluster.site import LocalSite
from devcluster.site_watch import answering, exclusive, first_answer, lacking, shared
from polder.v1 import operator_pb2_grpc

EXCLUSIVE, SHARED = 18081, 18080
NAMES = {EXCLUSIVE: "exclusive", SHARED: "shared"}
MODES = ("connected", "isolated")
GIVE_UP_S = 60.0
WHOLE_S = 120.0
SETTLE_S = 5.0
BEAT_S = 1.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench takeover", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="kills with and without uplink, each")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        site = LocalSite(Path(folder))
        try:
            result = measure(site, options.runs, random.Random(options.seed))
        finally:
            site.stop()
    emit("takeover", {**result, "runs": options.runs, "nodes": len(site.nodes)})
    missed = sum(result[mode]["missed"] for mode in MODES)
    return 1 if missed else 0


def measure(site: LocalSite, runs: int, dice: random.Random) -> dict[str, Any]:
    site.start(told=progress)
    with Register(site.observer) as register:
        stub = site.context().stub()
        deploy(stub, register.endpoint)
        result = {}
        for mode in MODES:
            if mode == "isolated":
                site.cut_uplink()
            before = len(register.overlaps())
            took: dict[str, list[float]] = {name: [] for name in NAMES.values()}
            missed = 0
            for number in range(1, runs + 1):
                await_whole(site)
                time.sleep(SETTLE_S + dice.random() * BEAT_S)
                killed, found = kill_once(site, min(NAMES, key=lambda port: len(took[NAMES[port]])))
                for port, seconds in found.items():
                    took[NAMES[port]].append(seconds or GIVE_UP_S)
                    missed += not seconds
                shown = ", ".join(f"{NAMES[p]} {s:.2f} s" for p, s in sorted(found.items()))
                progress(f"{mode} {number}/{runs}: {killed} killed; {shown}")
            result[mode] = summed(took, missed, len(register.overlaps()) - before)
        return result


def deploy(stub: operator_pb2_grpc.OperatorServiceStub, register: str) -> None:
    """Both on one node at first, so that most kills are felt by both."""
    one, page = exclusive("one", EXCLUSIVE, register), shared("page", SHARED)
    one["metadata"]["labels"] = {"app": "one"}
    near = {"workloads": {"app": "one"}, "by": "node", "required": False}
    page["spec"]["placement"] = {"affinity": [near]}
    for manifest in (one, page):
        stub.Apply(apply_request(manifest), timeout=10)


def await_whole(site: LocalSite) -> None:
    """Raises TimeoutError with what is missing."""
    deadline = time.monotonic() + WHOLE_S
    while wrong := lacking(site, tuple(NAMES)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the site is not whole: {'; '.join(wrong)}")
        time.sleep(0.1)


def kill_once(site: LocalSite, target: int) -> tuple[str, dict[int, float]]:
    """Kill the node that serves the target port: its name, and the seconds until each port that it
    served answers elsewhere; 0: it did not. The node is on again when this returns."""
    (victim,) = answering(site, target)
    ports = [port for port in NAMES if answering(site, port, [victim])]
    others = [node for node in site.nodes if node != victim]
    began = time.monotonic()
    site.kill_node(victim)
    found = first_answer(site, ports, others, began, GIVE_UP_S)
    site.power_on(victim)
    return victim, {port: found.get(port, 0.0) for port in ports}


def summed(took: dict[str, list[float]], missed: int, overlaps: int) -> dict[str, Any]:
    """`p50_s` and `p99_s` are of all takeovers; those of each kind stand beside them."""
    both = [seconds for times in took.values() for seconds in times]
    result: dict[str, Any] = _percentiles("", both)
    for kind, times in took.items():
        result |= {**_percentiles(f"{kind}_", times), f"{kind}_takeovers": len(times)}
    return {**result, "missed": missed, "overlaps": overlaps}


def _percentiles(prefix: str, times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    shares = (("p50_s", 0.5), ("p99_s", 0.99), ("max_s", 1.0))
    return {prefix + name: round(percentile(times, share), 3) for name, share in shares}
