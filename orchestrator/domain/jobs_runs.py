"""Schedules in a tick: the runs that start, what became of them, and which go. Pure.

Called by `orchestrator/scheduling/steer.py`. A run is a Workload of its own, made in the same
transaction as the record that its time has been used, under a name that its time gives: whatever
fails in between, and whoever leads then, a time starts one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

from orchestrator.domain import schedules
from orchestrator.domain.cron import BadSchedule, check
from orchestrator.domain.jobs import NEVER, Ending, Instructions, JobState
from orchestrator.domain.jobs_step import SCHEDULE, JobsMemory, JobsTick, ordered
from orchestrator.domain.schedules import Decision, Run, ScheduleState, decide
from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.snapshot import Snapshot, Workload
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from orchestrator.store import keys
from polder.manifest import digest
from polder.manifest.job import Schedule

SCHEDULED_BY = "polder.eu/scheduled-by"
"""Label of a run: the name of its schedule."""
SCHEDULE_UID = "polder.eu/schedule-uid"
SCHEDULED_AT = "polder.eu/scheduled-at"
"""Annotations of a run: whose it is, and for which time."""


@dataclass(frozen=True, slots=True)
class JobsStep:
    """What jobs make of a tick. `snapshot` is the world's, with what jobs want of the plan. `tells`
    go with no write."""

    snapshot: Snapshot
    batches: tuple[Batch, ...] = ()
    tells: tuple[Tell, ...] = ()
    memory: JobsMemory = JobsMemory()
    due_s: float = NEVER


def step_jobs(world: World, memory: JobsMemory, moment: Moment) -> JobsStep:
    """All jobs and schedules, once. An incomplete world changes nothing."""
    if not world.snapshot.complete:
        return JobsStep(world.snapshot, memory=memory)
    tick = JobsTick(world, memory, moment)
    if not tick.workloads and not any(key.startswith(keys.JOBS) for key in world.kept):
        return JobsStep(world.snapshot, memory=tick.remembered())
    tick.run_jobs()
    _run_schedules(tick)
    tick.forget_records()
    return JobsStep(tick.snapshot(), tuple(tick.batches), tick.tells, tick.remembered(), tick.due_s)


def _run_schedules(tick: JobsTick) -> None:
    runs: dict[str, list[StoredResource]] = {}
    for record in tick.records.values():
        owner = record.annotations.get(SCHEDULE_UID)
        if owner is not None:
            runs.setdefault(owner, []).append(record)
    for uid, workload in list(tick.workloads.items()):
        parent = tick.records.get(uid)
        if parent is None or parent.decoded.schedule is None:
            continue
        mine = [run for run in runs.get(uid, []) if run.namespace == parent.namespace]
        if workload.deleting:
            for run in mine:
                tick.remove(run)
        else:
            _ScheduleTick(tick, workload, parent, mine).run()


class _ScheduleTick:
    """One schedule in one tick."""

    def __init__(
        self,
        tick: JobsTick,
        workload: Workload,
        parent: StoredResource,
        runs: list[StoredResource],
    ) -> None:
        self._tick = tick
        self._workload = workload
        self._parent = parent
        self._runs = runs
        self._rules: Schedule = parent.decoded.schedule

    def run(self) -> None:
        tick, now = self._tick, self._tick.moment.now
        tick.workloads[self._workload.uid] = ordered(self._workload, Instructions())
        try:
            stored = self._stored()
        except (ValueError, TypeError, KeyError):
            return  # of another version: what it started already is not known, so nothing starts
        active = [run for run in self._runs if self._is_active(run)]
        decision = decide(
            stored,
            self._rules,
            now,
            since=self._written_at(),
            active=len(active),
            held=self._workload.frozen or self._rules.suspended,
        )
        self._check_calendar(stored, decision.state)
        for note in decision.notes:
            tick.tell(self._parent, note.warning, note.reason, note.message)
        state = schedules.with_outcomes(decision.state, self._outcomes(decision.state))
        made: tuple[Write, ...] = ()
        if decision.start is not None:
            state, made = self._start(decision, state, active)
        if made or state != stored:
            tick.write_state(self._parent.uid, {SCHEDULE: state.to_body()}, *made)
        if not self._workload.frozen:
            self._trim()
        tick.due_s = min(tick.due_s, max(0.0, decision.next_at - now))

    def _stored(self) -> ScheduleState | None:
        kept = self._tick.kept(self._parent.uid)
        if kept is None or SCHEDULE not in kept.body:
            return None
        return ScheduleState.from_body(kept.body[SCHEDULE])

    def _written_at(self) -> float:
        """When the operator wrote it, unix seconds: what comes due from then on counts."""
        return max(self._parent.created_at_ms, self._parent.changed_at_ms) / 1000

    def _check_calendar(self, stored: ScheduleState | None, state: ScheduleState) -> None:
        """Once, when it is new: the time zones of this machine may be others than the API's."""
        if stored is not None and stored.calendar == state.calendar:
            return
        try:
            check(self._rules.cron, self._rules.time_zone, self._tick.moment.now)
        except BadSchedule as error:
            self._tick.tell(self._parent, True, "ScheduleUnreadable", str(error))

    # --- runs ------------------------------------------------------------------------------------

    def _is_active(self, run: StoredResource) -> bool:
        state = self._tick.states.get(run.uid)
        return not run.deletion_requested_at_ms and (state is None or not state.phase.ended)

    def _start(
        self, decision: Decision, state: ScheduleState, active: list[StoredResource]
    ) -> tuple[ScheduleState, tuple[Write, ...]]:
        tick, parent, at = self._tick, self._parent, decision.start
        assert at is not None
        name = schedules.run_name(parent.name, at)
        if any(
            (other.namespace, other.name) == (parent.namespace, name)
            for other in tick.world.workloads
        ):
            text = f"the run of {schedules.moment(at)} is not started: {name} exists already"
            tick.tell(parent, True, "RunExists", text)
            return state, ()
        outcomes: dict[str, Run] = {}
        if decision.replace:
            why = Ending(Cause.REPLACED, f"the next run, {name}, takes its place")
            for run in active:
                tick.remove(run, why)
                outcomes[run.name] = Run(run.name, run_at(run), "Replaced", tick.moment.now)
        state = schedules.with_outcomes(state, outcomes)
        tick.tell(parent, False, "RunStarted", f"started {name} for {schedules.moment(at)}")
        made = made_run(parent, name, at, tick.now_ms, tick.world.snapshot.revision)
        return schedules.started(state, Run(name, at)), made

    def _outcomes(self, state: ScheduleState) -> Mapping[str, Run]:
        """Of the runs that are over, or gone without a word."""
        present = {run.name: run for run in self._runs}
        found = {}
        for run in state.runs:
            if run.outcome:
                continue
            record = present.get(run.name)
            job = self._tick.states.get(record.uid) if record is not None else None
            if job is not None and job.phase.ended:
                found[run.name] = _ended(run, job)
            elif record is None or record.deletion_requested_at_ms:
                found[run.name] = Run(run.name, run.at, "Deleted", self._tick.moment.now)
        return found

    def _trim(self) -> None:
        ended = []
        for run in self._runs:
            job = self._tick.states.get(run.uid)
            if job is not None and job.phase.ended and not run.deletion_requested_at_ms:
                ended.append((Run(run.name, run_at(run)), job.phase.value))
        by_name = {run.name: run for run in self._runs}
        for name in schedules.surplus(ended, self._rules):
            text = f"schedule {self._parent.name} keeps no more runs that are over"
            self._tick.remove(by_name[name], Ending(Cause.COMPLETED, text))


def _ended(run: Run, job: JobState) -> Run:
    return Run(run.name, run.at, job.phase.value, job.finished_at, job.message)


def run_at(run: StoredResource) -> float:
    """The time of the schedule for which a run was started, unix seconds."""
    try:
        return datetime.fromisoformat(run.annotations.get(SCHEDULED_AT, "")).timestamp()
    except ValueError:
        return run.created_at_ms / 1000


def made_run(
    parent: StoredResource, name: str, at: float, now_ms: int, revision: int
) -> tuple[Write, ...]:
    """The run and its template. `revision` is the snapshot's: a name that comes again is another
    run, with a uid of its own."""
    seed = f"{parent.uid}\0{name}\0{revision}".encode()
    uid = str(UUID(bytes=blake2b(seed, digest_size=16).digest(), version=4))
    spec = {key: value for key, value in parent.spec.items() if key != "schedule"}
    record = StoredResource(
        kind="Workload",
        namespace=parent.namespace,
        name=name,
        uid=uid,
        spec=spec,
        labels={**parent.labels, SCHEDULED_BY: parent.name},
        annotations={
            SCHEDULE_UID: parent.uid,
            SCHEDULED_AT: datetime.fromtimestamp(at, UTC).isoformat(),
        },
        created_at_ms=now_ms,
        template_revision=1,
        changed_by="leader",
        changed_at_ms=now_ms,
    )
    template = TemplateRevision(
        uid, 1, spec["template"], digest(parent.decoded.template), now_ms, created_by="leader"
    )
    return (
        Write(keys.spec(*record.ref), record.to_bytes(), 0),
        Write(keys.revision(uid, 1), template.to_bytes(), 0),
    )
