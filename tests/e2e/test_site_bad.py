"""Bad input to a site: what is wrong is passed over, said, and does no harm.

Standbys that cannot, a box that was away for long, wrong clocks, expired certificates, a voter that
lies, and no registry but the site's own. Real agents and containers, as in `test_site_faults`.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import power
from devcluster.image import hello_image, writer_image
from devcluster.site_registry import SiteRegistry, use_mirrors
from devcluster.site_watch import answering, first_answer, not_able, shared, told
from tests.e2e.site_support import EXCLUSIVE, SHARED, TAKEOVER_S, Scene, keeps, scene_in
from tests.e2e.support import edgectl, eventually, get, replica

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(400)]

MORE = 18082  # the port of what one test brings along
OUTSIDE = "registry.invalid"  # no name server knows it: RFC 6761
WEEK_S = 8 * 86_400  # longer than a site may take over by itself
YEAR_S = 365 * 86_400
SLOW_S = 90.0
QUIET_S = 8.0  # longer than a takeover takes


@pytest.fixture(scope="module")
def scene(directory: Path) -> Iterator[Scene]:
    with scene_in(directory, images=(hello_image(), writer_image())) as made:
        yield made


def applied(scene: Scene, manifest: dict[str, Any]) -> None:
    done = edgectl(scene.site, "apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert done.returncode == 0, done.stderr


def removed(scene: Scene, *workloads: str) -> None:
    for name in workloads:
        done = edgectl(scene.site, "delete", f"workload/{name}", "--timeout", "60s")
        assert done.returncode == 0, done.stderr


def why(scene: Scene, workload: str) -> str:
    return edgectl(scene.site, "why", f"workload/{workload}").stdout


def standbys(scene: Scene, name: str) -> list[str]:
    """In the order in which they take over."""
    return [item["node"] for item in replica(scene.site, name).get("standbys", ())]


def at_site(scene: Scene, node: str, *words: str) -> str:
    """What an operator sees there, without an orchestrator."""
    return edgectl(scene.site, "--site-endpoint", scene.site.address(node), *words).stdout


def test_a_standby_without_room_is_passed_over_and_why_says_so(scene: Scene) -> None:
    scene.whole()
    node = get(scene.site, "node/node-a")
    most = node["status"]["inventory"]["allocatable"]["memoryBytes"] * 6 // 10
    large = shared("large", MORE)
    large["spec"]["template"]["containers"][0]["resources"] = {"memory": str(most)}
    applied(scene, large)
    holder = eventually(lambda: replica(scene.site, "large-0").get("node", ""), "placed")
    first, second = eventually(lambda: s if len(s := standbys(scene, "large-0")) == 2 else [], "2")
    filler = shared("filler", MORE + 1, standbys=0)
    filler["spec"]["template"]["containers"][0]["resources"] = {"memory": str(most)}
    filler["spec"]["placement"] = {"nodeSelector": {"polder.eu/node": first}}
    applied(scene, filler)
    eventually(lambda: replica(scene.site, "filler-0").get("ready"), "it fills that node", SLOW_S)
    full = f"standby {first}: Unable: NoRoom: it needs"
    eventually(lambda: full in why(scene, "large"), "why says so")
    eventually(lambda: not_able(scene.site, "large-0") == [f"{first}: NoRoom"], "so do the nodes")
    eventually(lambda: answering(scene.site, MORE) == [holder], "it runs", SLOW_S)
    with scene.no_overlap():
        began = time.monotonic()
        scene.site.kill_node(holder)
        assert first_answer(scene.site, [MORE], [second], began, 4 * TAKEOVER_S)
        assert answering(scene.site, MORE, [first]) == []
    removed(scene, "large", "filler")


@pytest.mark.registry
def test_a_site_with_a_registry_of_its_own_needs_none_outside(scene: Scene, tmp_path: Path) -> None:
    """Cut off, with an image that no node had when it was cut off."""
    site, image = scene.site, f"{OUTSIDE}/team/page:1"
    home = site.agents["node-a"].containerd
    assert home is not None
    registry = SiteRegistry(
        tmp_path, site.address("node-a"), 5000, netns=site.network.netns("node-a")
    )
    registry.start()
    try:
        home.import_images([hello_image(name=image)])
        registry.push(home, image)
        home.ctr("images", "rm", "--sync", image)
        registry.stop()
        for node in site.nodes:
            containerd = site.agents[node].containerd
            assert containerd is not None
            use_mirrors(containerd, OUTSIDE, [registry.url])
        page = shared("stored", MORE)
        page["spec"]["template"]["containers"][0]["image"] = image
        applied(scene, page)
        eventually(lambda: why(scene, "stored").count("Unable: ImageMissing") == 2, "nobody has it")
        site.cut_uplink()
        registry.start()
        (holder,) = eventually(lambda: answering(site, MORE), "it runs", 2 * SLOW_S)
        eventually(lambda: not not_able(site, "stored-0"), "standbys have it, too", 2 * SLOW_S)
        # The registry is on node-a: if that is the one that is lost, it is lost with it.
        began = time.monotonic()
        site.kill_node(holder)
        others = scene.others(holder)
        assert first_answer(site, [MORE], others, began, 4 * TAKEOVER_S), "it was fetched ahead"
        site.power_on(holder)
        site.heal()
        scene.whole()
    finally:
        registry.stop()
    removed(scene, "stored")


def test_a_box_comes_back_after_a_week_with_its_old_plan(scene: Scene) -> None:
    """What it had runs elsewhere by now, changed, and what it ran of it runs on. It comes back to
    its site first, and to the orchestrator later."""
    site = scene.site
    with scene.no_overlap():
        away = scene.holder()
        site.cut_off(away)
        before = scene.last()
        eventually(lambda: answering(site, EXCLUSIVE, scene.others(away)), "taken over", SLOW_S)
        site.kill_agent(away)
        eventually(lambda: replica(site, "one-0").get("node") != away, "adopted", SLOW_S)
        power.pass_time(site.directory / away, WEEK_S)
        site.heal()
        site.cut_uplink()
        site.start_agent(away)
        eventually(lambda: _hears(scene, away), "its peers hear it", SLOW_S)
        assert answering(site, EXCLUSIVE, [away]) == [], "its old plan says that it is to hold it"
        eventually(lambda: "AutonomyOver" in at_site(scene, away, "describe", f"node/{away}"), "?")
        eventually(lambda: len(answering(site, SHARED)) == 1, "one of the two stays", SLOW_S)
        assert scene.last().stay != before.stay


def _hears(scene: Scene, node: str) -> bool:
    said = told(scene.site, node)
    peers = said.get("peers", {})
    return said.get("pid") == scene.site.agents[node].pid and all(
        peers.get(other) for other in scene.others(node)
    )


@pytest.fixture
def clocks(scene: Scene) -> Iterator[Scene]:
    """Wall clocks can be set: each agent starts once more for that, and once after it."""
    scene.whole()
    for wrong in (True, False):
        for node in scene.site.nodes:
            if wrong:
                power.set_wall_clock(scene.site.directory / node, 0)
            else:
                (scene.site.directory / node / "wall").unlink()
            scene.site.agents[node].daemon.stop()
            scene.site.start_agent(node)
        scene.whole()
        if wrong:
            yield scene


def set_clocks(scene: Scene, offset_s: int, *nodes: str) -> None:
    for node in nodes or scene.site.nodes:
        power.set_wall_clock(scene.site.directory / node, offset_s)


@pytest.mark.faketime
def test_a_wall_clock_that_is_a_year_behind_changes_nothing(clocks: Scene) -> None:
    """Neither while it runs nor over a power cut, with the orchestrator or without."""
    with clocks.no_overlap():
        holder = clocks.holder()
        first, _ = clocks.others(holder)
        set_clocks(clocks, -YEAR_S, holder, first)
        keeps(clocks, EXCLUSIVE, [holder], QUIET_S)
        clocks.site.cut_uplink()
        clocks.site.power_cycle()
        clocks.whole()
        holder = clocks.holder()
        began = time.monotonic()
        clocks.site.kill_node(holder)
        clocks.taken_over(clocks.others(holder), began)
        set_clocks(clocks, 0)


@pytest.mark.faketime
def test_certificates_that_expired_meanwhile_do_not_part_the_site(clocks: Scene) -> None:
    """While it is cut off, within the time that it may heal itself."""
    with clocks.no_overlap():
        clocks.site.cut_uplink()
        set_clocks(clocks, YEAR_S)
        for node in clocks.site.nodes:  # so that each conversation begins anew
            clocks.site.agents[node].daemon.stop()
            clocks.site.start_agent(node)
        clocks.whole()
        holder = clocks.holder()
        began = time.monotonic()
        clocks.site.kill_node(holder)
        clocks.taken_over(clocks.others(holder), began)
        set_clocks(clocks, 0)


def test_a_voter_that_grants_it_twice_is_found_out(scene: Scene) -> None:
    """It makes two holders, which nobody can prevent; they stop it as soon as they meet."""
    site = scene.site
    scene.whole()
    holder = scene.holder()
    # The first in order asks; the one behind it waits for it.
    victim, liar = eventually(lambda: s if len(s := standbys(scene, "one-0")) == 2 else [], "two")
    site.agents[liar].daemon.stop()
    try:
        site.start_agent(liar, program=[sys.executable, "-m", "tests.e2e.lying_agent", liar])
        scene.whole()
        site.cut_uplink()
        site.cut_link(holder, victim)
        eventually(lambda: len(answering(site, EXCLUSIVE)) == 2, "it grants it twice", SLOW_S)
        site.heal()
        site.cut_uplink()
        eventually(lambda: len(answering(site, EXCLUSIVE)) == 1, "one of them stops", SLOW_S)
        eventually(lambda: _accused(scene, liar), "it is said there who lied", SLOW_S)
        site.heal()
        eventually(lambda: "VoterLied" in edgectl(site, "events").stdout, "and later here", SLOW_S)
        shown = [edgectl(site, "describe", f"node/{n}").stdout for n in scene.others(liar)]
        assert any("VotersExcluded" in text and liar in text for text in shown)
    finally:
        site.agents[liar].daemon.stop()
        site.heal()
        site.start_agent(liar)


def _accused(scene: Scene, liar: str) -> bool:
    """By one of the others, and nobody else is."""
    found = [at_site(scene, node, "describe", f"node/{node}") for node in scene.others(liar)]
    lines = [line for text in found for line in text.splitlines() if "VotersExcluded" in line]
    assert all(liar in line for line in lines), lines
    return bool(lines)
