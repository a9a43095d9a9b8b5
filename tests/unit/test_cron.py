"""When schedules fire: validity, leaps of daylight saving time, and what never comes."""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.cron import BadSchedule, Calendar, check
from tests.unit.yardstick import pieces

NOW = datetime(2026, 11, 22, 3, 40, tzinfo=UTC).timestamp()
AMSTERDAM = ZoneInfo("Europe/Amsterdam")


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def times(calendar: Calendar, after: str, count: int) -> list[str]:
    found, at = [], utc(after)
    for _ in range(count):
        following = calendar.next_after(at)
        assert following is not None and following > at
        at = following
        found.append(datetime.fromtimestamp(at, UTC).strftime("%m-%d %H:%M"))
    return found


def test_the_fields_are_of_the_clock_of_the_place() -> None:
    calendar = check("0 3 * * 1-5", "Europe/Amsterdam", NOW)
    # Friday, then Monday; one hour behind in winter.
    assert times(calendar, "2026-11-27 00:00", 2) == ["11-27 02:00", "11-30 02:00"]


def test_the_minute_itself_is_not_after_itself() -> None:
    calendar = check("*/5 * * * *", "UTC", NOW)
    assert times(calendar, "2026-11-22 03:40", 2) == ["11-22 03:45", "11-22 03:50"]


@pytest.mark.parametrize(
    ("cron", "zone", "field"),
    [
        ("61 * * * *", "UTC", "cron"),
        ("* * * * *", "Mars/Olympus", "timeZone"),
        ("* * * * *", "Europe", "timeZone"),
        ("* * * * *", "localtime", "timeZone"),
        ("* * ? * *", "UTC", "cron"),
        ("*/0 * * * *", "UTC", "cron"),
        ("5-1 * * * *", "UTC", "cron"),
        ("0 0 32 * *", "UTC", "cron"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_hint(cron: str, zone: str, field: str) -> None:
    with pytest.raises(BadSchedule) as caught:
        check(cron, zone, NOW)
    assert caught.value.field == field
    assert caught.value.hint


def test_a_time_zone_is_suggested() -> None:
    with pytest.raises(BadSchedule) as caught:
        check("* * * * *", "Europe/Amsterdm", NOW)
    assert "Europe/Amsterdam" in caught.value.hint


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 *"])
def test_what_never_fires_is_refused_and_says_so(cron: str) -> None:
    with pytest.raises(BadSchedule, match="never fires"):
        check(cron, "Europe/Amsterdam", NOW)


def test_what_fires_seldom_is_found_soon() -> None:
    started = time.process_time()  # what others have of the core in between is not ours
    assert times(check("0 0 29 2 *", "UTC", NOW), "2026-11-22 00:00", 1) == ["02-29 00:00"]
    check("0 0 * 2 1#5", "UTC", NOW)  # a fifth Monday in February: 2044
    assert time.process_time() - started < 1.0


def test_a_time_that_does_not_exist_is_made_up_for_after_the_gap() -> None:
    """In Amsterdam 02:30 is missing on 2026-03-29: at 01:00 UTC the clock goes to 03:00."""
    calendar = check("30 2 * * *", "Europe/Amsterdam", NOW)
    assert times(calendar, "2026-03-28 12:00", 2) == ["03-29 01:00", "03-30 00:30"]


def test_a_time_that_comes_twice_fires_once() -> None:
    """In Amsterdam 02:30 comes at 00:30 and at 01:30 UTC on 2026-10-25."""
    calendar = check("30 2 * * *", "Europe/Amsterdam", NOW)
    assert times(calendar, "2026-10-24 12:00", 2) == ["10-25 00:30", "10-26 01:30"]
    # Asked between the two: the second is not for it.
    assert times(calendar, "2026-10-25 01:10", 1) == ["10-26 01:30"]


def test_intervals_go_on_through_a_repeated_hour() -> None:
    calendar = check("*/30 * * * *", "Europe/Amsterdam", NOW)
    assert times(calendar, "2026-10-25 00:00", 4) == [
        "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00",
    ]  # fmt: skip


def test_a_day_that_has_no_midnight() -> None:
    """In Cairo 00:00 is missing on the last Friday of April."""
    calendar = check("0 0 * * *", "Africa/Cairo", NOW)
    found = times(calendar, "2026-04-22 12:00", 3)
    assert found == ["04-22 22:00", "04-23 22:00", "04-24 21:00"]


def test_the_end_of_time_has_no_next() -> None:
    assert Calendar("* * * * *", "UTC").next_after(datetime.max.timestamp()) is None
    assert Calendar("* * * * *", "UTC").next_after(1e18) is None
    assert Calendar("* * * * *", "UTC").latest(0.0, 1e18) is None


def test_a_stored_expression_that_nobody_could_have_applied_never_fires() -> None:
    for cron in ("0 0 31 2 *", "99 0 * * *"):
        assert Calendar(cron, "UTC").next_after(NOW) is None
        assert Calendar(cron, "UTC").latest(0.0, NOW) is None


def test_an_expression_that_was_stored_unchecked_never_fires() -> None:
    for calendar in (Calendar("61 * * * *", "UTC"), Calendar("* * * * *", "Mars/Base")):
        assert calendar.next_after(NOW) is None
        assert calendar.latest(0.0, NOW) is None


def test_the_latest_of_a_year_of_minutes_is_found_at_once() -> None:
    calendar = Calendar("* * * * *", "UTC")
    assert calendar.latest(NOW - 365 * 86_400, NOW + 7) == NOW
    assert pieces(lambda: calendar.latest(NOW - 365 * 86_400, NOW + 7)) < 100
    assert Calendar("0 4 * * *", "UTC").latest(NOW - 60, NOW) is None


CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0-59 2 * * *", "15 1,2,3 * * 0",
     "0 0 * * *", "*/20 0-3 * * *", "5 */2 * * *", "59 23 L * *"]
)  # fmt: skip
ZONES = st.sampled_from(
    ["UTC", "Europe/Amsterdam", "Africa/Cairo", "Australia/Lord_Howe", "America/St_Johns"]
)


@given(CRONS, ZONES, st.integers(0, 365 * 1440), st.integers(0, 3 * 1440), st.data())
@settings(max_examples=150, deadline=None)
def test_the_latest_is_the_last_of_those_that_follow_one_another(
    cron: str, zone: str, start: int, minutes: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans(), "at the change of the clock"):
        start = int((utc("2026-10-25 00:00") - utc("2026-01-01 00:00")) / 60) - start % 180
    calendar = Calendar(cron, zone)
    after = utc("2026-01-01 00:00") + start * 60 + data.draw(st.integers(0, 59), "second")
    until = after + timedelta(minutes=minutes).total_seconds()
    expected, at = None, calendar.next_after(after)
    while at is not None and at <= until:
        expected, at = at, calendar.next_after(at)
    assert calendar.latest(after, until) == expected
