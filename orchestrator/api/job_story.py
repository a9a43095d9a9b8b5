"""What comes next for a job, one of its replicas, or a schedule. Pure; called by `telling.py`."""

from collections.abc import Iterator

from orchestrator.api.foretelling import Ahead
from orchestrator.domain.cron import Calendar
from orchestrator.domain.jobs import JobState, backoff_s
from orchestrator.domain.jobs_step import JOB
from orchestrator.domain.schedules import moment
from orchestrator.records import KeptRecord, StoredResource
from polder.manifest.job import Job, Schedule
from polder.manifest.quantity import format_duration


def ahead_of_job(
    record: StoredResource, kept: KeptRecord | None, leader: str, now: float, replica: str = ""
) -> tuple[Ahead, ...]:
    """`replica`: of which to tell; empty: of the whole. `now`: unix seconds. Times of deadlines
    are by the clock on the wall; what decides is a clock that does not jump."""
    if record.spec.get("run") != "once" or record.deletion_requested_at_ms:
        return ()
    spec = record.decoded
    if spec.schedule is not None:
        return tuple(_schedule(spec.schedule, leader, now))
    try:
        job = JobState.from_body(kept.body[JOB]) if kept is not None else None
    except (ValueError, TypeError, KeyError):
        text = "nothing: the leader's record of it is of another version"
        return (Ahead(leader, "RecordUnreadable", text, warning=True),)
    if job is None:
        return ()
    index = replica.rpartition("-")[2]
    found = list(_replica(job, spec.job_rules, leader, int(index))) if index.isdecimal() else []
    return (*found, *_whole(job, spec.job_rules, leader))


def _schedule(rules: Schedule, leader: str, now: float) -> Iterator[Ahead]:
    if rules.suspended:
        yield Ahead(leader, "Suspended", "no run starts while schedule.suspended is true")
        return
    at = Calendar(rules.cron, rules.time_zone).next_after(now)
    if at is None:
        text = f"no run starts: {rules.cron!r} in {rules.time_zone} never fires again"
        yield Ahead(leader, "NeverFires", text, warning=True)
    else:
        yield Ahead(leader, "NextRun", f"a run starts at {moment(at)}", _ms(at))


def _replica(job: JobState, rules: Job, leader: str, index: int) -> Iterator[Ahead]:
    if index in job.succeeded:
        yield Ahead(leader, "Succeeded", "it is done, and does not run again")
    elif index in job.failed_at_s and not job.phase.ended:
        count = job.failures.get(index, 0)
        wait = format_duration(backoff_s(count))
        text = f"attempt {count + 1} of {rules.retries + 1} begins {wait} after it failed"
        yield Ahead(leader, "JobRetry", text)


def _whole(job: JobState, rules: Job, leader: str) -> Iterator[Ahead]:
    if job.phase.ended:
        text = f"it is deleted, with its logs, {format_duration(rules.ttl)} after its end (job.ttl)"
        yield Ahead(leader, "TimeToLive", text, _ms(job.finished_at + rules.ttl))
    elif rules.deadline:
        text = f"the job fails if it takes longer than {format_duration(rules.deadline)}"
        yield Ahead(leader, "Deadline", text, _ms(job.started_at + rules.deadline))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
