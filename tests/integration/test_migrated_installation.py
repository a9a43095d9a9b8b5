"""From SQLite to etcd with the command, then served there: nothing is lost, everybody counts."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from orchestrator.identity.authority import create_region, create_root
from polder.v1 import agent_pb2, operator_pb2, plan_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import good_inventory, status_of
from tests.integration.members_rig import etcd_settings
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    ref,
    running,
    until,
    workload,
)

pytestmark = pytest.mark.etcd


class Agent:
    """Obeys its plans, and remembers the newest."""

    def __init__(self, node: str, credentials: Credentials) -> None:
        self.node = node
        self.credentials = credentials
        self.plan = plan_pb2.NodePlan()
        self.welcomes = 0

    @asynccontextmanager
    async def at(self, rig: Rig) -> AsyncIterator["Agent"]:
        """Connected; with what its last plan says already running."""
        call = rig.agents(self.credentials).Session()
        replicas = [status_of(item) for item in self.plan.assignments]
        hello = agent_pb2.Hello(
            agent_version="test",
            instance_id="i",
            boot_id="b",
            inventory=good_inventory(),
            replicas=replicas,
            plan_generation=self.plan.generation,
        )
        await call.write(agent_pb2.SessionRequest(hello=hello))
        reading = asyncio.create_task(self._read(call))
        beating = asyncio.create_task(self._beat(call))
        try:
            yield self
        finally:
            for task in (reading, beating):
                task.cancel()
            call.cancel()

    async def _beat(self, call: Any) -> None:
        while True:
            await asyncio.sleep(1)
            await call.write(agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat()))

    async def _read(self, call: Any) -> None:
        async for message in call:
            self.welcomes += message.HasField("welcome")
            if not message.HasField("plan"):
                continue
            plan = plan_pb2.NodePlan.FromString(message.plan.node_plan)
            assert plan.generation > self.plan.generation or plan == self.plan
            self.plan = plan
            ack = agent_pb2.PlanAck(generation=plan.generation, accepted=True)
            await call.write(agent_pb2.SessionRequest(plan_ack=ack))
            update = agent_pb2.ReplicaStatusUpdate(
                changed=[status_of(item) for item in plan.assignments],
                gone=[stop.replica_uid for stop in plan.stops],
            )
            await call.write(agent_pb2.SessionRequest(replica_status=update))

    @property
    def epochs(self) -> dict[str, int]:
        return {item.replica: item.epoch for item in self.plan.assignments}


def move(database: Path, settings: dict[str, Any]) -> None:
    """As an operator types it."""
    command = [sys.executable, "-m", "orchestrator", "migrate", "--from", f"sqlite:{database}"]
    command += ["--to", settings["store"], "--to-prefix", settings["etcd_prefix"]]
    for name in ("ca", "cert", "key"):
        command += [f"--to-{name}", settings[f"etcd_{name}"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def resources(rig: Rig, credentials: Credentials) -> dict[tuple[str, str, str], Any]:
    """What operators wrote, by uid."""
    stub = rig.operators(credentials)
    found: dict[tuple[str, str, str], Any] = {}
    for kind in ("Provider", "Site", "Node", "Namespace", "Workload", "Config"):
        for one in (await stub.List(operator_pb2.ListRequest(kind=kind))).resources:
            found[(kind, one.metadata.name, one.metadata.uid)] = json.loads(one.spec_json)
    return found


async def test_nothing_is_lost_and_everybody_still_counts(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path / "etcd")
    cluster.start()
    ca = tmp_path / "ca"
    create_root(ca, "polder.internal", time.time())
    create_region(ca, "local", time.time())
    try:
        settings = {**etcd_settings(cluster, "/moved"), "ca_dir": str(ca), "member": "m"}
        data = tmp_path / "data"
        async with running(tmp_path, ca_dir=str(ca), member="m") as rig:
            await rig.site()
            agent = Agent("n1", await rig.node("n1"))
            ann = await rig.operator("ann", "viewer:default")
            admin = rig.admin_credentials()
            async with agent.at(rig):
                # Time, and revisions, go by before the replica gets its place and its epoch.
                for number in range(30):
                    await rig.apply(workload("w", namespace="default", replicas=1 + number % 2))
                await rig.apply(workload("w", namespace="default"))
                await until(lambda: list(agent.epochs) == ["w-0"], "it has its replica")
            before = await resources(rig, admin)
            epoch = agent.epochs["w-0"]
        move(data / "polder.db", settings)
        async with running(tmp_path, **settings) as rig:
            assert await resources(rig, admin) == before
            found = await rig.operators(ann).Get(
                operator_pb2.GetRequest(ref=ref("Workload", "w", "default"))
            )
            assert found.resource.metadata.name == "w"
            welcomes = agent.welcomes
            async with agent.at(rig):
                await until(lambda: agent.welcomes > welcomes, "the node's certificate counts")
                # What ran goes on, and what replaces it has the higher epoch.
                await asyncio.sleep(2)
                assert agent.epochs == {"w-0": epoch}
                stub = rig.operators(admin)
                await rig.apply(workload("w", namespace="default", image="app:2"), stub=stub)
                await until(lambda: agent.epochs.get("w-0", 0) > epoch, "a newer epoch", 30)
            assert (await _revoked(rig, admin, agent)) == "UNAUTHENTICATED"
    finally:
        cluster.stop()


async def _revoked(rig: Rig, admin: Credentials, agent: Agent) -> str:
    """What a node hears that is revoked in the new Store."""
    request = operator_pb2.RevokeRequest(ref=ref("Node", agent.node), reason="left")
    await rig.operators(admin).Revoke(request)
    call = rig.agents(agent.credentials).Session()
    try:
        await call.write(agent_pb2.SessionRequest(hello=agent_pb2.Hello()))
        await call.read()
        return "not refused"
    except aio.AioRpcError as error:
        return str(error.code().name)
