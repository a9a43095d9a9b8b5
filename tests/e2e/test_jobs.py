"""Jobs and schedules as an operator uses them: real containers that end, well and not."""

import json
from typing import Any

import pytest

from devcluster.image import HELLO
from devcluster.installation import Installation
from tests.e2e.support import container_ids, edgectl, eventually, get, replica

pytestmark = pytest.mark.containerd

NODE = "box-1"


def job(name: str, script: str, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": HELLO,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
    }
    return {
        "apiVersion": "polder.eu/v1",
        "kind": "Workload",
        "metadata": {"name": name},
        "spec": {"run": "once", "template": {"containers": [container]}, **spec},
    }


def applied(polder: Installation, manifest: dict[str, Any]) -> None:
    done = edgectl(polder, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr


def deleted(polder: Installation, name: str) -> None:
    done = edgectl(polder, "delete", f"workload/{name}", "--timeout", "60s")
    assert done.returncode == 0, done.stderr


def test_a_job_of_three_completions_two_at_a_time(polder: Installation) -> None:
    script = "echo $POLDER_REPLICA begins; sleep 2; echo $POLDER_REPLICA is done"
    applied(polder, job("count", script, job={"completions": 3, "parallelism": 2}))
    most = 0

    def ended() -> bool:
        nonlocal most
        status = get(polder, "workload/count")["status"]
        most = max(most, status["running"])
        return bool(status["job"]["outcome"])

    eventually(ended, "the job ends", 60)
    assert most <= 2
    waited = edgectl(polder, "wait", "workload/count", "--for=complete", "--timeout", "10s")
    assert waited.returncode == 0, waited.stderr
    status = get(polder, "workload/count")["status"]
    assert status["job"]["succeeded"] == 3
    assert status["job"]["failed"] == 0
    table = edgectl(polder, "get", "workloads").stdout
    assert "3/3 done" in table and "Complete" in table
    for number in range(3):
        assert replica(polder, f"count-{number}")["phase"] == "Succeeded"
        assert "done" in edgectl(polder, "logs", f"replica/count-{number}").stdout
    described = edgectl(polder, "describe", "workload/count").stdout
    assert "Complete: 3 of 3 completed" in described
    deleted(polder, "count")


def test_a_job_that_fails_is_tried_again_and_then_fails_with_the_reason(
    polder: Installation,
) -> None:
    script = "echo cannot do it; exit 3"
    applied(polder, job("broken", script, job={"retries": 1}))
    eventually(
        lambda: get(polder, "workload/broken")["status"]["job"]["failed"] == 1, "failed once", 30
    )
    assert "cannot do it" in edgectl(polder, "logs", "replica/broken-0").stdout
    waited = edgectl(polder, "wait", "workload/broken", "--for=complete", "--timeout", "60s")
    assert waited.returncode == 1
    assert "will not be complete" in waited.stderr
    status = get(polder, "workload/broken")["status"]
    assert status["phase"] == "Failed"
    assert status["job"]["failed"] == 2
    assert "replica 0 failed 2 times" in status["message"]
    events = edgectl(polder, "events", "--for", "workload/broken").stdout
    assert "JobFailed" in events and "attempt 2 of 2 in 10 s" in events
    assert edgectl(polder, "wait", "workload/broken", "--for=failed").returncode == 0
    assert "cannot do it" in edgectl(polder, "logs", "replica/broken-0").stdout
    deleted(polder, "broken")


def test_a_job_that_takes_too_long_is_stopped(polder: Installation) -> None:
    before = container_ids(polder, NODE)
    applied(polder, job("slow", "sleep 600", job={"deadline": "3s"}))
    eventually(
        lambda: get(polder, "workload/slow")["status"]["phase"] == "DeadlineExceeded", "too long"
    )
    eventually(lambda: container_ids(polder, NODE).keys() <= before.keys(), "stopped", 60)
    deleted(polder, "slow")


def test_a_schedule_fires_every_minute(polder: Installation) -> None:
    schedule = {"cron": "* * * * *", "keepSucceeded": 1}
    applied(polder, job("tick", "echo it is time", schedule=schedule))

    def complete() -> list[dict[str, Any]]:
        runs = get(polder, "workload/tick")["status"]["schedule"]["runs"]
        return [run for run in runs if run["outcome"] == "Complete"]

    (run,) = eventually(complete, "a run is complete", 100)
    name = run["name"]
    assert name.startswith("tick-20") and len(name) == len("tick-202611220300")
    child = get(polder, f"workload/{name}")
    assert child["metadata"]["labels"]["polder.eu/scheduled-by"] == "tick"
    assert "it is time" in edgectl(polder, "logs", f"replica/{name}-0").stdout
    described = edgectl(polder, "describe", "workload/tick").stdout
    assert name in described and "Next run" in described
    assert "Scheduled" in edgectl(polder, "get", "workloads").stdout
    deleted(polder, "tick")
    eventually(
        lambda: edgectl(polder, "get", f"workload/{name}").returncode == 1, "its runs go with it"
    )


def test_what_never_fires_is_refused(polder: Installation) -> None:
    manifest = job("never", "true", schedule={"cron": "0 0 30 2 *"})
    done = edgectl(polder, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 1
    assert "spec.schedule.cron" in done.stderr and "never fires" in done.stderr
