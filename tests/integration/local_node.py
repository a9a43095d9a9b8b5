"""A whole agent in the test's own process, with a scripted orchestrator and a LocalService."""

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.identity_store import IdentityStore
from agent.runtime.simulated import SimulatedRuntime
from agent.service import Agent
from polder.v1 import plan_pb2
from tests.integration.agent_fakes import DOMAIN, Ca, Orchestrator, eventually, write_identity
from tests.integration.local_rig import Client, Person
from tests.integration.site_rig import free_port

TEMPLATE = json.dumps({"containers": [{"name": "app", "image": "app:1"}]}).encode()
SLOW_S = 60.0


class Node:
    """One agent in this process, with a plan of two namespaces."""

    def __init__(self, folder: Path, ca: Ca, server: Orchestrator) -> None:
        self.ca, self.server = ca, server
        self.port = free_port()
        self.config = AgentConfig(
            state_dir=folder / "state",
            log_dir=folder / "logs",
            site_listen="",
            local_listen=f"127.0.0.1:{self.port}",
            local_advertise="127.0.0.1",
        )
        write_identity(folder / "state", ca, [server.endpoint])
        self._clients: list[Client] = []

    async def start(self) -> None:
        store = IdentityStore(self.config.state_dir)
        visits = len(self.server.visits)
        self.runtime = SimulatedRuntime()
        self.agent = await Agent.assemble(self.config, store, self.runtime)
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self.agent.run(self._stopping))
        await eventually(lambda: len(self.server.visits) > visits, SLOW_S)
        await eventually(lambda: self.visit.received, SLOW_S)

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        self._clients = []
        self._stopping.set()
        await self._task

    @property
    def visit(self) -> Any:
        return self.server.visits[-1]

    async def client(self) -> Client:
        inventory = self.visit.hello.inventory
        assert list(inventory.local_endpoints) == [f"127.0.0.1:{self.port}"]
        client = Client(f"127.0.0.1:{self.port}", inventory.site_certificate, self.ca)
        self._clients.append(client)
        return client

    async def entered(self, credential: Person | str) -> Client:
        client = await self.client()
        await client.enter(credential)
        return client

    async def use_plan(
        self, generation: int = 5, overrides: Iterable[plan_pb2.Override] = ()
    ) -> None:
        plan = plan_pb2.NodePlan(
            node="box-1",
            site="s1",
            trust_domain=DOMAIN,
            generation=generation,
            overrides=overrides,
            issued_at_ms=int(time.time() * 1000),
            endpoints=[self.server.endpoint],
            assignments=[
                plan_pb2.Assignment(
                    namespace=namespace,
                    workload=workload,
                    workload_uid=f"w-{workload}",
                    replica=f"{workload}-0",
                    replica_uid=f"u-{workload}",
                    epoch=1,
                    revision=1,
                    template_json=TEMPLATE,
                )
                for namespace, workload in (("umc", "triage"), ("umc", "lab"), ("city", "lamps"))
            ],
            assignment_count=3,
        )
        self.visit.say(plan=self.server.signed(plan))
        await eventually(lambda: self.agent.supervisor.counts() == (3, 3), SLOW_S)
