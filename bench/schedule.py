"""Placements per second on one core, and how well they fill a fleet.

`placements_per_s` is the whole of `plan()`, the making of its table included, and
`placements_per_cpu_s` the same by CPU time, for machines that are busy with other things. `p50_ms`
and `p99_ms` are of single decisions (one workload each), and `per_s_by_tenth` shows whether
decisions become dearer as the fleet fills. With `--to-rejection` the same stream of workloads is
also given to first-fit, random and an exact global best-fit.
"""

import argparse
import gc
import random
import resource
import time

import numpy as np

from bench import fleet_model
from bench.report import emit, percentile, progress
from orchestrator.scheduling.holders import find_holders
from orchestrator.scheduling.part import Planning
from orchestrator.scheduling.plan import decide, in_order, plan
from orchestrator.scheduling.reasons import effective_policy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.table import CPU, DISK, MEMORY, NodeTable

NOW = 1_800_000_000.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench schedule", description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=0, help="default: a twentieth of the nodes")
    parser.add_argument("--replicas", type=int, default=0, help="default: 1000000, or 5 per node")
    parser.add_argument("--mix", choices=("bulk", "unique"), default="bulk")
    parser.add_argument("--workloads", type=int, default=1000, help="of the bulk mix")
    parser.add_argument("--spread", action="store_true", help="unique: emptier nodes first")
    parser.add_argument("--to-rejection", action="store_true", help="unique: compare what fits")
    parser.add_argument("--runs", type=int, default=3, help="the fastest counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    result = measure(options)
    emit("schedule", result)
    return 0


def measure(options: argparse.Namespace) -> dict[str, object]:
    progress(f"making a fleet of {options.nodes} nodes")
    fleet = fleet_model.fleet(options.nodes, options.seed, options.sites)
    if options.mix == "bulk":
        replicas = options.replicas or 1_000_000
        work = fleet_model.bulk(replicas, options.seed, options.workloads)
        packed = False
    else:
        replicas = options.replicas or 5 * options.nodes
        if options.to_rejection and not options.replicas:
            replicas = 10 * options.nodes
        work = fleet_model.unique(replicas, options.seed)
        packed = not options.spread
    snapshot = fleet.snapshot(work, fleet_model.tenants(pack=packed))
    # As the orchestrator sets the collector when it starts to serve.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    result = {
        "mix": options.mix,
        "seed": options.seed,
        "nodes": options.nodes,
        "sites": len(fleet.sites),
        "workloads": len(work),
        "asked": replicas,
        **_speed(snapshot, options.runs),
        **_decisions(snapshot),
    }
    if options.to_rejection:
        result["fitted"] = compare(snapshot, int(result["placed"]), options.seed)
    result["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return result


def _speed(snapshot: Snapshot, runs: int) -> dict[str, object]:
    best, cpu, placed = float("inf"), float("inf"), 0
    for run in range(runs):
        gc.collect()
        started, busy = time.perf_counter(), time.process_time()
        decided = plan(snapshot, NOW)
        took = time.perf_counter() - started
        cpu = min(cpu, time.process_time() - busy)
        placed = len(decided.place)
        progress(f"run {run + 1}: {placed} placed in {took:.2f} s, {placed / took:.0f}/s")
        best = min(best, took)
        del decided
    return {
        "placed": placed,
        "plan_s": round(best, 3),
        "plan_cpu_s": round(cpu, 3),
        "placements_per_s": round(placed / best),
        "placements_per_cpu_s": round(placed / cpu),
    }


def _decisions(snapshot: Snapshot) -> dict[str, object]:
    """The same once more, decision by decision."""
    gc.collect()
    table = NodeTable(snapshot.nodes, snapshot.sites, NOW)
    planning = Planning(snapshot, table, find_holders(snapshot, table))
    took: list[float] = []
    marks = []
    clock = time.perf_counter
    for workload in in_order(snapshot.workloads):
        started = clock()
        decide(planning, workload)
        took.append(clock() - started)
        marks.append(len(planning.out.place))
    filled = 1 - table.free.sum(axis=1) / table.allocatable.sum(axis=1)
    tenths = np.array_split(np.array(took), 10)
    before = [0, *(int(part[-1]) for part in np.array_split(np.array(marks), 10))]
    rates = [
        round((after - start) / float(part.sum()))
        for part, start, after in zip(tenths, before, before[1:], strict=False)
    ]
    return {
        "p50_ms": round(1000 * percentile(took, 0.5), 4),
        "p99_ms": round(1000 * percentile(took, 0.99), 4),
        "per_s_by_tenth": rates,
        "filled": {"cpu": round(float(filled[CPU]), 3), "memory": round(float(filled[MEMORY]), 3)},
    }


# --- how well it fits -----------------------------------------------------------------------------


def compare(snapshot: Snapshot, ours: int, seed: int) -> dict[str, object]:
    """Replicas that fit by simple ways of choosing, each written out over all nodes."""
    counts: dict[str, object] = {"polder": ours}
    for name in ("first_fit", "random", "best_fit_exact"):
        progress(f"filling the fleet by {name}")
        counts[name] = _fitted(snapshot, name, seed)
    exact = counts["best_fit_exact"]
    assert isinstance(exact, int)
    counts["of_exact"] = round(ours / exact, 4)
    return counts


def _fitted(snapshot: Snapshot, how: str, seed: int) -> int:
    table = NodeTable(snapshot.nodes, snapshot.sites, NOW)
    dice = np.random.default_rng(seed)
    free = table.free
    unit_cpu = 0.5 / free[CPU].max()
    unit_memory = 0.5 / free[MEMORY].max()
    archs = {arch: table.equal("arch", arch) for arch in ("amd64", "arm64")}
    shuffled = list(range(table.size))
    random.Random(seed).shuffle(shuffled)
    fitted = 0
    for workload in in_order(snapshot.workloads):
        request = snapshot.templates[(workload.uid, workload.revision)].request
        allowed = (free[CPU] >= request.cpu_millis) & (free[MEMORY] >= request.memory_bytes)
        allowed &= free[DISK] >= request.disk_bytes
        if workload.placement.arch:
            allowed &= np.logical_or.reduce([archs[arch] for arch in workload.placement.arch])
        admitted = table.policies.admitted(effective_policy(snapshot, workload))
        if admitted is not None:
            allowed &= admitted[table.cell_of]
        rows = np.flatnonzero(allowed)
        if not len(rows):
            continue
        if how == "first_fit":
            row = rows[0]
        elif how == "random":
            row = dice.choice(rows)
        else:
            left = free[CPU, rows] * unit_cpu + free[MEMORY, rows] * unit_memory
            row = rows[left.argmin()]
        free[CPU, row] -= request.cpu_millis
        free[MEMORY, row] -= request.memory_bytes
        free[DISK, row] -= request.disk_bytes
        fitted += 1
    return fitted
