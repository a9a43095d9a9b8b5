"""Regions are lost, cut off, and lost all at once, with the settings that an installation has.

Outside, nobody notices: no container is restarted, no request fails, writes go on within seconds.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import continent as continents
from devcluster.client import workload
from devcluster.continent import Continent
from devcluster.image import HELLO
from tests.e2e.regions_support import (
    apply,
    apply_works,
    config,
    everywhere,
    inside,
    new_leader,
    nodes_ready,
    placements,
    regions_in_use,
    settled,
    unnoticed,
    web_on_every_box,
)
from tests.e2e.support import edgectl, eventually, ready

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.netns,
    pytest.mark.etcd,
    pytest.mark.long,
]

AGENTS_BACK_S = 30.0


@pytest.fixture(scope="module")
def continent(directory: Path) -> Iterator[Continent]:
    """Three regions, two boxes; every setting is the default."""
    continents.sweep()
    made = Continent(directory, owner=os.getpid())
    try:
        made.start()
        done = apply(made, web_on_every_box())
        assert done.returncode == 0, done.stderr
        done = edgectl(made, "wait", "workload/web", "--for=ready", "--timeout", "60s")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.stop(wipe=False)


def test_a_paused_leader_cannot_write(continent: Continent) -> None:
    """It wakes up in the belief that it leads. It does not, and it harms nothing."""
    settled(continent)
    leader = continent.leader()
    member = continent.members[leader]
    log = member.daemon.log
    with unnoticed(continent, "paused"):
        member.pause()
        paused_at = time.monotonic()
        try:
            apply_works(continent, "during-pause", paused_at)
            successor = new_leader(continent, leader)
            assert apply(continent, workload("paused", image=HELLO)).returncode == 0
            eventually(lambda: ready(continent, "paused-0"), "the new leader leads", 60)
            eventually(
                lambda: member.region not in regions_in_use(continent).values(),
                "its agents went elsewhere",
                60,
            )
            placed, size = placements(continent), log.stat().st_size
        finally:
            member.resume()
        eventually(member.is_ready, "it is well again")
        eventually(lambda: "does not lead any more" in log.read_text()[size:], "it noticed")
        assert "leads now" not in log.read_text()[size:]
        assert continent.leader() == successor
        assert placements(continent) == placed
    assert edgectl(continent, "delete", "workload/paused", "--timeout", "60s").returncode == 0


def test_the_leaders_region_vanishes(continent: Continent) -> None:
    settled(continent)
    leader = continent.leader()
    lost = continent.members[leader].region
    with unnoticed(continent, "vanish") as writer:
        lost_at = time.monotonic()
        continent.vanish(lost)
        apply_works(continent, "after-vanish", lost_at)
        new_leader(continent, leader)
        eventually(
            lambda: not {"", lost} & set(regions_in_use(continent).values()),
            "all boxes have a session in another region",
            AGENTS_BACK_S,
        )
        print(f"sessions {time.monotonic() - lost_at:.1f} s after the loss")
        # The new leader leads: what is applied now runs.
        assert apply(continent, workload("late", image=HELLO)).returncode == 0
        eventually(lambda: ready(continent, "late-0"), "late-0 is ready", 60)
        back = writer.first_after(lost_at + 0.5)
        assert back is not None and back < 10.0, writer.errors
        assert edgectl(continent, "delete", "workload/late", "--timeout", "60s").returncode == 0
        continent.revive(lost)
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
    everywhere(continent, {"after-vanish": 0.0})


def test_the_leaders_region_is_cut_off_and_alive(continent: Continent) -> None:
    """Nothing that it still says counts; when it is back it follows."""
    settled(continent)
    leader = continent.leader()
    lost = continent.members[leader].region
    with unnoticed(continent, "cut"):
        lost_at = time.monotonic()
        continent.cut(lost)
        apply_works(continent, "after-cut", lost_at)
        successor = new_leader(continent, leader)
        done = inside(continent, lost, "apply", "-f", "-", stdin=json.dumps(config("from-inside")))
        assert done.returncode == 1, done.stdout
        eventually(
            lambda: not {"", lost} & set(regions_in_use(continent).values()),
            "all boxes have a session in another region",
            AGENTS_BACK_S,
        )
        continent.heal()
        member = continent.members[leader]
        eventually(member.is_ready, "the member that led is well again", 60)
        assert continent.leader() == successor
    shown = edgectl(continent, "get", "configs", "--endpoint", member.endpoint).stdout
    assert "from-inside" not in shown
    assert "after-cut" in shown


def test_all_regions_are_lost_and_back(continent: Continent) -> None:
    """A cold start of the whole control plane, with all agents knocking."""
    settled(continent)
    with unnoticed(continent, "cold") as writer:
        for region in continent.regions.values():
            region.kill()
        eventually(lambda: not any(regions_in_use(continent).values()), "no sessions", 60)
        began = time.monotonic()
        continent.start_etcd(wait=False)
        for member in continent.members.values():
            member.start(wait=False)
        members = continent.members.values()
        eventually(lambda: all(member.is_ready() for member in members), "members are ready", 60)
        apply_works(continent, "after-cold-start", time.monotonic())
        eventually(lambda: all(regions_in_use(continent).values()), "sessions", 60)
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        print(f"cold start took {time.monotonic() - began:.1f} s")
        assert writer.first_after(began) is not None
    everywhere(continent, {"after-vanish": 0.0, "after-cut": 0.0, "after-cold-start": 0.0})
