"""`edgectl drill` on three regions with real boxes, as an operator does it; its report is true."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import continent as continents
from devcluster.boxes import EDGECTL
from devcluster.continent import Continent
from tests.e2e.regions_support import (
    apply,
    apply_works,
    regions_in_use,
    settled,
    unnoticed,
    web_on_every_box,
)
from tests.e2e.support import edgectl, eventually

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.netns,
    pytest.mark.etcd,
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def continent(directory: Path) -> Iterator[Continent]:
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


def region_with_sessions(continent: Continent) -> str:
    """Where boxes are connected: a drill there has something to show."""
    return next(region for region in regions_in_use(continent).values() if region)


def drill(continent: Continent, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [EDGECTL, "drill", "region", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=continent.environment(),
    )


def test_a_drill_goes_unnoticed_and_says_so(continent: Continent) -> None:
    settled(continent)
    lost = region_with_sessions(continent)
    there = sum(region == lost for region in regions_in_use(continent).values())
    with unnoticed(continent, "drill"):
        began_at = time.monotonic()
        running = drill(continent, lost, "--for", "20s", "--reason", "e2e", "-o", "json")
        eventually(
            lambda: not {"", lost} & set(regions_in_use(continent).values()),
            "all boxes have a session in another region",
            20,
        )
        apply_works(continent, "in-the-drill", time.monotonic())
        shown = json.loads(edgectl(continent, "get", "regions", "-o", "json").stdout)
        (region,) = [item for item in shown["items"] if item["name"] == lost]
        assert region["drillUntilAt"] > shown["nowAt"]
        out, err = running.communicate(timeout=60)
    report = json.loads(out)
    print(f"{time.monotonic() - began_at:.1f} s; {out}")
    assert running.returncode == 0 and report["passed"], (report, err)
    assert report["nodes"] == report["nodesBack"] == there
    assert report["reconnectLastS"] < 20 and report["writeS"] < 10
    assert (report["planChanges"], report["restarts"]) == (0, 0)
    eventually(
        lambda: all(member.is_ready() for member in continent.members.values()), "all serve again"
    )


def test_a_drill_of_the_leaders_region_ends_although_the_terminal_dies(
    continent: Continent,
) -> None:
    settled(continent)
    leader = continent.leader()
    member = continent.members[leader]
    lost = member.region
    with unnoticed(continent, "terminal"):
        running = drill(continent, lost, "--for", "20s")
        eventually(lambda: not member.is_ready(), "its members refuse everyone", 20)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        done = edgectl(continent, "drill", "region", lost, "--follow", "-o", "json", timeout_s=60)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["durationS"] == pytest.approx(20, abs=2)
        assert report["hadLeader"] and report["leader"] not in ("", leader)
        eventually(member.is_ready, "it serves again", 20)
    told = edgectl(continent, "describe", f"region/{lost}").stdout
    assert "DrillBegan" in told and "DrillEnded" in told
