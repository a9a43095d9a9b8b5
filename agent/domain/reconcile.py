"""The agent's state machine: events in, instructions out.

`agent/supervisor.py` owns one Reconciler, feeds it everything that happens and executes what it
asks for. It decides alone and without I/O; the table that it follows is in `situation.py`.

What holds at any time, whatever arrives in which order:

- Nothing is stopped but for a cause: a Stop in the plan, another template for the same replica, a
  holder of the same replica with a higher epoch, a hold that the site laid over the plan, an
  operator's restart, a second pod of one stay, a sandbox that is dead already, failed liveness, or
  a failed neighbour in a pod that is to run once. Absence from a plan, an empty plan, a lost
  runtime or a restart of the agent is no cause.
- Of one replica at most one operation on its pod is under way, and none while the outcome of the
  last one is unknown: then the runtime is looked at first.
- A pod whose template digest matches is adopted as it is.
"""

from collections.abc import Iterable, Mapping

from agent.domain import answers, compose, labels, once, pods, report
from agent.domain.containers import Turn, serve
from agent.domain.devices import allocate, taken
from agent.domain.given import given_by
from agent.domain.instructions import (
    DeleteLogs,
    DevicesFound,
    Done,
    Event,
    ExitRead,
    Failed,
    Instruction,
    Operation,
    PlanAccepted,
    PodsListed,
    Probed,
    Publish,
    PublishGone,
    RemovePod,
    RestartAsked,
    RunPod,
    RuntimeLost,
    StartContainer,
    Tick,
)
from agent.domain.plan import Assignment, ParsedPlan
from agent.domain.record import Cause, Record
from agent.domain.renewal import renew
from agent.domain.situation import Situation, classify
from agent.domain.view import ReplicaView
from agent.runtime.port import PodState
from polder.manifest import Container

SANDBOX_DIED = Cause("SandboxNotReady", "the pod's sandbox is dead", at_once=True)
ONE_TOO_MANY = Cause("DuplicatePod", "another pod of this replica exists", at_once=True)


class Reconciler:
    """All replicas of the node. `now`: seconds of a clock that never jumps."""

    def __init__(self, settings: compose.Settings) -> None:
        self._settings = settings
        self._plan: ParsedPlan | None = None
        self._by_name: dict[tuple[str, str], Assignment] = {}
        self._devices: Mapping[str, tuple[str, ...]] = {}
        self._records: dict[str, Record] = {}
        self._observed = False  # the runtime was seen at least once
        self._down = False  # and does not answer now
        self._listings = 0

    # ---- what the supervisor reads ----

    def listing_token(self) -> int:
        """Take one before asking the runtime for its pods; it goes into PodsListed."""
        self._listings += 1
        return self._listings

    def next_due(self) -> float | None:
        """When to send a Tick at the latest; None: nothing waits for time to pass."""
        return min((r.due for r in self._records.values() if r.due is not None), default=None)

    def views(self) -> list[ReplicaView]:
        """Every replica, as published last."""
        return [r.published for r in self._records.values() if r.published is not None]

    def gone(self) -> list[str]:
        """Replica uids that the plan wants stopped and of which nothing is left."""
        if self._plan is None or not self._observed:
            return []
        return [uid for uid in self._plan.stops if uid not in self._records]

    def pods_of(self, uid: str) -> list[PodState]:
        """The replica's pods, the one that counts first. Empty for an unknown replica."""
        record = self._records.get(uid)
        if record is None:
            return []
        main = record.main_pod()
        return sorted(record.pods.values(), key=lambda p: p is not main)

    def restartable(self, uid: str) -> bool:
        """Whether something of it runs that may be made again: not what runs once, or an orphan."""
        record = self._records.get(uid)
        if record is None or record.main_pod() is None or record.once:
            return False
        return record.assigned and record.hold is None and pods.usable(record)

    def pods(self) -> Iterable[PodState]:
        return (p for r in self._records.values() for p in r.pods.values())

    def settled(self, now: float) -> bool:
        """Whether the runtime was seen and every probe that is due has run once."""
        return self._observed and not any(
            state.runs == 0 and state.due_at <= now
            for r in self._records.values()
            for memory in r.containers.values()
            for state in memory.probes.values()
        )

    # ---- events ----

    def handle(self, event: Event, now: float, wall: float = 0.0) -> list[Instruction]:
        """What is to be done because of the event. Answers to unknown operations are dropped.

        `wall`: unix seconds by the box's clock. It is never before the plan in use was issued.
        """
        turn = Turn(
            now,
            self._settings,
            given_by(self._plan),
            self._allocate,
            max(wall, self._plan.issued_at if self._plan is not None else 0.0),
        )
        match event:
            case PlanAccepted(plan):
                touched = self._plan_accepted(plan, turn)
            case PodsListed(listed, token):
                touched = self._listed(listed, token)
            case RuntimeLost():
                self._down = True
                touched = []
            case DevicesFound(devices):
                self._devices = devices
                touched = list(self._records.values())
            case RestartAsked(uid, why):
                touched = [self._records[uid]] if self.restartable(uid) else []
                for record in touched:
                    record.restart = Cause("RestartedLocally", why)
            case Tick():
                touched = [r for r in self._records.values() if r.due is not None and r.due <= now]
            case _:
                touched = self._answered(event, turn)
        for record in touched:
            self._step(record, turn)
        return turn.out

    def _plan_accepted(self, plan: ParsedPlan, turn: Turn) -> list[Record]:
        given = given_by(plan)
        renewed = given != turn.given
        self._plan = plan
        turn.given = given
        turn.wall = max(turn.wall, plan.issued_at)
        # Of two stays of one replica the newer one counts.
        by_epoch = sorted(plan.assignments.values(), key=lambda a: a.epoch)
        self._by_name = {(a.namespace, a.replica): a for a in by_epoch}
        for wanted in plan.assignments.values():
            if wanted.replica_uid not in self._records:
                self._records[wanted.replica_uid] = Record(
                    wanted.replica_uid, wanted.namespace, wanted.replica
                )
        for stop in plan.stops.values():
            if stop.replica_uid not in self._records:
                self._records[stop.replica_uid] = Record(
                    stop.replica_uid, stop.namespace, stop.replica
                )
        for record in self._records.values():
            self._desire(record, turn)
            pods.forget_images(record, turn)
            if renewed:
                for image in record.images.values():
                    image.retry.hurry(turn.now)
                record.files.retry.hurry(turn.now)
        return list(self._records.values())

    def _desire(self, record: Record, turn: Turn) -> None:
        """What the plan in use wants of the replica."""
        plan = self._plan
        if plan is None:
            return
        wanted, stop = plan.assignments.get(record.uid), plan.stops.get(record.uid)
        if wanted is not None:
            known = record.assignment
            if known is None or (known.digest, known.epoch) != (wanted.digest, wanted.epoch):
                record.pod_retry.succeeded()  # another template, or another tenure
            record.assignment, record.assigned, record.stop = wanted, True, None
            record.hold = plan.held.get(record.uid)
            return
        if record.assigned and stop is None and record.pods:
            turn.emit(
                record, "Orphaned", "no plan names it any more; it keeps running", warning=True
            )
        record.assigned, record.hold = False, None
        record.stop = Cause(stop.cause, stop.message) if stop is not None else None
        successor = self._by_name.get((record.namespace, record.replica))
        if stop is None and successor is not None and successor.epoch > pods.epoch_of(record):
            message = f"{successor.replica_uid} holds this replica with epoch {successor.epoch}"
            record.stop = Cause("Superseded", message)

    def _listed(self, listed: Iterable[PodState], token: int) -> list[Record]:
        """Replicas of which the listing says something new."""
        first = self._down or not self._observed
        self._observed, self._down = True, False
        found: dict[str, dict[str, PodState]] = {}
        for pod in listed:
            identity = labels.identity_of(pod)
            if identity is None:
                continue
            uid = identity.replica_uid
            found.setdefault(uid, {})[pod.id] = pod
            if uid not in self._records:
                record = Record(uid, identity.namespace, identity.replica, fresh_after=token)
                record.pods = {pod.id: pod}  # an orphan, unless the plan knows it
                self._records[uid] = record
                record.blind = True  # so that it is looked at below
        touched = []
        for record in self._records.values():
            if token < record.fresh_after:
                continue
            new = found.get(record.uid, {})
            if first or record.blind or new != record.pods:
                record.pods, record.blind = new, False
                record.doomed = {i: c for i, c in record.doomed.items() if i in new}
                touched.append(record)
        return touched

    def _answered(self, event: Done | Failed | Probed | ExitRead, turn: Turn) -> list[Record]:
        operation: Operation = event.operation
        record = self._records.get(operation.uid)
        if record is None or record.inflight.get(operation.key) is not operation:
            return []
        del record.inflight[operation.key]
        if operation.key[0] in ("pod", "container", "remove"):
            record.fresh_after = self._listings + 1
        match event:
            case Done():
                answers.done(record, operation, event.value, turn)
            case Failed():
                answers.failed(record, event, turn)
            case Probed():
                if not answers.probed(record, event, turn):
                    return []
            case ExitRead():
                answers.exit_read(record, event, turn)
        if isinstance(operation, RemovePod):
            return [record, *self._waiting_for_room(turn)]
        return [record]

    def _waiting_for_room(self, turn: Turn) -> list[Record]:
        """A pod went: its host ports and its name are free for those that wait for them."""
        waiting = []
        for record in self._records.values():
            if record.pod_retry.reason == "HostPortInUse":
                record.pod_retry.hurry(turn.now)
                waiting.append(record)
            elif record.situation is Situation.BLOCKED:
                waiting.append(record)
        return waiting

    # ---- one replica ----

    def _step(self, record: Record, turn: Turn) -> None:
        """Decide anew what is to be done for one replica, and say what is to be said."""
        if not self._observed or record.uid not in self._records:
            return
        record.due = None
        self._desire(record, turn)
        main = record.main_pod()
        pods.recognise(record, main)
        record.verdict = once.verdict(record, main)
        self._doom(record, turn)
        if main is not None and main.id in record.doomed:
            main = record.main_pod()
            pods.recognise(record, main)
        self._judge(record, turn)
        if main is None:
            record.restart = None  # whatever comes next is new
        stays = (
            main is not None and record.restart is None and pods.stays(record, main, self._settings)
        )
        self._find_block(record, main, stays, turn)
        situation = classify(
            doomed=main is None and bool(record.pods),
            has_pod=main is not None,
            assigned=record.assigned and record.stop is None,
            blocked=record.block is not None,
            images_missing=pods.images_missing(record),
            waits=record.pod_retry.waits(turn.now),
            same_template=stays,
            finished=record.verdict is not None,
        )
        pods.enter(record, situation, turn)
        may_act = self._may_act(record, turn)
        if record.doomed:
            pods.retire(record, turn, may_act)
        self._do(situation, record, main, turn, may_act)
        self._publish(record, turn)

    def _do(
        self,
        situation: Situation,
        record: Record,
        main: PodState | None,
        turn: Turn,
        may_act: bool,
    ) -> None:
        """The row of the table in `situation.py`."""
        if main is not None and situation is Situation.FINISHED and record.verdict is not None:
            once.finish(record, main, record.verdict, turn, may_act)
        elif main is not None and record.runs is not None and main.ready:
            # What waits runs on and is probed, but nothing of it starts again.
            serve(record, main, record.runs, turn, may_act and record.hold is None)
            renew(record, main, record.runs, turn)
        match situation:
            case Situation.GONE:
                self._forget(record, turn)
            case Situation.FETCHING if may_act:
                pods.fetch_all(record, turn)
            case Situation.WAITING:
                record.attend(record.pod_retry.until)
            case Situation.CREATING if may_act:
                pods.create(record, turn)
            case Situation.REPLACING if may_act:
                self._replace(record, turn)
            case _:  # BLOCKED waits for the world; what has a pod was done above
                pass

    def _may_act(self, record: Record, turn: Turn) -> bool:
        if self._down or record.blind or ("pod", "") in record.inflight:
            return False
        if turn.now < record.hold_until:
            record.attend(record.hold_until)
            return False
        return True

    def _doom(self, record: Record, turn: Turn) -> None:
        """Which pods must go, and why. Once said it is not taken back."""
        if isinstance(record.inflight.get(("pod", "")), RunPod):
            return  # a sandbox that is not ready yet is not a dead one
        main = record.main_pod()
        for pod in record.pods.values():
            if pod.id in record.doomed:
                continue
            cause = record.forbidden
            if cause is None and record.assigned and pods.usable(record):
                if pod is not main:
                    cause = ONE_TOO_MANY
                elif not pod.ready and record.verdict is None:
                    cause = SANDBOX_DIED
                    if record.pod_since:  # we made it, and it died: not a reboot
                        record.pod_retry.failed(turn.now, cause.reason, cause.message)
            if cause is not None:
                pods.doom(record, pod, cause, turn)
                if pod is main:
                    record.images.clear()  # the next pod asks for its images anew

    def _judge(self, record: Record, turn: Turn) -> None:
        """What its policy says of this site now. It stops nothing: see ADR 7."""
        wanted = record.assignment if record.assigned and record.stop is None else None
        against = record.standing.judge(wanted, turn.wall) if wanted is not None else ""
        digests = {pods.digest_of(pod) for pod in record.pods.values()}
        if wanted is not None and wanted.digest in digests:
            record.ran = wanted.digest
        if digests and against and against != record.noncompliant:
            text = f"it runs on where its policy forbids it: {against}"
            turn.emit(record, "NonCompliant", text, warning=True)
        record.noncompliant = against if digests else ""
        due_s = record.standing.due_s(turn.wall) if wanted is not None else None
        if due_s is not None:
            record.attend(turn.now + due_s)

    def _find_block(self, record: Record, main: PodState | None, stays: bool, turn: Turn) -> None:
        was = record.block
        record.block = None
        wanted = record.assignment if record.assigned and record.stop is None else None
        if wanted is not None and not stays:
            record.block = self._obstacle(record, wanted, main is None)
        told = record.hold is not None  # the site says itself what it decides
        if record.block is not None and record.block != was and not told:
            turn.emit(record, record.block.reason, record.block.message, warning=True)

    def _obstacle(self, record: Record, wanted: Assignment, starting: bool) -> Cause | None:
        """Why what is assigned cannot be started at all."""
        if record.hold is not None:
            return Cause(record.hold.cause, record.hold.message)
        if wanted.template is None:
            return Cause("BadTemplate", wanted.error)
        if record.standing.against and record.ran != wanted.digest:
            return Cause("SovereigntyViolation", record.standing.against)
        try:
            compose.check(self._settings, wanted, wanted.template, given_by(self._plan))
        except compose.Unresolved as missing:
            return Cause(missing.reason, missing.message)
        return pods.rival(record, wanted, self._records.values()) if starting else None

    def _replace(self, record: Record, turn: Turn) -> None:
        """Fetch the new template's images first: a bad image must not cost what runs."""
        pods.fetch_all(record, turn)
        main = record.main_pod()
        if main is not None and not pods.images_missing(record):
            wanted = record.assignment
            message = f"revision {wanted.revision} is assigned" if wanted is not None else ""
            cause = Cause("TemplateChanged", message)
            if pods.is_unguarded(record, main, self._settings):
                cause = Cause("NotGuarded", "the dead-man's switch does not reach it")
            elif record.restart is not None and pods.digest_of(main) == pods.wanted_digest(record):
                cause = record.restart
            record.restart = None
            pods.doom(record, main, cause, turn)
            pods.enter(record, Situation.RETIRING, turn)
            pods.retire(record, turn, may_act=True)

    def _forget(self, record: Record, turn: Turn) -> None:
        """Nothing runs and nothing should: report that, once nothing is under way either."""
        if record.blind or self._down or record.busy("pod", "container", "remove"):
            return
        pods.forget_images(record, turn)
        directory = compose.log_directory(
            self._settings, record.namespace, record.replica, record.uid
        )
        turn.out += [PublishGone(record.uid), DeleteLogs(directory)]
        del self._records[record.uid]
        for other in list(self._records.values()):
            if other.situation is Situation.BLOCKED:
                self._step(other, turn)

    def _publish(self, record: Record, turn: Turn) -> None:
        if record.uid not in self._records:
            return
        view, was = report.view_of(record, turn.now, turn.wall), record.published
        record.ready_since = view.ready_since
        if view.ready:
            record.unready_since = None
        elif record.unready_since is None and (
            # Of a pod that was adopted nobody was told that it is not ready until it was probed.
            record.pod_since or record.situation is Situation.RETIRING or (was and was.ready)
        ):
            record.unready_since = turn.now
        if view != was:
            record.published = view
            turn.out.append(Publish(view))

    def _allocate(self, container: Container) -> tuple[str, ...]:
        wanted = container.resources.devices
        if not wanted:
            return ()
        held = taken(c for pod in self.pods() for c in pod.containers)
        for record in self._records.values():
            for operation in record.inflight.values():
                if isinstance(operation, StartContainer):
                    text = operation.spec.annotations.get(labels.DEVICES, "")
                    held |= set(text.split(",")) - {""}
        return allocate(wanted, self._devices, held)
