"""A box that was deleted while it was cut off, and joins again with its containers still running.

Its replicas have been replaced meanwhile. What runs on the box is stopped once its successors are
ready, and because they are; a container that nobody has replaced runs on.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.client import workload
from devcluster.image import HELLO, hello_image
from devcluster.installation import EDGE_AGENT, Installation
from devcluster.installation import run as run_command
from tests.e2e.support import container_ids, edgectl, eventually, get

pytestmark = pytest.mark.containerd


@pytest.fixture(scope="module")
def polder(directory: Path) -> Iterator[Installation]:
    """Two boxes; a lost one is replaced within seconds."""
    made = Installation(directory)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("POLDER_HEARTBEAT_INTERVAL", "1s")
        environment.setenv("POLDER_SILENT_AFTER", "4s")
        environment.setenv("POLDER_LOST_AFTER", "8s")
        try:
            made.start_orchestrator()
            made.apply_site()
            for name in ("box-1", "box-2"):
                made.add_agent(name, images=(hello_image(),))
            yield made
        finally:
            made.stop()


def test_what_was_replaced_meanwhile_stops(polder: Installation) -> None:
    manifest = workload("kept", image=HELLO, replicas=2)
    manifest["spec"]["placement"] = {"spread": {"by": "node", "maxSkew": 1}}
    done = edgectl(polder, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr
    assert edgectl(polder, "wait", "workload/kept", "--for=ready").returncode == 0
    before = container_ids(polder, "box-2")
    assert before
    former = get(polder, "node/box-2")["metadata"]["uid"]
    agent = polder.agents["box-2"]
    agent.daemon.stop()  # cut off: its containers run on
    del manifest["spec"]["placement"]
    edgectl(polder, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert edgectl(polder, "delete", "node/box-2", "--timeout", "90s").returncode == 0
    wait = edgectl(polder, "wait", "workload/kept", "--for=ready", "--timeout", "60s")
    assert wait.returncode == 0, wait.stderr
    assert container_ids(polder, "box-2") == before

    token = polder.edgectl("token", "create", "--site", "nl-utr-1", "--node", "box-2").strip()
    command = [EDGE_AGENT, "join", "--token-file", "-", "--node", "box-2", "--force"]
    run_command([*command, "--state-dir", str(agent.state_dir)], dict(os.environ), stdin=token)
    polder.start_agent("box-2")
    assert edgectl(polder, "wait", "node/box-2", "--for=ready").returncode == 0
    assert get(polder, "node/box-2")["metadata"]["uid"] != former
    eventually(lambda: not set(before) & set(container_ids(polder, "box-2")), "stopped", 60)
    assert "StrayStops" in edgectl(polder, "events", "--for", "workload/kept").stdout
    status = get(polder, "workload/kept")["status"]
    assert (status["ready"], status["phase"]) == (2, "Running")
    kinds = [item["type"] for item in get(polder, "node/box-2")["status"]["conditions"]]
    assert "StrayReplicas" not in kinds
