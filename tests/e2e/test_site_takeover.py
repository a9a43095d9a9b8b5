"""A node of a site dies, with and without an orchestrator: its standbys take over, and it is told.

The short ones of the site's scenarios; the others are in test_site_faults.py.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.site_support import PORTS, Scene, scene_in
from tests.e2e.support import edgectl, eventually, replica

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def scene(directory: Path) -> Iterator[Scene]:
    with scene_in(directory) as made:
        yield made


def test_a_node_dies_and_the_orchestrator_adopts_what_the_site_did(scene: Scene) -> None:
    with scene.no_overlap():
        holder = scene.holder()
        before = scene.last().epoch
        began = time.monotonic()
        scene.site.kill_node(holder)
        scene.taken_over(scene.others(holder), began)
        holds = scene.holder()
        eventually(lambda: replica(scene.site, "one-0").get("node") == holds, "adopted")
        taken = scene.last()
        assert (taken.node, taken.accepted > 0) == (holds, True)
        assert taken.epoch > before
        events = edgectl(scene.site, "events", "--for", "replica/one-0").stdout
        assert "TakenOver" in events
    assert scene.last().stay == taken.stay, "nothing moved back"


def test_a_site_alone_heals_itself_and_keeps_what_it_did(scene: Scene) -> None:
    with scene.no_overlap():
        scene.site.cut_uplink()
        holder = scene.holder()
        began = time.monotonic()
        scene.site.kill_node(holder)
        scene.taken_over(scene.others(holder), began)
        holds, taken = scene.holder(), scene.last()
        scene.site.power_on(holder)
        scene.whole()
        assert scene.holder() == holds, "it comes back and takes nothing"
        scene.site.heal()
        eventually(lambda: replica(scene.site, "one-0").get("node") == holds, "adopted", 60)
        eventually(lambda: replica(scene.site, "one-0").get("ready"), "ready")
    assert scene.last().stay == taken.stay, "nothing was restarted"


def test_a_site_without_power_comes_back_by_itself(scene: Scene) -> None:
    """All nodes lose their power while nobody outside can be reached."""
    with scene.no_overlap():
        scene.site.cut_uplink()
        scene.site.power_cycle()
        began = time.monotonic()
        scene.taken_over(scene.site.nodes, began, *PORTS, within_s=15.0)
        scene.whole()
