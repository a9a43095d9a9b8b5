"""From apply to the first HTTP 200 on a real node, the image being present.

One workload after the other: applied through the operator API over mTLS, fetched on its host port
"""

import argparse
import http.client
import tempfile
import time
from pathlib import Path

from bench.report import emit, progress, summary
from devcluster.client import apply_request, workload
from devcluster.image import HELLO
from devcluster.installation import Installation
from polder.v1 import common_pb2, operator_pb2, operator_pb2_grpc

FIRST_PORT = 21000
GIVE_UP_S = 60.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench deploy", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="workloads")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        installation = Installation(Path(folder))
        try:
            progress("starting an orchestrator, a containerd and one agent")
            installation.start_orchestrator()
            installation.apply_site()
            installation.add_agent("bench-1")
            stub = installation.context().stub()
            deploy_once(stub, 0)  # fills caches, as the first workload on any box does
            times = []
            for number in range(1, options.count + 1):
                times.append(deploy_once(stub, number))
                progress(f"{number}/{options.count}: {times[-1]:.3f} s")
        finally:
            installation.stop()
    emit("deploy", {**summary(times), "count": options.count})
    return 0


def deploy_once(stub: operator_pb2_grpc.OperatorServiceStub, number: int) -> float:
    """Seconds until the first 200. The workload is gone again when this returns."""
    name, port = f"deploy-{number}", FIRST_PORT + number % 100
    manifest = workload(name, image=HELLO, host_port=port)
    started = time.perf_counter()
    stub.Apply(apply_request(manifest), timeout=10)
    while not answers(port):
        if time.perf_counter() - started > GIVE_UP_S:
            raise TimeoutError(f"{name} does not answer on port {port}")
        time.sleep(0.005)
    took = time.perf_counter() - started
    remove(stub, name)
    return took


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def remove(stub: operator_pb2_grpc.OperatorServiceStub, name: str) -> None:
    ref = common_pb2.ResourceRef(kind="Workload", namespace="default", name=name)
    stub.Delete(operator_pb2.DeleteRequest(ref=ref), timeout=10)
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        listed = stub.List(operator_pb2.ListRequest(kind="Workload"), timeout=10)
        if all(item.metadata.name != name for item in listed.resources):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{name} is not gone after {GIVE_UP_S:.0f} s")
