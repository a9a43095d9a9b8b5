"""The supervisor on a real containerd: what the simulation assumes, checked where it happens."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.domain.plan import ParsedPlan
from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ContainerState
from agent.sources import ReplicaSources
from agent.supervisor import Supervisor, SupervisorConfig
from devcluster import residue
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO, host_architecture
from polder.v1 import agent_pb2, common_pb2
from tests.containerd_fixtures import WRONG_ARCHITECTURE
from tests.sim.agent_plans import assignment, plan, stop, template

pytestmark = pytest.mark.containerd


class Node:
    """The agent's supervisor on a private containerd; `restart` is a new process's view."""

    def __init__(self, containerd: PrivateContainerd, directory: Path) -> None:
        self._endpoint = str(containerd.paths.socket)
        self._config = SupervisorConfig(
            "box-1", "nl-utr-1", host_architecture(), directory / "state", directory / "logs"
        )
        self.events: list[common_pb2.Event] = []
        self.generation = 0
        self.uids: set[str] = set()

    async def start(self, wanted: ParsedPlan | None = None) -> None:
        self.status: dict[str, agent_pb2.ReplicaStatus] = {}
        self.gone: set[str] = set()
        self.runtime = CriRuntime(self._endpoint)
        self.supervisor = Supervisor(self.runtime, self._config)
        self.supervisor.on_event = self.events.append
        self.supervisor.on_status = self._on_status
        if wanted is not None:
            self.supervisor.submit_plan(wanted)
        self.task = asyncio.create_task(self.supervisor.run())

    def _on_status(self, changed: Any, gone: Any) -> None:
        self.status |= {s.replica_uid: s for s in changed}
        self.gone |= set(gone)

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.runtime.close()

    def plan(self, *args: Any, **kwargs: Any) -> ParsedPlan:
        self.generation += 1
        made = plan(self.generation, *args, **kwargs)
        self.uids |= set(made.assignments)
        return made

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.task.done():
                self.task.result()
            assert time.monotonic() < deadline, (self.status, self.events[-5:])
            await asyncio.sleep(0.01)

    def ready(self, uid: str) -> bool:
        return uid in self.status and self.status[uid].ready

    def phase(self, uid: str) -> int:
        return self.status[uid].phase if uid in self.status else 0

    def reason(self, uid: str) -> str:
        return self.status[uid].reason if uid in self.status else ""

    async def containers(self) -> dict[str, ContainerState]:
        return {c.id: c for p in await self.runtime.list_pods() for c in p.containers}

    async def clean(self) -> None:
        self.supervisor.submit_plan(self.plan([], [stop(uid) for uid in sorted(self.uids)]))
        await self.until(lambda: self.gone >= self.uids, 40)


@pytest.fixture
async def node(containerd: PrivateContainerd, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(containerd, tmp_path)
    await made.start()
    yield made
    with contextlib.suppress(AssertionError):
        await made.clean()
    await made.kill()


def shell(script: str, **fields: Any) -> dict[str, Any]:
    return template(
        HELLO, command=["/bin/sh", "-c", script], imagePullPolicy="Never", stopGrace="1s", **fields
    )


FOREVER = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


async def test_start_serve_stop(node: Node) -> None:
    probe = {"http": {"path": "/", "port": 8080}, "period": "10s"}
    web = template(HELLO, imagePullPolicy="Never", readinessProbe=probe, stopGrace="1s")
    started = time.monotonic()
    node.supervisor.submit_plan(node.plan([assignment("web", web)]))
    await node.until(lambda: node.ready("web"))
    assert time.monotonic() - started < 5, "readiness is seen quickly"
    assert node.status["web"].pod_ip and node.status["web"].started_at_ms > 0
    node.supervisor.submit_plan(node.plan([], [stop("web", "WorkloadDeleted")]))
    await node.until(lambda: "web" in node.gone)
    assert not await node.containers()
    assert not list((node._config.log_dir).iterdir()), "logs go with the replica"


async def test_crash_loop_shows_exit_code_and_last_lines(node: Node) -> None:
    script = "echo one; echo could not find my database; exit 7"
    node.supervisor.submit_plan(node.plan([assignment("bad", shell(script))]))
    await node.until(lambda: "bad" in node.status and node.status["bad"].restarts >= 2)
    await node.until(lambda: node.reason("bad") == "CrashLoop")
    last = node.status["bad"].containers[0].last_exit
    assert (last.exit_code, last.reason) == (7, "Error")
    await node.until(
        lambda: (
            node.status["bad"].containers[0].last_exit.last_log
            == "one\ncould not find my database\n"
        )
    )
    assert any("could not find my database" in e.message for e in node.events)
    await node.until(lambda: node.status["bad"].restarts >= 3)
    assert len(await node.containers()) <= 3


async def test_liveness_restarts(node: Node) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/dev/shm/stuck"]}, "period": "200ms"}
    # /dev/shm is the pod's: it can be written to, and outlives the container.
    stuck = "rm -f /dev/shm/stuck; (sleep 1; touch /dev/shm/stuck) &"
    script = f"[ $POLDER_EPOCH = 1 ] || exit 9; {stuck} {FOREVER}"
    node.supervisor.submit_plan(
        node.plan(
            [assignment("live", shell(script, livenessProbe=probe | {"failureThreshold": 2}))]
        )
    )
    await node.until(lambda: "live" in node.status and node.status["live"].restarts >= 1)
    assert node.status["live"].containers[0].last_exit.reason == "LivenessFailed"
    await node.until(lambda: node.ready("live"))


async def test_a_new_supervisor_adopts_what_runs(node: Node) -> None:
    wanted = node.plan([assignment(uid, shell(FOREVER)) for uid in ("a", "b")])
    node.supervisor.submit_plan(wanted)
    await node.until(lambda: node.ready("a") and node.ready("b"))
    before = await node.containers()
    await node.kill()
    await node.start(wanted)
    assert await node.supervisor.wait_settled(5)
    assert all(s.ready for s in node.supervisor.statuses())
    await asyncio.sleep(1.5)  # long enough for a mistaken decision to show
    after = await node.containers()
    assert {i: c.started_at for i, c in after.items()} == {
        i: c.started_at for i, c in before.items()
    }


async def test_dead_sandboxes_are_made_anew(node: Node, containerd: PrivateContainerd) -> None:
    wanted = node.plan([assignment("cold", shell(FOREVER))])
    node.supervisor.submit_plan(wanted)
    await node.until(lambda: node.ready("cold"))
    before = set(await node.containers())
    await node.kill()
    await stop_sandboxes(containerd)
    await node.start(wanted)
    await node.until(lambda: node.ready("cold"))
    after = await node.containers()
    assert after and not before & set(after)


async def stop_sandboxes(containerd: PrivateContainerd) -> None:
    """As after a reboot: they are known, and dead."""
    from agent.runtime.cri.pb import api_pb2 as pb

    stopper = CriRuntime(str(containerd.paths.socket))
    for pod in await stopper.list_pods():
        request = pb.StopPodSandboxRequest(pod_sandbox_id=pod.id)
        await stopper._runtime.StopPodSandbox(request, timeout=20)
    await stopper.close()


async def test_a_taken_host_port_is_pending_until_it_is_free(node: Node) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        ported = shell(FOREVER, ports=[{"containerPort": 8080, "hostPort": port}])
        node.supervisor.submit_plan(node.plan([assignment("port", ported)]))
        await node.until(lambda: node.reason("port") == "HostPortInUse")
        assert node.status["port"].phase == agent_pb2.REPLICA_PHASE_PENDING
        assert str(port) in node.status["port"].message
    await node.until(lambda: node.ready("port"))


async def test_images_that_cannot_run_say_why(node: Node) -> None:
    missing = template("polder.local/missing:1", imagePullPolicy="Never")
    foreign = template(WRONG_ARCHITECTURE, imagePullPolicy="Never")
    refused = template(HELLO, imagePullPolicy="Never", command=["/no/such/program"])
    node.supervisor.submit_plan(
        node.plan(
            [
                assignment("missing", missing),
                assignment("foreign", foreign),
                assignment("refused", refused),
            ]
        )
    )
    await node.until(lambda: node.reason("missing") == "ImageNeverPull")
    await node.until(lambda: node.reason("foreign") == "ImagePlatform")
    await node.until(lambda: node.reason("refused") == "ContainerStart")
    assert "/no/such/program" in node.status["refused"].message
    events = len(node.events)
    await asyncio.sleep(2)
    assert len(node.events) - events < 10, "no spin"


async def test_logs_follow_the_replica(node: Node) -> None:
    script = "n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.05; done"
    node.supervisor.submit_plan(node.plan([assignment("log", shell(script))]))
    await node.until(lambda: node.ready("log"))
    sources = ReplicaSources(node.supervisor, node.runtime)
    options = agent_pb2.LogOptions(replica_uid="log", follow=True, tail_lines=-1)
    text = ""
    async with asyncio.timeout(10):
        async with contextlib.aclosing(sources.logs(options)) as pieces:
            async for stream, data in pieces:
                assert stream == "stdout"
                text += data.decode()
                if "tick 20\n" in text:
                    break
    assert text.splitlines()[:21] == [f"tick {n}" for n in range(21)]


SUCCEEDED, FAILED = agent_pb2.REPLICA_PHASE_SUCCEEDED, agent_pb2.REPLICA_PHASE_FAILED


async def test_init_containers_run_first_and_are_not_repeated(node: Node) -> None:
    pod = shell(FOREVER)
    first = {**shell("sleep 0.5; echo prepared")["containers"][0], "name": "prepare"}
    check = {**shell("true")["containers"][0], "name": "check"}
    pod["initContainers"] = [first, check]
    wanted = node.plan([assignment("staged", pod)])
    node.supervisor.submit_plan(wanted)
    await node.until(lambda: node.reason("staged") == "Init")
    assert node.phase("staged") == agent_pb2.REPLICA_PHASE_PENDING
    await node.until(lambda: node.ready("staged"))
    runs = {c.name: c for c in (await node.containers()).values()}
    assert runs["prepare"].finished_at <= runs["check"].started_at
    assert runs["check"].finished_at <= runs["app"].started_at
    await node.kill()
    await node.start(wanted)
    assert await node.supervisor.wait_settled(5)
    for name in ("prepare", "check"):
        await node.runtime.remove_container(runs[name].id)
    await asyncio.sleep(1.5)  # long enough for a mistaken decision to show
    assert {c.name for c in (await node.containers()).values()} == {"app"}
    assert node.ready("staged")


async def test_what_runs_once_ends_as_it_ended(node: Node, containerd: PrivateContainerd) -> None:
    wanted = node.plan(
        [
            assignment("well", shell("echo all done"), run_once=True),
            assignment("ill", shell("echo no such patient; exit 3"), run_once=True),
            assignment("bad", no_program(), run_once=True),
        ]
    )
    node.supervisor.submit_plan(wanted)

    def ended() -> bool:
        phases = [node.phase(uid) for uid in ("well", "ill", "bad")]
        return phases == [SUCCEEDED, FAILED, FAILED]

    await node.until(ended)
    await node.until(lambda: node.status["ill"].containers[0].last_exit.last_log)
    last = node.status["ill"].containers[0].last_exit
    assert (last.exit_code, last.last_log) == (3, "no such patient\n")
    assert node.reason("bad") == "ContainerStart"
    assert "/no/such/program" in node.status["bad"].message
    before = await node.containers()
    assert len(before) == 2 and node.supervisor.counts() == (0, 0)
    await node.kill()
    await stop_sandboxes(containerd)
    await node.start(wanted)
    await node.until(lambda: node.phase("well") == SUCCEEDED and node.phase("ill") == FAILED)
    await node.until(lambda: node.phase("bad") == FAILED)
    assert (await node.containers()).keys() == before.keys(), "it did not run again"


def no_program() -> dict[str, Any]:
    return template(HELLO, imagePullPolicy="Never", command=["/no/such/program"])


async def test_two_stays_of_one_replica_run_side_by_side(node: Node) -> None:
    older = assignment("old", shell(FOREVER), replica="web-0", epoch=1)
    newer = assignment(
        "new", shell(FOREVER + " "), replica="web-0", epoch=2, revision=2, replaces="old"
    )
    node.supervisor.submit_plan(node.plan([older]))
    await node.until(lambda: node.ready("old"))
    node.supervisor.submit_plan(node.plan([older, newer]))
    await node.until(lambda: node.ready("new"))
    assert node.ready("old") and len(await node.runtime.list_pods()) == 2
    assert len({p.ip for p in await node.runtime.list_pods()}) == 2
    node.supervisor.submit_plan(node.plan([newer], [stop("old", "Updated", "web-0")]))
    await node.until(lambda: "old" in node.gone)
    assert node.ready("new") and len(await node.runtime.list_pods()) == 1


async def test_a_stop_is_told_and_then_waited_for(node: Node) -> None:
    node.supervisor.submit_plan(node.plan([assignment("web", shell(FOREVER, stopDelay="2s"))]))
    await node.until(lambda: node.ready("web"))
    node.supervisor.submit_plan(node.plan([], [stop("web", "Drained")]))
    await node.until(lambda: node.reason("web") == "Terminating")
    told = time.monotonic()
    assert not node.ready("web") and node.phase("web") == agent_pb2.REPLICA_PHASE_STOPPING
    await asyncio.sleep(1.0)
    assert [c.phase.value for c in (await node.containers()).values()] == ["running"]
    await node.until(lambda: "web" in node.gone)
    assert time.monotonic() - told >= 2.0


async def test_after_a_power_cut_what_was_cut_off_runs_again(
    node: Node, containerd: PrivateContainerd
) -> None:
    wanted = node.plan(
        [
            assignment("serves", shell(FOREVER)),
            assignment("long", shell("sleep 1000"), run_once=True),
            assignment("done", shell("exit 4"), run_once=True),
        ]
    )
    node.supervisor.submit_plan(wanted)
    await node.until(lambda: node.ready("serves") and node.ready("long"))
    await node.until(lambda: node.phase("done") == FAILED)
    before = {c.pod_id for c in (await node.containers()).values()}
    await node.kill()
    containerd.kill_daemon()
    residue.kill_shims(str(containerd.paths.socket))
    containerd.start()
    await node.start(wanted)
    await node.until(lambda: node.ready("serves") and node.ready("long"), 60)
    assert node.phase("done") == FAILED and "exit code 4" in node.status["done"].message
    after = {c.pod_id for c in (await node.containers()).values()}
    kept = before & after
    assert len(kept) == 1, "only what had ended stays"
