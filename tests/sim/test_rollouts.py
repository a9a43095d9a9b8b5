"""The simulation of rollouts over a few seeds, and whether it would notice what it is there for."""

from dataclasses import replace

import pytest

from orchestrator.scheduling.steer import World as LeaderView
from polder.manifest.update import Update
from tests.sim.rollouts import check
from tests.sim.rollouts_world import Violation, World


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_seeds_hold(first: int) -> None:
    for seed in range(first, first + 10):
        check(seed)


def test_a_seed_replays() -> None:
    assert list(check(7).story) == list(check(7).story)


class Hasty(World):
    """Its leader takes every replica for ready as soon as it is placed."""

    def distorted(self, seen: LeaderView) -> LeaderView:
        snapshot = seen.snapshot
        observed = {
            key: replace(told, running=True, ready=True, ready_for_s=1e9, terminating=False)
            for key, told in snapshot.observed.items()
        }
        return replace(seen, snapshot=replace(snapshot, observed=observed))


class Careless(World):
    """Its leader believes that anything may be unavailable."""

    def distorted(self, seen: LeaderView) -> LeaderView:
        snapshot = seen.snapshot
        workloads = tuple(
            replace(workload, update=replace(workload.update, max_unavailable="100%"))
            for workload in snapshot.workloads
        )
        assert Update().max_unavailable == "1"
        return replace(seen, snapshot=replace(snapshot, workloads=workloads))


@pytest.mark.parametrize("made", [Hasty, Careless])
def test_a_leader_that_breaks_the_budget_is_caught(made: type[World]) -> None:
    caught = []
    for seed in range(25):
        try:
            check(seed, made)
        except Violation as violation:
            caught.append(str(violation))
    assert [text for text in caught if "taken away" in text], caught
