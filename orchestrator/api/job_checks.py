"""What apply has against a job or a schedule, beyond its schema. Called by apply.

Only a changed spec is checked: a time zone that vanishes with an update of its database does not
stand in the way of a label.
"""

from orchestrator.domain.cron import BadSchedule, check
from orchestrator.domain.jobs import Phase
from orchestrator.domain.jobs_step import JOB
from orchestrator.records import KeptRecord, StoredResource
from polder.manifest import WorkloadSpec


def not_schedulable(
    spec: WorkloadSpec, existing: StoredResource | None, now: float
) -> list[tuple[str, str]]:
    """(field, text with what to do). `now`: unix seconds."""
    found = []
    before = existing.spec.get("run", "always") if existing is not None else spec.run
    if spec.run != before:
        text = f"is fixed: {before}; delete the workload and apply it again, or use another name"
        found.append(("spec.run", text))
    if spec.schedule is not None:
        try:
            check(spec.schedule.cron, spec.schedule.time_zone, now)
        except BadSchedule as error:
            found.append((f"spec.schedule.{error.field}", f"{error}; {error.hint}"))
    return found


def ended_warnings(
    existing: StoredResource | None, record: StoredResource, kept: KeptRecord | None
) -> list[str]:
    """For who changes a job that is over. `kept`: the leader's record of it."""
    if existing is None or existing.spec == record.spec or kept is None:
        return []
    phase = str(kept.body.get(JOB, {}).get("phase", Phase.RUNNING.value))
    if record.decoded.schedule is not None or phase == Phase.RUNNING.value:
        return []
    text = f"the job {record.name} is over ({phase}) and does not run again"
    return [f"{text}; delete it first, or use another name"]
