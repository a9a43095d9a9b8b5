"""What operators ask of exclusive replicas: moved, changed, stopped when isolated, fenced for.

While all is well, while the site is alone, and when too many of its nodes are gone: never two.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.site_watch import answering, exclusive
from tests.e2e.site_support import EXCLUSIVE, Scene, scene_in
from tests.e2e.support import edgectl, eventually, get, replica

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(400)]

STOP_AFTER_S = 30
MOVED_S = 60.0


@pytest.fixture(scope="module")
def scene(directory: Path) -> Iterator[Scene]:
    with scene_in(directory) as made:
        yield made


def well(scene: Scene, *arguments: str) -> str:
    done = edgectl(scene.site, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(scene: Scene, **failover: Any) -> None:
    """Apply the exclusive workload with other fields of its failover, and see it arrive."""
    before = {node: plans(scene, node)[0] for node in scene.site.nodes}
    manifest = exclusive("one", EXCLUSIVE, scene.register.endpoint, **failover)
    done = edgectl(scene.site, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr

    def arrived(node: str) -> bool:
        made, acknowledged = plans(scene, node)
        return made == acknowledged > before[node]

    eventually(lambda: all(map(arrived, scene.site.nodes)), "every node has its plan", MOVED_S)


def plans(scene: Scene, node: str) -> tuple[int, int]:
    """The generation that was made last, and the one that the node has."""
    status = get(scene.site, f"node/{node}")["status"]
    return int(status.get("planGeneration", 0)), int(status.get("ackedGeneration", 0))


def test_a_drain_hands_it_over(scene: Scene) -> None:
    with scene.no_overlap():
        holder = scene.holder()
        well(scene, "drain", f"node/{holder}", "--timeout", "60s")
        assert scene.holder() != holder
        assert answering(scene.site, EXCLUSIVE, [holder]) == []
        well(scene, "uncordon", f"node/{holder}")
        eventually(lambda: replica(scene.site, "one-0").get("ready"), "ready")


def test_a_new_template_stops_the_old_one_first(scene: Scene) -> None:
    with scene.no_overlap():
        before = scene.last()
        manifest = exclusive("one", EXCLUSIVE, scene.register.endpoint)
        container = manifest["spec"]["template"]["containers"][0]
        container["env"].append({"name": "NEWER", "value": "yes"})
        done = edgectl(scene.site, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
        assert done.returncode == 0, done.stderr
        eventually(lambda: scene.last().stay != before.stay, "the new one writes", MOVED_S)
        scene.holder()
        assert scene.last().epoch >= before.epoch, "one tenure: the same node holds it"


def test_it_stops_when_its_site_is_alone_for_as_long_as_it_may(scene: Scene) -> None:
    """With whenIsolated: stop; it runs again when the orchestrator is back."""
    changed(scene, whenIsolated="stop", stopAfter=f"{STOP_AFTER_S}s")
    with scene.no_overlap():
        scene.holder()
        scene.site.cut_uplink()
        began = time.monotonic()
        eventually(lambda: not answering(scene.site, EXCLUSIVE), "stopped", 3.0 * STOP_AFTER_S)
        assert time.monotonic() - began > STOP_AFTER_S - 10
        scene.site.heal()
        eventually(lambda: answering(scene.site, EXCLUSIVE), "it runs again", MOVED_S)
    changed(
        scene
    )  # which waits for sessions, too: one node alone may have had the time to open its


def test_what_was_deleted_meanwhile_stops_when_the_uplink_is_back(scene: Scene) -> None:
    """The site keeps what it has; a deletion is an order like another, and comes late."""
    overlaps = scene.register.overlaps()
    scene.site.cut_uplink()
    holder = scene.holder()
    deleted = edgectl(scene.site, "delete", "workload/one", "--wait=false")
    assert deleted.returncode == 0, deleted.stderr
    scene.site.kill_node(holder)
    others = scene.others(holder)
    eventually(lambda: answering(scene.site, EXCLUSIVE, others), "taken over all the same")
    scene.site.power_on(holder)
    scene.site.heal()
    eventually(lambda: not answering(scene.site, EXCLUSIVE), "stopped", MOVED_S)
    eventually(lambda: not replica(scene.site, "one-0"), "gone", MOVED_S)
    assert scene.register.overlaps() == overlaps
    scene.deploy()
    scene.whole()


def test_without_a_majority_somebody_has_to_vouch(scene: Scene) -> None:
    """Two of three nodes are gone for good: nothing is taken over until an operator says so."""
    scene.whole()
    holder = scene.holder()
    first, last = scene.others(holder)
    overlaps = scene.register.overlaps()
    scene.site.kill_node(first)
    scene.site.kill_node(holder)
    time.sleep(10)  # far longer than a lease
    assert answering(scene.site, EXCLUSIVE, [last]) == []
    refused = edgectl(scene.site, "fence", "one-0")
    assert refused.returncode != 0 and "--force" in refused.stdout + refused.stderr
    eventually(lambda: edgectl(scene.site, "fence", "one-0", "--force").returncode == 0, "let", 60)
    eventually(lambda: answering(scene.site, EXCLUSIVE, [last]), "it runs", MOVED_S)
    for node in (first, holder):
        scene.site.power_on(node)
    scene.whole()
    assert answering(scene.site, EXCLUSIVE) == [last]
    assert scene.register.overlaps() == overlaps
