"""Seeded simulation of the agent on one box: the real supervisor, a runtime that misbehaves.

    python -m tests.sim.agent_reconcile --seeds 500 [--first 0]

Random crashes, dead sandboxes, reboots, a runtime that goes away or loses answers, failing images;
plans that are changed, stale, repeated, cut or empty, with two stays of one replica, init
containers, stop delays and replicas that run once; agent restarts in between; all in virtual time.
What must hold, at every moment (`agent_checks.py`):

- of one stay of a replica there are never two pods with a running container;
- nothing that runs is stopped without a cause: the plan stopped it, changed its template or gave
  its name to a higher epoch, its sandbox was dead, it hung, or its neighbour failed in a pod that
  runs once;
- what is stopped was reported as not ready for its stop delay;
- an orphan is never stopped;
- init containers run in their order, and before the others;
- what runs once is not started again when its outcome is known;
- at the end, when nothing fails any more, exactly what the plan assigns runs, and what was
  orphaned; and what runs once is reported to have ended as it did.

A failing seed is printed and replays.
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.domain.plan import Accepted, ParsedPlan, Refused, consider
from agent.runtime.port import ContainerFailure, ImageFailure, SandboxFailure
from agent.runtime.simulated import Delays
from agent.supervisor import Supervisor, SupervisorConfig
from polder.v1 import agent_pb2, plan_pb2
from tests.sim import virtual_time
from tests.sim.agent_checks import Checks, WatchedRuntime, outcome, running, uid_of
from tests.sim.agent_plans import IDENTITY, assignment, node_plan, stop

REPLICAS = [f"r{n}" for n in range(6)]
JOBS = [f"j{n}" for n in range(3)]
IMAGES = ["app:1", "app:2", "app:3"]
# image -> (exit code, seconds until it ends)
JOB_IMAGES = {"job:well": (0, 5.0), "job:ill": (3, 2.0), "job:long": (0, 200.0)}
INIT_IMAGES = {"init:quick": (0, 0.0), "init:slow": (0, 4.0), "init:ill": (1, 0.5)}
INITS = [(), (), ("init:slow",), ("init:quick", "init:slow"), ("init:ill", "init:quick")]
PROBE = {"exec": {"command": ["check"]}, "period": "20s", "failureThreshold": 1}
DELAYS = ["0s", "0s", "500ms", "10s"]
STEPS = 60
PHASES = {
    "succeeded": agent_pb2.REPLICA_PHASE_SUCCEEDED,
    "failed": agent_pb2.REPLICA_PHASE_FAILED,
}


class Violation(AssertionError):
    """What must hold does not."""


@dataclass
class Wanted:
    """What the leader has in mind for one stay of a replica."""

    uid: str
    images: tuple[str, ...]
    epoch: int = 1
    revision: int = 1
    init: tuple[str, ...] = ()
    delay: str = "0s"
    probed: bool = False
    replaces: str = ""

    @property
    def once(self) -> bool:
        return self.uid.startswith("j")

    def assignment(self) -> plan_pb2.Assignment:
        probes = {"livenessProbe": PROBE, "readinessProbe": PROBE} if self.probed else {}
        pod = {
            "containers": [
                {"name": f"c{n}", "image": image, **probes} for n, image in enumerate(self.images)
            ],
            "initContainers": [{"name": f"i{n}", "image": i} for n, i in enumerate(self.init)],
            "stopDelay": self.delay,
        }
        return assignment(
            self.uid,
            pod,
            replica=self.uid.removesuffix("x") + "-0",
            revision=self.revision,
            epoch=self.epoch,
            replaces=self.replaces,
            run_once=self.once,
        )


class World:
    """The box, the agent on it, and a leader that sends plans of mixed quality."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.dice = random.Random(seed)
        self.clock = virtual_time.VirtualClock(asyncio.get_running_loop())
        delays = Delays(*(self.dice.choice([0.0, 0.05, 0.5, 3.0]) for _ in range(4)))
        self.checks = Checks(self.clock.steady)
        self.runtime = WatchedRuntime(self.checks, self.dice, clock=self.clock.wall, delays=delays)
        for image, (code, seconds) in (JOB_IMAGES | INIT_IMAGES).items():
            self.runtime.exits[image], self.runtime.lasts[image] = code, seconds
        self.config = SupervisorConfig(
            "box-1", "nl-utr-1", "amd64", directory / "state", directory / "logs"
        )
        self.wanted: dict[str, Wanted] = {}
        self.stops: dict[str, str] = {}
        self.generation = 0
        self.sent = node_plan(0)
        self.start_agent()

    # ---- the agent ----

    @property
    def plan(self) -> ParsedPlan | None:
        """In use: what the agent finds on its disk when it starts."""
        return self.checks.plan

    def start_agent(self) -> None:
        self.supervisor = Supervisor(self.runtime, self.config, clock=self.clock)
        self.supervisor.on_event = self._on_event
        self.supervisor.on_status = self.checks.reported
        self.task = asyncio.create_task(self.supervisor.run())
        if self.plan is not None:
            self.supervisor.submit_plan(self.plan)

    def _on_event(self, event: Any) -> None:
        if event.reason in ("UnexpectedTransition", "Internal"):
            self.checks.bad.append(f"{event.reason}: {event.message}")

    async def kill_agent(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def offer(self, payload: bytes) -> None:
        answer = consider(self.plan, IDENTITY, payload)
        if isinstance(answer, Accepted):
            self.checks.accepted(answer.plan, self.runtime.now())
            self.supervisor.submit_plan(answer.plan)
        elif isinstance(answer, Refused) and answer.reason == "Conflict":
            raise Violation(answer.message)

    # ---- what happens ----

    async def step(self) -> None:
        happenings = [
            (6, self.change_plan),
            (2, self.send_rubbish),
            (3, self.crash),
            (2, self.hang),
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
        if self.checks.bad:
            raise Violation(self.checks.bad[0])

    async def nothing(self) -> None:
        """Time passes."""

    async def change_plan(self) -> None:
        for name in self.dice.sample(REPLICAS + JOBS, self.dice.randint(1, 3)):
            self._change(name)
        self.send()

    def _change(self, name: str) -> None:
        stays = sorted(
            (w for u in (name, f"{name}x") if (w := self.wanted.get(u))), key=lambda w: w.epoch
        )
        if not stays:
            self._place(self.dice.choice([name, f"{name}x"]))
        elif len(stays) == 2:
            self._stop(stays[self.dice.random() < 0.1].uid, "Updated")
        else:
            self._change_one(name, stays[0])

    def _change_one(self, name: str, wanted: Wanted) -> None:
        what = self.dice.choice(["stop", "change", "drop", "replace", "image", "surge", "surge"])
        if what == "stop":
            self._stop(wanted.uid, "ScaledDown")
        elif what == "drop":
            del self.wanted[wanted.uid]
        elif what in ("change", "image"):
            fresh = self._any(wanted.uid)
            wanted.revision += 1
            wanted.images, wanted.init = fresh.images, fresh.init
            wanted.delay, wanted.probed = fresh.delay, fresh.probed
        else:
            if what == "replace" or wanted.once:
                self._stop(wanted.uid, "Replaced")
            self._place(name if wanted.uid != name else f"{name}x", replaces=wanted.uid)

    def _stop(self, uid: str, cause: str) -> None:
        del self.wanted[uid]
        self.stops[uid] = cause

    def _place(self, uid: str, replaces: str = "") -> None:
        self.stops.pop(uid, None)
        self.wanted[uid] = self._any(uid, replaces)

    def _any(self, uid: str, replaces: str = "") -> Wanted:
        known = list(JOB_IMAGES) if uid.startswith("j") else IMAGES
        images = tuple(self.dice.choices(known, k=self.dice.choice([1, 1, 2])))
        init, delay = self.dice.choice(INITS), self.dice.choice(DELAYS)
        probed = self.dice.random() < 0.3
        return Wanted(uid, images, self.generation + 1, 1, init, delay, probed, replaces)

    def message(self) -> Any:
        return node_plan(
            self.generation,
            [w.assignment() for w in self.wanted.values()],
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

    async def crash(self) -> None:
        runs = [run.id for pod in self.runtime.now() for run in running(pod)]
        if runs:
            self.runtime.crash(self.dice.choice(runs), self.dice.choice([0, 1, 137]))

    async def hang(self) -> None:
        runs = [run.id for pod in self.runtime.now() for run in running(pod)]
        if runs:
            self.runtime.hung.add(self.dice.choice(runs))

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
        image = self.dice.choice([*IMAGES, *JOB_IMAGES, *INIT_IMAGES])
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
        self.runtime.exits["init:ill"] = 0
        self.send()
        await asyncio.sleep(2000)
        if self.checks.bad:
            raise Violation(self.checks.bad[0])
        self._check_end()

    def _check_end(self) -> None:
        plan, pods = self.plan, self.runtime.now()
        assert plan is not None
        self.checks.single(pods)
        by_uid = {uid_of(pod): pod for pod in pods}
        uids = [uid_of(pod) for pod in pods]
        if doubles := {uid for uid in self.wanted if uids.count(uid) > 1}:
            raise Violation(f"two pods are left of {sorted(doubles)}")
        if left := by_uid.keys() & plan.stops.keys():
            raise Violation(f"{sorted(left)} should have been stopped")
        if extra := by_uid.keys() - self.wanted.keys() - self.checks.orphans:
            raise Violation(f"nobody wants {sorted(extra)}")
        reported = {s.replica_uid: s for s in self.supervisor.statuses()}
        for uid, wanted in self.wanted.items():
            if uid not in by_uid:
                raise Violation(f"{uid} has no pod: {reported[uid]}")
            pod = by_uid[uid]
            if wanted.once:
                end, phase = outcome(pod, self.checks.template(pod)), reported[uid].phase
                if not end and self.checks.could_not_start(pod.id):
                    end = "failed"  # what goes on was run to its end by now
                if not end or PHASES[end] != phase or reported[uid].ready or running(pod):
                    raise Violation(f"{uid} ended {end!r} and is reported as {reported[uid]}")
                continue
            runs = {run.name: run.image for run in running(pod)}
            if tuple(image for _, image in sorted(runs.items())) != wanted.images:
                raise Violation(f"{uid} should run {wanted.images}; it runs {runs}")
            if not reported[uid].ready:
                raise Violation(f"ready is not reported: {reported[uid]}")


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
