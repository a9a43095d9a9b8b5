"""The storm of `tests/sim/storm.py`, with a tenth of the agents at members ten times as slow."""

import random

import pytest

from agent import connection_policy as policy
from orchestrator.domain.admission import Admission
from tests.sim.__main__ import main
from tests.sim.storm import SETTINGS, Outcome, play

SLOWNESS = 10.0
RATE = SETTINGS.accept_rate / SLOWNESS
# Seconds until everybody is in, and how often one agent may have to try. "two" is more than a
# member can take in half a minute: 6,667 agents, after those that notice late.
BOUNDS = {
    "cold": (31.0, 3),
    "crash": (20.0, 17),  # most of them are refused while the members are away
    "power": (20.0, 6),
    "loss": (12.0, 4),
    "partition": (18.0, 3),
    "two": (39.0, 7),
    "rolling": (20.0, 8),
}


def storm(case: str, seed: int) -> Outcome:
    return play(case, 1000, 3, RATE, seed, SLOWNESS)


@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("seed", range(2))
def test_everybody_comes_back_and_nobody_hammers(case: str, seed: int) -> None:
    found = storm(case, seed)
    last_s, tries = BOUNDS[case]
    assert not found.missing, found.facts()
    assert found.in_s[-1] <= last_s, found.facts()
    assert found.tries_max <= tries, found.facts()
    assert found.tries_mean <= tries / 2 + 0.5, found.facts()
    # What a member takes on at once is what it was told it can.
    assert found.admitted_per_s_max <= 1.3 * RATE + 2, found.facts()


def test_a_seed_replays() -> None:
    assert storm("loss", 3) == storm("loss", 3)


@pytest.mark.parametrize("case", ["cold", "crash", "power", "rolling"])
def test_a_member_that_is_alone_is_not_buried(case: str) -> None:
    """All agents at one member are more handshakes than it can do before they give up: without
    patience that grows, and rest after it, it would do nothing else for ever."""
    found = play(case, 1000, 1, RATE, 0, SLOWNESS)
    assert not found.missing and found.in_s[-1] < 90, found.facts()


def test_many_members() -> None:
    assert not play("rolling", 500, 6, RATE, 0, SLOWNESS).missing


def test_it_would_notice_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "DIAL_MAX_S", policy.DIAL_S)
    monkeypatch.setattr(policy, "CEILING_S", policy.BASE_S)
    assert play("power", 1000, 1, RATE, 0, SLOWNESS).missing > 500
    monkeypatch.undo()
    well = storm("loss", 0)
    monkeypatch.setattr(policy, "FIRST_S", 0.0)
    assert storm("loss", 0).dials_per_s_max > 1.5 * well.dials_per_s_max


def test_the_command_prints_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storm", "--agents", "300", "--seeds", "1", "--case", "loss", "--json"]) == 0
    assert '"missing": 0' in capsys.readouterr().out


# --- admission ------------------------------------------------------------------------------------


def test_sessions_begin_at_the_rate_and_times_told_are_even() -> None:
    gate = Admission(100.0, line_max=1000)
    dice = random.Random(1).random
    answers = [gate.ask(f"n{n}", 10.0, dice=dice()) for n in range(2000)]
    entered = [a.wait_s for a in answers if hasattr(a, "wait_s")]
    told = sorted(a.retry_s for a in answers if hasattr(a, "retry_s"))
    assert len(entered) == 5 * 100 + 26 and entered == sorted(entered)
    assert max(entered) <= 5.0
    per_second = [sum(1 for t in told if s <= t < s + 1) for s in range(6, 18)]
    assert max(per_second) <= 105 and min(per_second) >= 95


def test_who_comes_back_when_told_is_not_sent_away_again() -> None:
    gate = Admission(10.0, line_max=1000)
    for n in range(100):
        gate.ask(f"n{n}", 0.0, dice=0.5)
    told = gate.ask("late", 0.0, dice=0.5)
    assert hasattr(told, "retry_s")
    now = told.retry_s
    for n in range(60):  # others fill the line meanwhile
        gate.ask(f"m{n}", now, dice=0.5)
    assert hasattr(gate.ask("new", now, dice=0.5), "retry_s")
    assert hasattr(gate.ask("late", now, dice=0.5), "wait_s")
    early = gate.ask("m59", now, dice=0.5)
    assert hasattr(early, "retry_s"), "before its time it is one of many"


def test_the_line_is_bounded_and_nothing_is_kept_for_ever() -> None:
    gate = Admission(10.0, line_max=20)
    answers = [gate.ask(f"n{n}", 0.0, dice=0.9) for n in range(5000)]
    assert sum(1 for a in answers if hasattr(a, "wait_s")) <= 20 + 3
    told = [a.retry_s for a in answers if hasattr(a, "retry_s")]
    assert max(told) <= 30.0 and min(told) >= 1.0
    for n in range(2000):
        gate.ask("one", 1000.0 + n, dice=0.5)
    assert not gate._appointments
