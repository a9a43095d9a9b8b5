"""Durable applies per second through the operator API: mTLS, validation, compare-and-set, fsync.

Clients run in processes of their own, each with several connections; every apply creates or changes
one workload and counts only when the orchestrator has acknowledged it as durable.
"""

import argparse
import asyncio
import concurrent.futures
import tempfile
import time
from pathlib import Path

from bench.report import emit, percentile, progress
from devcluster.client import Context, apply_request, workload
from devcluster.image import HELLO
from devcluster.installation import Installation
from polder.v1 import operator_pb2, operator_pb2_grpc


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench store", description=__doc__)
    parser.add_argument("--clients", type=int, default=64, help="concurrent callers")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workloads", type=int, default=2000, help="names to cycle through")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        installation = Installation(Path(folder))
        try:
            progress("starting an orchestrator")
            installation.start_orchestrator()
            path = installation.admin_context
            progress(f"{options.clients} clients apply for {options.seconds:.0f} s")
            with concurrent.futures.ProcessPoolExecutor(1) as pool:
                latencies, seconds = pool.submit(
                    drive, path, options.clients, options.seconds, options.workloads
                ).result()
        finally:
            installation.stop()
    emit(
        "store",
        {
            "applies_per_s": round(len(latencies) / seconds, 1),
            "applies": len(latencies),
            "clients": options.clients,
            "p50_ms": round(1000 * percentile(latencies, 0.5), 2),
            "p99_ms": round(1000 * percentile(latencies, 0.99), 2),
        },
    )
    return 0


def drive(path: Path, clients: int, seconds: float, names: int) -> tuple[list[float], float]:
    return asyncio.run(_drive(Context(path), clients, seconds, names))


async def _drive(
    context: Context, clients: int, seconds: float, names: int
) -> tuple[list[float], float]:
    channels = [context.aio_channel() for _ in range(4)]
    stubs = [operator_pb2_grpc.OperatorServiceStub(channel) for channel in channels]
    await asyncio.gather(*(stub.WhoAmI(operator_pb2.WhoAmIRequest()) for stub in stubs))
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        stub, turn = stubs[number % len(stubs)], 0
        while time.perf_counter() - started < seconds:
            name = f"load-{number}-{turn % max(1, names // clients)}"
            # Every turn differs from what is stored, so that each apply is a write.
            args = [str(turn)]
            request = apply_request(workload(name, image=HELLO, args=args))
            begun = time.perf_counter()
            await stub.Apply(request, timeout=30)
            latencies.append(time.perf_counter() - begun)
            turn += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    took = time.perf_counter() - started
    for channel in channels:
        await channel.close(None)
    return latencies, took
