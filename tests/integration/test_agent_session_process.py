"""The real `edge-agent` process, with a simulated runtime, against a scripted orchestrator."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.hardware import shelf
from bench import memory
from polder.v1 import agent_pb2, plan_pb2
from tests.emulated import EMULATED
from tests.integration.agent_fakes import DOMAIN, Ca, Orchestrator, eventually, write_identity

AGENT = [sys.executable, "-m", "agent"]
TEMPLATE = json.dumps({"containers": [{"name": "app", "image": "app:1"}]}).encode()
PSS_MAX_MB = 34.0  # the switch has the rest of 40


def plan(generation: int, replicas: int) -> plan_pb2.NodePlan:
    return plan_pb2.NodePlan(
        node="box-1",
        site="s1",
        trust_domain=DOMAIN,
        generation=generation,
        issued_at_ms=int(time.time() * 1000),
        assignments=[
            plan_pb2.Assignment(
                namespace="default",
                workload="app",
                workload_uid="w",
                replica=f"app-{i}",
                replica_uid=f"uid-{i}",
                epoch=1,
                revision=1,
                template_json=TEMPLATE,
            )
            for i in range(replicas)
        ],
        assignment_count=replicas,
    )


class Process:
    """`edge-agent run` in a child process."""

    def __init__(self, state_dir: Path) -> None:
        self.log_path = state_dir.parent / f"agent-{time.monotonic_ns()}.log"
        arguments = ["run", "--state-dir", str(state_dir), "--runtime", "simulated"]
        arguments += ["--log-dir", str(state_dir.parent / "pods"), "--log-format", "logfmt"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*AGENT, *arguments], stdin=subprocess.DEVNULL, stderr=log
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 20)


@pytest.fixture
async def server():
    orchestrator = await Orchestrator(Ca()).start()
    yield orchestrator
    await orchestrator.stop()


@pytest.fixture
async def agent(tmp_path, server):
    state_dir = tmp_path / "state"
    write_identity(state_dir, server.ca, [server.endpoint])
    process = Process(state_dir)
    yield process
    await process.stop(signal.SIGKILL)


def running(visit) -> dict[str, agent_pb2.ReplicaStatus]:
    found = {r.replica_uid: r for r in visit.hello.replicas}
    for update in visit.of("replica_status"):
        found |= {r.replica_uid: r for r in update.changed}
    return {k: r for k, r in found.items() if r.phase == agent_pb2.REPLICA_PHASE_RUNNING}


def status_of(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [*AGENT, "status", "--state-dir", str(tmp_path / "state"), "-o", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_runs_a_plan_stays_small_and_stops_gracefully(tmp_path, server, agent) -> None:
    await eventually(lambda: server.visits and server.visits[0].of("heartbeat"), 20)
    visit = server.visits[0]
    assert visit.hello.inventory.capacity.cpu_millis >= 1000
    assert visit.hello.inventory.hardware_profile in shelf.load()[0]
    for name in (visit.hello.inventory.machine_id, visit.hello.inventory.hardware_id):
        assert name == "" or len(name) == 64

    visit.say(plan=server.signed(plan(5, 10)))
    await eventually(lambda: visit.of("plan_ack") and len(running(visit)) == 10, 20)
    assert visit.of("plan_ack")[0].accepted
    await eventually(lambda: visit.of("heartbeat")[-1].replicas_running == 10)

    forged = Orchestrator(Ca()).signed(plan(6, 0))
    visit.say(plan=forged)
    await eventually(lambda: len(visit.of("plan_ack")) == 2)
    assert visit.of("plan_ack")[1].reason == "BadChain"
    visit.say(plan=server.signed(plan(4, 0)))
    await eventually(lambda: len(visit.of("plan_ack")) == 3)
    assert visit.of("plan_ack")[2].reason == "Stale"
    assert len(running(visit)) == 10

    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    for unwanted in ("_ssl.", "libssl", "libcrypto", "cryptography", "_lzma.", "_bz2."):
        assert unwanted not in maps
    if os.geteuid() == 0:  # it gives back what the start needed after some seconds
        # Emulated: `bench footprint --arch arm64` takes the emulator off.
        await eventually(lambda: EMULATED or memory.alone([agent.pid]).pss_mb <= PSS_MAX_MB, 60)

    await eventually(lambda: json.loads(status_of(tmp_path).stdout)["session"])
    shown = json.loads(status_of(tmp_path).stdout)
    assert shown["node"] == "box-1" and shown["pid"] == agent.pid

    assert await agent.stop() == 0
    await eventually(lambda: visit.over)
    shown = json.loads(status_of(tmp_path).stdout)
    assert shown["pid"] == 0 and not shown["session"]["connected"]


async def test_two_agents_never_share_a_state_directory(tmp_path, server, agent) -> None:
    await eventually(lambda: server.visits, 20)
    second = Process(tmp_path / "state")
    assert await asyncio.to_thread(second.process.wait, 20) == 1
    assert f"in use by the agent with pid {agent.pid}" in second.log_path.read_text()


async def test_killed_and_started_without_an_orchestrator_it_runs_its_last_plan(
    tmp_path, server, agent
) -> None:
    await eventually(lambda: server.visits, 20)
    server.visits[0].say(plan=server.signed(plan(5, 2)))
    await eventually(lambda: server.visits[0].of("plan_ack"), 20)
    await agent.stop(signal.SIGKILL)
    port = server.port
    await server.stop()
    again = Process(tmp_path / "state")
    try:
        await eventually(lambda: "generation=5" in again.log_path.read_text(), 20)
        await server.start(port)
        await eventually(lambda: len(server.visits) == 2 and server.visits[1].received, 30)
        assert server.visits[1].hello.plan_generation == 5
        await eventually(lambda: len(running(server.visits[1])) == 2)
        assert server.visits[0].hello.instance_id != server.visits[1].hello.instance_id
    finally:
        await again.stop(signal.SIGKILL)


async def test_started_before_the_join_it_waits(tmp_path, server) -> None:
    asked = []

    async def admit(request, context):  # type: ignore[no-untyped-def]
        asked.append(request.node)
        return server.admit(request, request.node)

    server.on_join = admit
    from tests.integration.test_agent_credentials import token_for

    state_dir = tmp_path / "state"
    process = Process(state_dir)
    try:
        await eventually(lambda: "edge-agent join" in process.log_path.read_text(), 20)
        command = [*AGENT, "join", "--token-file", "-", "--node", "box-1"]
        command += ["--state-dir", str(state_dir)]
        token = str(token_for(server)).encode()

        async def run_join(*more: str) -> tuple[int | None, str]:
            child = await asyncio.create_subprocess_exec(
                *command,
                *more,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            out, _ = await child.communicate(token)
            return child.returncode, out.decode()

        assert await run_join("--check") == (3, "box-1 would join at site s1\n")
        assert not asked
        assert await run_join() == (0, f"box-1 joined {DOMAIN} at site s1\n")
        assert '"new":true' in (state_dir / "site" / "memory").read_text(), "it never voted"
        await eventually(lambda: server.visits, 20)
        code, said = await run_join()
        assert code == 0 and f"box-1 had already joined {DOMAIN} at site s1\n" in said
        assert (await run_join("--check"))[0] == 0
        assert await run_join("--check", "--force") == (3, "box-1 would join at site s1\n")
        assert "join with --force" in said  # a revoked box would otherwise look joined for ever
    finally:
        await process.stop(signal.SIGKILL)


def test_settings_that_nobody_knows_are_an_error(tmp_path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('log_level = "info"\nstate_dri = "/x"\n')
    done = subprocess.run(
        [*AGENT, "run", "--config", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert f"{file}:2: state_dri: unknown setting" in done.stderr
