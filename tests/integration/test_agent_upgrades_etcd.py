"""Releases and upgrades where several members share an etcd: any of them takes, gives and tells."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from polder.v1 import operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import etcd_settings, make_ca
from tests.integration.orchestrator_rig import Rig, running, until
from tests.integration.test_agent_upgrades import NEW, OLD, begin, comes_to, known
from tests.integration.upgrade_boxes import boxes, package, upload

pytestmark = pytest.mark.etcd


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path / "etcd")
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def members(cluster: EtcdCluster, tmp_path: Path) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two; the first leads."""
    shared = {**etcd_settings(cluster, "/fleet"), "ca_dir": str(make_ca(tmp_path / "ca"))}
    async with (
        running(tmp_path / "a", **shared, member="a") as a,
        running(tmp_path / "b", first=a, **shared, member="b") as b,
    ):
        yield a, b


async def test_what_one_member_takes_another_gives_and_whoever_leads_goes_on(
    members: tuple[Rig, Rig], tmp_path: Path
) -> None:
    a, b = members
    await upload(a, tmp_path, NEW, size=3 << 20)
    await upload(b, tmp_path, OLD)
    whole = package(tmp_path, NEW, size=3 << 20).read_bytes()
    # The boxes are b's, and a leads: what they say has to reach it.
    assert a.orchestrator.leader.is_leading
    async with boxes(b, tmp_path / "boxes", 2, 2, OLD) as fleet:
        await known(a, OLD, 4)
        fleet[0].bad.add(NEW)
        await a.admin().UpgradeAgents(begin(failures_max=1))
        found = await comes_to(b, "Done")
        assert (found.done, found.failed) == (3, 1)
        assert found.shown[0].node == fleet[0].name and found.shown[0].reason == "NotWell"
        assert fleet[0].version == OLD
        assert all(box.fetched[0] == whole for box in fleet), "brought to a, given by b"
    await b.admin().DeleteRelease(operator_pb2.DeleteReleaseRequest(version=NEW))
    left = (await a.admin().Releases(operator_pb2.ReleasesRequest())).releases
    assert [one.version for one in left] == [OLD]


async def test_a_leader_that_is_lost_in_the_middle_leaves_it_to_the_next(
    members: tuple[Rig, Rig], tmp_path: Path
) -> None:
    """Nobody is told twice, and no share is counted anew."""
    a, b = members
    for version in (OLD, NEW):
        await upload(a, tmp_path, version)
    async with boxes(b, tmp_path / "boxes", 4, 2, OLD) as fleet:
        await known(a, OLD, 8)
        for box in fleet:
            box.work_s = 1.0
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, sum(box.installing for box in fleet))

        asked = begin(waves_permille=[500, 1000], at_once_permille=250, soak_s=1)
        first = (await a.admin().UpgradeAgents(asked)).state
        await until(lambda: any(box.version == NEW for box in fleet), "one came through")
        a.orchestrator.leader.resigns = False  # as in a crash: its lease has to run out
        await a.orchestrator.stop()
        assert any(box.version == OLD for box in fleet), "it was in the middle"
        found = await comes_to(b, "Done", look)
        assert (found.id, found.done, found.failed) == (first.id, 8, 0)
        assert b.orchestrator.leader.is_leading
        assert 1 <= most <= 2
        assert all(len({order.id for order in box.told}) == 1 for box in fleet)
        assert all(len(box.fetched) == 2 for box in fleet), "each has begun once"
