"""Two or more regions in this process: a member each, over one etcd, each with its own CA alone.

Used by test_regions and test_drill. An agent is scripted: it keeps a session at the first member
that has it, reports what it runs, and goes to the next one when the session ends.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import aio

from orchestrator.identity.authority import create_region, create_root
from orchestrator.identity.bundle import export_region, import_region, read_bundle
from orchestrator.server import Orchestrator
from polder.signing import verify_plan
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import good_inventory, status_of
from tests.integration.members_rig import etcd_settings
from tests.integration.orchestrator_rig import Credentials, Rig, config_for

DOMAIN = "polder.internal"


@asynccontextmanager
async def regions(
    folder: Path, cluster: EtcdCluster, prefix: str, *names: str, **changes: Any
) -> AsyncIterator[list[Rig]]:
    """A member `<region>-1` per region, started in this order: the first one leads."""
    root = folder / "root"
    create_root(root, DOMAIN, time.time())
    async with AsyncExitStack() as stack:
        found: list[Rig] = []
        for name in names:
            create_region(root, name, time.time())
            bundle, there = folder / f"{name}.json", folder / name
            export_region(root, name, bundle)
            import_region(read_bundle(bundle), there / "ca")
            found.append(
                await stack.enter_async_context(
                    member(there, name, f"{name}-1", **etcd_settings(cluster, prefix), **changes)
                )
            )
        yield found


@asynccontextmanager
async def member(there: Path, region: str, name: str, **changes: Any) -> AsyncIterator[Rig]:
    """A machine of the region: its CA is in `there`."""
    config = config_for(
        there / name, region=region, member=name, ca_dir=str(there / "ca"), **changes
    )
    rig = Rig(Orchestrator(config), config)
    await rig.orchestrator.start()
    try:
        yield rig
    finally:
        await rig.close()
        await rig.orchestrator.stop()


@dataclass
class Wanderer:
    """A node's agent that goes from member to member. `sessions` are those it was welcomed to."""

    node: str
    credentials: Credentials
    rigs: list[Rig]
    sessions: list[str] = field(default_factory=list)
    signers: list[str] = field(default_factory=list)
    statuses: list[agent_pb2.ReplicaStatus] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    generation: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        for rig in itertools.cycle(self.rigs):
            with contextlib.suppress(aio.AioRpcError):
                await self._session(rig)
            await asyncio.sleep(0.1)

    async def _session(self, rig: Rig) -> None:
        hello = agent_pb2.Hello(
            agent_version="test",
            instance_id=f"{self.node}-1",
            boot_id="boot",
            inventory=good_inventory(),
            session_number=next(self.numbers),
            plan_generation=self.generation,
            replicas=self.statuses,
        )
        call = rig.agents(self.credentials).Session()
        try:
            await call.write(agent_pb2.SessionRequest(hello=hello))
            beats = asyncio.create_task(self._beat(call))
            try:
                async for message in call:
                    if message.HasField("welcome"):
                        self.sessions.append(message.welcome.member)
                    elif message.HasField("plan"):
                        await self._take(call, rig, message.plan)
            finally:
                beats.cancel()
        finally:
            call.cancel()

    async def _beat(self, call: Any) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(1.0)
                beat = agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat())
                await call.write(beat)

    async def _take(self, call: Any, rig: Rig, signed: plan_pb2.SignedNodePlan) -> None:
        """As the agent does: verified by the root that it was given when it joined."""
        signer = verify_plan(
            signed.node_plan,
            signed.signature,
            signed.certificate_chain,
            rig.authority.roots_der,
            time.time(),
            DOMAIN,
        )
        self.signers.append(f"{signer.region}/{signer.member}")
        plan = plan_pb2.NodePlan.FromString(signed.node_plan)
        self.generation = plan.generation
        known = {status.replica_uid: status for status in self.statuses}
        self.statuses = [known.get(a.replica_uid) or running(a) for a in plan.assignments]
        ack = agent_pb2.PlanAck(generation=plan.generation, accepted=True)
        await call.write(agent_pb2.SessionRequest(plan_ack=ack))
        update = agent_pb2.ReplicaStatusUpdate(changed=self.statuses)
        await call.write(agent_pb2.SessionRequest(replica_status=update))


def running(item: plan_pb2.Assignment) -> agent_pb2.ReplicaStatus:
    """Its one container was started just now."""
    status = status_of(item)
    started_at_ms = int(time.time() * 1000)
    status.started_at_ms = started_at_ms
    status.containers.add(
        name="app", id=f"{item.replica_uid}-1", state="running", ready=True,
        started_at_ms=started_at_ms,
    )  # fmt: skip
    return status
