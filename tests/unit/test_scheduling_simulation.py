"""Seeded lives of a fleet, and properties over worlds that such lives lead to."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.plan import plan
from tests.sim.sim_scheduler import Life, permuted


@pytest.mark.parametrize("seed", range(1, 41))
def test_life(seed: int) -> None:
    Life(seed).run(40)


@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 25),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_order_of_nodes_and_workloads_changes_nothing(
    seed: int, steps: int, order: random.Random
) -> None:
    life = Life(seed)
    for _ in range(steps):
        life._event()
        life.world.step()
        life._agents()
    snapshot = life.world.snapshot()
    assert plan(permuted(snapshot, order), 0.0) == plan(snapshot, 0.0)


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_a_committed_plan_is_not_made_again(seed: int, steps: int) -> None:
    """Nothing was observed in between: all that a second plan may do is finish deletions."""
    life = Life(seed)
    for _ in range(steps):
        life._event()
        life.world.step()
        life._agents()
    life.world.step()
    again = life.world.step()
    assert not (again.place or again.revise or again.prune)
    assert not again.stop


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_the_seed_only_breaks_ties(seed: int) -> None:
    life = Life(7)
    for _ in range(10):
        life._event()
    one, other = plan(life.world.snapshot(), 0.0, 0), plan(life.world.snapshot(), 0.0, seed)
    assert len(one.place) == len(other.place)
