"""The agent's simulation, over enough seeds to be felt and few enough for every test run."""

import pytest

from tests.sim import agent_reconcile


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_seeds_hold(first: int) -> None:
    for seed in range(first, first + 25):
        agent_reconcile.check(seed)
