"""Sites that cannot do it all: one node, two nodes, and a standby that cannot start what it has to.

What cannot be done is said beforehand, and nothing is done by halves.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.image import hello_image, writer_image
from devcluster.register import Register
from devcluster.site import LocalSite
from devcluster.site_watch import answering, exclusive, first_answer, shared, told
from tests.e2e.site_support import EXCLUSIVE, SHARED, TAKEOVER_S, mend
from tests.e2e.support import edgectl, eventually, replica

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(400)]

RARE = "polder.local/rare:1"


def applied(site: LocalSite, *manifests: dict[str, object]) -> None:
    text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
    done = edgectl(site, "apply", "-f", "-", stdin=text.encode())
    assert done.returncode == 0, done.stderr


def one_answer(site: LocalSite, port: int) -> str:
    (node,) = eventually(lambda: f if len(f := answering(site, port)) == 1 else [], "one", 60)
    return node


def abilities(site: LocalSite, replica: str) -> dict[str, str]:
    """Node -> why it could not take the replica over; empty if it could."""
    return {
        node: "" if one["able"] else one["reason"]
        for node in site.nodes
        for one in told(site, node).get("standbys", ())
        if one["replica"] == replica
    }


@pytest.fixture(scope="module")
def pair(directory: Path) -> Iterator[LocalSite]:
    site = LocalSite(directory / "pair", nodes=("node-a", "node-b"))
    try:
        site.start()
        yield site
    finally:
        site.stop(keep_logs=True)


def test_of_two_nodes_none_takes_an_exclusive_replica_over_and_says_so(pair: LocalSite) -> None:
    with Register(pair.observer) as register:
        applied(pair, exclusive("one", EXCLUSIVE, register.endpoint), shared("page", SHARED))
        holder = one_answer(pair, EXCLUSIVE)
        (other,) = [node for node in pair.nodes if node != holder]
        one_answer(pair, SHARED)
        shown = edgectl(pair, "describe", "replica/one-0").stdout
        assert "NoMajority: nobody can take it over" in shown, "it is said beforehand"
        began = time.monotonic()
        pair.kill_node(holder)
        found = first_answer(pair, [EXCLUSIVE], [other], began, 3 * TAKEOVER_S)
        assert not found, "without a majority nobody may"
        assert answering(pair, SHARED, [other]), "what may run twice does not wait"
        mend(pair)
        one_answer(pair, EXCLUSIVE)
        assert register.overlaps() == []


def test_a_site_of_one_node_holds_by_its_own_vote_and_comes_back_alone(directory: Path) -> None:
    """Nobody takes anything over, which is said; nobody is missed, either."""
    site = LocalSite(directory / "single", nodes=("node-a",))
    try:
        site.start()
        with Register(site.observer) as register:
            applied(site, exclusive("one", EXCLUSIVE, register.endpoint), shared("page", SHARED))
            one_answer(site, EXCLUSIVE)
            one_answer(site, SHARED)
            for name in ("one", "page"):
                shown = edgectl(site, "describe", f"workload/{name}").stdout
                assert "NoStandbys" in shown, "it is said beforehand"
            site.cut_uplink()
            site.power_cycle()
            one_answer(site, EXCLUSIVE)
            one_answer(site, SHARED)
            here = edgectl(site, "--site-endpoint", site.address("node-a"), "get", "replicas")
            assert here.stdout.count("1/1") == 2
            site.heal()
            assert register.overlaps() == []
    finally:
        site.stop(keep_logs=True)


@pytest.fixture(scope="module")
def trio(directory: Path) -> Iterator[LocalSite]:
    site = LocalSite(directory / "trio")
    try:
        site.start(images=(hello_image(), writer_image()))
        yield site
    finally:
        site.stop(keep_logs=True)


def test_a_standby_without_the_image_is_skipped(trio: LocalSite) -> None:
    """Another in order takes over, and operators see beforehand which cannot."""
    manifest = shared("rare", SHARED)
    manifest["spec"]["template"]["containers"][0]["image"] = RARE
    applied(trio, manifest)
    holder = eventually(lambda: replica(trio, "rare-0").get("node", ""), "placed")
    # As for any replica, the order of the standbys is that of `describe`.
    first, second = eventually(lambda: _standbys(trio), "two standbys")
    _bring_image(trio, holder)
    eventually(lambda: answering(trio, SHARED) == [holder], "it runs", 120)
    _bring_image(trio, second)
    eventually(lambda: abilities(trio, "rare-0").get(second) == "", "the second is able", 60)
    assert abilities(trio, "rare-0")[first] == "ImageMissing"
    why = rf"{first} Unable: ImageMissing: {RARE}: ImageRegistry"
    eventually(lambda: re.search(why, _described(trio)), "operators see why")
    asked = edgectl(trio, "why", "workload/rare").stdout
    assert f"standby {first}: Unable: ImageMissing: {RARE}" in asked
    began = time.monotonic()
    trio.kill_node(holder)
    assert first_answer(trio, [SHARED], [second], began, 2 * TAKEOVER_S)
    mend(trio)


def _bring_image(site: LocalSite, node: str) -> None:
    """By hand. The agent begins anew: a new one does not wait until it may try again."""
    agent = site.agents[node]
    assert agent.containerd is not None
    agent.containerd.import_images([hello_image(name=RARE)])
    agent.daemon.stop()
    site.start_agent(node)


def _standbys(site: LocalSite) -> list[str]:
    found = re.search(r"Standbys:\s+(node-\w).*\n\s+(node-\w)", _described(site))
    return list(found.groups()) if found else []


def _described(site: LocalSite) -> str:
    return edgectl(site, "describe", "replica/rare-0").stdout
