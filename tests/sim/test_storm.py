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
# member can take in half a minute: 6,667 agents at 200 a second, after those that notice late.
BOUNDS = {
    "cold": (31.0, 3),
    "power": (30.0, 8),
    "loss": (15.0, 5),
    "partition": (20.0, 4),
    "two": (50.0, 9),
    "rolling": (30.0, 12),
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


def test_one_member_alone_and_many_members() -> None:
    assert not play("cold", 200, 1, RATE, 0, SLOWNESS).missing
    assert not play("rolling", 500, 6, RATE, 0, SLOWNESS).missing


def test_it_would_notice_agents_that_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(
        attempts: policy.Attempts, *, now: float, dice: float, **_: object
    ) -> policy.Wait:
        return policy.after_failure(attempts, now=now, dice=dice)

    well = [storm(case, 0) for case in ("two", "loss")]
    monkeypatch.setattr(policy, "after_goodbye", impatient)
    monkeypatch.setattr(policy, "FIRST_S", 0.0)
    ill = [storm(case, 0) for case in ("two", "loss")]
    assert ill[0].in_s[-1] > BOUNDS["two"][0] and ill[0].tries_max > well[0].tries_max
    assert ill[1].dials_per_s_max > 1.5 * well[1].dials_per_s_max


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
