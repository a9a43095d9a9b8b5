"""Sessions begin no faster than the loop gets them done."""

from orchestrator.domain.admission import Admission, ComeBack, Enter
from orchestrator.domain.pace import Pace


def test_a_loop_that_is_in_time_changes_nothing() -> None:
    pace = Pace(300.0)
    for moment in range(100):
        pace.felt(0.3, float(moment))
    assert pace.rate == 300.0 and not pace.is_held_back


def test_a_late_loop_halves_the_rate_once_a_second_and_never_ends_it() -> None:
    pace = Pace(300.0)
    for quarter in range(5):
        pace.felt(1.0, quarter / 4)
    assert pace.rate == 75.0, "at 0 and at 1 second"
    for moment in range(2, 60):
        pace.felt(9.0, float(moment))
    assert pace.rate == 10.0


def test_it_climbs_back_by_steps_and_no_further() -> None:
    pace = Pace(100.0)
    pace.felt(1.0, 0.0)
    seen = []
    for moment in range(1, 20):
        pace.felt(0.0, float(moment))
        seen.append(pace.rate)
    assert seen[:3] == [55.0, 60.0, 65.0] and seen[-1] == 100.0
    assert not pace.is_held_back


def test_a_gate_that_is_slowed_down_sends_more_away_and_for_longer() -> None:
    quick, slow = Admission(100.0, line_max=1000), Admission(100.0, line_max=1000)
    slow.slow_down(10.0)
    told = {
        name: [gate.ask(f"n{n}", 0.0, dice=0.5) for n in range(400)]
        for name, gate in (("quick", quick), ("slow", slow))
    }
    assert all(isinstance(answer, Enter) for answer in told["quick"])
    away = [answer.retry_s for answer in told["slow"] if isinstance(answer, ComeBack)]
    assert 340 < len(away) < 360
    assert max(away) > 20
