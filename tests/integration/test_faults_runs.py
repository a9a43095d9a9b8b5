"""The short form of `python -m tests.faults`: clients, faults and the checker on real processes."""

from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.running import run

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]


def test_what_clients_saw_is_linearizable(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        for number in range(2):
            result = run(cluster, 1, number)
            assert not result.violations, str(result.violations[0])
            acknowledged = [one for one in result.history if one.outcome != "unknown"]
            assert len(acknowledged) > 30, "the clients got somewhere"
            assert len({one.member for one in acknowledged}) == 3


def test_a_member_that_does_not_ask_its_store_is_found_out(tmp_path: Path) -> None:
    with Cluster(tmp_path, defect="unasked") as cluster:
        assert any(run(cluster, 1, number).violations for number in range(5))
