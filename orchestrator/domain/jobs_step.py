"""The part of a tick that is about jobs: the world in; writes, events and orders for the plan out.

Called by `orchestrator/scheduling/steer.py` before the rollouts and the plan. Jobs are worked off
before schedules, which look at what became of their runs. Pure: the machines are `jobs.py` and
`schedules.py`, and `jobs_runs.py` makes the records of a schedule's runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.domain.jobs import (
    COUNTED_MAX,
    NEVER,
    Ending,
    Event,
    Failed,
    Instructions,
    JobState,
    Phase,
    Stay,
    Succeeded,
    TimePassed,
    advance,
    backoff_s,
    forget_stays,
    instruct,
)
from orchestrator.records import AssignmentRecord, KeptRecord, StoredResource
from orchestrator.scheduling.snapshot import Node, Snapshot, Workload
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from orchestrator.store import keys
from polder.manifest.job import Job

JOB, SCHEDULE = "job", "schedule"
"""Which of the two a record under `keys.JOBS` is about: its only key."""
SAVE_MIN_S = 15.0
SAVE_MAX_S = 3_600.0
SAVED_AT_ONCE_MAX = 20
"""Records that are written in one tick only because time passed; the longest overdue first."""


@dataclass(frozen=True, slots=True)
class JobsMemory:
    """What was seen since this leader began. `steady` None: nothing yet. `elapsed_s` is by workload
    uid; `states` what was read of a record, with its store revision."""

    steady: float | None = None
    elapsed_s: Mapping[str, float] = field(default_factory=dict)
    states: Mapping[str, tuple[int, JobState]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A stay of a job as the placements and its agent tell it."""

    node: Node | None
    record: AssignmentRecord
    index: int
    finished: bool = False
    failed: bool = False
    reason: str = ""

    @property
    def stay(self) -> Stay:
        leaving = ""
        if self.finished and self.node is not None:
            if self.node.deleting:
                leaving = f"node {self.node.name} is being deleted"
            elif self.node.draining:
                leaving = f"node {self.node.name} is being drained"
        uid, epoch = self.record.replica_uid, self.record.epoch
        return Stay(self.index, uid, epoch, over=self.finished, leaving=leaving)


class JobsTick:
    """One tick in the making: `jobs_runs.py` goes on where `run_jobs` ends."""

    def __init__(self, world: World, memory: JobsMemory, moment: Moment) -> None:
        self.world = world
        self.moment = moment
        self.memory = memory
        self.batches: list[Batch] = []
        self._said: dict[str, list[Tell]] = {}  # by workload uid, until a write takes them along
        self.due_s = NEVER
        self.records = {
            record.uid: record for record in world.workloads if record.spec.get("run") == "once"
        }
        self.workloads = {item.uid: item for item in world.snapshot.workloads if item.once}
        self.stays = _stays(world.snapshot, self.workloads)
        self.states: dict[str, JobState] = {}
        self._elapsed_s: dict[str, float] = {}
        self._seen: dict[str, tuple[int, JobState]] = {}
        self._removed: set[str] = set()
        self._aged: list[tuple[float, str, JobState]] = []

    @property
    def now_ms(self) -> int:
        return int(self.moment.now * 1000)

    def kept(self, uid: str) -> KeptRecord | None:
        return self.world.kept.get(keys.job(uid))

    # --- jobs ------------------------------------------------------------------------------------

    def run_jobs(self) -> None:
        """Every job that is not being deleted."""
        for uid, workload in list(self.workloads.items()):
            record = self.records.get(uid)
            if record is None or workload.deleting or record.decoded.schedule is not None:
                continue
            try:
                stored = self._stored(uid)
            except (ValueError, TypeError, KeyError):
                # Of another version. Taken as a new job, everything would run once more.
                self.workloads[uid] = replace(workload, frozen=True)
                continue
            self._run_job(workload, record, stored)
        for _, uid, state in sorted(self._aged, key=lambda item: -item[0])[:SAVED_AT_ONCE_MAX]:
            self.write_state(uid, {JOB: state.to_body()})

    def _stored(self, uid: str) -> JobState | None:
        kept = self.kept(uid)
        if kept is None or JOB not in kept.body:
            return None
        known = self.memory.states.get(uid)
        if known is None or known[0] != kept.store_revision:
            known = (kept.store_revision, JobState.from_body(kept.body[JOB]))
        self._seen[uid] = known
        return known[1]

    def _run_job(self, workload: Workload, record: StoredResource, stored: JobState | None) -> None:
        rules: Job = record.decoded.job_rules
        placed = self.stays.get(workload.uid, [])
        state = stored or JobState(started_at=self.moment.now)
        elapsed_s = self._elapsed(workload.uid, state)
        state = replace(state, elapsed_s=max(state.elapsed_s, elapsed_s))
        state = forget_stays(state, [item.record.replica_uid for item in placed])
        for event in _events(placed):
            if len(state.counted) >= COUNTED_MAX:
                self.due_s = 0.0
                break
            after = advance(state, event, rules, self.moment.now)
            self._tell_of(record, state, after, event, rules)
            state = after
        if not workload.frozen:
            after = advance(state, TimePassed(elapsed_s), rules, self.moment.now)
            self._tell_of(record, state, after, None, rules)
            state = after
        self.states[workload.uid] = state
        self._save(workload.uid, stored, state, rules)
        orders = instruct(state, rules, [item.stay for item in placed])
        self.workloads[workload.uid] = ordered(workload, orders)
        if workload.frozen:
            return
        self.due_s = min(self.due_s, orders.due_s)
        if orders.remove:
            self._expire(record, stored, rules)

    def _elapsed(self, uid: str, state: JobState) -> float:
        """Since the job started; what passed while nobody led is not counted."""
        passed_s = 0.0
        if self.memory.steady is not None and uid in self.memory.elapsed_s:
            passed_s = max(0.0, self.moment.steady - self.memory.steady)
        self._elapsed_s[uid] = self.memory.elapsed_s.get(uid, state.elapsed_s) + passed_s
        return self._elapsed_s[uid]

    def _save(self, uid: str, stored: JobState | None, state: JobState, rules: Job) -> None:
        """What happened at once; the time alone now and then, as precisely as it matters."""
        if stored is not None and replace(state, elapsed_s=stored.elapsed_s) == stored:
            due = (state.elapsed_s - stored.elapsed_s) / save_every_s(state, rules)
            if due >= 1.0:
                self._aged.append((due, uid, state))
            return
        self.write_state(uid, {JOB: state.to_body()})

    def _expire(self, record: StoredResource, stored: JobState | None, rules: Job) -> None:
        if stored is None or not stored.phase.ended:
            self.due_s = 0.0  # first its end is written down
            return
        text = f"its job ended more than {rules.ttl:g} s ago, its time to live"
        self.tell(record, False, "JobRemoved", text)
        self.remove(record)

    def _tell_of(
        self,
        record: StoredResource,
        before: JobState,
        after: JobState,
        event: Event | None,
        rules: Job,
    ) -> None:
        if isinstance(event, Failed) and after.failed > before.failed:
            count = after.failures[event.index]
            why = f" ({event.reason})" if event.reason else ""
            text = f"replica {record.name}-{event.index} failed{why}"
            if not after.phase.ended:
                text += f"; attempt {count + 1} of {rules.retries + 1} in {backoff_s(count):g} s"
            self.tell(record, True, "ReplicaFailed", text)
        if after.phase is not before.phase:
            failed = after.phase is not Phase.COMPLETE
            self.tell(record, failed, f"Job{after.phase.value}", after.message)

    # --- for jobs_runs.py too --------------------------------------------------------------------

    def write_state(self, uid: str, body: dict[str, object], *more: Write) -> None:
        """The record of a job or schedule, in one transaction with `more`."""
        key, kept = keys.job(uid), self.kept(uid)
        value = KeptRecord(key, body).to_bytes()
        write = Write(key, value, kept.store_revision if kept is not None else 0)
        self._add(uid, write, *more)

    def remove(self, record: StoredResource, ending: Ending | None = None) -> None:
        """A tombstone; `ending`: why its replicas stop, if that is not decided yet."""
        if record.uid in self._removed or record.deletion_requested_at_ms:
            return
        self._removed.add(record.uid)
        marked = replace(
            record,
            deletion_requested_at_ms=self.now_ms,
            changed_by="leader",
            changed_at_ms=self.now_ms,
        )
        key = keys.spec(*record.ref)
        self._add(record.uid, Write(key, marked.to_bytes(), record.store_revision))
        workload = self.workloads.get(record.uid)
        if ending is not None and workload is not None:
            every = {p.record.replica_uid: ending for p in self.stays.get(record.uid, [])}
            self.workloads[record.uid] = ordered(workload, Instructions(ending=every))

    def tell(self, record: StoredResource, warning: bool, reason: str, message: str) -> None:
        """Together with the next write that is about the record."""
        said = Tell("Workload", record.namespace, record.name, warning, reason, message)
        self._said.setdefault(record.uid, []).append(said)

    def _add(self, uid: str, *writes: Write) -> None:
        self.batches.append(Batch(writes, tuple(self._said.pop(uid, ()))))

    @property
    def tells(self) -> tuple[Tell, ...]:
        """What no write goes with."""
        return tuple(tell for said in self._said.values() for tell in said)

    def forget_records(self) -> None:
        """Of workloads that are gone, unless a node still holds a replica of theirs."""
        useless = {
            key.removeprefix(keys.JOBS): Write(key, None, kept.store_revision)
            for key, kept in self.world.kept.items()
            if key.startswith(keys.JOBS) and key.removeprefix(keys.JOBS) not in self.records
        }
        if not useless:
            return
        present = {record.uid for record in self.world.workloads}
        orphaned = {
            item.workload_uid
            for placement in self.world.snapshot.placements.values()
            for item in placement.assignments
            if item.workload_uid not in present
        }
        self.batches += [Batch((write,)) for uid, write in useless.items() if uid not in orphaned]

    def snapshot(self) -> Snapshot:
        before = self.world.snapshot
        return replace(
            before, workloads=tuple(self.workloads.get(w.uid, w) for w in before.workloads)
        )

    def remembered(self) -> JobsMemory:
        return JobsMemory(self.moment.steady, self._elapsed_s, self._seen)


def ordered(workload: Workload, orders: Instructions) -> Workload:
    """The workload as the plan is to see it."""
    return replace(
        workload,
        indexes=orders.indexes,
        resting=orders.resting,
        ending={uid: (end.cause.value, end.message) for uid, end in orders.ending.items()},
    )


def save_every_s(state: JobState, rules: Job) -> float:
    """A new leader goes on from the time that was saved: that much it may be wrong."""
    if state.phase.ended:
        return min(SAVE_MAX_S, max(SAVE_MIN_S, rules.ttl / 20))
    if rules.deadline:
        return min(300.0, max(SAVE_MIN_S, rules.deadline / 20))
    return 30.0 if state.failed_at_s else SAVE_MAX_S


def _events(placed: list[Placed]) -> list[Event]:
    """What agents report, successes first. What is counted already the machine knows."""
    found: list[Event] = [
        Failed(item.index, item.record.replica_uid, item.reason)
        if item.failed
        else Succeeded(item.index, item.record.replica_uid)
        for item in placed
        if item.finished
    ]
    return sorted(found, key=lambda event: isinstance(event, Failed))


def _stays(snapshot: Snapshot, jobs: Mapping[str, Workload]) -> dict[str, list[Placed]]:
    """By workload uid: one walk over the placements, and only if there is a job."""
    found: dict[str, list[Placed]] = {}
    if not jobs:
        return found
    nodes = {node.name: node for node in snapshot.nodes}
    for name, placement in snapshot.placements.items():
        for item in placement.assignments:
            job = jobs.get(item.workload_uid)
            index = _index(job, item.replica) if job is not None else None
            if index is None:
                continue
            seen = snapshot.observed.get((name, item.replica_uid))
            ended = seen is not None and seen.finished
            found.setdefault(item.workload_uid, []).append(
                Placed(
                    nodes.get(name),
                    item,
                    index,
                    finished=ended,
                    failed=ended and seen is not None and seen.failed,
                    reason=seen.reason if seen is not None else "",
                )
            )
    return found


def _index(job: Workload, replica: str) -> int | None:
    """Of a name that a job gives; None for what it was called as another kind of workload."""
    prefix, _, number = replica.rpartition("-")
    if prefix != job.name or not number.isdecimal() or str(int(number)) != number:
        return None
    return int(number)
