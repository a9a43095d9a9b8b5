"""A fleet of both architectures: an image for one of them stays off the other, and why says so.

A real orchestrator, and agents that answer as the real one does when a runtime refuses an image.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from polder.v1 import agent_pb2, operator_pb2, plan_pb2
from tests.integration.gateway_harness import good_inventory, status_of
from tests.integration.orchestrator_rig import Rig, ref, running, until, workload

PINNED = f"registry.example/app@sha256:{'b' * 64}"


class Box:
    """Runs everything but images whose tag is another architecture."""

    def __init__(self, name: str, arch: str) -> None:
        self.name, self.arch = name, arch
        self.seen: set[str] = set()  # workloads that it was ever assigned
        self._call: Any = None

    async def connect(self, rig: Rig) -> None:
        self._call = rig.agents(await rig.node(self.name)).Session()
        inventory = good_inventory()
        inventory.arch = self.arch
        hello = agent_pb2.Hello(
            agent_version="test", instance_id=self.name, boot_id="b", inventory=inventory
        )
        await self._call.write(agent_pb2.SessionRequest(hello=hello))

    async def serve(self) -> None:
        async for message in self._call:
            if message.HasField("plan"):
                plan = plan_pb2.NodePlan.FromString(message.plan.node_plan)
                self.seen |= {item.workload for item in plan.assignments}
                ack = agent_pb2.PlanAck(generation=plan.generation, accepted=True)
                await self._call.write(agent_pb2.SessionRequest(plan_ack=ack))
                update = agent_pb2.ReplicaStatusUpdate(
                    gone=[stop.replica_uid for stop in plan.stops],
                    changed=[self._status(item) for item in plan.assignments],
                )
                await self._call.write(agent_pb2.SessionRequest(replica_status=update))

    def _status(self, item: plan_pb2.Assignment) -> agent_pb2.ReplicaStatus:
        status = status_of(item)
        image = json.loads(item.template_json)["containers"][0]["image"]
        if image.endswith((":arm64", ":amd64")) and not image.endswith(self.arch):
            status.phase, status.ready = agent_pb2.REPLICA_PHASE_PENDING, False
            status.reason = "ImagePlatform"
            status.message = f"{image}: no match for platform in manifest"
        return status


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[tuple[Rig, dict[str, Box]]]:
    """Three boxes of arm64 and one of amd64."""
    async with running(tmp_path) as rig:
        await rig.site()
        boxes = {name: Box(name, "arm64") for name in ("pi-1", "pi-2", "pi-3")}
        boxes["server"] = Box("server", "amd64")
        for box in boxes.values():
            await box.connect(rig)
        tasks = [asyncio.create_task(box.serve()) for box in boxes.values()]
        live = rig.orchestrator.parts.fleet
        await until(lambda: all(live.is_live(name, 60.0) for name in boxes), "all are heard")
        yield rig, boxes
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reasons(rig: Rig, name: str) -> dict[str, list[tuple[str, str]]]:
    """(code, message) by node, as `edgectl why` has them."""
    request = operator_pb2.WhyRequest(ref=ref("Workload", name))
    (found,) = (await rig.admin().Why(request)).workloads
    return {
        verdict.node: [(one.code, one.message) for one in verdict.reasons]
        for verdict in found.verdicts
    }


async def replicas(rig: Rig, name: str) -> dict[str, bool]:
    """Node -> ready."""
    listed = (await rig.admin().List(operator_pb2.ListRequest(kind="Replica"))).resources
    bodies = [(item.metadata.name, json.loads(item.status_json)) for item in listed]
    return {b["node"]: bool(b.get("ready")) for n, b in bodies if n.startswith(f"{name}-")}


async def comes(rig: Rig, name: str, expected: dict[str, bool]) -> None:
    found: dict[str, bool] = {}
    for _ in range(200):
        found = await replicas(rig, name)
        if found == expected:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name}: {found}, not {expected}")


async def test_a_declared_architecture_is_never_tried_elsewhere(
    fleet: tuple[Rig, dict[str, Box]],
) -> None:
    rig, boxes = fleet
    await rig.apply(workload("web", image="app:amd64", placement={"arch": ["amd64"]}, replicas=3))
    await comes(rig, "web", {"server": True})
    assert not any("web" in boxes[name].seen for name in ("pi-1", "pi-2", "pi-3"))
    found = await reasons(rig, "web")
    (code, text), *_ = found["pi-1"]
    assert code == "WrongArchitecture" and "arm64" in text and "amd64" in text
    assert found["server"] == []


async def test_what_nobody_declared_is_learnt_from_the_nodes_and_kept(
    fleet: tuple[Rig, dict[str, Box]],
) -> None:
    rig, boxes = fleet
    await rig.apply(workload("web", image="app:amd64", perNode=1))
    await comes(rig, "web", {"server": True})
    found = await reasons(rig, "web")
    for name in ("pi-1", "pi-2", "pi-3"):
        assert [code for code, _ in found[name]] == ["ImagePlatform"]
    assert "does not exist for arm64" in found["pi-1"][0][1] and found["server"] == []
    events = rig.orchestrator.parts.events.list(kind="Workload", namespace="default", name="web")
    told = [event.message for event in events if event.reason == "ImagePlatform"]
    assert told and "any node of arm64" in told[-1]
    # A box of that architecture that comes later is not even asked.
    late = Box("pi-4", "arm64")
    await late.connect(rig)
    task = asyncio.create_task(late.serve())
    live = rig.orchestrator.parts.fleet
    await until(lambda: live.is_live("pi-4", 60.0), "it is heard")
    assert [code for code, _ in (await reasons(rig, "web"))["pi-4"]] == ["ImagePlatform"]
    await rig.apply(workload("both", perNode=1))
    await comes(rig, "both", dict.fromkeys((*boxes, "pi-4"), True))
    assert late.seen == {"both"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_another_revision_is_tried_anew(fleet: tuple[Rig, dict[str, Box]]) -> None:
    rig, boxes = fleet
    await rig.apply(workload("web", image="app:amd64", perNode=1))
    await comes(rig, "web", {"server": True})
    await rig.apply(workload("web", image=PINNED, perNode=1))
    await comes(rig, "web", dict.fromkeys(boxes, True))
    assert (await reasons(rig, "web"))["pi-1"] == []
