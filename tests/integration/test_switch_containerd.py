"""Exclusive replicas on a real containerd: where they are, what ends them, what they see."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.domain import cgroups
from agent.domain.compose import Settings, pod_spec
from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ContainerPhase, ContainerState, SandboxFailure
from agent.site.switch_client import NoAnswer, SwitchClient
from agent.supervisor import Supervisor, SupervisorConfig
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO, host_architecture
from polder.v1 import agent_pb2, common_pb2, plan_pb2
from tests.sim.agent_plans import assignment, plan, stop, template

pytestmark = pytest.mark.containerd

GROUP = plan_pb2.FailoverGroup(number=1, members=["box-1", "box-2", "box-3"], exclusive=True)
READS_EPOCH = 'while :; do echo "$POLDER_EPOCH $(cat /run/polder/epoch)"; sleep 0.1; done'
DEADLINE_S = 60.0


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node:
    """A supervisor with its switch on a private containerd. One replica of one uid."""

    def __init__(self, containerd: PrivateContainerd, directory: Path) -> None:
        # Nodes of one machine share its cgroups; their replicas are told apart by the uid.
        self.uid = f"s{os.urandom(6).hex()}"
        self.parent = "/polder-test"
        self.config = SupervisorConfig(
            "box-1",
            "nl-utr-1",
            host_architecture(),
            directory / "state",
            directory / "logs",
            cgroup_parent=self.parent,
        )
        self.directory = directory
        self.runtime = CriRuntime(str(containerd.paths.socket))
        self.supervisor = Supervisor(self.runtime, self.config)
        self.switch = SwitchClient(directory, directory / "table", self.parent)
        self.supervisor.use_guard(self.switch.objection)
        self.supervisor.on_event = lambda event: self.events.append(event)
        self.supervisor.on_status = self._on_status
        self.events: list[common_pb2.Event] = []
        self.status: agent_pb2.ReplicaStatus | None = None
        self.gone = False
        self.generation = 0
        self.tasks = [
            asyncio.create_task(self.supervisor.run()),
            asyncio.create_task(self.switch.run()),
        ]

    def _on_status(self, changed: Any, gone: Any) -> None:
        for status in changed:
            self.status = status
        self.gone = self.gone or self.uid in gone

    def want(self, *, epoch: int = 7, script: str = READS_EPOCH) -> None:
        self.generation += 1
        pod = template(
            HELLO, command=["/bin/sh", "-c", script], imagePullPolicy="Never", stopGrace="1s"
        )
        wanted = assignment(self.uid, pod, epoch=epoch, group=GROUP)
        self.supervisor.submit_plan(plan(self.generation, [wanted]))

    async def until(self, condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, (self.status, self.events[-5:])
            await asyncio.sleep(0.005)

    async def serve(self, seconds: float = 120.0) -> None:
        """Armed for so long, and running."""
        await self.until(lambda: self.switch.alive)
        assert await self.switch.arm(self.uid, boottime() + seconds)
        self.want()
        await self.until(lambda: self.status is not None and self.status.ready)

    def cgroups(self) -> list[Path]:
        """The replica's, in every hierarchy that has it."""
        below = cgroups.directory(cgroups.own_parent(self.parent, self.uid))
        roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
        return [root / below for root in roots if (root / below).is_dir()]

    def pids(self) -> set[int]:
        """What runs in any of them, or below."""
        found: set[int] = set()
        for directory in self.cgroups():
            with contextlib.suppress(OSError):
                for path in directory.rglob("cgroup.procs"):
                    found |= {int(pid) for pid in path.read_text().split()}
        return found

    async def container(self) -> ContainerState:
        pods = await self.runtime.list_pods()
        (found,) = (p for p in pods if p.labels.get("polder.eu/replica-uid") == self.uid)
        return max(found.containers, key=lambda c: c.attempt)

    def lines(self) -> list[str]:
        """The newest run's output."""
        logs = sorted(self.config.log_dir.rglob("*.log"), key=lambda path: path.stat().st_mtime)
        return [line.split(" ", 3)[3] for line in logs[-1].read_text().splitlines()]

    async def clean(self) -> None:
        """As the site does it: stop, and disarm when nothing is left."""
        self.generation += 1
        self.supervisor.submit_plan(plan(self.generation, [], [stop(self.uid)]))
        await self.until(lambda: self.gone)
        await self.switch.disarm(self.uid)

    async def end(self) -> None:
        if not self.gone:
            with contextlib.suppress(AssertionError):
                await self.clean()
        with contextlib.suppress(NoAnswer):  # it may have ended already
            await self.switch._ask("end")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.runtime.close()
        for name in ("polder-test", "polder-elsewhere"):
            for left in Path("/sys/fs/cgroup").glob(f"*/{name}"):
                with contextlib.suppress(OSError):  # another test run is in there
                    left.rmdir()


@pytest.fixture
async def node(containerd: PrivateContainerd, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(containerd, tmp_path)
    yield made
    await made.end()


async def test_all_of_it_is_in_its_own_cgroup_and_dies_at_the_deadline(node: Node) -> None:
    await node.serve()
    pids = node.pids()
    assert len(pids) >= 2, "the sandbox and the shell"
    # An exec is in there too.
    container = await node.container()
    running = asyncio.create_task(
        node.runtime.exec_sync(container.id, ["sleep", "1000"], timeout_s=100)
    )
    await node.until(lambda: len(node.pids() - pids) >= 1)
    deadline = boottime() + 1.0
    assert await node.switch.arm(node.uid, deadline)
    await node.until(lambda: not node.pids())
    assert 0 <= boottime() - deadline < 0.5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # What ended is noticed, and it is not started again.
    await node.until(
        lambda: (
            any("switch is not armed" in event.message for event in node.events)
            or (node.status is not None and node.status.reason == "NotGuarded")
        )
    )
    assert not node.pids()
    # A new tenure: it runs again.
    assert await node.switch.arm(node.uid, boottime() + 120)
    node.want(epoch=8)
    await node.until(lambda: node.status is not None and node.status.ready and node.pids())
    await node.until(lambda: node.lines()[-1:] == ["8 8"])


async def test_the_epoch_rises_under_a_running_container(node: Node) -> None:
    await node.serve()
    before = await node.container()
    await node.until(lambda: node.lines()[-1:] == ["7 7"])
    node.want(epoch=9)
    await node.until(lambda: node.lines()[-1:] == ["7 9"])
    assert (await node.container()).id == before.id
    assert set(node.lines()) == {"7 7", "7 9"}, "never half a file"


async def test_nothing_is_left_of_its_cgroups(node: Node) -> None:
    await node.serve()
    assert node.cgroups()
    await node.clean()
    assert node.cgroups() == []


async def test_without_a_switch_it_waits_for_one(node: Node) -> None:
    node.want()
    await node.until(lambda: node.status is not None and node.status.reason == "NotGuarded")
    assert not node.pids() and node.status is not None and not node.status.ready
    await node.serve()


async def test_no_container_starts_where_the_switch_does_not_look(node: Node) -> None:
    """The runtime has its own idea of what a cgroup parent is, as with the other driver."""
    await node.until(lambda: node.switch.alive)
    node.switch._parent = "/polder-elsewhere"
    assert await node.switch.arm(node.uid, boottime() + 120)
    node.want()
    await node.until(lambda: node.status is not None and node.status.reason == "NotGuarded")
    assert node.status is not None and "did not put it into" in node.status.message
    pods = await node.runtime.list_pods()
    mine = [p for p in pods if p.labels.get("polder.eu/replica-uid") == node.uid]
    assert mine and not any(c.phase is ContainerPhase.RUNNING for p in mine for c in p.containers)
    await node.clean()
    node.switch._parent = node.parent
    await node.switch.disarm(node.uid)


async def test_what_the_runtime_starts_past_the_deadline_does_not_run(node: Node) -> None:
    """An agent that died had asked for it; containerd goes on."""
    await node.until(lambda: node.switch.alive)
    assert await node.switch.arm(node.uid, boottime() - 1)
    settings = Settings("box-1", "nl-utr-1", str(node.config.log_dir), node.parent)
    (wanted,) = plan(1, [assignment(node.uid, group=GROUP)]).assignments.values()
    assert wanted.template is not None
    with pytest.raises(SandboxFailure):
        await node.runtime.run_pod(pod_spec(settings, wanted, wanted.template, node.uid))
    await node.until(lambda: not node.pids())


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.integration import test_switch_containerd as module
class Containerd:
    class paths:
        socket = {socket!r}
async def main():
    node = module.Node(Containerd, Path({directory!r}))
    node.uid = {uid!r}
    await node.serve(60)
    while True:
        await node.switch.arm(node.uid, module.boottime() + 1.5)
        print("armed", flush=True)
        await asyncio.sleep(0.2)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_an_agent_that_is_killed_or_frozen(
    node: Node, containerd: PrivateContainerd, how: signal.Signals
) -> None:
    code = AGENT.format(
        root=str(Path(__file__).parents[2]),
        socket=str(containerd.paths.socket),
        directory=str(node.directory),
        uid=node.uid,
    )
    agent = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", code], stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        for _ in range(5):
            assert await asyncio.to_thread(agent.stdout.readline) == b"armed\n"
        assert node.pids()
        began = boottime()
        agent.send_signal(how)
        await node.until(lambda: not node.pids())
        assert 1.0 < boottime() - began < 2.5
        # The next agent finds the pod, is not allowed to start it, and is once it has a lease.
        await node.serve()
        await node.until(node.pids)
    finally:
        agent.kill()
        agent.wait()
