"""What the gateway paces: each caller its own turn, no more at once than the burst."""

from orchestrator.domain.bucket import Bucket


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = Bucket(10.0, 3)
    waits = [round(bucket.take(100.0), 3) for _ in range(6)]
    assert waits == [0.0, 0.0, 0.0, 0.1, 0.2, 0.3]


def test_within_the_rate_nobody_waits() -> None:
    bucket = Bucket(300.0, 75)
    assert all(bucket.take(10.0 + turn / 299.0) == 0.0 for turn in range(10_000))


def test_a_thousand_that_come_late_and_together_begin_one_after_the_other() -> None:
    bucket = Bucket(300.0, 75)
    begin = [50.0 + bucket.take(50.0) for _ in range(1112)]
    peak = max(sum(at <= other < at + 1.0 for other in begin) for at in begin)
    assert peak <= 300 + 75 + 1
