"""The simulation of rollouts over a few seeds, and whether it would notice what it is there for."""

from dataclasses import replace

import pytest

from orchestrator.scheduling.steer import World as LeaderView
from tests.sim import rollouts
from tests.sim.__main__ import main
from tests.sim.rollouts import check
from tests.sim.rollouts_alone import Alone
from tests.sim.rollouts_world import Violation, World


@pytest.mark.parametrize("seed", range(16))
def test_a_seed_holds(seed: int) -> None:
    check(seed)


def test_a_seed_replays() -> None:
    assert list(check(3).story) == list(check(3).story)


def test_a_failing_seed_is_told_with_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(life: rollouts.Life) -> None:
        life.events.begin()
        life.world.broken("two of three are gone")

    monkeypatch.setattr(rollouts.Life, "run", fails)
    assert main(["rollouts", "--seeds", "1", "--first", "5"]) == 1
    shown = capsys.readouterr().out
    assert "seed 5 FAILED: Violation: two of three are gone" in shown
    assert "replay: python -m tests.sim rollouts --seed 5 -v" in shown
    monkeypatch.undo()
    assert main(["rollouts", "--seed", "5"]) == 0


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
        return replace(seen, snapshot=replace(snapshot, workloads=workloads))


@pytest.mark.parametrize("made", [Hasty, Careless])
def test_a_leader_that_breaks_the_budget_is_caught(made: type[World]) -> None:
    told = []
    for seed in range(30):
        try:
            check(seed, made)
        except Violation as violation:
            told.append(str(violation))
            if "taken away" in told[-1]:
                return
    raise AssertionError(f"nobody noticed: {told}")


# 375: a deleted node was kept for ever for the stop of what nobody wanted any more.
@pytest.mark.parametrize("seed", [*range(4), 375, 517])
def test_a_seed_of_exclusive_replicas_holds(seed: int) -> None:
    check(seed, Alone)


class Rash(Alone):
    """Somebody vouches for everything: its leader takes what is silent for gone."""

    def distorted(self, seen: LeaderView) -> LeaderView:
        placements = seen.snapshot.placements.values()
        stays = [item.replica_uid for placement in placements for item in placement.assignments]
        return replace(seen, snapshot=replace(seen.snapshot, fenced=frozenset(stays)))


def test_a_leader_that_does_not_wait_for_a_silent_node_is_caught() -> None:
    told = []
    for seed in range(40):
        try:
            check(seed, Rash)
        except Violation as violation:
            told.append(str(violation))
            if "starts on" in told[-1] and "runs on" in told[-1]:
                return
    raise AssertionError(f"nobody noticed: {told}")
