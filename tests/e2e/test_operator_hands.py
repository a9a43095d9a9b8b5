"""Bad manifests and everyday verbs, as an operator types them. No container is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster.client import workload
from devcluster.image import HELLO
from devcluster.installation import EDGECTL, Installation
from tests.e2e.support import edgectl, eventually, get

GOOD = "apiVersion: polder.eu/v1\nkind: Namespace\nmetadata: {name: made-by-accident}\n"
WORKLOAD = """\
apiVersion: polder.eu/v1
kind: Workload
metadata: {name: x}
spec:
  template:
    containers:
      - name: app
        image: polder.local/hello:1
"""
BAD = {
    "unknown-field": (WORKLOAD + "        comand: [x]\n", 9, "containers[0].comand"),
    "wrong-type": (WORKLOAD + "  replicas: three\n", 9, "spec.replicas"),
    "negative": (WORKLOAD + "        resources: {memory: -5Mi}\n", 9, "resources.memory"),
    "absurd": (WORKLOAD + "        resources: {memory: 999999999Pi}\n", 9, "resources.memory"),
    "twice": (WORKLOAD + "---\n" + WORKLOAD, 12, "x"),
    "no-kind": ("apiVersion: polder.eu/v1\nmetadata: {name: x}\n", 1, "kind"),
    "empty": ("---\n", 0, "empty"),
    "bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n"
            for i in range(8)
        ),
        None,
        "alias",
    ),
    "tab": ("apiVersion: polder.eu/v1\n\tkind: Workload\n", 2, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests_name_file_line_and_path(
    control: Installation, tmp_path: Path, name: str
) -> None:
    text, line, path = BAD[name]
    file = tmp_path / f"{name}.yaml"
    file.write_text(GOOD + "---\n" + text)
    done = edgectl(control, "apply", "-f", str(file))
    assert done.returncode == 1
    assert done.stdout == ""
    expected = f"{file}:{line + 4}:" if line is not None else str(file)
    assert expected in done.stderr, done.stderr
    assert path in done.stderr
    assert edgectl(control, "get", "namespace/made-by-accident").returncode == 1


def test_oversized_and_undecodable_files_are_refused(control: Installation, tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_text(GOOD + "# " + "x" * (2 << 20))
    done = edgectl(control, "apply", "-f", str(big))
    assert done.returncode == 1 and str(big) in done.stderr and "MiB" in done.stderr
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(GOOD.encode() + b"# caf\xe9\n")
    done = edgectl(control, "apply", "-f", str(latin))
    assert done.returncode == 1 and "UTF-8" in done.stderr
    assert edgectl(control, "get", "namespace/made-by-accident").returncode == 1


def test_dry_run_and_diff_change_nothing(control: Installation, tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(json.dumps(workload("planned", image="polder.local/hello:1")))
    done = edgectl(control, "apply", "--dry-run", "-f", str(file))
    assert done.returncode == 0 and "dry run" in done.stdout
    assert edgectl(control, "diff", "-f", str(file)).returncode == 1
    assert edgectl(control, "get", "workload/planned").returncode == 1
    assert edgectl(control, "apply", "-f", str(file)).returncode == 0
    assert edgectl(control, "diff", "-f", str(file)).returncode == 0
    edgectl(control, "delete", "workload/planned")


def test_every_verb_explains_itself(control: Installation) -> None:
    top = edgectl(control, "--help").stdout
    verbs = (
        *("apply", "diff", "get", "describe", "delete", "logs", "exec", "events", "wait", "token"),
        *("cordon", "uncordon", "drain", "revoke", "label", "taint", "explain", "config"),
        *("version", "completion", "why", "plan", "simulate", "rollout", "scale", "set", "edit"),
        *("undrain", "maintenance"),
    )
    for verb in verbs:
        assert re.search(rf"\b{verb}\b", top), f"{verb} is not in edgectl --help"
        shown = edgectl(control, verb, "--help")
        assert shown.returncode == 0 and "usage" in shown.stdout.lower()
    assert edgectl(control, "fly").returncode == 2
    assert edgectl(control, "get").returncode == 2


def test_cordon_label_taint_and_drain(control: Installation) -> None:
    done = edgectl(
        control,
        "apply",
        "-f",
        "-",
        stdin=json.dumps(workload("moving", image=HELLO, readinessProbe=None)).encode(),
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: get(control, "workload/moving")["status"]["ready"] == 1, "ready")
    assert edgectl(control, "cordon", "node/sim-1").returncode == 0
    assert "cordoned" in edgectl(control, "get", "nodes").stdout.lower()
    scaled = workload("moving", image=HELLO, replicas=2, readinessProbe=None)
    edgectl(control, "apply", "-f", "-", stdin=json.dumps(scaled).encode())
    status = eventually(
        lambda: (s := get(control, "workload/moving")["status"])["unplaced"] and s, "unplaced"
    )
    assert "ordoned" in json.dumps(status["unplaced"]) or "nschedulable" in json.dumps(
        status["unplaced"]
    )
    assert edgectl(control, "uncordon", "node/sim-1").returncode == 0
    eventually(lambda: get(control, "workload/moving")["status"]["ready"] == 2, "both ready")
    assert edgectl(control, "label", "node/sim-1", "zone=ward-3").returncode == 0
    assert get(control, "node/sim-1")["metadata"]["labels"]["zone"] == "ward-3"
    assert edgectl(control, "label", "node/sim-1", "zone=ward-4").returncode == 1
    assert edgectl(control, "label", "node/sim-1", "zone-").returncode == 0
    assert edgectl(control, "taint", "node/sim-1", "wet=true:NoSchedule").returncode == 0
    assert get(control, "node/sim-1")["spec"]["taints"][0]["key"] == "wet"
    assert edgectl(control, "taint", "node/sim-1", "wet-").returncode == 0
    drained = edgectl(control, "drain", "node/sim-1", "--timeout", "2s")
    assert drained.returncode == 1  # nowhere to go: it says what blocks it
    assert "moving-0" in drained.stderr + drained.stdout
    assert edgectl(control, "uncordon", "node/sim-1").returncode == 0
    assert edgectl(control, "delete", "workload/moving").returncode == 0


def test_rollout_scale_set_image_and_undo(control: Installation) -> None:
    made = workload("steered", image="polder.local/hello:1", replicas=2, readinessProbe=None)
    made["spec"]["update"] = {"provenAfter": "1s"}
    apply = edgectl(control, "apply", "-f", "-", stdin=json.dumps(made).encode())
    assert apply.returncode == 0, apply.stderr
    first = edgectl(control, "rollout", "status", "workload/steered", "--timeout", "40s")
    assert first.returncode == 0, first.stderr
    assert "revision 1 runs on 2 of 2 replicas and is proven" in first.stdout
    changed = edgectl(control, "set", "image", "workload/steered", "web=polder.local/hello:2")
    assert changed.stdout == "workload/steered image updated\n", changed.stderr
    second = edgectl(control, "rollout", "status", "workload/steered", "--timeout", "40s")
    assert second.returncode == 0, second.stderr
    history = edgectl(control, "rollout", "history", "workload/steered").stdout.splitlines()
    assert history[0].split() == ["REVISION", "STATE", "AGE", "BY", "IMAGES", "CAUSE"]
    assert [line.split()[:2] for line in history[1:]] == [["2", "Proven"], ["1", "Proven"]]
    old = edgectl(control, "rollout", "history", "workload/steered", "--revision", "1").stdout
    assert "image: polder.local/hello:1" in old
    undone = edgectl(control, "rollout", "undo", "workload/steered")
    assert undone.returncode == 0, undone.stderr
    third = edgectl(control, "rollout", "status", "workload/steered", "--timeout", "40s")
    assert "revision 3 runs on 2 of 2" in third.stdout, third.stderr
    images = get(control, "workload/steered")["spec"]["template"]["containers"][0]["image"]
    assert images == "polder.local/hello:1"
    assert edgectl(control, "rollout", "pause", "workload/steered").returncode == 0
    assert edgectl(control, "rollout", "restart", "workload/steered").returncode == 1
    assert edgectl(control, "rollout", "resume", "workload/steered").returncode == 0
    assert edgectl(control, "rollout", "restart", "workload/steered").returncode == 0
    scaled = edgectl(
        control, "scale", "workload/steered", "--replicas=3", "--current-replicas", "2"
    )
    assert scaled.stdout == "workload/steered scaled from 2 to 3\n", scaled.stderr
    stale = edgectl(control, "scale", "workload/steered", "--replicas=1", "--current-replicas", "2")
    assert stale.returncode == 1 and "has 3 replicas, not 2" in stale.stderr
    assert edgectl(control, "delete", "workload/steered").returncode == 0


def test_the_second_of_two_editors_gets_a_conflict(control: Installation, tmp_path: Path) -> None:
    made = workload("contested", image="polder.local/hello:1", readinessProbe=None)
    edgectl(control, "apply", "-f", "-", stdin=json.dumps(made).encode())
    # While the first has the editor open, a second operator scales.
    program = tmp_path / "editor.py"
    program.write_text(
        "import pathlib, subprocess, sys\n"
        f"subprocess.run([{EDGECTL!r}, 'scale', 'workload/contested', '--replicas', '2'])\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text() + '  priority: 5\\n')\n"
    )
    environment = {**control.environment(), "EDITOR": f"{sys.executable} {program}",
                   "TMPDIR": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [EDGECTL, "edit", "workload/contested"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "was changed by operator/admin at" in done.stderr
    assert "+  replicas: 2" in done.stderr
    assert "priority" not in get(control, "workload/contested")["spec"]
    file = next(tmp_path.glob("edgectl-edit-*.yaml"))
    assert str(file) in done.stderr and "priority: 5" in file.read_text()
    edgectl(control, "delete", "workload/contested")


def test_roles_bound_what_an_operator_may_do(control: Installation, tmp_path: Path) -> None:
    context = tmp_path / "viewer.yaml"
    made = edgectl(
        control, "operator", "create", "vera", "--role", "viewer:default", "--out", str(context)
    )
    assert made.returncode == 0, made.stderr
    assert context.stat().st_mode & 0o077 == 0
    listed = edgectl(control, "--config", str(context), "get", "workloads")
    assert listed.returncode == 0, listed.stderr
    manifest = json.dumps(workload("sneaky", image="polder.local/hello:1")).encode()
    refused = edgectl(control, "--config", str(context), "apply", "-f", "-", stdin=manifest)
    assert refused.returncode == 1
    assert (
        "operator" in refused.stderr and "sneaky" not in edgectl(control, "get", "workloads").stdout
    )
    assert edgectl(control, "revoke", "operator/vera", "--yes").returncode == 0
    gone = edgectl(control, "--config", str(context), "get", "workloads")
    assert gone.returncode == 1 and "revoked" in gone.stderr.lower()


def test_tokens_are_refused_with_the_reason(control: Installation, tmp_path: Path) -> None:
    import os

    from devcluster.installation import EDGE_AGENT

    def join(token: str, name: str) -> subprocess.CompletedProcess[str]:
        state = tmp_path / f"{name}-state"
        return subprocess.run(
            [EDGE_AGENT, "join", "--token-file", "-", "--node", name, "--state-dir", str(state)],
            input=token,
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ),
            check=False,
        )

    token = edgectl(control, "token", "create", "--site", "nl-utr-1").stdout.strip()
    assert join(token, "fresh-1").returncode == 0
    again = join(token, "fresh-2")
    assert again.returncode == 1 and "used" in again.stderr and "Traceback" not in again.stderr
    bound = edgectl(control, "token", "create", "--site", "nl-utr-1", "--node", "only-me")
    other = join(bound.stdout.strip(), "not-me")
    assert other.returncode == 1 and "only-me" in other.stderr
    damaged = join(bound.stdout.strip()[:-9], "fresh-3")
    assert damaged.returncode != 0 and "damaged" in damaged.stderr
    missing = edgectl(control, "token", "create", "--site", "nowhere")
    assert missing.returncode == 1 and "nowhere" in missing.stderr
