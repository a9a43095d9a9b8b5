"""Ten thousand agents against real orchestrators: joining, beating, getting work, losing a region.

    python -m bench fleet --agents 10000 --members 3 --json

Orchestrators and etcds are real processes; agents are the agent's own session and reconcile code,
thousands in a process, over a simulated runtime (`fleet_agent.py` says what else differs). Each
phase has a limit in time: what did not come about by then is named in `missed`.
"""

import argparse
import asyncio
import importlib.metadata
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import grpc

from bench import fleet_fall, fleet_rise, fleet_world
from bench.fleet_bench import Bench, Options
from bench.fleet_crew import Crew, WorkerFailed
from bench.fleet_members import PLACES, Members
from bench.report import emit, progress
from devcluster import preflight
from devcluster.etcd_api import EtcdRefused
from polder import __version__

MEMORY = Path("/dev/shm")
MEMORY_BYTES_PER_AGENT = 100_000
DOOMED = 5
NOTES = (
    "agents run the agent's own session, join, plan and reconcile code over a simulated runtime, "
    "thousands in a process; their cryptography is agent.credentials called in-process instead of "
    "in a process for each call; their state directories are in memory where there is enough",
    "heartbeat_p99_ms: heartbeats are not acknowledged, so what is timed is a request on the same "
    "session, which the server reads in order behind any heartbeat, until its answer is there: an "
    "upper bound that contains the agents' process being late (agents_lag_p99_ms) on both ways",
    "idle_kbit_s_per_agent: bytes and packets of the kernel's sockets (ss -ti), both directions, "
    "TLS, acknowledgements and 52 bytes of IP and TCP per packet included",
    "kb_per_agent: growth of the memory of all orchestrators together since before the first join, "
    "by agents; after connecting, and again (loaded) with replicas",
    "cpu_cores: all orchestrators together in steady state; the agents' side and etcd run on the "
    "same cores and are told apart",
    "a process of agents takes up four plans at once and dials 25 members at once: without that "
    "its own loop is late by seconds while plans come or all connect, and sessions are lost to it",
    "connect_peak_per_s: as the agents' process sees it, which may hear at once of what came one "
    "by one",
    "dead_node_detected_s: the agents' process is stopped with open connections, so that only "
    "silence tells; the last of all nodes as seen by the last of all members",
    "failover: SIGKILL of the leader's orchestrator and etcd; from then until a session is open",
    "rss_slope_mb_per_min: of the surviving orchestrators together, by least squares; its standard "
    "error is widened for the likeness of neighbouring samples",
)


def main(argv: list[str]) -> int:
    options = _options(argv)
    if options.store == "etcd" and (lacking := preflight.missing_etcd()):
        progress(f"bench fleet {preflight.reason(lacking)}")
        return 1
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        result = asyncio.run(_run(options))
    except asyncio.CancelledError:
        progress("ended by a signal; nothing is left running")
        return 130
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    emit("fleet", result)
    return 1 if result["missed"] else 0


def _options(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=3, choices=range(1, len(PLACES) + 1))
    parser.add_argument(
        "--store", choices=("etcd", "sqlite"), help="default: sqlite with one member, else etcd"
    )
    parser.add_argument("--replicas", type=int, help="default: ten for each agent")
    parser.add_argument("--steady-seconds", type=float, default=60)
    parser.add_argument("--soak-minutes", type=float, default=10)
    parser.add_argument("--heartbeat-seconds", type=float, default=5)
    parser.add_argument("--agents-per-process", type=int, default=2_500)
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    given = parser.parse_args(argv)
    store = given.store or ("sqlite" if given.members == 1 else "etcd")
    if store == "sqlite" and given.members > 1:
        parser.error("several members need --store etcd")
    return Options(
        agents=given.agents,
        members=given.members,
        store=store,
        replicas=10 * given.agents if given.replicas is None else given.replicas,
        steady_s=given.steady_seconds,
        soak_minutes=given.soak_minutes,
        per_worker=given.agents_per_process,
        doomed=min(DOOMED, given.agents // 10),
        heartbeat_s=given.heartbeat_seconds,
        folder=Path(tempfile.mkdtemp(prefix="polder-fleet-")),
    )


async def _run(options: Options) -> dict[str, Any]:
    """Nothing is left running when this returns or raises."""
    _end_on_signals()
    settings = {"heartbeat-interval": f"{options.heartbeat_s:g}s", "log-level": "warning"}
    members = Members(options.folder, options.members, options.store, settings)
    memory = _in_memory(options)
    crew = Crew(
        memory or options.folder,
        fleet_world.nodes(options.agents),
        options.doomed,
        options.per_worker,
    )
    bench = Bench(options, members, crew)
    load = os.getloadavg()[0]
    try:
        await _phases(bench)
    finally:
        await bench.close()
        await crew.stop()
        members.stop()
        if memory is not None:
            shutil.rmtree(memory, ignore_errors=True)
    return {
        **bench.result,
        "missed": bench.missed,
        "agents": options.agents,
        "members": options.members,
        "store": options.store,
        "heartbeat_s": options.heartbeat_s,
        "load_before": round(load, 2),
        "versions": await asyncio.to_thread(_versions),
        "notes": list(NOTES),
    }


def _end_on_signals() -> None:
    """The first of them cancels, whatever comes during the clean-up does not."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def end() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)


async def _phases(bench: Bench) -> None:
    """A phase that fails is named in `missed`; without nodes that are connected there is no next.

    Raises DaemonError and CommandError when the members do not start.
    """
    options = bench.options
    bench.say(f"starting {options.members} members on {options.store}, and the agents' processes")
    await bench.members.start()
    await bench.crew.start()
    pids = [region.pid for region in bench.members.regions]
    bench.say(f"orchestrators {pids}, agents {[worker.pid for worker in bench.crew.workers]}")
    for phase in (
        fleet_rise.join_all,
        fleet_rise.connect_all,
        fleet_rise.steady_idle,
        fleet_rise.apply_all,
        fleet_fall.dead_node,
        fleet_fall.lose_region,
        fleet_fall.soak,
    ):
        try:
            await phase(bench)
        except _FAILURES as error:
            bench.miss(f"{phase.__name__}: {type(error).__name__}: {str(error)[:500]}")
            if phase in (fleet_rise.join_all, fleet_rise.connect_all):
                return


_FAILURES = (WorkerFailed, grpc.RpcError, EtcdRefused, OSError, subprocess.SubprocessError)


def _in_memory(options: Options) -> Path | None:
    """A folder for the agents' state: a disk that many boxes share would be measured otherwise."""
    try:
        free = shutil.disk_usage(MEMORY).free
    except OSError:
        return None
    if free < options.agents * MEMORY_BYTES_PER_AGENT:
        return None
    return Path(tempfile.mkdtemp(prefix="polder-fleet-", dir=MEMORY))


def _versions() -> dict[str, str]:
    import cryptography
    import google.protobuf

    found = {
        "polder": __version__,
        "grpcio": grpc.__version__,
        "protobuf": google.protobuf.__version__,
        "cryptography": cryptography.__version__,
        "uvloop": importlib.metadata.version("uvloop"),
    }
    if shutil.which("etcd"):
        done = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
        found["etcd"] = done.stdout.partition("\n")[0].removeprefix("etcd Version: ")
    return found
