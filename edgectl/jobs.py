"""Jobs and schedules in tables, in describe, and as something to wait for. Pure.

A workload with `run: once` has `status.job`, one with a schedule `status.schedule`.
"""

from collections.abc import Iterator
from typing import Any

from edgectl.resources import Item
from edgectl.text import NONE, moment, safe
from polder.manifest.quantity import format_duration


def is_job(item: Item) -> bool:
    return isinstance(item.status.get("job"), dict)


def is_schedule(item: Item) -> bool:
    return isinstance(item.status.get("schedule"), dict)


def progress(item: Item) -> str:
    """`2/3 done`; of a schedule `2 runs`, those that are not over."""
    if is_schedule(item):
        active = item.status["schedule"].get("active")
        count = len(active) if isinstance(active, list) else 0
        return f"{count} run" if count == 1 else f"{count} runs"
    job = item.status["job"]
    return f"{_count(job, 'succeeded')}/{_count(job, 'completions')} done"


def described(item: Item) -> Iterator[tuple[str, str]]:
    """Title and text of each line; an empty title goes on with the last one."""
    if is_schedule(item):
        yield from _schedule(item)
    elif is_job(item):
        yield from _job(item)


def _job(item: Item) -> Iterator[tuple[str, str]]:
    job = item.status["job"]
    active, failed = _count(job, "active"), _count(job, "failed")
    done = f"{_count(job, 'succeeded')} of {_count(job, 'completions')} succeeded"
    yield "Job", f"{done}, {active} active, {failed} failed attempt{'' if failed == 1 else 's'}"
    yield "Started", moment(_count(job, "startedAt"), item.now_ms)
    finished = _count(job, "finishedAt")
    if finished:
        took = format_duration((finished - _count(job, "startedAt")) / 1000)
        yield "Finished", f"{moment(finished, item.now_ms)}, after {took}"
        outcome = str(job.get("outcome") or NONE)
        yield "Outcome", f"{outcome}: {job['message']}" if job.get("message") else outcome
        kept = format_duration(_count(job, "ttlSeconds"))
        yield "Kept", f"with its logs, for {kept} after its end; then it is deleted (job.ttl)"
    retrying = job.get("retrying")
    for entry in retrying if isinstance(retrying, list) else []:
        if isinstance(entry, dict):
            count = _count(entry, "failures")
            times = "once" if count == 1 else f"{count} times"
            yield "Tried again", f"{entry.get('replica')}, which failed {times}"


def _schedule(item: Item) -> Iterator[tuple[str, str]]:
    schedule, spec = item.status["schedule"], item.spec.get("schedule")
    given: dict[str, Any] = spec if isinstance(spec, dict) else {}
    yield "Schedule", f"{given.get('cron') or NONE} ({given.get('timeZone') or 'UTC'})"
    if schedule.get("suspended"):
        yield "Next run", "none: it is suspended"
    else:
        yield "Next run", moment(_count(schedule, "nextAt"), item.now_ms)
    yield "Last run", moment(_count(schedule, "lastAt"), item.now_ms)
    runs = schedule.get("runs")
    title = "Runs"
    for run in runs if isinstance(runs, list) else []:
        if isinstance(run, dict):
            yield title, _run(run, item.now_ms)
            title = ""


def _run(run: dict[str, Any], now_ms: int) -> str:
    outcome = str(run.get("outcome") or "Running")
    if _count(run, "finishedAt"):
        outcome += f" {moment(_count(run, 'finishedAt'), now_ms)}"
    message = f": {run['message']}" if run.get("message") and run.get("outcome") else ""
    return safe(f"{run.get('name')}  {outcome}{message}")


def outcome(item: Item) -> tuple[str, str]:
    """(Complete, Failed, DeadlineExceeded or empty, in words)."""
    job = item.status.get("job")
    if not isinstance(job, dict):
        return "", "it is not a job"
    ended = str(job.get("outcome") or "")
    message = str(job.get("message") or "")
    return ended, f"{ended}: {message}" if ended else progress(item)


def _count(found: dict[str, Any], key: str) -> int:
    value = found.get(key)
    return int(value) if isinstance(value, int | float) else 0
