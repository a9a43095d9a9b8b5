"""The main job as an operator does it: apply, look, read logs, exec, delete. Real containers."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from devcluster.client import workload
from devcluster.image import HELLO
from devcluster.installation import EDGECTL, Installation
from devcluster.ports import free_port
from tests.containerd_fixtures import WRONG_ARCHITECTURE
from tests.e2e.support import container_ids, edgectl, eventually, get, http_get, ready, replica

pytestmark = pytest.mark.containerd

NODE = "box-1"


def applied(polder: Installation, manifest: dict[str, object]) -> str:
    done = edgectl(polder, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr
    return done.stdout


def deleted(polder: Installation, name: str) -> None:
    done = edgectl(polder, "delete", f"workload/{name}", "--timeout", "60s")
    assert done.returncode == 0, done.stderr


def test_apply_makes_a_container_run_and_delete_ends_it(polder: Installation) -> None:
    port = free_port()
    shown = applied(polder, workload("hello", image=HELLO, host_port=port))
    assert "workload/hello created" in shown
    done = edgectl(polder, "wait", "workload/hello", "--for=ready", "--timeout", "30s")
    assert done.returncode == 0, done.stderr
    status, page = eventually(lambda: (r := http_get(port))[0] == 200 and r, "HTTP 200")
    assert status == 200 and "Hello from hello-0" in page

    assert "unchanged" in applied(polder, workload("hello", image=HELLO, host_port=port))
    table = edgectl(polder, "get", "nodes,workloads").stdout
    assert NODE in table and "hello" in table and "1/1" in table
    node = get(polder, f"node/{NODE}")["status"]
    assert node["ready"] is True
    assert node["inventory"]["capacity"]["memoryBytes"] > 1 << 28
    assert node["inventory"]["runtimeVersion"].startswith("containerd")

    described = edgectl(polder, "describe", "workload/hello").stdout
    assert "hello-0" in described and NODE in described
    logs = edgectl(polder, "logs", "replica/hello-0").stdout
    assert "hello-0 serves on port 8080" in logs
    echoed = edgectl(
        polder, "exec", "replica/hello-0", "--", "sh", "-c", "echo $POLDER_NODE; exit 7"
    )
    assert (echoed.returncode, echoed.stdout) == (7, f"{NODE}\n")
    piped = edgectl(polder, "exec", "-i", "replica/hello-0", "--", "cat", stdin=b"over\n" * 1000)
    assert piped.stdout == "over\n" * 1000
    assert "Started" in edgectl(polder, "events").stdout

    before = container_ids(polder, NODE)
    deleted(polder, "hello")
    assert len(container_ids(polder, NODE)) == len(before) - 2  # the container and its sandbox
    assert http_get(port)[0] == 0
    assert edgectl(polder, "get", "workload/hello").returncode == 1


def test_logs_follow_until_interrupted(polder: Installation) -> None:
    script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"
    applied(
        polder,
        workload(
            "ticker",
            image=HELLO,
            command=["/bin/sh", "-c", script],
            readinessProbe={"exec": {"command": ["true"]}},
        ),
    )
    eventually(lambda: ready(polder, "ticker-0"), "ticker ready")
    follow = subprocess.Popen(
        [EDGECTL, "logs", "-f", "workload/ticker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=polder.environment(),
        text=True,
    )
    assert follow.stdout is not None
    lines = [follow.stdout.readline().strip() for _ in range(40)]
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], numbers[0] + 40))
    follow.send_signal(signal.SIGINT)
    assert follow.wait(10) == 130
    tail = edgectl(polder, "logs", "workload/ticker", "--tail", "3").stdout.split("\n")
    assert len([line for line in tail if line]) == 3
    deleted(polder, "ticker")


def test_a_changed_template_replaces_the_container(polder: Installation) -> None:
    port = free_port()
    applied(polder, workload("change", image=HELLO, host_port=port))
    eventually(lambda: ready(polder, "change-0"), "first version ready")
    first = replica(polder, "change-0")["containers"][0]["id"]
    changed = workload(
        "change", image=HELLO, host_port=port, env=[{"name": "POLDER_REPLICA", "value": "two"}]
    )
    changed["spec"]["template"]["containers"][0]["env"] = [{"name": "PORT", "value": "8080"}]
    assert "configured" in applied(polder, changed)
    eventually(
        lambda: (
            ready(polder, "change-0")
            and replica(polder, "change-0")["containers"][0]["id"] != first
        ),
        "second version ready",
    )
    assert get(polder, "workload/change")["status"]["revision"] == 2
    deleted(polder, "change")


def test_a_crashing_container_backs_off_and_says_why(polder: Installation) -> None:
    command = ["/bin/sh", "-c", "echo out of cheese; exit 3"]
    manifest = workload("crash", image=HELLO, command=command)
    applied(polder, manifest)
    status = eventually(
        lambda: (
            (s := replica(polder, "crash-0")).get("restarts", 0) >= 2
            and s["reason"] == "CrashLoop"
            and s["containers"][0].get("lastExit", {}).get("lastLog")
            and s
        ),
        "it backs off after two restarts, and its last words are read",
    )
    assert not status["ready"]
    last = status["containers"][0]["lastExit"]
    assert last["exitCode"] == 3
    assert "out of cheese" in last["lastLog"]
    assert "out of cheese" in edgectl(polder, "describe", "replica/crash-0").stdout
    logs = edgectl(polder, "logs", "--previous", "replica/crash-0").stdout
    assert "out of cheese" in logs
    deleted(polder, "crash")


def test_liveness_restarts_a_container_that_hangs(polder: Installation) -> None:
    probe = {
        "exec": {"command": ["test", "-f", "/dev/shm/www/healthz"]},
        "period": "200ms",
        "failureThreshold": 2,
        "initialDelay": "1s",
    }
    applied(polder, workload("hang", image=HELLO, livenessProbe=probe))
    eventually(lambda: ready(polder, "hang-0"), "ready")
    edgectl(polder, "exec", "replica/hang-0", "--", "rm", "/dev/shm/www/healthz")
    eventually(lambda: replica(polder, "hang-0").get("restarts", 0) >= 1, "restart by liveness")
    eventually(lambda: ready(polder, "hang-0"), "ready again")
    assert "Liveness" in edgectl(polder, "events").stdout
    deleted(polder, "hang")


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("absent", "polder.local/absent:1", "ImageNeverPull"),
        ("refusing", "127.0.0.1:9/app:1", "ImageRegistry"),
        ("foreign", WRONG_ARCHITECTURE, "ImagePlatform"),
    ],
)
def test_an_image_that_cannot_run_says_why_and_does_not_spin(
    polder: Installation, name: str, image: str, reason: str
) -> None:
    policy = "IfNotPresent" if name != "absent" else "Never"
    applied(polder, workload(name, image=image, imagePullPolicy=policy))
    status = eventually(
        lambda: (s := replica(polder, f"{name}-0")).get("reason") == reason and s,
        f"reason {reason}",
        timeout_s=60,
    )
    assert image in status["message"] or "architecture" in status["message"]
    events = edgectl(polder, "events", "-o", "json").stdout
    assert status["reason"] in events
    assert name in edgectl(polder, "get", "workloads,replicas").stdout
    agent = polder.agents[NODE]
    before = cpu_seconds(agent.pid)
    time.sleep(2)  # a measurement of what it does in this time, not a wait for something
    assert cpu_seconds(agent.pid) - before < 0.5
    deleted(polder, name)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_taken_host_port_leaves_the_replica_pending_with_the_reason(
    polder: Installation,
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        applied(polder, workload("taken", image=HELLO, host_port=port))
        eventually(
            lambda: replica(polder, "taken-0").get("reason") == "HostPortInUse", "HostPortInUse"
        )
        assert replica(polder, "taken-0")["phase"] == "Pending"
    eventually(lambda: ready(polder, "taken-0"), "it starts once the port is free", 60)
    second = workload("second", image=HELLO, host_port=port)
    applied(polder, second)
    status = eventually(
        lambda: (s := get(polder, "workload/second")["status"]).get("unplaced") and s, "unplaced"
    )
    assert "HostPort" in json.dumps(status["unplaced"])
    deleted(polder, "second")
    deleted(polder, "taken")


def test_secrets_reach_the_container_and_change_it(polder: Installation) -> None:
    secret = {
        "apiVersion": "polder.eu/v1",
        "kind": "Secret",
        "metadata": {"name": "door"},
        "spec": {"data": {"code": "open sesame"}},
    }
    applied(polder, secret)
    reference = {"name": "CODE", "secret": {"name": "door", "key": "code"}}
    applied(polder, workload("guarded", image=HELLO, env=[reference]))
    eventually(lambda: ready(polder, "guarded-0"), "ready")
    shown = edgectl(polder, "exec", "replica/guarded-0", "--", "sh", "-c", "echo $CODE")
    assert shown.stdout == "open sesame\n"
    assert "open sesame" not in edgectl(polder, "describe", "secret/door").stdout
    deleted(polder, "guarded")
    assert edgectl(polder, "delete", "secret/door").returncode == 0
