"""The guard rails with real processes: a freeze through a restart, and stops that wait for a word.

The box's runtime is simulated: what is looked at is what the orchestrator orders.
"""

import json
import signal
from typing import Any

from devcluster.client import workload
from devcluster.image import HELLO
from devcluster.installation import Installation
from tests.e2e.support import edgectl, eventually, get

COUNT = 24


def applied(control: Installation, manifest: dict[str, Any]) -> str:
    """What it is warned of."""
    done = edgectl(control, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr
    return done.stderr


def scaled(control: Installation, count: int) -> str:
    return applied(control, workload("app", image=HELLO, replicas=count))


def count(control: Installation) -> int:
    """Replicas that the node has, as its agent says."""
    status = get(control, "node/sim-1")["status"]
    return int(status["replicas"]) if status.get("ready") else -1


def held(control: Installation) -> list[dict[str, Any]]:
    done = edgectl(control, "guards", "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["holds"]
    return found


def test_a_freeze_survives_a_restart_and_holds_back_a_scale_down(control: Installation) -> None:
    scaled(control, 6)
    eventually(lambda: count(control) == 6, "six run")
    done = edgectl(control, "freeze", "--reason", "incident 4711")
    assert done.returncode == 0, done.stderr
    assert "everything frozen by operator/admin: incident 4711" in done.stdout
    warned = scaled(control, 2)
    assert "warning: " in warned and "nothing changes until `edgectl thaw`" in warned
    control.stop_orchestrator()
    control.start_orchestrator()
    eventually(lambda: count(control) >= 0, "the agent is back")
    waits = "what is due is done after `edgectl thaw`"
    eventually(
        lambda: waits in edgectl(control, "describe", "workload/app").stdout, "the leader looked"
    )
    assert count(control) == 6
    shown = edgectl(control, "describe", "workload/app").stdout
    assert "everything is frozen by operator/admin (incident 4711)" in shown
    assert "incident 4711" in edgectl(control, "guards").stdout
    assert edgectl(control, "thaw").stdout == "everything thawed\n"
    eventually(lambda: count(control) == 2, "what was asked for meanwhile")


def test_a_large_scale_down_waits_until_it_is_approved(control: Installation) -> None:
    scaled(control, COUNT)
    eventually(lambda: count(control) == COUNT, "all run")
    scaled(control, 1)
    (hold,) = eventually(lambda: held(control), "held")
    assert (hold["stops"], hold["replicas"]) == (COUNT - 1, COUNT)
    agent = control.agents["sim-1"]
    agent.daemon.stop(signal.SIGKILL)  # a restart on the box changes nothing about it
    control.start_agent("sim-1")
    eventually(lambda: count(control) == COUNT, "all run on")
    assert hold["id"] in edgectl(control, "describe", "workload/app").stdout
    assert "StopsHeld" in edgectl(control, "events").stdout
    done = edgectl(control, "approve", hold["id"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hold['id']} approved: {COUNT - 1} replicas stop")
    eventually(lambda: count(control) == 1, "they stop")
    eventually(lambda: not held(control), "nothing is held any more")
    again = edgectl(control, "approve", hold["id"])
    assert again.returncode == 1 and "edgectl guards" in again.stderr
