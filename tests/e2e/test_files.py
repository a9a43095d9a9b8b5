"""Configs, files, facts, host paths and rights, from apply to the container. Real containers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.client import workload
from devcluster.image import HELLO, hello_image
from devcluster.installation import Installation
from tests.e2e.support import edgectl, eventually, get, ready, replica

pytestmark = pytest.mark.containerd


@pytest.fixture(scope="module")
def polder(directory: Path) -> Iterator[Installation]:
    """One box that lets pods see a directory of its own."""
    shared = directory / "shared"
    shared.mkdir()
    made = Installation(directory)
    try:
        made.start_orchestrator()
        made.apply_site()
        settings = f'host_paths = ["{shared}:ro"]\n'
        made.add_agent("box-1", images=(hello_image(),), settings=settings)
        yield made
    finally:
        made.stop()


def document(kind: str, name: str, spec: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "polder.eu/v1", "kind": kind, "metadata": metadata, "spec": spec}


def config(name: str, **data: str) -> dict[str, Any]:
    return document("Config", name, {"data": data}, "default")


def apply(polder: Installation, *documents: dict[str, Any], code: int = 0) -> str:
    text = "\n---\n".join(json.dumps(item) for item in documents)
    done = edgectl(polder, "apply", "-f", "-", stdin=text.encode())
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def sh(polder: Installation, name: str, script: str) -> str:
    done = edgectl(polder, "exec", f"replica/{name}", "--", "sh", "-c", script)
    return done.stdout.strip()


def with_volumes(name: str, volumes: list[dict[str, Any]], **container: Any) -> dict[str, Any]:
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes]
    made = workload(name, image=HELLO, volumeMounts=mounts, **container)
    made["spec"]["template"]["volumes"] = volumes
    return made


def test_a_changed_config_changes_the_files_of_what_runs(polder: Installation) -> None:
    env = [
        {"name": "COUNTRY", "fact": "site.country"},
        {"name": "PROVIDER", "fact": "site.provider"},
        {"name": "ZONE", "fact": "node.labels.zone"},
        {"name": "COLOUR", "config": {"name": "page", "key": "colour"}},
    ]
    volumes = [{"name": "page", "config": {"name": "page"}}]
    secret = document("Secret", "tls", {"data": {"key": "one"}}, "default")
    volumes.append({"name": "tls", "secret": {"name": "tls"}})
    labelled = edgectl(polder, "label", "node/box-1", "zone=ward-3")
    assert labelled.returncode == 0, labelled.stderr
    # All in one file: the Config comes before what names it.
    shown = apply(
        polder, with_volumes("files", volumes, env=env), config("page", colour="red"), secret
    )
    assert "config/page created" in shown
    eventually(lambda: ready(polder, "files-0"), "ready")
    assert sh(polder, "files-0", "cat /page/colour /tls/key") == "redone"
    variables = sh(polder, "files-0", "echo $COUNTRY $PROVIDER $ZONE $COLOUR")
    assert variables == "NL example-telco ward-3 red"
    before = replica(polder, "files-0")

    apply(polder, config("page", colour="blue", size="big"))
    eventually(
        lambda: sh(polder, "files-0", "cat /page/colour; ls /page") == "bluecolour\nsize",
        "the file has its new content",
        5,
    )
    secret["spec"]["data"]["key"] = "two"
    apply(polder, secret)
    eventually(lambda: sh(polder, "files-0", "cat /tls/key") == "two", "the secret's too", 5)
    assert sh(polder, "files-0", "echo $COLOUR") == "red"
    now = replica(polder, "files-0")
    assert now["restarts"] == before["restarts"] == 0
    assert now["startedAt"] == before["startedAt"]
    rows = edgectl(polder, "get", "configs").stdout.splitlines()
    assert rows[0].split() == ["NAME", "DATA", "AGE"] and rows[1].split()[:2] == ["page", "2"]


def test_what_runs_may_do_little(polder: Installation) -> None:
    apply(polder, workload("small", image=HELLO))
    eventually(lambda: ready(polder, "small-0"), "ready")
    script = "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; touch /x"
    lines = sh(polder, "small-0", script + " 2>&1").splitlines()
    assert lines[0] == "65532"
    values = dict(line.split(":") for line in lines[1:5])
    assert {key: int(value, 16) for key, value in values.items()} == {
        "CapEff": 0,
        "CapBnd": 0,
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }
    assert "Read-only file system" in lines[5]


def test_a_config_that_is_not_there_is_waited_for(polder: Installation) -> None:
    apply(polder, with_volumes("waits", [{"name": "c", "config": {"name": "later"}}]))
    eventually(lambda: replica(polder, "waits-0").get("reason") == "ConfigMissing", "it says so")
    assert "no config 'later'" in replica(polder, "waits-0")["message"]
    apply(polder, config("later", a="1"))
    eventually(lambda: ready(polder, "waits-0"), "it starts")


def test_the_box_and_the_namespace_must_allow_a_host_path(
    polder: Installation, directory: Path
) -> None:
    (directory / "shared" / "in").write_text("of the box")
    inventory = get(polder, "node/box-1")["status"]["inventory"]
    assert inventory["hostPaths"] == [f"{directory}/shared:ro"]

    def wanted(name: str, path: str) -> dict[str, Any]:
        made = with_volumes(name, [{"name": "h", "hostPath": {"path": path}}])
        made["metadata"]["namespace"] = "trusted"
        return made

    plain = document("Namespace", "trusted", {})
    refused = apply(polder, plain, wanted("sees", f"{directory}/shared"), code=1)
    assert "hostPath" in refused
    apply(polder, document("Namespace", "trusted", {"allow": ["hostPath"]}))
    apply(polder, wanted("sees", f"{directory}/shared"), wanted("denied", "/etc"))

    def status(name: str) -> dict[str, Any]:
        done = edgectl(polder, "get", f"replica/{name}", "-n", "trusted", "-o", "json")
        return json.loads(done.stdout)["status"] if done.returncode == 0 else {}

    eventually(lambda: status("sees-0").get("ready"), "ready")
    done = edgectl(polder, "exec", "-n", "trusted", "replica/sees-0", "--", "cat", "/h/in")
    assert done.stdout == "of the box"
    why = edgectl(polder, "why", "workload/denied", "-n", "trusted").stdout
    assert "/etc" in why
    assert not status("denied-0").get("node")


def test_local_data_stays_when_its_workload_goes(polder: Installation) -> None:
    made = with_volumes("keeps", [{"name": "data", "local": {}}])
    apply(polder, made)
    eventually(lambda: ready(polder, "keeps-0"), "ready")
    sh(polder, "keeps-0", "echo kept > /data/x")
    rows = edgectl(polder, "get", "volumes").stdout.splitlines()
    assert rows[0].split() == ["NAME", "REPLICA", "VOLUME", "NODE", "AGE"]
    assert rows[1].split()[1:4] == ["keeps-0", "data", "box-1"]
    done = edgectl(polder, "delete", "workload/keeps", "--timeout", "60s")
    assert done.returncode == 0, done.stderr
    apply(polder, made)
    eventually(lambda: ready(polder, "keeps-0"), "ready again")
    assert sh(polder, "keeps-0", "cat /data/x") == "kept"
