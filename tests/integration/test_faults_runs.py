"""The short form of `python -m tests.faults`: clients, faults and the checker on real processes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.clients import Session
from tests.faults.cluster import Cluster
from tests.faults.running import run

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("number", range(2))
def test_what_clients_saw_is_linearizable(cluster: Cluster, number: int) -> None:
    result = run(cluster, 1, number)
    assert not result.violations, str(result.violations[0])
    acknowledged = [one for one in result.history if one.outcome != "unknown"]
    assert len(acknowledged) > 30, "the clients got somewhere"
    assert len({one.member for one in acknowledged}) == 3


def test_an_apply_works_soon_after_the_region_is_gone_that_it_was_sent_to(
    cluster: Cluster,
) -> None:
    """With the leader of etcd, and without a word: nothing answers, and nothing refuses."""
    leader = cluster.etcd_leader()
    place = cluster.etcd.members.index(leader)
    station = cluster.stations[place]
    endpoints = cluster.endpoints[place:] + cluster.endpoints[:place]
    session = Session(0, cluster.connection(), endpoints, call_s=20.0)
    try:
        key = f"region-{time.monotonic_ns()}"
        first = session.apply(key, "v0")
        assert first is not None and first.member == station.orchestrator.name
        station.orchestrator.freeze()
        leader.freeze()
        begun = time.monotonic()
        second = session.apply(key, "v1")
        took_s = time.monotonic() - begun
        assert second is not None and second.outcome == "configured"
        assert second.generation == 2 and second.member != first.member
        assert took_s < 10.0
    finally:
        session.close()
        cluster.heal()


def test_a_member_that_does_not_ask_its_store_is_found_out(tmp_path: Path) -> None:
    with Cluster(tmp_path, defect="unasked") as broken:
        assert any(run(broken, 1, number).violations for number in range(5))
