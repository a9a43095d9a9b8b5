"""What must not stop a container: an agent or orchestrator that dies, a cold boot, a full disk."""

import json
import signal
import subprocess
import threading

import pytest

from devcluster.client import apply_request, workload
from devcluster.image import HELLO
from devcluster.installation import Installation
from devcluster.ports import free_port
from polder.v1 import operator_pb2
from tests.e2e.support import container_ids, edgectl, eventually, get, http_get, ready, replica

pytestmark = pytest.mark.containerd

NODE = "box-1"


@pytest.fixture(scope="module")
def served(polder: Installation) -> int:
    """A workload that runs during all of these; its host port."""
    port = free_port()
    polder.context().stub().Apply(
        apply_request(workload("steady", image=HELLO, host_port=port)), timeout=10
    )
    eventually(lambda: ready(polder, "steady-0"), "ready")
    return port


def test_killing_the_agent_stops_no_container(polder: Installation, served: int) -> None:
    agent = polder.agents[NODE]
    before, container = container_ids(polder, NODE), replica(polder, "steady-0")["containers"][0]
    agent.daemon.stop(signal.SIGKILL)
    assert http_get(served)[0] == 200
    eventually(
        lambda: get(polder, f"node/{NODE}")["status"]["ready"] is not True, "noticed", timeout_s=20
    )
    polder.start_agent(NODE)
    eventually(lambda: get(polder, f"node/{NODE}")["status"]["ready"] is True, "ready again")
    eventually(lambda: ready(polder, "steady-0"), "replica ready again")
    assert container_ids(polder, NODE) == before
    after = replica(polder, "steady-0")["containers"][0]
    for key in ("id", "startedAt", "restarts"):
        assert after[key] == container[key]


def test_stopping_the_agent_politely_stops_no_container(polder: Installation, served: int) -> None:
    before = container_ids(polder, NODE)
    polder.agents[NODE].daemon.stop()
    assert http_get(served)[0] == 200
    polder.start_agent(NODE)
    eventually(lambda: get(polder, f"node/{NODE}")["status"]["ready"] is True, "ready again")
    assert container_ids(polder, NODE) == before


def test_an_acknowledged_apply_survives_kill_9(polder: Installation, served: int) -> None:
    """A stream of applies is cut by SIGKILL; whatever was acknowledged is there afterwards."""
    before = container_ids(polder, NODE)
    acknowledged: list[str] = []
    stub = polder.context().stub()

    def stream() -> None:
        for number in range(100_000):
            secret = {
                "apiVersion": "polder.eu/v1",
                "kind": "Secret",
                "metadata": {"name": f"kept-{number}"},
                "spec": {"data": {"number": str(number)}},
            }
            try:
                stub.Apply(apply_request(secret), timeout=5)
            except Exception:
                return
            acknowledged.append(f"kept-{number}")

    thread = threading.Thread(target=stream)
    thread.start()
    eventually(lambda: len(acknowledged) > 50, "applies are under way")
    polder.orchestrator.stop(signal.SIGKILL)
    thread.join(30)
    assert http_get(served)[0] == 200
    polder.start_orchestrator()
    listed = polder.context().stub().List(operator_pb2.ListRequest(kind="Secret"), timeout=10)
    assert set(acknowledged) <= {item.metadata.name for item in listed.resources}
    eventually(lambda: get(polder, f"node/{NODE}")["status"]["ready"] is True, "agent is back", 40)
    eventually(lambda: ready(polder, "steady-0"), "replica is known again")
    assert container_ids(polder, NODE) == before


def test_a_cold_boot_without_orchestrator_starts_the_containers(
    polder: Installation, served: int
) -> None:
    """Power loss: everything on the box dies, and the orchestrator is away when it comes back."""
    agent = polder.agents[NODE]
    assert agent.containerd is not None
    polder.stop_orchestrator()
    agent.daemon.stop(signal.SIGKILL)
    agent.containerd.stop()
    assert http_get(served)[0] == 0
    agent.containerd.start()
    polder.start_agent(NODE)
    eventually(lambda: http_get(served)[0] == 200, "started from the plan on disk", 30)
    polder.start_orchestrator()
    eventually(lambda: ready(polder, "steady-0"), "the orchestrator learns of it", 40)


def test_a_full_disk_is_reported_and_containers_run_on(polder: Installation, served: int) -> None:
    """The agent's state directory becomes a full file system."""
    agent = polder.agents[NODE]
    before = container_ids(polder, NODE)
    agent.daemon.stop()
    kept = agent.state_dir.with_name("state.kept")
    subprocess.run(["cp", "-a", str(agent.state_dir), str(kept)], check=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(agent.state_dir)], check=True
    )
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(agent.state_dir)], check=True)
        with (agent.state_dir / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(b"\0" * 4096)
            except OSError:
                pass
        polder.start_agent(NODE)
        eventually(lambda: get(polder, f"node/{NODE}")["status"]["ready"] is True, "session")
        stub = polder.context().stub()
        stub.Apply(apply_request(workload("late", image=HELLO)), timeout=10)

        def conditions() -> str:
            return json.dumps(
                [c for c in get(polder, f"node/{NODE}")["status"]["conditions"] if c["status"]]
            )

        eventually(lambda: "Disk" in conditions() or "State" in conditions(), "a condition")
        assert http_get(served)[0] == 200
        assert set(before) <= set(container_ids(polder, NODE))
    finally:
        agent.daemon.stop()
        subprocess.run(["umount", str(agent.state_dir)], check=True)
        polder.start_agent(NODE)
    eventually(lambda: ready(polder, "late-0"), "works again with room on the disk", 40)


def test_revoked_node_is_refused_within_five_seconds(polder: Installation, served: int) -> None:
    import time

    before = container_ids(polder, NODE)
    started = time.monotonic()
    assert edgectl(polder, "revoke", f"node/{NODE}", "--yes").returncode == 0
    eventually(
        lambda: not get(polder, f"node/{NODE}")["status"]["session"], "session closed", timeout_s=5
    )
    assert time.monotonic() - started < 5
    assert http_get(served)[0] == 200
    assert container_ids(polder, NODE) == before
