"""The agent's simulation, over enough seeds to be felt and few enough for every test run."""

import pytest

from tests.emulated import EMULATED
from tests.sim import agent_reconcile

AT_A_TIME = 25
SEEDS = 5 if EMULATED else AT_A_TIME
"""An emulated seed takes seconds, and tells nothing that it would not tell elsewhere."""


@pytest.mark.parametrize("first", range(0, 4 * AT_A_TIME, AT_A_TIME))
def test_seeds_hold(first: int) -> None:
    for seed in range(first, first + SEEDS):
        agent_reconcile.check(seed)


def test_a_seed_plays_the_same_whatever_the_machines_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def real() -> float:
        raise AssertionError("the simulation asked for the real time")

    monkeypatch.setattr("agent.steady_clock.boottime", real)
    agent_reconcile.check(0)


def test_an_attempt_without_an_answer_and_one_that_is_refused_make_no_second_pod() -> None:
    """The refused one had taken the name away, and then the first one came."""
    agent_reconcile.check(265)
