"""Seeded simulation of the agent on one box: the real supervisor, a runtime that misbehaves.

    python -m tests.sim.agent_reconcile --seeds 500 [--first 0]

Random crashes, dead sandboxes, reboots, a runtime that goes away or loses answers, failing images;
plans that are changed, stale, repeated, cut or empty; agent restarts in between; all in virtual
time. What must hold, at every moment:

- of one replica there are never two pods with a running container;
- nothing that runs is stopped without a cause: the plan stopped it, changed its template or gave
  its name to a higher epoch, or its sandbox was dead (liveness is not part of this simulation);
- an orphan is never stopped;
- at the end, when nothing fails any more, exactly what the plan assigns runs, and what was
  orphaned.

A failing seed is printed and replays.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.domain.plan import Accepted, ParsedPlan, Refused, consider
from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ImageFailure,
    PodSpec,
    PodState,
    RuntimeFailure,
    RuntimeUnavailable,
    SandboxFailure,
)
from agent.runtime.simulated import Delays, SimulatedRuntime
from agent.supervisor import Supervisor, SupervisorConfig
from polder.v1 import plan_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import IDENTITY, assignment, node_plan, stop, template

REPLICAS = [f"r{n}" for n in range(6)]
IMAGES = ["app:1", "app:2", "app:3"]
STEPS = 60


class Violation(AssertionError):
    """What must hold does not."""


class WatchedRuntime(SimulatedRuntime):
    """Checks at the moment of every call that the box stays sane; loses answers when told to."""

    def __init__(self, world: "World", **knobs: Any) -> None:
        super().__init__(**knobs)
        self._world = world
        self.lose_answers = 0.0
        self._late: set[asyncio.Task[None]] = set()

    async def list_pods(self) -> Sequence[PodState]:
        """What was true when it was asked; the answer may take its time."""
        pods = await super().list_pods()
        await asyncio.sleep(self._world.dice.choice([0.0, 0.0, 0.05, 0.4]))
        return pods

    async def run_pod(self, spec: PodSpec) -> str:
        if any(pod.state.uid == spec.uid for pod in self._pods.values()):
            raise SandboxFailure("SandboxCreate", f"name of {spec.uid} is reserved")
        if self._world.dice.random() < self.lose_answers / 2:
            late = asyncio.create_task(self._run_late(spec, self._world.dice.choice([0.1, 2.0])))
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
        container_id = await super().start_container(pod_id, pod, spec)
        started = self._find(container_id)
        if started is not None and started.phase is ContainerPhase.RUNNING:
            created = replace(started, phase=ContainerPhase.CREATED, started_at=0.0)
            self._pods[pod_id].containers[container_id] = created
            await asyncio.sleep(self._world.dice.choice([0.0, 0.1]))
            if self._find(container_id) is not created or not self._pods[pod_id].state.ready:
                raise ContainerFailure("ContainerStart", "it was removed meanwhile")
            self._pods[pod_id].containers[container_id] = started
        self._world.check_single()
        self._maybe_lose()
        return container_id

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        state = self._find(container_id)
        if state is not None and state.phase is ContainerPhase.RUNNING:
            self._world.check_cause(self._pods[state.pod_id].state)
        await super().stop_container(container_id, grace_s)
        self._maybe_lose()

    async def remove_container(self, container_id: str) -> None:
        state = self._find(container_id)
        if state is not None and state.phase is ContainerPhase.RUNNING:
            self._world.bad.append(f"{container_id} runs and is removed")
        await super().remove_container(container_id)

    async def remove_pod(self, pod_id: str) -> None:
        pod = self._pods.get(pod_id)
        if pod is not None and any(
            c.phase is ContainerPhase.RUNNING for c in pod.containers.values()
        ):
            self._world.check_cause(pod.state)
        await super().remove_pod(pod_id)
        self._maybe_lose()

    def _maybe_lose(self) -> None:
        if self._world.dice.random() < self.lose_answers:
            raise RuntimeUnavailable("RuntimeUnavailable", "deadline exceeded")


@dataclass
class Wanted:
    """What the leader has in mind for one replica uid."""

    uid: str
    image: str
    epoch: int = 1
    revision: int = 1


class World:
    """The box, the agent on it, and a leader that sends plans of mixed quality."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.dice = random.Random(seed)
        self.clock = virtual_time.VirtualClock(asyncio.get_running_loop())
        delays = Delays(*(self.dice.choice([0.0, 0.05, 0.5, 3.0]) for _ in range(4)))
        self.runtime = WatchedRuntime(self, clock=self.clock.wall, delays=delays)
        self.config = SupervisorConfig(
            "box-1", "nl-utr-1", "amd64", directory / "state", directory / "logs"
        )
        self.wanted: dict[str, Wanted] = {}
        self.stops: dict[str, str] = {}
        self.generation = 0
        self.sent = node_plan(0)
        self.plan: ParsedPlan | None = None
        self.condemned: set[str] = set()  # pods that some accepted plan let be stopped
        self.stops_seen = 0
        self.orphans: set[str] = set()
        self.bad: list[str] = []
        self.start_agent()

    # ---- the agent ----

    def start_agent(self) -> None:
        self.supervisor = Supervisor(self.runtime, self.config, clock=self.clock)
        self.supervisor.on_event = self._on_event
        self.task = asyncio.create_task(self.supervisor.run())
        if self.plan is not None:  # from its disk
            self.supervisor.submit_plan(self.plan)

    def _on_event(self, event: Any) -> None:
        if event.reason in ("UnexpectedTransition", "Internal"):
            self.bad.append(f"{event.reason}: {event.message}")

    async def kill_agent(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def offer(self, payload: bytes) -> None:
        answer = consider(self.plan, IDENTITY, payload)
        if isinstance(answer, Accepted):
            self._note_orphans(self.plan, answer.plan)
            self.plan = answer.plan
            for pod in self.runtime._pods.values():
                if self._cause(pod.state):
                    self.condemned.add(pod.state.id)  # a stop that began is not taken back
            self.supervisor.submit_plan(answer.plan)
        elif isinstance(answer, Refused) and answer.reason == "Conflict":
            raise Violation(answer.message)

    def _note_orphans(self, before: ParsedPlan | None, plan: ParsedPlan) -> None:
        named = plan.assignments.keys() | plan.stops.keys()
        self.orphans -= named
        if before is not None:
            self.orphans |= before.assignments.keys() - named

    def _cause(self, pod: PodState) -> str:
        """Why the plan in use lets this pod be stopped; empty: it must run on."""
        uid = pod.labels["polder.eu/replica-uid"]
        plan = self.plan
        if not pod.ready:
            return "dead already"
        if (
            sum(p.state.labels["polder.eu/replica-uid"] == uid for p in self.runtime._pods.values())
            > 1
        ):
            return "there is another pod"
        if plan is None:
            return ""
        if uid in plan.stops:
            return plan.stops[uid].cause
        if uid in plan.assignments:
            changed = plan.assignments[uid].digest != pod.labels["polder.eu/template-digest"]
            return "changed template" if changed else ""
        epoch = int(pod.labels["polder.eu/epoch"])
        for other in plan.assignments.values():
            if other.replica == pod.name and other.epoch > epoch:
                return "superseded"
        return ""

    # ---- what must hold ----

    def check_single(self) -> None:
        seen: dict[str, str] = {}
        for pod in self.runtime._pods.values():
            uid = pod.state.labels["polder.eu/replica-uid"]
            if any(c.phase is ContainerPhase.RUNNING for c in pod.containers.values()):
                if uid in seen:
                    self.bad.append(f"two pods of {uid} run: {seen[uid]} and {pod.state.id}")
                seen[uid] = pod.state.id

    def check_cause(self, pod: PodState) -> None:
        if pod.id not in self.condemned and not self._cause(pod):
            uid = pod.labels["polder.eu/replica-uid"]
            kind = "orphan " if uid in self.orphans else ""
            self.bad.append(f"{kind}{uid} is stopped without a cause")
        self.stops_seen += 1

    # ---- what happens ----

    async def step(self) -> None:
        happenings = [
            (6, self.change_plan),
            (2, self.send_rubbish),
            (3, self.crash),
            (1, self.break_sandbox),
            (1, self.reboot),
            (2, self.restart_agent),
            (1, self.toggle_runtime),
            (2, self.toggle_image),
            (1, self.fail_calls),
            (1, self.toggle_answers),
            (6, self.nothing),
        ]
        chosen = self.dice.choices([h for _, h in happenings], [w for w, _ in happenings])[0]
        await chosen()
        await asyncio.sleep(self.dice.choice([0.0, 0.01, 0.3, 1.0, 7.0, 60.0]))
        if self.task.done():
            raise Violation(f"the supervisor ended: {self.task.exception()!r}")
        if self.bad:
            raise Violation(self.bad[0])

    async def nothing(self) -> None:
        """Time passes."""

    async def change_plan(self) -> None:
        for name in self.dice.sample(REPLICAS, self.dice.randint(1, 3)):
            self._change(name)
        self.send()

    def _change(self, name: str) -> None:
        uids = [u for u in (name, f"{name}x") if u in self.wanted]
        what = self.dice.choice(["assign", "stop", "change", "drop", "replace", "image"])
        if not uids:
            uid = self.dice.choice([name, f"{name}x"])
            self.stops.pop(uid, None)
            self.wanted[uid] = Wanted(uid, self.dice.choice(IMAGES), epoch=self.generation + 1)
        elif what == "stop":
            del self.wanted[uids[0]]
            self.stops[uids[0]] = "ScaledDown"
        elif what == "drop":
            del self.wanted[uids[0]]
        elif what in ("change", "image"):
            wanted = self.wanted[uids[0]]
            wanted.revision += 1
            wanted.image = self.dice.choice(IMAGES)
        elif what == "replace":
            self.stops[uids[0]] = "Replaced"
            del self.wanted[uids[0]]
            other = name if uids[0] != name else f"{name}x"
            self.stops.pop(other, None)
            self.wanted[other] = Wanted(other, self.dice.choice(IMAGES), self.generation + 1)

    def message(self) -> Any:
        return node_plan(
            self.generation,
            [
                assignment(
                    w.uid,
                    template(w.image),
                    replica=w.uid.removesuffix("x") + "-0",
                    revision=w.revision,
                    epoch=w.epoch,
                )
                for w in self.wanted.values()
            ],
            [stop(uid, why, uid.removesuffix("x") + "-0") for uid, why in self.stops.items()],
        )

    def send(self) -> None:
        self.generation += 1
        self.sent = self.message()
        self.offer(self.sent.SerializeToString())
        for uid in self.supervisor.gone():
            self.stops.pop(uid, None)

    async def send_rubbish(self) -> None:
        message = plan_pb2.NodePlan()
        message.CopyFrom(self.sent)
        kind = self.dice.choice(["repeat", "stale", "cut", "foreign", "bytes", "null"])
        if kind == "stale":
            message.generation = max(1, self.generation - self.dice.randint(1, 5))
            del message.assignments[:]
            message.assignment_count = 0
        elif kind == "cut":
            message.generation += 1
            message.stop_count += 1
        elif kind == "foreign":
            message.generation += 1
            message.node = "box-2"
        elif kind == "bytes":
            self.offer(self.dice.randbytes(40))
            return
        elif kind == "null":
            self.offer(b"")
            return
        if self.generation and (kind != "stale" or message.generation < self.generation):
            self.offer(message.SerializeToString())

    def _running(self) -> list[str]:
        return [
            c.id
            for p in self.runtime._pods.values()
            for c in p.containers.values()
            if c.phase is ContainerPhase.RUNNING
        ]

    async def crash(self) -> None:
        running = self._running()
        if running:
            self.runtime.crash(self.dice.choice(running), self.dice.choice([0, 1, 137]))

    async def break_sandbox(self) -> None:
        if self.runtime._pods:
            self.runtime.break_sandbox(self.dice.choice(list(self.runtime._pods)))

    async def reboot(self) -> None:
        await self.kill_agent()
        self.runtime.reboot()
        self.start_agent()

    async def restart_agent(self) -> None:
        await self.kill_agent()
        await asyncio.sleep(self.dice.choice([0.0, 5.0]))
        self.start_agent()

    async def toggle_runtime(self) -> None:
        self.runtime.available = not self.runtime.available

    async def toggle_answers(self) -> None:
        self.runtime.lose_answers = self.dice.choice([0.0, 0.0, 0.3])

    async def toggle_image(self) -> None:
        image = self.dice.choice(IMAGES)
        failing = self.runtime.images.get(image) is not None
        self.runtime.images[image] = (
            None if failing else ImageFailure("ImageNotFound", f"{image}: not found")
        )
        self.runtime._present.discard(image)

    async def fail_calls(self) -> None:
        self.runtime.fail_next("run_pod", SandboxFailure("NetworkSetup", "no address left"))
        self.runtime.fail_next("start_container", ContainerFailure("ContainerStart", "no"))
        self.runtime.fail_next("remove_pod", SandboxFailure("SandboxStop", "busy"))

    # ---- the end ----

    async def calm(self) -> None:
        """Nothing fails any more: after the longest backoff all must be as the plan says."""
        self.runtime.available, self.runtime.lose_answers = True, 0.0
        self.runtime.images.clear()
        self.send()
        await asyncio.sleep(1500)
        if self.bad:
            raise Violation(self.bad[0])
        self.check_single()
        assert self.plan is not None
        running: dict[str, str] = {}
        for pod in self.runtime._pods.values():
            uid = pod.state.labels["polder.eu/replica-uid"]
            alive = [c for c in pod.containers.values() if c.phase is ContainerPhase.RUNNING]
            if alive:
                running[uid] = alive[0].image
            elif uid not in self.orphans:
                raise Violation(f"the pod of {uid} has no running container")
        uids = [p.state.labels["polder.eu/replica-uid"] for p in self.runtime._pods.values()]
        if doubles := {uid for uid in self.wanted if uids.count(uid) > 1}:
            raise Violation(f"two pods are left of {sorted(doubles)}")
        for uid in self.plan.stops:
            if uid in running:
                raise Violation(f"{uid} should have been stopped")
        for uid, wanted in self.wanted.items():
            if running.get(uid) != wanted.image:
                raise Violation(f"{uid} should run {wanted.image}; it runs {running.get(uid)}")
        extra = running.keys() - self.wanted.keys() - self.orphans
        if extra:
            raise Violation(f"nobody wants {sorted(extra)}")
        published = {s.replica_uid: s.ready for s in self.supervisor.statuses()}
        if any(not published.get(uid) for uid in self.wanted):
            raise Violation(f"ready is not reported: {published}")


async def play(seed: int, directory: Path) -> None:
    world = World(seed, directory)
    try:
        for _ in range(STEPS):
            await world.step()
        await world.calm()
    finally:
        await world.kill_agent()


def check(seed: int) -> None:
    """Raises Violation with the seed in its message."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            virtual_time.run(play(seed, Path(directory)))
        except Exception as failure:
            raise Violation(f"seed {seed}: {failure}") from failure


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="simulate the agent on one box")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    logging.disable()  # trouble is the point here
    given = parser.parse_args(arguments)
    failed = 0
    for seed in range(given.first, given.first + given.seeds):
        try:
            check(seed)
        except Violation as violation:
            failed += 1
            print(violation)
    print(f"{given.seeds - failed} of {given.seeds} seeds hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
