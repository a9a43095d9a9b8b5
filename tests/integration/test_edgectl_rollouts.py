"""edgectl's verbs that change what runs, against a small operator API with mTLS."""

import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgectl import config_file
from edgectl.__main__ import main
from polder.v1 import operator_pb2
from tests.integration.edgectl_server import FakeInstallation, now_ms

SPEC = {
    "replicas": 3,
    "template": {"containers": [{"name": "app", "image": "registry.example/a:1"}]},
}
Run = Callable[..., tuple[int, str, str]]
Status = operator_pb2.RolloutStatus


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeInstallation]:
    installation = FakeInstallation()
    yield installation
    installation.stop()


@pytest.fixture
def fake(shared: FakeInstallation) -> FakeInstallation:
    api = shared.api
    api.__init__(shared.authority)  # type: ignore[misc] # a fresh state behind the same port
    api.put("Workload", "hello", SPEC, {"phase": "Running"}, changed_by="operator/ada")
    return shared


@pytest.fixture
def run(
    fake: FakeInstallation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """(exit code, stdout, stderr) of a command line."""
    path = tmp_path / "config.yaml"
    config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
    monkeypatch.setenv("EDGECTL_CONFIG", str(path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


# --- rollout ----------------------------------------------------------------------------------


def moving(updated: int, **more: object) -> Status:
    fields = {
        "phase": "Progressing",
        "newest_revision": 3,
        "target_revision": 3,
        "wave": "canary",
        "sites": ["s1"],
        "replicas_wanted": 3,
        "replicas_updated": updated,
        "replicas_available": 3,
        **more,
    }
    return Status(**fields)  # type: ignore[arg-type]


def test_status_follows_to_the_end(fake: FakeInstallation, run: Run) -> None:
    fake.api.rollouts = [
        moving(1, seconds_left=9.0),
        moving(1, seconds_left=8.0),
        moving(1, phase="Soaking", seconds_left=30.0),
        moving(3, phase="Proven", settled=True, succeeded=True, proven_revision=3),
    ]
    code, out, err = run("rollout", "status", "workload/hello")
    assert (code, out) == (
        0,
        "workload/hello: revision 3 runs on 3 of 3 replicas and is proven\n",
    )
    lines = err.splitlines()
    assert len(lines) == 2, "a line for a change, and none for a countdown"
    assert "revision 3 progressing (canary: s1): 1 of 3 updated, 3 available, 9s left" in lines[0]
    assert "soaking" in lines[1]


def test_status_until_available_does_not_wait_for_the_proof(
    fake: FakeInstallation, run: Run
) -> None:
    fake.api.rollouts = [moving(3, phase="Proving", seconds_left=600.0)]
    code, out, _ = run("rollout", "status", "hello", "--until", "available")
    assert code == 0
    assert "counts as proven in 10m" in out
    code, _, err = run("rollout", "status", "workload/hello", "--timeout", "300ms")
    assert code == 1
    assert "has not ended after 300ms" in err and "edgectl describe" in err


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            moving(3, phase="RolledBack", settled=True, target_revision=2, message="it crashed"),
            "revision 3 failed and was rolled back to revision 2: it crashed",
        ),
        (moving(1, phase="Failed", settled=True, message="late"), "revision 3 failed: late"),
        (moving(1, phase="Paused", paused=True), "is paused: 1 of 3 updated"),
    ],
)
def test_status_says_why_it_did_not_end_as_asked(
    fake: FakeInstallation, run: Run, status: Status, words: str
) -> None:
    fake.api.rollouts = [status]
    code, out, err = run("rollout", "status", "workload/hello")
    assert (code, out) == (1, "")
    assert words in err
    assert "  edgectl " in err, "and what to do next"


@pytest.mark.parametrize(
    ("why", "command"),
    [
        ("2 of 3 replicas of revision 3 crash", ["--previous", "--all-replicas"]),
        ("no replica of revision 3 became available for 10m: 2 ProbeFailed", ["--all-replicas"]),
        ("no replica of revision 3 became available for 10m: 2 ImageNotFound, 1 ImagePull", None),
        ("nothing became available for 10m: 2 ImagePull, 1 CrashLoop", ["--previous"]),
    ],
)
def test_the_hint_of_a_failure_can_be_typed_as_it_is(
    fake: FakeInstallation, run: Run, why: str, command: list[str] | None
) -> None:
    fake.api.put("Workload", "hello", {}, {})
    fake.api.put("Replica", "hello-0", {"workload": "hello"}, {"phase": "Pending"})
    fake.api.logs["hello-0"] = b"cannot open /etc/app.conf\n"
    fake.api.rollouts = [moving(1, phase="Failed", settled=True, message=why)]
    _, _, err = run("rollout", "status", "workload/hello", "-n", "default")
    hints = [line.split() for line in err.splitlines() if "  edgectl logs " in line]
    if command is None:
        assert not hints, "what never ran has said nothing"
        return
    (words,) = hints
    typed = words[1 : words.index("shows")]
    assert set(command) <= set(typed) and "-n" in typed
    code, out, _ = run(*typed)
    assert (code, out) == (0, "[hello-0] cannot open /etc/app.conf\n")
    assert fake.api.called("Logs")[0].options.previous == ("--previous" in command)


def test_what_was_rolled_back_has_no_logs_left(fake: FakeInstallation, run: Run) -> None:
    fake.api.rollouts = [moving(3, phase="RolledBack", settled=True, message="it crashed")]
    _, _, err = run("rollout", "status", "workload/hello")
    assert "edgectl logs" not in err and "edgectl describe workload/hello " in err


def test_status_now_and_as_json(fake: FakeInstallation, run: Run) -> None:
    fake.api.rollouts = [moving(1)]
    code, out, _ = run("rollout", "status", "workload/hello", "--watch=false")
    assert (code, len(fake.api.called("Rollout"))) == (0, 1)
    assert "progressing" in out
    code, out, _ = run("rollout", "status", "workload/hello", "--watch=false", "-o", "json")
    assert (code, json.loads(out)["replicasUpdated"]) == (0, 1)
    fake.api.rollouts = [moving(1, phase="Failed", settled=True)]
    code, out, _ = run("rollout", "status", "workload/hello", "-o", "json")
    assert (code, json.loads(out)["phase"]) == (1, "Failed")


def test_history_and_one_revision(fake: FakeInstallation, run: Run) -> None:
    fake.api.rollouts = [moving(1)]
    fake.api.revisions = [
        operator_pb2.RevisionInfo(
            number=3,
            state="Failed",
            cause="it crashed",
            created_at_ms=now_ms() - 60_000,
            created_by="operator/ada",
            images=["registry.example/a:2"],
        ),
        operator_pb2.RevisionInfo(number=2, state="Proven", replicas=3),
    ]
    fake.api.templates = {3: SPEC["template"]}  # type: ignore[dict-item]
    code, out, _ = run("rollout", "history", "workload/hello")
    lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert lines[0] == ["REVISION", "STATE", "AGE", "BY", "IMAGES", "CAUSE"]
    assert lines[1] == ["3", "Failed", "60s", "operator/ada", "registry.example/a:2", "it crashed"]
    code, out, _ = run("rollout", "history", "workload/hello", "--revision", "3")
    assert code == 0
    assert out.startswith("# revision 3: Failed") and "image: registry.example/a:1" in out
    code, _, err = run("rollout", "history", "workload/hello", "--revision", "9")
    assert (code, "kept are 3, 2" in err) == (1, True)
    _, out, _ = run("rollout", "history", "workload/hello", "-o", "json")
    assert [info["number"] for info in json.loads(out)["revisions"]] == [3, 2]


def test_undo_pause_resume_restart(fake: FakeInstallation, run: Run) -> None:
    code, out, _ = run("rollout", "undo", "workload/hello", "--to-revision", "2")
    assert (code, out) == (
        0,
        "workload/hello goes from revision 3 back to the template of revision 2\n",
    )
    assert run("rollout", "pause", "workload/hello")[1] == "workload/hello paused\n"
    assert fake.api.spec("Workload", "hello")["update"] == {"paused": True}
    assert run("rollout", "pause", "workload/hello")[1] == "workload/hello already paused\n"
    code, _, err = run("rollout", "restart", "workload/hello")
    assert (code, "rollout resume" in err) == (1, True)
    assert run("rollout", "resume", "workload/hello")[1] == "workload/hello resumed\n"
    assert "update" not in fake.api.spec("Workload", "hello")
    assert run("rollout", "restart", "workload/hello")[0] == 0
    moment = fake.api.spec("Workload", "hello")["template"]["restartedAt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", moment)
    assert run("rollout", "status", "node/x")[0] == 2
    assert run("rollout", "undo", "workload/none")[0] == 1


# --- scale, set image -------------------------------------------------------------------------


def test_scale(fake: FakeInstallation, run: Run) -> None:
    done = run("scale", "workload/hello", "--replicas=5", "--current-replicas", "3")
    assert done == (0, "workload/hello scaled from 3 to 5\n", "")
    code, _, err = run("scale", "workload/hello", "--replicas", "9", "--current-replicas", "3")
    assert (code, "has 5 replicas, not 3" in err) == (1, True)
    assert fake.api.spec("Workload", "hello")["replicas"] == 5
    assert "already" in run("scale", "workload/hello", "--replicas", "5")[1]
    assert run("scale", "workload/hello", "--replicas", "-1")[0] == 2
    fake.api.put("Workload", "every", {"perSite": 1, "template": SPEC["template"]}, {})
    code, _, err = run("scale", "workload/every", "--replicas", "2")
    assert (code, "perSite" in err) == (1, True)


def test_set_image(fake: FakeInstallation, run: Run) -> None:
    image = "registry.example/a@sha256:" + "0" * 64
    assert run("set", "image", "workload/hello", f"app={image}")[0] == 0
    assert fake.api.spec("Workload", "hello")["template"]["containers"][0]["image"] == image
    assert "already" in run("set", "image", "workload/hello", f"*={image}")[1]
    code, _, err = run("set", "image", "workload/hello", "web=x:1")
    assert (code, "containers: app" in err) == (1, True)
    assert run("set", "image", "workload/hello")[0] == 2
    assert run("set", "image", "workload/hello", "app=")[0] == 2


def test_an_edit_that_loses_a_race_is_made_again(fake: FakeInstallation, run: Run) -> None:
    fake.api.conflicts = 2
    assert run("scale", "workload/hello", "--replicas", "4")[0] == 0
    assert fake.api.spec("Workload", "hello")["replicas"] == 4


# --- edit -------------------------------------------------------------------------------------


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Sets $EDITOR to a Python program; it has the file's path as `path` and its `text`.

    It keeps what it was shown in the file that is returned, one opening after the other.
    """

    def made(program: str) -> Path:
        seen = tmp_path / "seen"
        script = tmp_path / "editor.py"
        script.write_text(
            "import sys, pathlib\n"
            "path = pathlib.Path(sys.argv[1]); text = path.read_text()\n"
            f"seen = pathlib.Path({str(seen)!r})\n"
            "turn = seen.read_text().count('=====') if seen.exists() else 0\n"
            "seen.open('a').write(text + '=====\\n')\n" + program
        )
        import sys

        monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
        monkeypatch.delenv("VISUAL", raising=False)
        return seen

    return made


def kept(err: str) -> Path:
    """The file that holds the operator's text."""
    found = re.search(r"(/\S+\.yaml)", err)
    assert found, err
    return Path(found[1])


def test_edit_applies_what_is_saved(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path], tmp_path: Path
) -> None:
    seen = editor("path.write_text(text.replace('replicas: 3', 'replicas: 4'))\n")
    assert run("edit", "workload/hello") == (0, "workload/hello configured\n", "")
    assert fake.api.spec("Workload", "hello")["replicas"] == 4
    shown = seen.read_text()
    assert shown.startswith("# workload/hello in namespace default, generation 1\n")
    assert "# last changed by operator/ada at " in shown
    assert "status" not in shown and "uid" not in shown
    assert not list(tmp_path.glob("edgectl-edit-*"))


def test_edit_without_a_change_does_nothing(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path]
) -> None:
    editor("pass\n")
    assert run("edit", "workload/hello")[:2] == (0, "nothing was changed\n")
    editor("path.write_text('')\n")
    assert run("edit", "workload/hello")[:2] == (0, "nothing was saved\n")
    assert not fake.api.called("Apply")


def test_edit_opens_again_with_what_is_wrong(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path]
) -> None:
    seen = editor(
        "wrong = 'replicas: three'\n"
        "path.write_text(text.replace('replicas: 3', wrong) if turn == 0\n"
        "                else text.replace(wrong, 'replicas: 6'))\n"
    )
    assert run("edit", "workload/hello")[0] == 0
    assert fake.api.spec("Workload", "hello")["replicas"] == 6
    again = seen.read_text().split("=====\n")[1].splitlines()
    told = next(line for line in again if "spec.replicas" in line)
    number = int(re.search(r"line (\d+):", told)[1])  # type: ignore[index]
    assert "replicas: three" in again[number - 1], "the line is that of the text as it is open"


def test_edit_that_stays_wrong_keeps_the_text(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path]
) -> None:
    editor("path.write_text(text.replace('name: hello', 'name: other'))\n")
    code, _, err = run("edit", "workload/hello")
    assert code == 1
    file = kept(err)
    assert "name: other" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not fake.api.called("Apply")


def test_edit_shows_the_servers_problems_with_lines(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path]
) -> None:
    fake.api.server_violations = [(0, "spec.replicas", "the quota is used up")]
    seen = editor("path.write_text(text.replace('replicas: 3', 'replicas: 4'))\n")
    code, _, err = run("edit", "workload/hello")
    assert (code, "the same problems" in err) == (1, True)
    assert re.search(r"#   line \d+: spec.replicas: the quota is used up", seen.read_text())


def test_who_edits_second_sees_the_others_change(
    fake: FakeInstallation, run: Run, editor: Callable[[str], Path]
) -> None:
    api = fake.api

    def meanwhile() -> None:
        api.put("Workload", "hello", {**SPEC, "priority": 7}, changed_by="operator/bob")

    api.before_apply = meanwhile
    editor("path.write_text(text.replace('replicas: 3', 'replicas: 4'))\n")
    code, _, err = run("edit", "workload/hello")
    assert code == 1
    assert "was changed by operator/bob at " in err
    assert "+  priority: 7" in err, "the other's change against what was opened"
    assert api.spec("Workload", "hello") == {**SPEC, "priority": 7}
    file = kept(err)
    assert "replicas: 4" in file.read_text()
    # Going on with the text shows what it would undo; taking the other's change over is an edit.
    seen = editor("path.write_text(text.replace('\\nspec:', '\\nspec:\\n  priority: 7'))\n")
    seen.unlink(missing_ok=True)
    assert run("edit", "workload/hello", "-f", str(file))[0] == 0
    assert "#   -  priority: 7" in seen.read_text()
    assert api.spec("Workload", "hello")["replicas"] == 4
    assert api.spec("Workload", "hello")["priority"] == 7


def test_what_cannot_be_edited(
    fake: FakeInstallation, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.api.put("Secret", "key", {"data": {"a": "REDACTED"}})
    code, _, err = run("edit", "secret/key")
    assert (code, "may not read" in err) == (1, True)
    assert run("edit", "replica/hello-0")[0] == 2
    monkeypatch.setenv("VISUAL", "/nowhere/vi")
    code, _, err = run("edit", "workload/hello")
    assert (code, "cannot be started" in err) == (1, True)
    monkeypatch.setenv("VISUAL", "false")
    code, _, err = run("edit", "workload/hello")
    assert (code, "exit code 1" in err) == (1, True)


# --- nodes, sites, stories --------------------------------------------------------------------


def test_windows_of_maintenance(fake: FakeInstallation, run: Run) -> None:
    over = {"start": "2020-01-01T00:00:00Z", "end": "2020-01-01T01:00:00Z"}
    spec = {"provider": "p", "country": "NL", "maintenance": [over]}
    fake.api.put("Site", "s1", spec, {})
    code, out, _ = run("maintenance", "site/s1", "--from", "+1h", "--until", "+2h", "--drain")
    assert code == 0 and "site/s1 is drained from" in out
    windows = fake.api.spec("Site", "s1")["maintenance"]
    assert len(windows) == 1 and windows[0]["drain"] is True, "the ended one is gone"
    assert "drains" in run("maintenance", "s1")[1]
    assert run("maintenance", "s1", "--until", "2020-01-01T00:00:00Z")[0] == 1
    err = run("maintenance", "s1", "--from", "2020-01-01T00:00:00Z", "--until", "+2h")[2]
    assert "it ended 2020-01-01 02:00:00" in err and "counts from --from" in err
    assert run("maintenance", "s1", "--drain")[0] == 2
    assert run("maintenance", "node/x", "--clear")[0] == 2
    assert run("maintenance", "s1", "--clear")[0] == 0
    assert "maintenance" not in fake.api.spec("Site", "s1")


def test_drain_of_a_site_with_a_deadline_and_undrain(fake: FakeInstallation, run: Run) -> None:
    fake.api.put("Site", "s1", {"provider": "p", "country": "NL"}, {})
    for name, site in (("a", "s1"), ("b", "s1"), ("c", "s2")):
        fake.api.put("Node", name, {"site": site}, {"ready": True})
    waits = {"reason": "DrainBlocked", "message": "the budget of hello is used up"}
    status = {"phase": "Running", "ready": True, "waits": waits}
    fake.api.put("Replica", "hello-0", {"workload": "hello", "node": "a"}, status)
    code, _, err = run("drain", "site/s1", "--timeout", "0s", "--force-after", "10m")
    assert (code, "DrainBlocked: the budget of hello is used up" in err) == (1, True)
    for name in ("a", "b"):
        assert fake.api.spec("Node", name)["drainDeadline"].endswith("Z")
    assert "draining" not in fake.api.spec("Node", "c")
    assert run("undrain", "site/s1")[0] == 0
    assert fake.api.spec("Node", "a") == {"site": "s1", "unschedulable": True}
    assert run("uncordon", "a")[0] == 0
    assert run("cordon", "site/s1", "c")[0] == 0
    assert fake.api.spec("Site", "s1")["unschedulable"] is True
    assert run("drain", "provider/p")[0] == 2


def test_describe_tells_the_story(fake: FakeInstallation, run: Run) -> None:
    at = now_ms() - 5_000
    entry = operator_pb2.StoryEntry
    fake.api.story = operator_pb2.StoryResponse(
        entries=[
            entry(at_ms=at, source="leader/m", reason="Placed", message="placed on node a"),
            entry(at_ms=at + 1, source="agent/a", reason="Exited", message="x", warning=True),
        ],
        next=[entry(reason="CrashLoop", message="again", at_ms=now_ms() + 40_500, warning=True)],
        now_ms=now_ms(),
    )
    code, out, _ = run("describe", "workload/hello")
    assert code == 0
    assert re.search(r"\(5s ago\) +Placed +leader/m +placed on node a", out)
    assert re.search(r"\(4s ago\) +! +Exited|\(5s ago\) +! +Exited", out)
    assert "! CrashLoop in 40s: again" in out
    fake.api.story = None  # an older orchestrator
    assert "Events:" in run("describe", "workload/hello")[1]
