"""The example of examples/rollout, with real containers: under load, no request fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devcluster.image import web_image
from devcluster.installation import EDGECTL, Installation
from tests.e2e.support import edgectl, eventually, get

pytestmark = pytest.mark.containerd

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rollout"


@pytest.fixture
def box(polder: Installation) -> Installation:
    containerd = polder.agents["box-1"].containerd
    assert containerd is not None
    containerd.import_images([web_image()])
    return polder


def environment(polder: Installation) -> dict[str, str]:
    path = f"{Path(EDGECTL).parent}{os.pathsep}{os.environ['PATH']}"
    return {**polder.environment(), "PATH": path}


def applied(polder: Installation, version: str) -> None:
    done = edgectl(polder, "apply", "-f", str(EXAMPLE / f"web-{version}.yaml"))
    assert done.returncode == 0, done.stderr


def rolled_out(polder: Installation) -> int:
    """The exit code of edgectl, which waits for the end of the rollout."""
    done = edgectl(polder, "rollout", "status", "workload/web", "--timeout", "100s", timeout_s=120)
    print(done.stdout, done.stderr)
    return done.returncode


def test_an_update_and_a_bad_one_fail_no_request(box: Installation) -> None:
    applied(box, "1")
    eventually(lambda: get(box, "workload/web")["status"].get("ready") == 3, "version 1 serves")
    assert rolled_out(box) == 0
    command = [sys.executable, str(EXAMPLE / "load.py"), "web"]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(box), text=True)
    try:
        applied(box, "2")
        good = rolled_out(box)
        applied(box, "bad")
        bad = rolled_out(box)
    finally:
        load.send_signal(signal.SIGINT)
        counted: dict[str, Any] = json.loads(load.communicate(timeout=60)[0])
    print(counted)
    assert (good, bad) == (0, 1)
    assert counted["failed"] == 0, counted
    assert counted["requests"] > 500
    assert counted["by_version"]["1"] and counted["by_version"]["2"]
    assert get(box, "workload/web")["status"]["ready"] == 3
    done = edgectl(box, "rollout", "history", "workload/web", "-o", "json")
    states = {past["number"]: past["state"] for past in json.loads(done.stdout)["revisions"]}
    assert states == {1: "Proven", 2: "Proven", 3: "Failed"}
    assert edgectl(box, "delete", "workload/web", "--timeout", "60s").returncode == 0
