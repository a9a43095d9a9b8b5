"""Members that are cut off, paused, restarted, replaced, wrong about the time or the version.

Nodes are lost soon here (six seconds), so that a member that takes silence for death would show.
"""

import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from devcluster import continent as continents
from devcluster import etcd
from devcluster.boxes import EDGECTL, run
from devcluster.client import workload
from devcluster.continent import Continent
from devcluster.image import HELLO
from devcluster.region import EDGE_ORCHESTRATOR
from tests.e2e.regions_support import (
    apply,
    apply_to,
    apply_works,
    config,
    everywhere,
    inside,
    nodes_ready,
    placements,
    regions_in_use,
    session,
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

LOST_AFTER_S = 6.0
SETTINGS = {
    "heartbeat-interval": "1s",
    "silent-after": "3s",
    "lost-after": f"{LOST_AFTER_S:.0f}s",
}
ODD = (sys.executable, str(Path(__file__).with_name("odd_orchestrator.py")))
HOUR_S = 3600.0
REAL = "containers=real"
ON_REAL_BOXES = {"nodeSelector": {"containers": "real"}}


@pytest.fixture(scope="module")
def continent(directory: Path) -> Iterator[Continent]:
    """Three regions, two boxes with a page each, and two replicas that could be moved.

    Two simulated boxes more at one site: of three that fall silent together, none is called lost.
    """
    continents.sweep()
    made = Continent(directory, owner=os.getpid(), settings=SETTINGS)
    try:
        made.start()
        site, netns = made.boxes["box-1"], made.network.netns("box-1")
        for name in ("sim-1", "sim-2"):
            made.add_agent(name, site=site, runtime="simulated", netns=netns)
        run([EDGECTL, "label", *(f"node/{box}" for box in made.boxes), REAL], made.environment())
        pair, web = workload("pair", image=HELLO, replicas=2), web_on_every_box()
        pair["spec"]["placement"] = {**ON_REAL_BOXES, "spread": {"by": "node", "maxSkew": 1}}
        web["spec"]["placement"] = ON_REAL_BOXES
        done = apply(made, web, pair)
        assert done.returncode == 0, done.stderr
        for name in ("web", "pair"):
            done = edgectl(made, "wait", f"workload/{name}", "--for=ready", "--timeout", "60s")
            assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.stop(wipe=False)


@pytest.fixture(autouse=True)
def well(continent: Continent) -> None:
    settled(continent)


def _on_real_box(name: str) -> dict[str, Any]:
    manifest = workload(name, image=HELLO)
    manifest["spec"]["placement"] = ON_REAL_BOXES
    return manifest


def test_a_minority_keeps_its_agents(continent: Continent) -> None:
    """A region alone with its box: sessions stay, reads say how old they are, writes are refused.
    The majority does not take the box for dead."""
    box, region = _box_of_a_follower(continent)
    before, placed = session(continent, box), placements(continent)
    with unnoticed(continent, "minority", cut_off=[box]):
        cut_at = time.monotonic()
        continent.isolate(region, box)
        apply_works(continent, "majority", cut_at)
        eventually(
            lambda: "old" in inside(continent, region, "get", "configs").stderr,
            "reads say how old they are",
        )
        shown = inside(continent, region, "get", "nodes")
        assert shown.returncode == 0 and box in shown.stdout
        assert "majority" not in inside(continent, region, "get", "configs").stdout
        refused = inside(continent, region, "apply", "-f", "-", stdin=json.dumps(config("lonely")))
        assert refused.returncode == 1, refused.stdout
        assert "error:" in refused.stderr
        # Longer than it takes to be called lost, counted from when its member's lease ran out.
        eventually(lambda: time.monotonic() - cut_at > 2 * LOST_AFTER_S + 6, "time", 60)
        assert session(continent, box)["since"] == before["since"]
        assert placements(continent) == placed
        continent.heal()
        healed_at = time.monotonic()
        member = continent.regions[region].members[0]
        eventually(member.is_ready, "the member is well again")
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        print(f"well {time.monotonic() - healed_at:.1f} s after the line was mended")
        assert session(continent, box)["since"] == before["since"]
        assert placements(continent) == placed
    everywhere(continent, {"majority": 0.0})
    assert "lonely" not in edgectl(continent, "get", "configs").stdout


def _box_of_a_follower(continent: Continent) -> tuple[str, str]:
    """A box and the region of its session, in which no member leads."""
    leading = continent.members[continent.leader()].region
    for box, region in regions_in_use(continent).items():
        if region != leading:
            return box, region
    raise AssertionError("all boxes are in the leader's region")


def test_a_line_between_two_regions_breaks(continent: Continent) -> None:
    """The leader hears nothing of a box, and knows that it is not for it to judge: the box's member
    is alive by its lease. All three regions go on, and all take writes."""
    box, region = _box_of_a_follower(continent)
    leading = continent.members[continent.leader()].region
    placed = placements(continent)
    with unnoticed(continent, "line"):
        cut_at = time.monotonic()
        continent.cut_link(leading, region)
        apply_works(continent, "line-cut", cut_at)
        eventually(lambda: time.monotonic() - cut_at > LOST_AFTER_S + 8, "time", 60)
        for member in continent.members.values():
            done = apply_to(continent, member, config(f"through-{member.name}"))
            assert done.returncode == 0, done.stderr
        assert placements(continent) == placed
        assert session(continent, box)["connected"]
        continent.heal()
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        assert placements(continent) == placed


def test_an_etcd_member_is_lost_and_replaced(continent: Continent) -> None:
    """Its disk is gone: taken out of the group, and in again with an empty one."""
    region = continent.regions[continent.members[continent.leader()].region]
    other = next(r for r in continent.regions.values() if r is not region)
    with unnoticed(continent, "disk"):
        lost_at = time.monotonic()
        region.etcd.daemon.stop(9)
        region.etcd.wipe()
        apply_works(continent, "without-disk", lost_at)
        etcd.replace(region.etcd, other.etcd, continent.etcd_group)
        eventually(region.etcd.is_healthy, "the new member is healthy")
        assert len(other.etcd.members()) == 3
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        # Now that one counts: without another there is still a majority.
        other.etcd.daemon.stop(9)
        apply_works(continent, "new-disk-counts", time.monotonic())
        other.etcd.start(continent.etcd_group)


def test_a_regions_ca_is_rotated(continent: Continent) -> None:
    """Its members take the new one up while they serve; sessions and contexts stay as they are."""
    box, region = next(iter(regions_in_use(continent).items()))
    member = continent.regions[region].members[0]
    former, since = _issuer(continent, member.endpoint), session(continent, box)["since"]
    with unnoticed(continent, "rotation"):
        command = [EDGE_ORCHESTRATOR, "ca"]
        bundle = continent.directory / "bundle.pem"
        there, here = str(continent.safe), str(continent.regions[region].ca_dir)
        run([*command, "rotate", "--region", region, "--dir", there], os.environ)
        export = ["export", "--region", region, "--dir", there, "--out", str(bundle)]
        run([*command, *export], os.environ)
        run([*command, "import", str(bundle), "--dir", here], os.environ)
        eventually(lambda: _issuer(continent, member.endpoint) != former, "a new certificate")
        done = edgectl(continent, "get", "nodes", "--endpoint", member.endpoint)
        assert done.returncode == 0, done.stderr
        assert session(continent, box)["since"] == since
        # What the new CA issues is taken by all: a node that joins, and the plans of its member.
        netns = continent.network.netns(box)
        continent.add_agent("sim-3", runtime="simulated", netns=netns)
        member.stop()
        eventually(lambda: all(regions_in_use(continent).values()), "sessions elsewhere")
        member.start()
        assert apply(continent, _on_real_box("rotated")).returncode == 0
        eventually(lambda: ready(continent, "rotated-0"), "placed and ready")
    assert edgectl(continent, "delete", "workload/rotated", "--timeout", "60s").returncode == 0
    continent.agents.pop("sim-3").daemon.stop()
    done = edgectl(continent, "delete", "node/sim-3", "--timeout", "60s")
    assert done.returncode == 0, done.stderr


def _issuer(continent: Continent, endpoint: str) -> bytes:
    """The key identifier of who issued the certificate that is shown there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = endpoint.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    extensions = x509.load_der_x509_certificate(shown).extensions
    found = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert found is not None
    return found


def test_a_partition_that_flaps_moves_nothing(continent: Continent) -> None:
    placed = placements(continent)
    lost = continent.members[continent.leader()].region
    with unnoticed(continent, "flapping"):
        for _ in range(3):
            for act in (partial(continent.cut, lost), continent.heal):
                act()
                until = time.monotonic() + 2.0
                eventually(partial(_is_past, until), "two seconds")
        apply_works(continent, "after-flapping", time.monotonic())
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        assert placements(continent) == placed


def _is_past(moment: float) -> bool:
    return time.monotonic() > moment


def test_members_whose_clocks_are_an_hour_off(continent: Continent) -> None:
    """One is ahead, one behind, one of them leads. Nothing is taken for lost or expired; what is
    applied runs."""
    ahead, behind, right = continent.members.values()
    placed = placements(continent)
    try:
        with unnoticed(continent, "clocks"):
            for member, offset_s in (ahead, HOUR_S), (behind, -HOUR_S):
                member.stop()
                member.start(program=(*ODD, str(offset_s), ""))
            right.stop()
            eventually(lambda: continent.leader() in (ahead.name, behind.name), "one leads")
            right.start()
            began = time.monotonic()
            eventually(lambda: time.monotonic() - began > LOST_AFTER_S + 4, "a while")
            eventually(lambda: nodes_ready(continent), "nodes are Ready")
            assert placements(continent) == placed
            assert apply(continent, _on_real_box("timely")).returncode == 0
            eventually(lambda: ready(continent, "timely-0"), "placed and ready", 60)
    finally:
        for member in ahead, behind:
            member.stop()
            member.start()
    assert edgectl(continent, "delete", "workload/timely", "--timeout", "60s").returncode == 0


def test_an_old_version_that_joins_a_newer_group_is_refused(continent: Continent) -> None:
    member = next(iter(continent.members.values()))
    with unnoticed(continent, "old"):
        member.stop()
        try:
            member.start(wait=False, program=(*ODD, "0", "0.0.9"))
            eventually(lambda: member.daemon.pid == 0, "it ends")
            said = member.daemon.tail(3)
            assert "0.0.9" in said and "0.1" in said, said
        finally:
            member.start()


def test_a_rolling_upgrade_under_load(continent: Continent) -> None:
    """To the next minor version, a member at a time. The last test: there is no way back."""
    placed = placements(continent)
    with unnoticed(continent, "upgrade") as writer:
        for member in continent.members.values():
            member.stop()
            member.start(program=(*ODD, "0", "0.2.0"))
            eventually(lambda: all(regions_in_use(continent).values()), "sessions")
        eventually(lambda: continent.leader() in continent.members, "a leader")
        eventually(lambda: nodes_ready(continent), "nodes are Ready")
        assert placements(continent) == placed
        count = len(writer.acked)
        eventually(lambda: len(writer.acked) > count + 3, "writes go on")
    assert writer.longest_gap_s < 10.0, writer.errors
