"""What apply has against a job or a schedule, beyond its schema. Called by apply.

Only a changed spec is checked: a time zone that vanishes with an update of its database does not
stand in the way of a label.
"""

from orchestrator.domain.cron import BadSchedule, check
from orchestrator.records import StoredResource
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
