"""When a cron expression fires: a thin layer over `cronsim`, which counts as Debian's cron does.

Called by the operator API (`check`: before a schedule is stored) and by `schedules.py` (what fires
now). Pure but for reading the time zone database, which stands still.

On the days that have 23 or 25 hours: fixed times (`30 2 * * *`) that do not exist are made up for
right after the gap, and those that come twice fire the first time only; what fires by intervals
(`*/10 * * * *`, `0 * * * *`) goes on by the time that really passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

# What `cronsim` looks ahead; an expression without a date in so many years never fires.
YEARS_AHEAD = 50
# Times that a fold of the local clock makes come again, and that are passed over.
_REPEATED_MAX = 2_000
# Set by whoever runs the machine, so not the same for every member.
_NOT_PLACES = ("localtime", "Factory", "posixrules")


class BadSchedule(Exception):
    """`field` is `cron` or `timeZone`; `hint` says what to do."""

    def __init__(self, field: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Calendar:
    """An expression on the clock of a place. Times are unix seconds."""

    cron: str
    time_zone: str

    def next_after(self, at: float) -> float | None:
        """The first time after `at`; None: there is none."""
        return _first(self._from(at), lambda found: found > at)

    def latest(self, after: float, until: float) -> float | None:
        """The last time after `after` and not after `until`; None: there is none."""
        found = _first(self._from(int(until) + 1, reverse=True), lambda time: time <= until)
        if found is None:
            return None
        # Going back through a repeated hour misses the times of its first half.
        later = self.next_after(found)
        while later is not None and later <= until:
            found, later = later, self.next_after(later)
        return found if found > after else None

    def _from(self, at: float, *, reverse: bool = False) -> Iterator[float]:
        try:
            moment = datetime.fromtimestamp(at, _zone(self.time_zone))
            for found in CronSim(self.cron, moment, reverse=reverse):
                yield found.timestamp()
        except (OverflowError, OSError, ValueError):  # beyond the years that a calendar has
            return
        except (CronSimError, AssertionError):
            return  # refused at apply; whatever wrote it, it must not stop the leader


def check(cron: str, time_zone: str, now: float) -> Calendar:
    """The calendar of a schedule that fires at some time after `now`. Raises BadSchedule."""
    if not _is_known(time_zone):
        near = get_close_matches(time_zone, sorted(_names()), n=1)
        hint = f"did you mean {near[0]}?" if near else "use a name such as Europe/Amsterdam"
        raise BadSchedule("timeZone", f"there is no time zone {time_zone}", hint)
    try:
        CronSim(cron, datetime.fromtimestamp(0, _zone("UTC")))
    except (CronSimError, AssertionError, ValueError) as error:
        if str(error) == "Bad day-of-month" and _parses_alone(cron):
            raise _never(cron) from error
        hint = "five fields: minute, hour, day of month, month, day of week; such as 0 3 * * 1-5"
        raise BadSchedule("cron", f"{cron!r} cannot be understood: {error}", hint) from error
    calendar = Calendar(cron, time_zone)
    if calendar.next_after(now) is None:
        raise _never(cron)
    return calendar


def _never(cron: str) -> BadSchedule:
    text = f"{cron!r} never fires: no date matches it in the next {YEARS_AHEAD} years"
    return BadSchedule("cron", text, "check the day of month against the months")


def _parses_alone(cron: str) -> bool:
    """Whether its day of month is a day of some month: then it is the month that has none such."""
    minute, hour, day, _, weekday = cron.split()
    try:
        CronSim(f"{minute} {hour} {day} * {weekday}", datetime.fromtimestamp(0, _zone("UTC")))
    except (CronSimError, AssertionError, ValueError):
        return False
    return True


def _first(times: Iterator[float], wanted: Callable[[float], bool]) -> float | None:
    for _, found in zip(range(_REPEATED_MAX), times, strict=False):
        if wanted(found):
            return found
    return None


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(available_timezones()) - frozenset(_NOT_PLACES)


def _is_known(time_zone: str) -> bool:
    return time_zone in _names()


@lru_cache(maxsize=1_024)
def _zone(time_zone: str) -> ZoneInfo:
    try:
        return ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"there is no time zone {time_zone}") from error
