"""Maintenance as an operator does it: cordons, drains within a budget, windows, boxes that return.

Simulated boxes, real processes. What runs is looked at from outside, through edgectl alone.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.client import workload
from devcluster.installation import Installation
from tests.e2e.support import edgectl, eventually, get

SITE = "nl-utr-1"
OTHER = "nl-ams-1"
NODES = ("sim-1", "sim-2", "far-1")


@pytest.fixture(scope="module")
def polder(directory: Path) -> Iterator[Installation]:
    """Two boxes at one site and one at another."""
    made = Installation(directory)
    try:
        made.start_orchestrator()
        made.apply_site()
        site = get(made, f"site/{SITE}")
        there = {
            "apiVersion": site["apiVersion"],
            "kind": "Site",
            "metadata": {"name": OTHER},
            "spec": site["spec"],
        }
        apply(made, there)
        made.add_agent("sim-1", runtime="simulated")
        made.add_agent("sim-2", runtime="simulated")
        made.add_agent("far-1", site=OTHER, runtime="simulated")
        yield made
    finally:
        made.stop()


def apply(polder: Installation, *documents: dict[str, object]) -> None:
    text = "\n---\n".join(json.dumps(document) for document in documents)
    done = edgectl(polder, "apply", "-f", "-", stdin=text.encode())
    assert done.returncode == 0, done.stderr


def run(polder: Installation, *words: str) -> str:
    """What it says, after it ended well."""
    done = edgectl(polder, *words)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout + done.stderr


def start(polder: Installation, name: str, replicas: int) -> None:
    apply(polder, workload(name, image="polder.local/hello:1", replicas=replicas,
                           readinessProbe=None))  # fmt: skip
    run(polder, "wait", f"workload/{name}", "--for=ready", "--timeout", "30s")


def places(polder: Installation, name: str) -> dict[str, str]:
    """Replica -> node, of those that are ready."""
    done = edgectl(polder, "get", "replicas", "-o", "json")
    items = json.loads(done.stdout)["items"]
    return {
        item["metadata"]["name"]: item["spec"]["node"]
        for item in items
        if item["spec"]["workload"] == name and item["status"]["ready"]
    }


def condition(polder: Installation, what: str, kind: str) -> dict[str, object]:
    """Empty when it does not hold."""
    found = get(polder, what)["status"]["conditions"]
    return next((item for item in found if item["type"] == kind), {})


def test_a_cordoned_site_gets_no_new_replicas_and_says_so(polder: Installation) -> None:
    assert run(polder, "cordon", f"site/{SITE}") == f"site/{SITE} cordoned\n"
    assert "already cordoned" in run(polder, "cordon", f"site/{SITE}")
    assert "Cordoned" in run(polder, "get", "sites")
    start(polder, "elsewhere", 2)
    assert set(places(polder, "elsewhere").values()) == {"far-1"}
    assert "cordoned" in run(polder, "get", "node/sim-1")
    said = condition(polder, "node/sim-1", "Cordoned")
    assert f"site {SITE} is cordoned" in str(said["message"])
    assert said["source"] and said["lastHeardAt"]
    why = run(polder, "why", "workload/elsewhere", "--node", "sim-1")
    assert "cordoned" in why
    run(polder, "uncordon", f"site/{SITE}")
    eventually(lambda: not condition(polder, "node/sim-1", "Cordoned"), "uncordoned")
    assert run(polder, "cordon", "provider/example-telco")
    assert "provider example-telco is cordoned" in run(polder, "describe", "node/far-1")
    run(polder, "uncordon", "provider/example-telco")
    run(polder, "delete", "workload/elsewhere")


def test_a_drain_keeps_the_budget_and_ends(polder: Installation) -> None:
    start(polder, "careful", 4)
    polite = {"maxUnavailable": "1"}
    found = get(polder, "workload/careful")
    manifest = {key: found[key] for key in ("apiVersion", "kind", "spec")}
    manifest["metadata"] = {"name": "careful"}
    manifest["spec"]["disruption"] = polite
    apply(polder, manifest)
    node = next(iter(places(polder, "careful").values()))
    run(polder, "drain", node, "--wait=false")
    fewest = 4

    def moved() -> bool:
        nonlocal fewest
        now = places(polder, "careful")
        fewest = min(fewest, len(now))
        return len(now) == 4 and node not in now.values()

    eventually(moved, "moved", 60)
    assert fewest >= 3
    assert f"node/{node} drained" in run(polder, "drain", node, "--timeout", "20s")
    assert "draining" in run(polder, "get", f"node/{node}")
    text = run(polder, "describe", f"node/{node}")
    assert "Drained: nothing is left on it" in text
    assert "it stays cordoned" in run(polder, "undrain", node)
    assert "cordoned" in run(polder, "get", f"node/{node}")
    run(polder, "uncordon", node)
    spec = get(polder, f"node/{node}")["spec"]
    assert not {"draining", "unschedulable", "drainDeadline"} & spec.keys()
    run(polder, "delete", "workload/careful")


def test_a_drain_that_cannot_end_says_what_blocks_it(polder: Installation) -> None:
    pinned = workload("pinned", image="polder.local/hello:1", readinessProbe=None)
    pinned["spec"]["placement"] = {"nodeSelector": {"polder.eu/node": "far-1"}}
    apply(polder, pinned)
    run(polder, "wait", "workload/pinned", "--for=ready", "--timeout", "30s")
    done = edgectl(polder, "drain", f"site/{OTHER}", "--timeout", "3s")
    assert done.returncode == 1
    assert "replica/pinned-0" in done.stderr and "CannotMove" in done.stderr, done.stderr
    assert "edgectl undrain far-1" in done.stderr
    story = run(polder, "describe", "replica/pinned-0")
    assert "DrainPending" in story and "CannotMove" in story
    forced = edgectl(polder, "drain", "far-1", "--force-after", "1s", "--timeout", "30s")
    assert forced.returncode == 0, forced.stderr  # stopped all the same
    run(polder, "uncordon", "far-1")
    run(polder, "wait", "workload/pinned", "--for=ready", "--timeout", "30s")
    run(polder, "delete", "workload/pinned")


def test_a_window_opens_and_ends_by_itself(polder: Installation) -> None:
    start(polder, "shifted", 2)
    words = run(
        polder, "maintenance", f"site/{SITE}", "--from", "+1s", "--until", "+12s", "--drain"
    )
    assert "is drained from" in words
    assert "drains" in run(polder, "maintenance", SITE)
    eventually(lambda: condition(polder, "node/sim-1", "Draining"), "the window is open")
    assert "Draining until" in run(polder, "get", f"site/{SITE}")
    assert "Maintenance:" in run(polder, "describe", f"site/{SITE}")

    def away() -> bool:
        now = places(polder, "shifted")
        return len(now) == 2 and set(now.values()) == {"far-1"}

    eventually(away, "moved away")
    assert "MaintenanceEnds" in run(polder, "describe", "node/sim-1")
    eventually(lambda: not condition(polder, "node/sim-1", "Cordoned"), "the window has ended", 40)
    assert "Active" in run(polder, "get", f"site/{SITE}")
    run(polder, "cordon", f"site/{OTHER}")
    run(polder, "scale", "workload/shifted", "--replicas", "3")
    run(polder, "wait", "workload/shifted", "--for=ready", "--timeout", "30s")
    assert places(polder, "shifted")["shifted-2"] in ("sim-1", "sim-2")
    run(polder, "uncordon", f"site/{OTHER}")
    # A new window takes the ended ones out of the record.
    run(polder, "maintenance", SITE, "--from", "+1h", "--until", "+1h")
    assert len(get(polder, f"site/{SITE}")["spec"]["maintenance"]) == 1
    run(polder, "maintenance", SITE, "--clear")
    assert "maintenance" not in get(polder, f"site/{SITE}")["spec"]
    run(polder, "delete", "workload/shifted")


def test_a_box_that_joins_again_is_another_node(polder: Installation) -> None:
    """Removed and joined under the same name: nothing of the former's hits it or is told of it."""
    start(polder, "wandering", 3)
    former = get(polder, "node/sim-2")
    run(polder, "label", "node/sim-2", "rack=7")
    run(polder, "delete", "node/sim-2", "--timeout", "60s")
    assert edgectl(polder, "get", "node/sim-2").returncode == 1
    eventually(lambda: len(places(polder, "wandering")) == 3, "its replicas have moved")
    agent = polder.agents.pop("sim-2")
    agent.daemon.stop()
    shutil.rmtree(agent.state_dir)
    polder.add_agent("sim-2", runtime="simulated")
    again = get(polder, "node/sim-2")
    assert again["metadata"]["uid"] != former["metadata"]["uid"]
    assert "rack" not in again["metadata"]["labels"]
    assert not again["status"]["revoked"] and again["status"]["replicas"] == 0
    events = run(polder, "events", "--for", "node/sim-2")
    assert "JoinedAgain" in events and "Joined " in events  # both lives, and what parts them
    story = run(polder, "describe", "node/sim-2")
    assert "it is a new node" in story
    assert story.count("joined site") == 1, story
    run(polder, "scale", "workload/wandering", "--replicas", "6")
    run(polder, "wait", "workload/wandering", "--for=ready", "--timeout", "30s")
    assert "sim-2" in places(polder, "wandering").values()
    run(polder, "delete", "workload/wandering")
