"""Operators at a site that no orchestrator reaches: they see it, steer it, and are heard later.

Real agents with their real ports; what is typed is what docs/local-operators.md says.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from devcluster.boxes import EDGECTL, SITE
from devcluster.region import EDGE_ORCHESTRATOR
from devcluster.site_watch import answering, shared
from tests.e2e.site_support import EXCLUSIVE, SHARED, Scene, keeps, scene_in
from tests.e2e.support import edgectl, eventually, get

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(600)]

MOVED_S = 60.0
QUIET_S = 10.0
"""Several times what a takeover needs."""


class AtSite:
    """Somebody in the site's network. `by`: more words of each command."""

    def __init__(self, scene: Scene, *by: str) -> None:
        self.scene = scene
        self._by = by

    def run(self, *words: str, node: str = "") -> subprocess.CompletedProcess[str]:
        address = self.scene.site.address(node or self.scene.site.nodes[0])
        return edgectl(self.scene.site, "--site-endpoint", address, *self._by, *words)

    def well(self, *words: str, node: str = "") -> str:
        done = self.run(*words, node=node)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def status(self, what: str, node: str = "") -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.well("get", what, "-o", "json", node=node))[
            "status"
        ]
        return status


@pytest.fixture(scope="module")
def scene(directory: Path) -> Iterator[Scene]:
    with scene_in(directory) as made:
        yield made


@pytest.fixture
def ann(scene: Scene) -> Iterator[AtSite]:
    """Cut off with the site; nothing that she decided is left behind."""
    scene.whole()
    scene.site.cut_uplink()
    yield AtSite(scene)
    scene.site.heal()
    for name in ("one-0", "page-0"):
        edgectl(scene.site, "override", "drop", name)
    edgectl(scene.site, "override", "drop", f"site/{SITE}")
    scene.whole()


def test_every_node_is_found_through_any_and_knows_that_it_is_alone(ann: AtSite) -> None:
    for node in ann.scene.site.nodes:
        found = json.loads(ann.well("get", "nodes", "-o", "json", node=node))["items"]
        assert [item["metadata"]["name"] for item in found] == list(ann.scene.site.nodes)
        assert all(item["status"]["ready"] for item in found)
    eventually(lambda: ann.status("node/node-b")["isolated"], "it says so", 30)
    assert "silent for" in ann.well("get", "nodes")


def test_a_node_that_is_off_is_told_apart(ann: AtSite) -> None:
    with ann.scene.no_overlap():
        holder = ann.scene.holder()
        first, last = ann.scene.others(holder)
        ann.scene.site.kill_node(last)
        done = ann.run("get", "nodes", node=first)
        assert done.returncode == 0
        assert "2 of 3 nodes of the site answered" in done.stderr
        assert f"{last} did not answer" in done.stderr
        assert "NotReached" in done.stdout


def test_what_is_stopped_stays_stopped_through_a_cold_boot(ann: AtSite) -> None:
    scene = ann.scene
    with scene.no_overlap():
        ann.well("stop", "one-0", "--reason", "disk full")
        eventually(lambda: not answering(scene.site, EXCLUSIVE), "it stops", MOVED_S)
        status = ann.status("replica/one-0")
        assert status["phase"] in ("Stopping", "Stopped")
        (said,) = [c for c in status["conditions"] if c["type"] == "LocalOverride"]
        assert (said["reason"], "disk full" in said["message"]) == ("Stopped", True)
        scene.site.power_cycle()
        eventually(lambda: answering(scene.site, SHARED), "the other one runs", MOVED_S)
        keeps(scene, EXCLUSIVE, [], QUIET_S)
        assert "stopped" in ann.well("overrides", node="node-c")
        ann.well("start", "one-0", node="node-b")
        scene.taken_over(scene.site.nodes, time.monotonic(), within_s=MOVED_S)
        assert "Nothing is decided" in ann.run("overrides").stderr


def test_an_exclusive_replica_moves_where_it_is_wanted(ann: AtSite) -> None:
    scene = ann.scene
    with scene.no_overlap():
        holder = scene.holder()
        wanted = scene.others(holder)[1]
        ann.well("move", "one-0", "--to", wanted)
        eventually(lambda: answering(scene.site, EXCLUSIVE) == [wanted], "moved", MOVED_S)
        assert ann.status("replica/one-0")["node"] == wanted
        assert wanted in ann.refused("move", "one-0", "--to", wanted)


def test_a_stop_is_obeyed_by_a_node_that_was_off_meanwhile(ann: AtSite) -> None:
    scene = ann.scene
    with scene.no_overlap():
        holder = scene.holder()
        others = scene.others(holder)
        scene.site.kill_node(holder)
        scene.taken_over(others, time.monotonic(), within_s=MOVED_S)
        ann.well("stop", "one-0", node=others[0])
        eventually(lambda: not answering(scene.site, EXCLUSIVE), "it stops", MOVED_S)
        scene.site.power_on(holder)
        eventually(lambda: "all 3" in ann.well("overrides", node=others[1]), "told", MOVED_S)
        keeps(scene, EXCLUSIVE, [], QUIET_S)
        ann.well("start", "one-0", node=holder)
        scene.taken_over(scene.site.nodes, time.monotonic(), within_s=MOVED_S)


def test_commands_and_logs(ann: AtSite) -> None:
    epoch = ann.well("exec", "one-0", "--", "cat", "/run/polder/epoch")
    assert int(epoch) == ann.scene.last().epoch
    assert ann.run("exec", "page-0", "--", "sh", "-c", "exit 7").returncode == 7
    assert "page-0 serves" in ann.well("logs", "page-0")
    quiet = ann.well("exec", "page-0", "--", "sh", "-c", "sleep 40; echo awake")
    assert quiet == "awake\n", "connections that are quiet are not taken for dead ones"
    assert "LocalExec" in ann.well("events", "--for", "replica/one-0")


def test_logs_follow_a_takeover(ann: AtSite) -> None:
    """The node that they come from dies without a word."""
    scene = ann.scene
    (holder,) = answering(scene.site, SHARED)
    first, _ = scene.others(holder)
    command = [EDGECTL, "--site-endpoint", scene.site.address(first), "logs", "-f", "page-0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=scene.site.environment()
    ) as following:
        assert following.stdout is not None
        wait_for_line(following.stdout, b"page-0 serves")
        scene.site.kill_node(holder)
        wait_for_line(following.stdout, b"page-0 serves")
        following.terminate()
    scene.site.power_on(holder)


def test_a_restart_is_one_new_container(ann: AtSite) -> None:
    before = ann.status("replica/page-0")["containers"][0]["id"]
    ann.well("restart", "page-0")

    def again() -> bool:
        status = ann.status("replica/page-0")
        return bool(status["ready"]) and status["containers"][0]["id"] != before

    eventually(again, "another container", MOVED_S)


def test_a_frozen_site_takes_nothing_over(ann: AtSite) -> None:
    scene = ann.scene
    ann.well("freeze", "--reason", "works at the switchboard")
    (holder,) = answering(scene.site, SHARED)
    others = scene.others(holder)
    scene.site.kill_node(holder)
    keeps(scene, SHARED, [], QUIET_S)
    ann.well("unfreeze", node=others[0])
    scene.taken_over(others, time.monotonic(), SHARED, within_s=MOVED_S)
    scene.site.power_on(holder)


def test_a_viewer_looks_and_does_nothing(scene: Scene, directory: Path, ann: AtSite) -> None:
    scene.site.heal()
    path = str(directory / "vera.yaml")
    words = ["operator", "create", "vera", "--role", "viewer:default", "--out", path]
    assert edgectl(scene.site, *words).returncode == 0
    scene.site.cut_uplink()
    vera = AtSite(scene, "--config", path)
    assert "page-0" in vera.well("get", "replicas")
    assert "page-0 serves" in vera.well("logs", "page-0")
    for words in (["stop", "page-0"], ["exec", "page-0", "--", "date"], ["freeze"]):
        assert "operator/vera may not" in vera.refused(*words)
    assert "LocalStopRefused" in ann.well("events", "--for", "replica/page-0")
    assert answering(scene.site, SHARED)


def test_the_glass_is_broken_for_one_purpose(scene: Scene, directory: Path, ann: AtSite) -> None:
    path = directory / "token"
    path.write_text(token(scene, "--namespace", "default", "--workload", "page", "--allow", "stop"))
    path.chmod(0o600)
    glass = AtSite(scene, "--config", "/nonexistent", "--break-glass-token", str(path))
    assert "page-0" in glass.well("get", "replicas")
    assert "one-0" not in glass.well("get", "replicas")
    assert "is not for exec" in glass.refused("exec", "page-0", "--", "date")
    glass.well("stop", "page-0")
    eventually(lambda: not answering(scene.site, SHARED), "it stops", MOVED_S)
    assert "is not for start" in glass.refused("start", "page-0")
    assert "issued for: the drill" in ann.well("events", "--for", "replica/page-0")
    elsewhere = directory / "elsewhere"
    elsewhere.write_text(token(scene, "--allow", "stop", site="de-fra-1"))
    other = AtSite(scene, "--config", "/nonexistent", "--break-glass-token", str(elsewhere))
    assert "the token is for de-fra-1" in other.refused("get", "nodes")
    ann.well("start", "page-0")
    scene.taken_over(scene.site.nodes, time.monotonic(), SHARED, within_s=MOVED_S)


def test_the_orchestrator_hears_of_it_and_a_conflict_waits_for_a_word(ann: AtSite) -> None:
    scene = ann.scene
    ann.well("stop", "page-0", "--reason", "leaks")
    eventually(lambda: not answering(scene.site, SHARED), "it stops", MOVED_S)
    manifest = shared("page", SHARED)
    container = manifest["spec"]["template"]["containers"][0]
    container.setdefault("env", []).append({"name": "NEWER", "value": "yes"})
    applied = edgectl(scene.site, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert applied.returncode == 0, applied.stderr
    scene.site.heal()

    def conditions() -> dict[str, str]:
        found = get(scene.site, "workload/page")["status"]["conditions"]
        return {c["type"]: c["message"] for c in found if c["status"]}

    eventually(lambda: "LocalOverride" in conditions(), "it is heard of", MOVED_S)
    assert "leaks" in conditions()["LocalOverride"]
    eventually(lambda: "OverrideConflict" in conditions(), "the newer template is one", MOVED_S)
    eventually(lambda: "meanwhile" in ann.well("overrides"), "the site shows it, too", MOVED_S)
    keeps(scene, SHARED, [], QUIET_S)
    journaled = edgectl(scene.site, "events", "--for", "replica/page-0")
    assert "LocalStop" in journaled.stdout
    dropped = edgectl(scene.site, "override", "drop", "page-0")
    assert dropped.returncode == 0, dropped.stderr
    eventually(lambda: answering(scene.site, SHARED), "the orchestrator's word counts", MOVED_S)
    eventually(
        lambda: not {"LocalOverride", "OverrideConflict"} & set(conditions()), "over", MOVED_S
    )


def wait_for_line(stream: IO[bytes], wanted: bytes) -> None:
    """Others before it are passed over."""
    deadline = time.monotonic() + MOVED_S
    while wanted not in stream.readline():
        assert time.monotonic() < deadline, f"no line with {wanted!r}"


def token(scene: Scene, *words: str, site: str = SITE) -> str:
    """As whoever keeps the CA makes it, far away."""
    home = scene.site.orchestrator.data_dir / "ca"
    command = [EDGE_ORCHESTRATOR, "ca", "break-glass", "--dir", str(home), "--site", site]
    done = subprocess.run(
        [*command, "--purpose", "the drill", "--for", "1h", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
