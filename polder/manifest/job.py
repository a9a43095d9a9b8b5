"""Workloads that end: jobs, and the schedules that start them.

Read by the leader (`orchestrator/domain/jobs.py`, `orchestrator/domain/cron.py`).
"""

import re
from dataclasses import dataclass

from polder.manifest.quantity import duration_s
from polder.manifest.schema import spec

# Only the form; whether it ever fires is judged where there is a calendar.
CRON = re.compile(r"\s*(?:[-0-9A-Za-z*/,#?]+\s+){4}[-0-9A-Za-z*/,#?]+\s*")
CRON_HELP = "five fields: minute, hour, day of month, month, day of week"
TIME_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(?:/[A-Za-z0-9_+\-]+){0,2}")
TIME_ZONE_HELP = "a time zone such as Europe/Amsterdam"
MAX_COMPLETIONS = 100_000


@dataclass(frozen=True, slots=True)
class Job:
    """Of a workload with `run: once`."""

    completions: int = spec(
        "So many replicas, each to the end.", default=1, minimum=1, maximum=MAX_COMPLETIONS
    )
    parallelism: int = spec("So many at once.", default=1, minimum=1, maximum=MAX_COMPLETIONS)
    retries: int = spec(
        "How often each replica is tried again after a failure.", default=3, minimum=0, maximum=1000
    )
    deadline: float = spec(
        "The whole job fails when it takes longer. 0: it may take as long as it does.",
        default=0.0,
        parse=duration_s,
        shown_type="duration such as 1h",
        unit="s",
    )
    ttl: float = spec(
        "How long it is kept after its end, with its logs.",
        default=86_400.0,
        parse=duration_s,
        shown_type="duration such as 1h",
        unit="s",
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job is started: each time as a workload of its own, named after the time."""

    cron: str = spec(
        "Minute, hour, day of month, month, day of week; such as 0 3 * * 1-5.",
        pattern=CRON,
        pattern_help=CRON_HELP,
        max_length=256,
    )
    time_zone: str = spec(
        "Whose clock the fields are of.",
        default="UTC",
        pattern=TIME_ZONE,
        pattern_help=TIME_ZONE_HELP,
        max_length=64,
    )
    concurrency: str = spec(
        "While the last run is not over. Forbid: skip. Replace: stop it. Allow: run both.",
        default="Forbid",
        choices=("Forbid", "Replace", "Allow"),
    )
    missed: str = spec(
        "Times that passed while nothing could start them. Skip: none is made up for. RunOnce: the "
        "latest is.",
        default="Skip",
        choices=("Skip", "RunOnce"),
    )
    start_within: float = spec(
        "A run that could not be started so long after its time is missed.",
        default=60.0,
        parse=duration_s,
        shown_type="duration such as 5m",
        unit="s",
        minimum=1,
        maximum=7 * 86_400.0,
    )
    suspended: bool = spec("Start nothing for now.", default=False)
    keep_succeeded: int = spec("Runs that are kept.", default=3, minimum=0, maximum=100)
    keep_failed: int = spec("Failed runs that are kept.", default=3, minimum=0, maximum=100)
