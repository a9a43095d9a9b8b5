"""What breaks at a site, one thing at a time: an exclusive replica runs again, and never twice.

Each fault is made with the orchestrator in reach and without it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster.site import LocalSite
from devcluster.site_watch import answering
from tests.e2e.site_support import EXCLUSIVE, PORTS, SHARED, Scene, scene_in, stays_so
from tests.e2e.support import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(600)]

QUIET_S = 15.0
LEASE_OVER_S = 6.0
BOOT_S = 15.0
"""Of the issue: so long after its agents' start everything at a site runs again."""


@pytest.fixture(scope="module")
def scene(directory: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A deaf exclusive replica does not end when it is asked to: the switch has to kill it."""
    kind = getattr(request, "param", "obedient")
    with scene_in(directory / kind, deaf=kind == "deaf") as made:
        yield made


@pytest.fixture(params=["connected", "isolated"])
def uplink(request: pytest.FixtureRequest, scene: Scene) -> Iterator[str]:
    scene.whole()
    if request.param == "isolated":
        scene.site.cut_uplink()
    yield request.param
    scene.site.heal()


LOSSES: dict[str, Callable[[LocalSite, str], None]] = {
    "agent killed": LocalSite.kill_agent,
    "agent frozen": LocalSite.freeze_agent,
    "node killed": LocalSite.kill_node,
    "node cut off": LocalSite.cut_off,
}


@pytest.mark.parametrize("scene", ["obedient", "deaf"], indirect=True)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_holder_is_lost(scene: Scene, uplink: str, loss: str) -> None:
    with scene.no_overlap():
        holder = scene.holder()
        began = time.monotonic()
        LOSSES[loss](scene.site, holder)
        scene.taken_over(scene.others(holder), began)
        # The old one is gone, not only silent: it could still write.
        assert answering(scene.site, EXCLUSIVE, [holder]) == []


@pytest.mark.parametrize("way", ["both", "to the holder", "from the holder"])
def test_a_line_between_two_nodes_is_not_the_end_of_a_lease(
    scene: Scene, uplink: str, way: str
) -> None:
    with scene.no_overlap():
        holder = scene.holder()
        standby = scene.others(holder)[0]
        if way == "both":
            scene.site.cut_link(holder, standby)
        elif way == "to the holder":
            scene.site.deafen(holder, to=standby)
        else:
            scene.site.deafen(standby, to=holder)
        stays_so(scene, holder, QUIET_S)


def test_the_uplink_is_cut_and_nothing_happens(scene: Scene) -> None:
    with scene.no_overlap():
        holder, pages = scene.holder(), answering(scene.site, SHARED)
        scene.site.cut_uplink()
        stays_so(scene, holder, QUIET_S)
        assert answering(scene.site, SHARED) == pages


def test_every_node_alone_runs_nothing_exclusive(scene: Scene) -> None:
    with scene.no_overlap():
        pages = answering(scene.site, SHARED)
        scene.site.cut_everything()
        eventually(lambda: not answering(scene.site, EXCLUSIVE), "no lease, no run", LEASE_OVER_S)
        eventually(lambda: len(answering(scene.site, SHARED)) == 3, "each believes itself", 60)
        assert pages


def test_a_holder_that_slept_does_not_go_on(scene: Scene) -> None:
    """Its agent is frozen for longer than the lease, and wakes while another holds."""
    with scene.no_overlap():
        holder = scene.holder()
        began = time.monotonic()
        scene.site.freeze_agent(holder)
        scene.taken_over(scene.others(holder), began)
        taken = scene.last()
        scene.site.thaw_agent(holder)
        scene.whole()
        assert scene.last().stay == taken.stay


def test_the_whole_site_loses_its_power(scene: Scene, uplink: str) -> None:
    with scene.no_overlap():
        scene.site.power_cycle()
        began = time.monotonic()
        scene.taken_over(scene.site.nodes, began, *PORTS, within_s=BOOT_S)


def test_an_agent_that_is_restarted_keeps_what_it_holds(scene: Scene, uplink: str) -> None:
    """As in an upgrade: it says goodbye, and its lease is long enough until it is back."""
    with scene.no_overlap():
        holder, taken = scene.holder(), scene.last()
        scene.site.agents[holder].daemon.stop()
        scene.site.start_agent(holder)
        stays_so(scene, holder, QUIET_S)
        assert scene.last().stay == taken.stay


def test_a_holder_that_dies_after_a_restart_of_its_agent_is_succeeded_as_soon_as_any_other(
    scene: Scene, uplink: str
) -> None:
    """What voters granted it for the restart is no reason to wait."""
    with scene.no_overlap():
        holder, before = scene.holder(), scene.last().epoch
        scene.site.agents[holder].daemon.stop()
        scene.site.start_agent(holder)
        eventually(lambda: scene.last().epoch > before, "it has it anew", LEASE_OVER_S)
        scene.whole()
        began = time.monotonic()
        scene.site.kill_node(holder)
        scene.taken_over(scene.others(holder), began)
