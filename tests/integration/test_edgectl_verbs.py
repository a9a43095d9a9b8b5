"""Each verb against a small operator API over real mTLS: output, exit codes, what is sent."""

import json
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import yaml

from edgectl import config_file
from edgectl.__main__ import main
from polder.v1 import common_pb2, operator_pb2
from tests.integration.edgectl_server import Authority, FakeInstallation, now_ms

MANIFEST = """\
apiVersion: polder.eu/v1
kind: Workload
metadata: {name: hello}
spec:
  replicas: 1
  template:
    containers:
      - {name: web, image: "polder.local/hello:1"}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeInstallation]:
    installation = FakeInstallation()
    yield installation
    installation.stop()


@pytest.fixture
def fake(shared: FakeInstallation) -> FakeInstallation:
    api = shared.api
    api.__init__(shared.authority)  # type: ignore[misc] # a fresh state behind the same port
    return shared


@pytest.fixture
def config_path(fake: FakeInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.yaml"
    config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
    monkeypatch.setenv("EDGECTL_CONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def run(config_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of a command line."""

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def replica(
    fake: FakeInstallation, name: str, node: str = "edge-1", workload: str = "hello"
) -> None:
    status = {"phase": "Running", "ready": True, "containers": [{"name": "web", "ready": True}]}
    fake.api.put("Replica", name, {"workload": workload, "node": node}, status)


# --- get --------------------------------------------------------------------------------------


def test_get_lists_all_pages_in_natural_order(fake: FakeInstallation, run: Run) -> None:
    for number in range(11):
        replica(fake, f"hello-{number}")
    code, out, err = run("get", "replicas", "-o", "name")
    assert (code, err) == (0, "")
    assert out.split() == [f"replica/hello-{number}" for number in range(11)]
    assert len(fake.api.called("List")) == 4


def test_get_several_kinds_names_and_namespaces(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {"site": "s"}, {"ready": True})
    fake.api.put("Workload", "hello", {}, {"phase": "Running", "ready": 1, "replicas": 1})
    fake.api.put("Workload", "other", {}, {"phase": "Running"}, namespace="ward")
    _, out, _ = run("get", "nodes,workloads")
    assert any(line.split()[:2] == ["node/edge-1", "Ready"] for line in out.splitlines())
    assert "workload/hello" in out
    assert "other" not in out
    _, out, _ = run("get", "workloads", "-A", "--no-headers")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["default", "hello"],
        ["ward", "other"],
    ]
    _, out, _ = run("get", "-n", "ward", "workload/other", "-o", "jsonpath={.metadata.namespace}")
    assert out == "ward"
    code, out, err = run("get", "workload", "hello", "nope", "-o", "name")
    assert (code, out) == (1, "workload/hello\n")
    assert "error: there is no Workload 'nope'" in err


def test_get_selects_by_label_and_refuses_a_bad_selector(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "a", {}, {}, labels={"zone": "x"})
    fake.api.put("Node", "b", {}, {}, labels={"zone": "y"})
    assert run("get", "nodes", "-l", "zone in (x)", "-o", "name")[1] == "node/a\n"
    code, _, err = run("get", "nodes", "-l", "zone in x")
    assert code == 2
    assert "is not a label selector" in err
    assert len(fake.api.called("List")) == 1


def test_what_may_be_old_is_said(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "a", {"site": "s"}, {"ready": True, "asOfAt": now_ms() - 180_000})
    code, out, err = run("get", "nodes")
    assert code == 0 and "Ready" in out
    assert "cannot read its store since" in err and "(3m ago)" in err
    assert "cannot read its store" in run("describe", "node/a")[1]


def test_nothing_found_is_said_on_stderr(run: Run) -> None:
    assert run("get", "workloads") == (0, "", "No workloads in the namespace default.\n")
    code, out, _ = run("get", "workloads", "-o", "json")
    assert (code, json.loads(out)["items"]) == (0, [])


def test_watch_survives_a_broken_stream(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "a", {}, {"ready": True})
    fake.api.put("Node", "b", {}, {"ready": True})
    gone = threading.Event()

    def meddle() -> None:
        wait_until(lambda: len(fake.api.watchers) == 1)
        fake.api.put("Node", "c", {}, {"ready": False})
        fake.api.break_watches()
        with fake.api.lock:
            del fake.api.resources[("Node", "", "b")]  # nobody is told
        wait_until(lambda: len(fake.api.watchers) == 2)
        fake.api.put("Node", "d", {}, {})
        gone.set()
        fake.api.refuse = (grpc.StatusCode.PERMISSION_DENIED, "revoked")
        fake.api.break_watches()

    thread = threading.Thread(target=meddle, daemon=True)
    thread.start()
    code, out, err = run("get", "nodes", "-w")
    thread.join(timeout=10)
    assert gone.is_set()
    assert code == 1
    names = [(line.split()[0], "(deleted)" in line) for line in out.splitlines()[1:]]
    assert names[:2] == [("a", False), ("b", False)]
    assert ("b", True) in names
    assert names.count(("a", False)) == 1
    assert {name for name, _ in names} >= {"a", "b", "c", "d"}
    assert "connecting again" in err
    assert "error: revoked\n  ask an admin" in err


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("the condition did not come about")


# --- apply, diff, delete ----------------------------------------------------------------------


def test_apply_then_unchanged_then_diff(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "hello.yaml"
    path.write_text(MANIFEST)
    assert run("diff", "-f", str(path))[0] == 1
    assert run("apply", "-f", str(path), "--dry-run")[1] == "workload/hello created (dry run)\n"
    assert fake.api.resources == {}
    assert run("apply", "-f", str(path)) == (0, "workload/hello created\n", "")
    assert run("apply", "-f", str(path))[1] == "workload/hello unchanged\n"
    assert run("diff", "-f", str(path)) == (0, "", "")
    path.write_text(MANIFEST.replace("replicas: 1", "replicas: 3"))
    code, out, _ = run("diff", "-f", str(path))
    assert code == 1
    assert "-  replicas: 1\n+  replicas: 3" in out
    path.write_text("kind: x\n")
    assert run("diff", "-f", str(path))[0] == 2


def test_what_get_prints_can_be_applied(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake.api.put("Workload", name, {"template": {"containers": [{"name": "c", "image": "i"}]}},
                     {"phase": "Running"})  # fmt: skip
    for output in ("json", "yaml"):
        path = tmp_path / f"all.{output}"
        path.write_text(run("get", "workloads", "-o", output)[1])
        out = run("apply", "-f", str(path))[1]
        assert out == "workload/a unchanged\nworkload/b unchanged\n"


def test_nothing_is_sent_when_one_file_is_bad(
    fake: FakeInstallation, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(MANIFEST)
    (tmp_path / "b.yaml").write_text(MANIFEST.replace("image", "imagge"))
    code, out, err = run("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert (code, out) == (1, "")
    assert f"{tmp_path}/b.yaml:8: spec.template.containers[0].imagge: unknown field" in err
    assert "nothing was changed" in err
    assert fake.api.called("Apply") == []


def test_the_servers_violations_get_lines(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(MANIFEST.replace("hello}", f"{name}}}"))
    fake.api.server_violations = [(0, "spec.replicas", "is more than the quota")]
    code, _, err = run("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert code == 1
    assert f"{tmp_path}/a.yaml:5: spec.replicas: is more than the quota" in err
    assert f"applied: none; not applied: {tmp_path}/a.yaml, {tmp_path}/b.yaml" in err
    assert "fix the file" in err


def test_files_are_seen_together(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    """What one needs of another may come later, in a dry run as well."""
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "app.yaml").write_text(MANIFEST.replace("hello}", "hello, namespace: lab}"))
    space = "apiVersion: polder.eu/v1\nkind: Namespace\nmetadata: {name: lab}\nspec: {}\n"
    (folder / "namespace.yaml").write_text(space)
    for verb in (("apply", "--dry-run"), ("diff",), ("apply",)):
        fake.api.calls.clear()
        run(*verb, "-f", str(folder))
        (request,) = fake.api.called("Apply")
        assert len(request.documents) == 2
    (folder / "zz.yaml").write_text(MANIFEST.replace("hello}", "hello, namespace: lab}"))
    fake.api.calls.clear()
    assert run("apply", "-f", str(folder))[0] == 0
    sizes = [len(request.documents) for request in fake.api.called("Apply")]
    assert sizes == [2, 1], "twice in one request would be refused; the later file holds"
    fake.api.server_violations = [(1, "spec", "is not allowed")]
    err = run("apply", "-f", str(folder / "app.yaml"), "-f", str(folder / "namespace.yaml"))[2]
    assert f"{folder}/namespace.yaml:4: spec: is not allowed" in err
    assert "2 files: the orchestrator refused this; nothing of it was applied" in err


def test_delete_waits_until_it_is_gone(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    fake.api.slow_deletion = True
    left = "1 replica(s) are not known to have stopped, on box-3"
    fake.api.put("Workload", "a", {}, {"phase": "Deleting", "running": 0, "message": left})
    code, out, err = run("delete", "workload/a")
    assert (code, out) == (0, "workload/a deleted\n")
    assert left in err, "of a silent node nobody knows that nothing runs"
    assert ("Workload", "default", "a") not in fake.api.resources
    assert run("delete", "workload/a")[0] == 1
    assert run("delete", "workload/a", "--ignore-not-found")[0] == 0
    fake.api.put("Workload", "hello", {}, {})
    (tmp_path / "h.yaml").write_text(MANIFEST)
    out = run("delete", "-f", str(tmp_path / "h.yaml"), "--wait=false")[1]
    assert out == "workload/hello deletion requested\n"


def test_delete_tells_what_it_waited_for(fake: FakeInstallation, run: Run) -> None:
    fake.api.slow_deletion = True
    fake.api.put("Workload", "a", {}, {"running": 2})
    code, _, err = run("delete", "workload/a", "--wait", "--timeout", "50ms")
    assert code == 1
    assert "workload/a still exists after 50ms: " in err
    assert run("delete", "workload/a", "--dry-run")[1] == "workload/a deleted (dry run)\n"
    assert run("delete")[0] == 2


# --- wait and events --------------------------------------------------------------------------


def test_wait_sees_a_resource_appear_and_become_ready(fake: FakeInstallation, run: Run) -> None:
    def act() -> None:
        wait_until(lambda: len(fake.api.watchers) == 1)
        fake.api.put("Node", "edge-1", {}, {"ready": False})
        fake.api.put("Node", "edge-1", None, {"ready": True})

    threading.Thread(target=act, daemon=True).start()
    code, out, err = run("wait", "node/edge-1", "--for=ready", "--timeout", "10s")
    assert (code, out) == (0, "node/edge-1 condition met\n")
    assert "does not exist yet" in err


def test_wait_times_out_with_the_reason(fake: FakeInstallation, run: Run) -> None:
    status = {"phase": "Pending", "reason": "ImageNotFound", "message": "no such image"}
    fake.api.put("Replica", "a-0", {"workload": "a"}, status)
    code, _, err = run("wait", "replica/a-0", "--for=ready", "--timeout", "100ms")
    assert code == 1
    assert "timed out after 100ms" in err
    assert "Pending (ImageNotFound): no such image" in err


def test_wait_and_delete_notice_without_being_told(fake: FakeInstallation, run: Run) -> None:
    """A bounded watch reads everything anew every few seconds: composed status is not pushed."""
    from edgectl import watching

    fake.api.put("Node", "edge-1", {}, {"ready": False})

    def act() -> None:
        wait_until(lambda: len(fake.api.watchers) == 1)
        with fake.api.lock:
            fake.api.resources[("Node", "", "edge-1")].status_json = b'{"ready": true}'

    before, watching.SLICE_S = watching.SLICE_S, 0.3
    try:
        threading.Thread(target=act, daemon=True).start()
        assert run("wait", "node/edge-1", "--for=ready", "--timeout", "10s")[0] == 0
    finally:
        watching.SLICE_S = before


def event(reason: str, kind: int = common_pb2.EVENT_TYPE_NORMAL) -> common_pb2.Event:
    ref = common_pb2.ResourceRef(kind="Workload", namespace="default", name="hello")
    return common_pb2.Event(
        object=ref, type=kind, reason=reason, message=f"about {reason}", source="leader/m0",
        first_at_ms=now_ms() - 60_000, last_at_ms=now_ms(), count=3,
    )  # type: ignore[arg-type] # fmt: skip


def test_events(fake: FakeInstallation, run: Run) -> None:
    fake.api.events = [event("Placed"), event("HostPortTaken", common_pb2.EVENT_TYPE_WARNING)]
    out = run("events")[1]
    assert "Placed" in out
    assert "workload/hello" in out
    assert "(x3 over 60s)" in out
    assert "Placed" not in run("events", "--warnings")[1]
    assert run("events", "--for", "node/x")[2] == "No events.\n"
    line = run("events", "-o", "json")[1].splitlines()[1]
    assert json.loads(line)["reason"] == "HostPortTaken"


def test_describe_has_replicas_and_events(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Workload", "hello", {"replicas": 1}, {"phase": "Running", "replicas": 1})
    replica(fake, "hello-0")
    fake.api.events = [event("Placed")]
    code, out, _ = run("describe", "workload/hello")
    assert code == 0
    for text in ("Name:               hello", "Replicas:", "hello-0", "Events:", "about Placed"):
        assert text in out


# --- logs and exec ----------------------------------------------------------------------------


def test_logs_of_one_and_of_all_replicas(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Workload", "hello", {}, {})
    replica(fake, "hello-0")
    fake.api.logs["hello-0"] = b"first\nsecond\xff\n"
    assert run("logs", "hello-0", "--tail", "5", "--timestamps")[0] == 0
    options = fake.api.called("Logs")[0].options
    assert (options.container, options.tail_lines, options.timestamps) == ("web", 5, True)
    assert run("logs", "workload/hello", "--since", "10m")[1].startswith("first\n")
    since = fake.api.called("Logs")[1].options.since_ms
    assert abs(now_ms() - 600_000 - since) < 10_000
    replica(fake, "hello-1")
    fake.api.logs["hello-1"] = b"other\nno end"
    code, _, err = run("logs", "workload/hello")
    assert code == 1
    assert "has 2 replicas; name one of them\n  replica/hello-0   Running" in err
    code, out, _ = run("logs", "workload/hello", "--all-replicas")
    assert code == 0
    assert sorted(out.splitlines())[0] == "[hello-0] first"
    assert sorted(out.splitlines())[2:] == ["[hello-1] no end", "[hello-1] other"]


def test_logs_say_what_cannot_be_read(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Workload", "hello", {}, {})
    assert "has no replicas" in run("logs", "workload/hello")[2]
    replica(fake, "hello-0")
    code, _, err = run("logs", "replica/hello-0")
    assert (code, err) == (1, "error: no logs\n  it has not started yet\n")
    assert "has no container 'x'" in run("logs", "hello-0", "-c", "x")[2]
    assert "write workload/hello" in run("logs", "hello")[2]
    assert run("logs", "node/x")[0] == 2


def test_exec_passes_output_and_code_on(fake: FakeInstallation, run: Run) -> None:
    replica(fake, "hello-0")
    assert run("exec", "hello-0", "--", "exit", "7") == (7, "out\n", "err\n")
    start = fake.api.called("Exec")[0]
    assert list(start.options.command) == ["exit", "7"]
    assert (start.options.stdin, start.options.tty) == (False, False)
    code, out, err = run("exec", "hello-0", "--", "break")
    assert (code, out) == (1, "begun\n")
    assert "ended before the command did" in err
    assert run("exec", "hello-0")[0] == 2


# --- nodes and identities ---------------------------------------------------------------------


def test_cordon_and_uncordon(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {"site": "s"}, {}, labels={"a": "b"})
    fake.api.conflicts = 2
    assert run("cordon", "edge-1")[1] == "node/edge-1 cordoned\n"
    assert fake.api.spec("Node", "edge-1") == {"site": "s", "unschedulable": True}
    assert dict(fake.api.resources[("Node", "", "edge-1")].metadata.labels) == {"a": "b"}
    assert len(fake.api.called("Apply")) == 3
    assert run("cordon", "node/edge-1")[1] == "node/edge-1 already cordoned\n"
    assert run("uncordon", "edge-1")[1] == "node/edge-1 uncordoned\n"
    assert fake.api.spec("Node", "edge-1") == {"site": "s"}
    assert run("cordon", "workload/x")[0] == 2


def test_drain_waits_for_what_can_move(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {"site": "s"}, {})
    fake.api.put("Workload", "hello", {"replicas": 1}, {})
    fake.api.put("Workload", "agent", {"perNode": 1}, {})
    replica(fake, "hello-0")
    replica(fake, "agent-edge-1", workload="agent")

    def move() -> None:
        wait_until(lambda: bool(fake.api.spec("Node", "edge-1").get("draining")))
        wait_until(lambda: len(fake.api.called("List")) >= 1)
        replica(fake, "hello-0", node="edge-2")

    threading.Thread(target=move, daemon=True).start()
    code, out, err = run("drain", "edge-1", "--timeout", "10s")
    assert code == 0
    assert out.splitlines() == ["node/edge-1 draining", "node/edge-1 drained"]
    assert "1 left; replica/hello-0: Running" in err or not err


def test_why_of_a_replica_is_that_of_its_workload(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Workload", "hello", {"replicas": 1})
    fake.api.put("Replica", "hello-0", {"workload": "hello"})
    assert run("why", "replica/hello-0")[:2] == run("why", "workload/hello")[:2]
    code, out, _ = run("why", "replica/hello-0")
    assert code == 0 and "workload/hello in namespace default" in out
    assert run("why", "replica/other-0")[0] == 1
    code, _, err = run("why", "replica/hello-0", "workload/hello")
    assert code == 2 and "one workload or replica at a time" in err


def test_drain_tells_what_remains_and_why(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {"site": "s"}, {})
    unplaced = [{"replica": "hello-0", "message": "every other node lacks memory"}]
    fake.api.put("Workload", "hello", {"replicas": 1}, {"unplaced": unplaced})
    replica(fake, "hello-0")
    assert "would move" in run("drain", "edge-1", "--dry-run")[1]
    assert fake.api.spec("Node", "edge-1") == {"site": "s"}
    code, _, err = run("drain", "edge-1", "--timeout", "10ms")
    assert code == 1
    assert "replica/hello-0: Running, no other place: every other node lacks memory" in err


def test_label_and_taint(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {"site": "s"}, {}, labels={"a": "b"})
    assert run("label", "node/edge-1", "zone=x", "a-")[0] == 0
    assert dict(fake.api.resources[("Node", "", "edge-1")].metadata.labels) == {"zone": "x"}
    assert run("label", "node", "edge-1", "zone=y")[0] == 1
    assert run("label", "node/edge-1", "--overwrite", "zone=y")[0] == 0
    assert run("taint", "nodes", "edge-1", "m=1:NoSchedule")[0] == 0
    assert fake.api.spec("Node", "edge-1")["taints"] == [
        {"key": "m", "effect": "NoSchedule", "value": "1"}
    ]
    assert run("taint", "edge-1", "m-")[0] == 0
    assert "taints" not in fake.api.spec("Node", "edge-1")
    assert run("label", "replica/x", "a=b")[0] == 2


def test_revoke_asks_unless_told(fake: FakeInstallation, run: Run) -> None:
    code, _, err = run("revoke", "node/edge-1")
    assert code == 1
    assert "--yes" in err
    assert fake.api.called("Revoke") == []
    code, out, _ = run("revoke", "operator/bob", "-y", "--reason", "left")
    assert (code, out) == (0, "operator/bob revoked (1 open stream closed)\n")
    assert fake.api.called("Revoke")[0].reason == "left"
    assert run("revoke", "workload/x", "-y")[0] == 2
    code, out, _ = run("revoke", "break-glass/0f0f0f0f", "-y")
    assert code == 0 and out.startswith("break-glass/0f0f0f0f revoked")
    assert run("revoke", "-y")[0] == 2


def test_token_stands_alone_on_stdout(fake: FakeInstallation, run: Run) -> None:
    code, out, err = run("token", "create", "--site", "utr", "--ttl", "5m")
    assert (code, out) == (0, "polder1.secret\n")
    assert "'utr'" in err
    assert fake.api.called("CreateJoinToken")[0].ttl_ms == 300_000
    assert run("token", "create", "--site", "utr", "--ttl", "11m")[0] == 2
    assert run("token", "create")[0] == 2


def test_a_pallet_gets_a_folder_for_each_box(
    fake: FakeInstallation, run: Run, tmp_path: Path
) -> None:
    out_dir = tmp_path / "pallet"
    command = ("token", "create", "--site", "utr", "--count", "3", "--out", str(out_dir))
    code, out, err = run(*command)
    assert (code, out) == (0, "utr-001\nutr-002\nutr-003\n")
    assert "3 folders" in err and "polder1.secret" not in out + err
    asked = fake.api.called("CreateJoinToken")
    assert [a.node for a in asked] == ["utr-001", "utr-002", "utr-003"]
    assert {a.ttl_ms for a in asked} == {86_400_000}
    assert stat.S_IMODE((out_dir / "utr-002").stat().st_mode) == 0o700
    files = sorted(path.name for path in (out_dir / "utr-002").iterdir())
    assert files == ["meta-data", "preseed.cfg", "token", "user-data"]
    for file in (out_dir / "utr-002").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    cloud = yaml.safe_load((out_dir / "utr-002" / "user-data").read_text())
    (written,) = cloud["write_files"]
    assert written["path"] == "/etc/polder/join-token" and written["permissions"] == "0600"
    assert written["content"] == "polder1.secret\n" and cloud["hostname"] == "utr-002"
    again = run(*command)
    assert again[0] == 1 and "has a folder" in again[2]
    assert len(fake.api.called("CreateJoinToken")) == 3
    assert run(*command, "--first", "4")[0] == 0


def test_a_pallet_is_asked_for_whole(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    pallet = ("token", "create", "--site", "utr", "--out", str(tmp_path / "p"))
    assert run(*pallet)[0] == 2
    assert run("token", "create", "--site", "utr", "--count", "2")[0] == 2
    for alone in (("--prefix", "x-"), ("--first", "7")):
        code, _, err = run("token", "create", "--site", "utr", *alone)
        assert code == 2 and "--count and --out" in err
    assert run(*pallet, "--count", "1001")[0] == 2
    assert run(*pallet, "--count", "2", "--node", "a")[0] == 2
    assert run(*pallet, "--count", "2", "--prefix", "Not A Name")[0] == 2
    assert run(*pallet, "--count", "2", "--ttl", "25h")[0] == 2
    fake.api.put("Node", "utr-002", {}, {"ready": True})
    code, _, err = run(*pallet, "--count", "2")
    assert code == 1 and "utr-002 is a node already" in err
    assert fake.api.called("CreateJoinToken") == [] and not (tmp_path / "p").exists()


def test_operator_create_import_and_use(fake: FakeInstallation, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("operator", "create", "bob", "--role", "viewer:ward")
    path = tmp_path / "bob.polder.yaml"
    assert (code, out) == (0, "bob.polder.yaml\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("operator", "create", "bob", "--role", "viewer:ward")[0] == 1
    assert run("operator", "create", "bob", "--role", "root", "--force")[0] == 2
    assert run("config", "import", str(path))[1].endswith("current context: test\n")
    assert run("config", "use-context", "bob")[0] == 0
    code, out, _ = run("version")
    assert code == 0
    assert "operator/bob" in out
    assert "ward" in run("config", "get-contexts")[1]
    assert run("config", "set", "-n", "other")[0] == 0
    assert run("get", "workloads")[2] == "No workloads in the namespace other.\n"
    assert run("config", "delete-context", "bob")[0] == 0
    code, _, err = run("get", "nodes")
    assert code == 1
    assert "no context is chosen" in err


# --- connections ------------------------------------------------------------------------------


def use(config_path: Path, document: dict[str, object]) -> None:
    config_file.write_private(config_path, config_file.render(document), overwrite=True)


def test_the_next_endpoint_is_tried(fake: FakeInstallation, run: Run, config_path: Path) -> None:
    use(config_path, fake.context(endpoints=["127.0.0.1:1", fake.endpoint]))
    fake.api.put("Node", "edge-1", {}, {"ready": True})
    assert run("get", "nodes", "-o", "name")[1] == "node/edge-1\n"
    assert run("wait", "node/edge-1", "--for=ready")[0] == 0
    assert run("token", "create", "--site", "s")[0] == 0
    assert len(fake.api.called("CreateJoinToken")) == 1
    replica(fake, "hello-0")
    assert run("exec", "hello-0", "--", "exit", "3")[0] == 3


def test_nobody_listens(run: Run) -> None:
    code, _, err = run("--endpoint", "127.0.0.1:1", "get", "nodes")
    assert code == 1
    assert "cannot reach the orchestrator at 127.0.0.1:1: connection refused" in err


def test_a_server_of_another_ca_is_refused(
    fake: FakeInstallation, run: Run, config_path: Path
) -> None:
    use(config_path, fake.context(ca=Authority("other").pem))
    code, _, err = run("get", "nodes")
    assert code == 1
    assert "not certified by the CA" in err
    assert fake.api.calls == []


def test_a_refused_client_certificate_is_explained(
    fake: FakeInstallation, run: Run, config_path: Path
) -> None:
    uri = "spiffe://polder.test/operator/eve"
    use(config_path, fake.context(client=Authority("other").issue(uri, [])))
    code, _, err = run("get", "nodes")
    assert code == 1
    assert "does not accept the client certificate of context 'test'" in err
    expired = fake.authority.issue(uri, [], timedelta(hours=-1))
    use(config_path, fake.context(client=expired))
    code, _, err = run("get", "nodes")
    assert code == 1
    assert "your client certificate expired on" in err


def test_a_refusal_of_the_server_is_passed_on(fake: FakeInstallation, run: Run) -> None:
    fake.api.refuse = (grpc.StatusCode.PERMISSION_DENIED, "a viewer may not apply")
    assert run("get", "nodes") == (1, "", "error: a viewer may not apply\n  ask an admin\n")


def test_a_slow_server_is_given_up(fake: FakeInstallation, run: Run) -> None:
    with fake.api.lock:
        code, _, err = run("get", "nodes", "--request-timeout", "200ms")
    assert code == 1
    assert "did not answer within 0.2 s" in err


def test_completion_offers_names(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Node", "edge-1", {}, {})
    assert "node/edge-1" in run("__complete", "resources")[1].split()
    assert run("__complete", "nodes")[1] == "edge-1\n"
    assert run("__complete", "contexts")[1] == "test\n"
    fake.api.refuse = (grpc.StatusCode.UNAVAILABLE, "down")
    assert run("__complete", "nodes") == (0, "", "")
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = run("completion", shell)
        assert code == 0
        assert "edgectl __complete resources" in out
        assert "wait" in out


def test_unexpected_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> operator_pb2.WhoAmIResponse:
        raise RuntimeError("surprise")

    monkeypatch.setattr("edgectl.client.Client.whoami", fail)
    code, _, err = run("version")
    assert code == 1
    assert err.startswith("error: unexpected RuntimeError: surprise\n")
    assert "Traceback" not in err
    with pytest.raises(RuntimeError):
        run("version", "--debug")
