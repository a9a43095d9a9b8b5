"""What operators see of jobs and schedules, on top of a workload's status.

Pure; called by `catalog.py`. The leader's record counts, also while it is not heard: what is
written there has happened. Times are unix milliseconds; 0 means not yet, or never.
"""

from collections.abc import Sequence
from typing import Any

from orchestrator.api.views import LeaderView, Status
from orchestrator.domain.cron import Calendar
from orchestrator.domain.jobs import JobState, Phase, backoff_s
from orchestrator.domain.jobs_step import JOB, SCHEDULE
from orchestrator.domain.schedules import Run, ScheduleState, moment
from orchestrator.records import KeptRecord, StoredResource
from polder.manifest.job import Job, Schedule
from polder.statuses import condition

RETRYING_SHOWN = 20
_ENDED = ("Succeeded", "Failed")


def with_job(
    status: Status,
    workload: StoredResource,
    kept: KeptRecord | None,
    replicas: Sequence[Status],
    leader: LeaderView,
    now_ms: int,
) -> Status:
    """`status`: as of any workload. `replicas`: the status of every stay."""
    spec = workload.decoded
    try:
        if spec.schedule is not None:
            body = kept.body.get(SCHEDULE) if kept is not None else None
            state = ScheduleState.from_body(body) if body is not None else None
            return {**status, **_schedule(status, workload, spec.schedule, state, now_ms)}
        body = kept.body.get(JOB) if kept is not None else None
        job = JobState.from_body(body) if body is not None else JobState()
    except (ValueError, TypeError, KeyError):
        return {
            **status,
            "phase": "Unknown",
            "reason": "RecordUnreadable",
            "message": "the leader's record of it is of another version",
        }
    return {**status, **_job(status, workload, spec.job_rules, job, replicas, leader, now_ms)}


def _job(
    status: Status,
    workload: StoredResource,
    rules: Job,
    job: JobState,
    replicas: Sequence[Status],
    leader: LeaderView,
    now_ms: int,
) -> Status:
    succeeded = job.succeeded.below(rules.completions)
    found: Status = {
        "job": {
            "completions": rules.completions,
            "succeeded": succeeded,
            "active": sum(replica["phase"] not in _ENDED for replica in replicas),
            "failed": job.failed,
            "retrying": _retrying(workload, job),
            "startedAt": _ms(job.started_at),
            "finishedAt": _ms(job.finished_at),
            "outcome": job.phase.value if job.phase.ended else "",
            "message": job.message,
            "ttlSeconds": rules.ttl,
        },
        "conditions": _conditions(status, job, leader, now_ms),
    }
    if workload.deletion_requested_at_ms:
        return found
    if job.phase.ended:
        return {
            **found,
            "phase": job.phase.value,
            "reason": "",
            "message": job.message,
            "observedGeneration": workload.generation,
            "unplaced": [],
        }
    found["message"] = status["message"] or f"{succeeded} of {rules.completions} completed"
    if status["phase"] == "Unknown":
        return found
    if status["running"]:
        return {**found, "phase": "Running", "reason": ""}
    if found["job"]["retrying"] and not status["unplaced"]:
        return {**found, "phase": "Pending", "reason": "BackOff"}
    return {**found, "phase": "Pending"}


def _retrying(workload: StoredResource, job: JobState) -> list[Status]:
    """Replicas that failed and are tried again, the next one first."""
    if job.phase.ended:
        return []
    waits = sorted(
        (job.failed_at_s[index] + backoff_s(job.failures.get(index, 0)), index)
        for index in job.failed_at_s
    )
    return [
        {"replica": f"{workload.name}-{index}", "failures": job.failures.get(index, 0)}
        for _, index in waits[:RETRYING_SHOWN]
    ]


def _conditions(status: Status, job: JobState, leader: LeaderView, now_ms: int) -> list[Status]:
    """Instead of Ready, which a job's replicas need never be."""
    kept = [c for c in status["conditions"] if c["type"] != "Ready"]
    if job.phase.ended:
        kept = [c for c in kept if c["type"] != "Placed"]
    failed = job.phase.ended and job.phase is not Phase.COMPLETE
    common: dict[str, Any] = {"since_ms": _ms(job.finished_at), "heard_ms": now_ms}
    complete = condition("Complete", job.phase is Phase.COMPLETE, leader.source, **common)
    bad = condition(
        "Failed",
        failed,
        leader.source,
        reason=job.phase.value if failed else "",
        message=job.message if failed else "",
        **common,
    )
    return [*kept, complete, bad]


def _schedule(
    status: Status,
    workload: StoredResource,
    rules: Schedule,
    state: ScheduleState | None,
    now_ms: int,
) -> Status:
    calendar = Calendar(rules.cron, rules.time_zone)
    next_at = None if rules.suspended else calendar.next_after(now_ms / 1000)
    runs = state.runs if state is not None else ()
    found: Status = {
        "schedule": {
            "nextAt": _ms(next_at or 0.0),
            "lastAt": _ms(state.fired[-1]) if state is not None and state.fired else 0,
            "suspended": rules.suspended,
            "active": [run.name for run in runs if not run.outcome],
            "runs": [_run(run) for run in reversed(runs)],
        },
        "conditions": [],
        "unplaced": [],
    }
    if workload.deletion_requested_at_ms:
        return found
    found["observedGeneration"] = workload.generation if state is not None else 0
    found["reason"], found["phase"] = "", "Suspended" if rules.suspended else "Scheduled"
    found["message"] = f"next run at {moment(next_at)}" if next_at is not None else "no next run"
    return found


def _run(run: Run) -> Status:
    return {
        "name": run.name,
        "scheduledAt": _ms(run.at),
        "outcome": run.outcome,
        "finishedAt": _ms(run.finished_at),
        "message": run.message,
    }


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
