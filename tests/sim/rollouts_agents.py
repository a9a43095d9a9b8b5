"""A model of the agents of a small fleet, for the simulation of rollouts.

It does what `agent/domain` does, as far as an orchestrator can see it: pulls before it stops the
old, starts, becomes ready after a delay, backs off after crashes, reports, stops after the delay
and the grace, runs a replica's successor beside it, ends jobs. Written apart from the
agent, in timers of virtual time.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.cache import Cache
from orchestrator.fleet import Fleet
from orchestrator.records import AssignmentRecord, NodePlacement, TemplateRevision
from polder.manifest import PodTemplate
from polder.v1 import agent_pb2

HEARTBEAT_S = 5.0
CRASH_BACKOFF_MAX_S = 300.0
PROVED_S = 600.0


@dataclass(frozen=True, slots=True)
class Image:
    """How containers of an image behave. `kind`: good, never_ready, crash_start, crash_late (after
    five minutes), pull_fails, refused (the runtime cannot start it), job_fails, job_flaky."""

    name: str
    kind: str = "good"
    pull_s: float = 1.0
    ready_s: float = 2.0

    @property
    def is_bad(self) -> bool:
        return self.kind not in ("good", "job_flaky")


class Surroundings(Protocol):
    """What an agent needs of its world."""

    dice: random.Random
    fleet: Fleet
    mirror: Cache

    def later(self, delay_s: float, action: Callable[[], None]) -> None: ...
    def wake(self) -> None: ...
    def image(self, name: str) -> Image: ...
    def served(self, rec: "Rec", serves: bool, order: str) -> None: ...
    def broken(self, what: str) -> None: ...
    def plan_taken(self, agent: "Agent") -> None: ...
    def may_start(self, agent: "Agent", rec: "Rec") -> bool: ...
    @property
    def wall(self) -> float: ...
    @property
    def steady(self) -> float: ...


@dataclass(slots=True)
class Want:
    """What the plan in use assigns under one uid."""

    record: AssignmentRecord
    template: PodTemplate
    digest: str
    once: bool

    @property
    def image(self) -> str:
        return self.template.containers[0].image

    @property
    def exclusive(self) -> bool:
        return self.record.group is not None and self.record.group.exclusive


@dataclass(slots=True)
class Pod:
    want: Want
    running: bool = False
    ready: bool = False
    terminating: bool = False
    ended: str = ""  # of a job: succeeded, failed
    started_at: float = 0.0
    crashes: int = 0
    restarts: int = 0
    reason: str = "Starting"


@dataclass(slots=True)
class Rec:
    """One stay of a replica on a node."""

    node: str
    uid: str
    namespace: str
    replica: str
    workload_uid: str = ""
    want: Want | None = None
    stop: str = ""  # the cause in the plan
    pod: Pod | None = None
    pulling: str = ""
    pull_failures: int = 0
    reason: str = ""
    told: bytes = b""
    takes_over: str = ""  # uid of the stay before it, where the site decided and no plan

    @property
    def serves(self) -> bool:
        return self.pod is not None and self.pod.ready and not self.pod.terminating


@dataclass
class Agent:
    """One box. `powered` False: nothing runs. `connected` False: it runs, and nobody hears it."""

    world: Surroundings
    name: str
    site: str
    powered: bool = True
    connected: bool = False
    silent_since: float = 0.0
    generation: int = 0
    recs: dict[str, Rec] = field(default_factory=dict)
    pulled: set[str] = field(default_factory=set)
    _due: bool = False
    _life: int = 0

    # --- session ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """A session: it says everything, and gets the plan that is in the Store."""
        if not self.powered:
            return
        if not self.connected:
            self.connected = True
            self._life += 1
            self._beat(self._life)
        seen = self.world.fleet.heard(self.name, self.world.wall)
        seen.connected, seen.complete, seen.connected_at = True, True, self.world.wall
        seen.acked_generation = self.generation
        seen.replicas = {rec.uid: self.status(rec) for rec in self.recs.values()}
        for rec in self.recs.values():
            rec.told = seen.replicas[rec.uid].SerializeToString()
        self._tell_gone()
        self.world.wake()
        self.expect_plan()

    def _tell_gone(self) -> None:
        placement = self.world.mirror.placement(self.name)
        if self.generation >= placement.generation:
            seen = self.world.fleet.observe(self.name)
            seen.gone |= {s.replica_uid for s in placement.stops if s.replica_uid not in self.recs}

    def silence(self) -> None:
        if self.connected:
            self.connected, self.silent_since = False, self.world.steady

    def _beat(self, life: int) -> None:
        if self.connected and self.powered and life == self._life:
            self.world.fleet.heard(self.name, self.world.wall)
            self.world.later(HEARTBEAT_S, lambda: self._beat(life))

    def power_off(self) -> None:
        self.silence()
        self.powered = False
        for rec in self.recs.values():
            if rec.serves:
                rec.pod = None
                self.world.served(rec, False, "power")
            rec.pod, rec.pulling = None, ""

    def power_on(self) -> None:
        """What the last plan on disk says starts without anybody."""
        if not self.powered:
            self.powered = True
            for rec in list(self.recs.values()):
                self.step(rec)

    def expect_plan(self) -> None:
        self.world.later(self.world.dice.uniform(0.02, 0.3), self._take_plan)

    def _take_plan(self) -> None:
        if not (self.connected and self.powered):
            return
        placement = self.world.mirror.placement(self.name)
        self.world.plan_taken(self)
        if placement.generation <= self.generation:
            return
        wants = {}
        for item in placement.assignments:
            found = self.world.mirror.revision_of(item.workload_uid, item.revision)
            if found is None:
                self.world.broken(f"{item.replica} runs revision {item.revision}, collected")
                return
            wants[item.replica_uid] = self.wants(item, found)
        self.generation = placement.generation
        self._desire(placement, wants)
        seen = self.world.fleet.observe(self.name)
        seen.acked_generation = self.generation
        for rec in list(self.recs.values()):
            self.step(rec)
        self._tell_gone()
        self.world.wake()

    def wants(self, item: AssignmentRecord, revision: TemplateRevision) -> Want:
        workload = self.world.mirror.resource("Workload", item.namespace, item.workload)
        once = workload is not None and workload.spec.get("run") == "once"
        return Want(item, revision.decoded, revision.digest, once)

    def _desire(self, placement: NodePlacement, wants: dict[str, Want]) -> None:
        newest: dict[str, int] = {}
        for uid, want in wants.items():
            item = want.record
            rec = self.recs.setdefault(uid, Rec(self.name, uid, item.namespace, item.replica))
            rec.want, rec.stop, rec.workload_uid = want, "", item.workload_uid
            newest[item.replica] = max(newest.get(item.replica, 0), item.epoch)
        stops = {stop.replica_uid: stop for stop in placement.stops}
        for rec in self.recs.values():
            if rec.uid in stops:
                if not stops[rec.uid].cause:
                    self.world.broken(f"the stop of {rec.replica} gives no cause")
                rec.stop = stops[rec.uid].cause
            elif rec.uid not in wants and not rec.takes_over:
                epoch = rec.want.record.epoch if rec.want is not None else 0
                if newest.get(rec.replica, 0) > epoch:
                    rec.stop = "Superseded"
                else:
                    self.world.broken(f"{rec.replica} vanished from the plan of {self.name}")

    # --- replicas --------------------------------------------------------------------------------

    def step(self, rec: Rec) -> None:
        """What is to be done for one stay now; timers lead back here."""
        if not self.powered or self.recs.get(rec.uid) is not rec:
            return
        pod, want = rec.pod, rec.want
        if pod is not None and pod.terminating:
            pass
        elif rec.stop:
            if pod is not None:
                self._terminate(rec, pod, rec.stop)
            else:
                del self.recs[rec.uid]
                self._report()
                return
        elif want is None:
            pass
        elif pod is None:
            if self._fetched(rec, want):
                if self.world.may_start(self, rec):
                    self._start(rec, want)
                else:
                    self.world.later(0.5, lambda: self.step(rec))
        elif pod.want.digest != want.digest and not want.once:
            if self._fetched(rec, want):
                self._terminate(rec, pod, "TemplateChanged")
        else:
            pod.want = want
        self._report()

    def _fetched(self, rec: Rec, want: Want) -> bool:
        if want.image in self.pulled:
            rec.reason = ""
            return True
        if rec.pulling != want.image:
            rec.pulling, rec.reason, rec.pull_failures = want.image, "ImagePull", 0
            self._pull(rec, want.image)
        return False

    def _pull(self, rec: Rec, name: str) -> None:
        image = self.world.image(name)

        def done() -> None:
            if rec.pulling != name or not self.powered:
                return
            if rec.want is None or rec.want.image != name or rec.stop:
                rec.pulling = ""
            elif self.world.image(name).kind == "pull_fails":
                rec.pull_failures += 1
                rec.reason = "ImageNotFound"
                delay = min(300.0, 2.0 * 2 ** (rec.pull_failures - 1))
                self.world.later(delay, lambda: rec.pulling == name and self._pull(rec, name))
                self._report()
                return
            else:
                self.pulled.add(name)
                rec.pulling = ""
            self.step(rec)

        self.world.later(image.pull_s, done)

    def _start(self, rec: Rec, want: Want) -> None:
        pod = rec.pod = Pod(want)
        rec.reason = ""
        self._run(rec, pod, self.world.dice.uniform(0.2, 0.8))

    def _run(self, rec: Rec, pod: Pod, delay_s: float) -> None:
        image = self.world.image(pod.want.image)

        def started() -> None:
            if rec.pod is not pod or pod.terminating or not self.powered:
                return
            if image.kind == "refused":
                pod.crashes += 1
                pod.reason = "ContainerStart"
                self._run(rec, pod, min(CRASH_BACKOFF_MAX_S, 0.5 * 2 ** (pod.crashes - 1)))
            else:
                pod.running, pod.reason, pod.started_at = True, "Starting", self.world.steady
                self._live(rec, pod, image, pod.started_at)
            self._report()

        self.world.later(delay_s, started)

    def _live(self, rec: Rec, pod: Pod, image: Image, run: float) -> None:
        def now(action: Callable[[], None]) -> Callable[[], None]:
            def guarded() -> None:
                if rec.pod is pod and pod.started_at == run and pod.running and self.powered:
                    action()

            return guarded

        def ready() -> None:
            if not pod.terminating:
                pod.ready, pod.reason = True, ""
                self.world.served(rec, True, "")
                self._report()

        if pod.want.once:
            failed = image.kind == "job_fails" or (
                image.kind == "job_flaky" and self.world.dice.random() < 0.5
            )
            self.world.later(image.ready_s, now(ready))
            length_s = self.world.dice.uniform(5, 60)
            self.world.later(length_s, now(lambda: self._end(rec, pod, failed)))
            return
        if image.kind == "crash_start":
            self.world.later(self.world.dice.uniform(0.3, 2.0), now(lambda: self.crash(rec)))
        elif image.kind != "never_ready":
            self.world.later(image.ready_s, now(ready))
        if image.kind == "crash_late":
            self.world.later(300.0, now(lambda: self.crash(rec)))

    def _end(self, rec: Rec, pod: Pod, failed: bool) -> None:
        pod.running = pod.ready = False
        pod.ended = "failed" if failed else "succeeded"
        self.world.served(rec, False, "ended")
        self._report()

    def crash(self, rec: Rec) -> None:
        """Its container ends by itself; it is started again after the backoff."""
        pod = rec.pod
        if pod is None or not pod.running or pod.terminating or not self.powered:
            return
        served = rec.serves
        if self.world.steady - pod.started_at >= PROVED_S:
            pod.crashes = 0
        pod.running = pod.ready = False
        pod.crashes += 1
        pod.reason = "CrashLoop"
        if served:
            self.world.served(rec, False, "crash")
        if pod.want.once:
            pod.ended = "failed"
        else:
            pod.restarts += 1
            self._run(rec, pod, min(CRASH_BACKOFF_MAX_S, 0.5 * 2 ** (pod.crashes - 1)))
        self._report()

    def end(self, rec: Rec, cause: str) -> None:
        """It stops because its site says so; its plan may still want it."""
        if rec.pod is not None and not rec.pod.terminating:
            self._terminate(rec, rec.pod, cause)
            self._report()

    def _terminate(self, rec: Rec, pod: Pod, cause: str) -> None:
        """Not ready at once; the stop signal after the delay; gone within the grace."""
        served = rec.serves
        pod.terminating, pod.ready, pod.reason = True, False, "Terminating"
        if served:
            self.world.served(rec, False, cause)

        def gone() -> None:
            if rec.pod is pod and self.powered:
                rec.pod = None
                self.step(rec)

        grace = min(3.0, pod.want.template.stop_grace)
        delay = pod.want.template.stop_delay if pod.running else 0.0
        self.world.later(delay + self.world.dice.uniform(0.1, grace), gone)

    # --- reports ---------------------------------------------------------------------------------

    def status(self, rec: Rec) -> agent_pb2.ReplicaStatus:
        """As `agent/translate.py` says it."""
        pod = rec.pod
        shown = pod.want if pod is not None else rec.want
        if pod is None:
            phase = agent_pb2.REPLICA_PHASE_PENDING
        elif pod.ended:
            ok = pod.ended == "succeeded"
            phase = agent_pb2.REPLICA_PHASE_SUCCEEDED if ok else agent_pb2.REPLICA_PHASE_FAILED
        elif pod.terminating:
            phase = agent_pb2.REPLICA_PHASE_STOPPING
        else:
            running = agent_pb2.REPLICA_PHASE_RUNNING
            phase = running if pod.running else agent_pb2.REPLICA_PHASE_PENDING
        return agent_pb2.ReplicaStatus(
            namespace=rec.namespace,
            workload=shown.record.workload if shown else "",
            workload_uid=rec.workload_uid,
            replica=rec.replica,
            replica_uid=rec.uid,
            phase=phase,
            ready=rec.serves,
            reason=rec.reason or (pod.reason if pod is not None else ""),
            revision=shown.record.revision if shown else 0,
            epoch=shown.record.epoch if shown else 0,
            restarts=pod.restarts if pod is not None else 0,
            template_digest=shown.digest if shown else "",
            takes_over=rec.takes_over,
        )

    def _report(self) -> None:
        if not self._due and self.connected:
            self._due = True
            self.world.later(self.world.dice.uniform(0.02, 0.2), self._flush)

    def _flush(self) -> None:
        self._due = False
        if not (self.connected and self.powered):
            return
        seen = self.world.fleet.observe(self.name)
        changed = False
        for rec in self.recs.values():
            status = self.status(rec)
            told = status.SerializeToString()
            if told != rec.told or rec.uid not in seen.replicas:
                rec.told, changed = told, True
                seen.replicas[rec.uid] = status
        for uid in seen.replicas.keys() - self.recs.keys():
            del seen.replicas[uid]
            changed = True
        before = set(seen.gone)
        self._tell_gone()
        if changed or seen.gone != before:
            self.world.fleet.heard(self.name, self.world.wall)
            self.world.wake()
