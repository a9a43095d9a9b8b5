"""A reconnect changes nothing on the node: the whole agent over a simulated runtime that counts."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.identity_store import IdentityStore
from agent.runtime.simulated import SimulatedRuntime
from agent.service import Agent
from polder.v1 import agent_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually, write_identity
from tests.integration.test_agent_session_process import plan, running

ACTIONS = (
    "ensure_image", "run_pod", "start_container", "stop_container", "remove_container",
    "remove_pod",
)  # fmt: skip


class Counting(SimulatedRuntime):
    """Remembers every call that changes something."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ACTIONS:
            self.actions.append(name)
        return super().__getattribute__(name)


async def identities(runtime: Counting) -> set[tuple[str, str, float]]:
    """Container ids and start times."""
    pods = await runtime.list_pods()
    return {(pod.id, c.id, c.started_at) for pod in pods for c in pod.containers}


@pytest.fixture
async def regions() -> Any:
    ca = Ca()
    made = [await Orchestrator(ca).start() for _ in range(3)]
    for number, one in enumerate(made):
        one.member = f"m{number}"
        one.told = [other.endpoint for other in made]
    yield made
    for one in made:
        await one.stop()


async def test_no_action_is_taken_however_the_session_moves(
    tmp_path: Path, regions: list[Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    first, second, third = regions
    write_identity(tmp_path / "state", first.ca, [first.endpoint])
    config = AgentConfig(state_dir=tmp_path / "state", log_dir=tmp_path / "logs", local_listen="")
    runtime = Counting()
    agent = await Agent.assemble(config, IdentityStore(config.state_dir), runtime)
    stopping = asyncio.Event()
    task = asyncio.create_task(agent.run(stopping))
    try:
        await eventually(lambda: agent.client.state.member == "m0", 30)
        signed = first.signed(plan(5, 4))
        first.visits[0].say(plan=signed)
        await eventually(lambda: len(running(first.visits[0])) == 4, 30)
        before, actions = await identities(runtime), list(runtime.actions)
        assert len(before) == 4

        # Its member stops; the next one sends the same plan, the one after that an older one.
        first.visits[-1].say(goodbye=agent_pb2.Goodbye(reason="Shutdown"))
        await eventually(lambda: agent.client.state.member == "m1", 20)
        hello = second.visits[-1].hello
        assert hello.plan_generation == 5 and len(hello.replicas) == 4
        second.visits[-1].say(plan=second.signed(plan(5, 4)))
        await second.stop()
        await eventually(lambda: agent.client.state.member in ("m0", "m2"), 20)
        await first.stop()
        await eventually(lambda: agent.client.state.member == "m2", 20)
        third.visits[-1].say(plan=third.signed(plan(4, 0)))
        await eventually(lambda: third.visits[-1].of("plan_ack"), 20)
        assert third.visits[-1].of("plan_ack")[-1].reason == "Stale"

        # All are gone for a while, and one comes back.
        port = third.port
        await third.stop()
        await eventually(lambda: not agent.client.state.connected, 20)
        third.age_ms = 800
        await third.start(port)
        await eventually(lambda: len(third.visits) >= 3, 30)
        assert await identities(runtime) == before
        assert runtime.actions == actions
        assert agent.keeper.generation == 5
    finally:
        stopping.set()
        await asyncio.wait_for(task, 20)
        await runtime.close()
    assert runtime.actions == actions, "nor when the agent stops"
