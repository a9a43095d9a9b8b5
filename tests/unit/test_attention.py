"""Silence is not counted while nobody listened."""

from orchestrator.domain.attention import KEPT_S, Attention


def test_punctual_looks_miss_nothing() -> None:
    attention = Attention(1.0)
    for second in range(30):
        attention.look(second * 1.05)
    assert attention.missed_since(0.0) == 0.0


def test_what_looks_were_late_by_was_missed() -> None:
    attention = Attention(1.0)
    for moment in (0.0, 1.0, 5.0, 6.0, 9.0):
        attention.look(moment)
    assert attention.missed_since(0.0) == 3.0 + 2.0
    assert attention.missed_since(5.0) == 2.0
    assert attention.missed_since(8.5) == 0.5
    assert attention.missed_since(9.0) == 0.0


def test_it_is_forgotten_in_time() -> None:
    attention = Attention(1.0)
    attention.look(0.0)
    attention.look(10.0)
    attention.look(10.0 + KEPT_S + 1)
    assert attention.missed_since(0.0) == KEPT_S
