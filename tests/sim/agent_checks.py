"""What must hold on a simulated box at every call of its runtime. Used by `agent_reconcile.py`."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from agent.domain import labels
from agent.domain.plan import ParsedPlan
from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ContainerSpec,
    ContainerState,
    PodSpec,
    PodState,
    RuntimeFailure,
    RuntimeUnavailable,
    SandboxFailure,
)
from agent.runtime.simulated import SimulatedRuntime
from polder.manifest import PodTemplate
from polder.v1 import agent_pb2

CLOCK_ERROR_S = 0.01
START_TRIES = 3


class Checks:
    """Knows the plan in use and what was reported; writes what is wrong into `bad`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.bad: list[str] = []
        self.plan: ParsedPlan | None = None
        self.orphans: set[str] = set()
        self.condemned: set[str] = set()  # pods that some accepted plan let be stopped
        self._clock = clock
        self._templates: dict[str, tuple[PodTemplate, bool]] = {}  # (template, runs once) by digest
        self._reported: dict[str, tuple[bool, float]] = {}  # ready, since when
        self._started: dict[str, set[str]] = {}  # names of containers that ran, by pod
        self._refusals: Counter[tuple[str, str]] = Counter()  # starts that failed, by pod and name

    # ---- what happened ----

    def refused(self, pod_id: str, name: str) -> None:
        self._refusals[pod_id, name] += 1

    def could_not_start(self, pod_id: str) -> bool:
        """So often that what is to run once has failed by it, if one agent saw all of it."""
        return any(pod == pod_id and n >= START_TRIES for (pod, _), n in self._refusals.items())

    def accepted(self, plan: ParsedPlan, pods: Sequence[PodState]) -> None:
        named = plan.assignments.keys() | plan.stops.keys()
        self.orphans -= named
        if self.plan is not None:
            self.orphans |= self.plan.assignments.keys() - named
        self.plan = plan
        for wanted in plan.assignments.values():
            assert wanted.template is not None
            self._templates[wanted.digest] = (wanted.template, wanted.run_once)
        for pod in pods:
            if self._cause(pod, pods):
                self.condemned.add(pod.id)  # a stop that began is not taken back

    def reported(self, changed: Iterable[agent_pb2.ReplicaStatus], gone: Iterable[str]) -> None:
        for status in changed:
            ready, since = self._reported.get(status.replica_uid, (None, 0.0))
            if ready != status.ready:
                since = self._clock()
            self._reported[status.replica_uid] = (status.ready, since)
        for uid in gone:
            self._reported.pop(uid, None)

    # ---- what must hold ----

    def single(self, pods: Iterable[PodState]) -> None:
        """Of one stay never two pods run. Two stays of one replica may."""
        seen: dict[str, str] = {}
        for pod in pods:
            uid = uid_of(pod)
            if running(pod):
                if uid in seen:
                    self.bad.append(f"two pods of {uid} run: {seen[uid]} and {pod.id}")
                seen[uid] = pod.id

    def may_stop(self, pod: PodState, pods: Sequence[PodState]) -> None:
        cause = self._cause(pod, pods)
        uid = uid_of(pod)
        if pod.id not in self.condemned and not cause:
            kind = "orphan " if uid in self.orphans else ""
            self.bad.append(f"{kind}{uid} is stopped without a cause")
        if cause.startswith("told: "):
            self._was_told(pod, cause)

    def _was_told(self, pod: PodState, cause: str) -> None:
        delay_s = labels.number(pod.annotations, labels.STOP_DELAY) / 1000
        ready, since = self._reported.get(uid_of(pod), (False, 0.0))
        waited_s = self._clock() - since
        if delay_s and (ready or waited_s < delay_s - CLOCK_ERROR_S):
            text = "is reported as ready" if ready else f"waited {waited_s:g} of {delay_s:g} s"
            self.bad.append(f"{uid_of(pod)} is stopped ({cause}) and {text}")

    def _cause(self, pod: PodState, pods: Sequence[PodState]) -> str:
        """Why this pod may be stopped; empty: it must run on. `told: ` when it is to be reported
        first."""
        uid, plan = uid_of(pod), self.plan
        if not pod.ready:
            return "dead already"
        if sum(uid_of(other) == uid for other in pods) > 1:
            return "there is another pod"
        if plan is None:
            return ""
        if uid in plan.stops:
            return f"told: {plan.stops[uid].cause}"
        if uid in plan.assignments:
            if plan.assignments[uid].run_once:
                ill = failed(pod) or self.could_not_start(pod.id)
                return "its neighbour failed" if ill else ""
            changed = plan.assignments[uid].digest != pod.labels[labels.TEMPLATE_DIGEST]
            return "told: changed template" if changed else ""
        epoch = int(pod.labels[labels.EPOCH])
        for other in plan.assignments.values():
            if other.replica == pod.name and other.epoch > epoch:
                return "told: superseded"
        return ""

    def may_start(self, pod: PodState, spec: ContainerSpec, pods: Iterable[PodState]) -> None:
        """Init containers in their order and before the others; nothing twice that runs once."""
        template, once = self._templates[pod.labels[labels.TEMPLATE_DIGEST]]
        first = [c.name for c in template.init_containers]
        begun = self._started.setdefault(pod.id, set())
        if spec.name in first:
            before = first[: first.index(spec.name)]
            later = begun - {spec.name, *before}
            if later:
                self.bad.append(f"{pod.name}: {spec.name} starts after {sorted(later)}")
        else:
            before = first
        for name in before:
            runs = [c for c in pod.containers if c.name == name]
            if runs and not any(c.phase is ContainerPhase.EXITED and not c.exit_code for c in runs):
                self.bad.append(f"{pod.name}: {spec.name} starts before {name} ended well")
            if name not in begun:
                self.bad.append(f"{pod.name}: {spec.name} starts without {name}")
        begun.add(spec.name)
        if once:
            ended = [c for c in pod.containers if c.phase is ContainerPhase.EXITED]
            if spec.name in {c.name for c in ended}:
                self.bad.append(f"{pod.name}: {spec.name} is started again although it runs once")
            if any(outcome(other, template) for other in pods if uid_of(other) == uid_of(pod)):
                self.bad.append(f"{pod.name}: {spec.name} starts although its outcome is known")

    def may_remove(self, pod: PodState, pods: Sequence[PodState]) -> None:
        """What runs once stays for its outcome and its logs, until the plan stops it."""
        wanted = self.plan.assignments.get(uid_of(pod)) if self.plan is not None else None
        alone = sum(uid_of(other) == uid_of(pod) for other in pods) == 1
        if wanted is None or not wanted.run_once or not alone or pod.id in self.condemned:
            return
        if outcome(pod, self.template(pod)):
            self.bad.append(f"{uid_of(pod)} is removed although its outcome is known")

    def template(self, pod: PodState) -> PodTemplate:
        return self._templates[pod.labels[labels.TEMPLATE_DIGEST]][0]


def uid_of(pod: PodState) -> str:
    return pod.labels[labels.REPLICA_UID]


def running(pod: PodState) -> list[ContainerState]:
    return [c for c in pod.containers if c.phase is ContainerPhase.RUNNING]


def failed(pod: PodState) -> bool:
    return any(c.phase is ContainerPhase.EXITED and c.exit_code for c in pod.containers)


def outcome(pod: PodState, template: PodTemplate) -> str:
    """How a pod that runs once ended, by a rule written apart from the agent: empty if unknown."""
    names = [c.name for c in template.containers]
    well = {c.name for c in pod.containers if c.phase is ContainerPhase.EXITED and not c.exit_code}
    if all(name in well for name in names):
        return "succeeded"
    seen = [c for c in pod.containers if pod.ready or c.reason != "Unknown"]
    return "failed" if failed(replace(pod, containers=tuple(seen))) else ""


class WatchedRuntime(SimulatedRuntime):
    """Checks at the moment of every call that the box stays sane; loses answers when told to."""

    def __init__(self, checks: Checks, dice: random.Random, **knobs: Any) -> None:
        super().__init__(**knobs)
        self._checks = checks
        self._dice = dice
        self.lose_answers = 0.0
        self.hung: set[str] = set()  # containers that fail their probes
        self.exec_handler = lambda run, _: (1, b"no answer") if run.id in self.hung else (0, b"")
        self._late: set[asyncio.Task[None]] = set()

    def now(self) -> list[PodState]:
        """Every pod, without asking."""
        return [
            replace(pod.state, containers=tuple(pod.containers.values()))
            for pod in self._pods.values()
        ]

    def pod(self, pod_id: str) -> PodState | None:
        return next((pod for pod in self.now() if pod.id == pod_id), None)

    async def list_pods(self) -> Sequence[PodState]:
        """What was true when it was asked; the answer may take its time."""
        pods = await super().list_pods()
        await asyncio.sleep(self._dice.choice([0.0, 0.0, 0.05, 0.4]))
        return pods

    async def run_pod(self, spec: PodSpec) -> str:
        if any(pod.state.uid == spec.uid for pod in self._pods.values()):
            raise SandboxFailure("SandboxCreate", f"name of {spec.uid} is reserved")
        if self._dice.random() < self.lose_answers / 2:
            late = asyncio.create_task(self._run_late(spec, self._dice.choice([0.1, 2.0])))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise RuntimeUnavailable("RuntimeUnavailable", "deadline exceeded")
        pod_id = await super().run_pod(spec)
        self._maybe_lose()
        return pod_id

    async def _run_late(self, spec: PodSpec, delay_s: float) -> None:
        """The caller has given up; the runtime goes on with it, as containerd does."""
        await asyncio.sleep(delay_s)
        if not any(pod.state.uid == spec.uid for pod in self._pods.values()):
            with contextlib.suppress(RuntimeFailure):
                await super().run_pod(spec)

    async def start_container(self, pod_id: str, pod: PodSpec, spec: Any) -> str:
        """Between create and start the container can be seen, and removed."""
        home = self.pod(pod_id)
        if home is not None:
            self._checks.may_start(home, spec, self.now())
        try:
            container_id = await super().start_container(pod_id, pod, spec)
        except ContainerFailure:
            self._checks.refused(pod_id, spec.name)
            raise
        started = self._find(container_id)
        if started is not None and started.phase is ContainerPhase.RUNNING:
            created = replace(started, phase=ContainerPhase.CREATED, started_at=0.0)
            self._pods[pod_id].containers[container_id] = created
            await asyncio.sleep(self._dice.choice([0.0, 0.1]))
            if self._find(container_id) is not created or not self._pods[pod_id].state.ready:
                raise ContainerFailure("ContainerStart", "it was removed meanwhile")
            self._pods[pod_id].containers[container_id] = started
        self._checks.single(self.now())
        self._maybe_lose()
        return container_id

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        state = self._find(container_id)
        alive = state is not None and state.phase is ContainerPhase.RUNNING
        if state is not None and alive and container_id not in self.hung:
            self._may_stop(state.pod_id)
        await super().stop_container(container_id, grace_s)
        self._maybe_lose()

    async def remove_container(self, container_id: str) -> None:
        state = self._find(container_id)
        if state is not None and state.phase is ContainerPhase.RUNNING:
            self._checks.bad.append(f"{container_id} runs and is removed")
        await super().remove_container(container_id)

    async def remove_pod(self, pod_id: str) -> None:
        pod = self.pod(pod_id)
        if pod is not None:
            self._checks.may_remove(pod, self.now())
        if pod is not None and running(pod):
            self._may_stop(pod_id)
        await super().remove_pod(pod_id)
        self._maybe_lose()

    def _maybe_lose(self) -> None:
        if self._dice.random() < self.lose_answers:
            raise RuntimeUnavailable("RuntimeUnavailable", "deadline exceeded")

    def _may_stop(self, pod_id: str) -> None:
        pods = self.now()
        self._checks.may_stop(next(pod for pod in pods if pod.id == pod_id), pods)
