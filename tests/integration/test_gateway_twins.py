"""Two boxes with one identity, at one member: a copied disk, and one that moved."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway.settings import GatewaySettings
from orchestrator.records import IdentityRecord
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, Region, eventually, region

ONE, OTHER = "1" * 64, "2" * 64
PATIENCE_S, COPY_PATIENCE_S = 1.0, 4.0
SETTINGS = GatewaySettings(
    "m1", "eu", "test", heartbeat_s=0.5, heartbeats_former_max=2, retry_store_s=0.1,
    copy_patience_s=COPY_PATIENCE_S,
)  # fmt: skip


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, SETTINGS) as made:
        yield made


def on(agent: Agent, hardware_id: str) -> Agent:
    """Another process with the agent's identity, on that box."""
    made = replace(agent, heard=[], ended=asyncio.Event())
    made.hello.inventory.hardware_id = hardware_id
    made.hello.inventory.addresses.append(f"10.0.0.{hardware_id[0]}")
    return made


@asynccontextmanager
async def beating(agent: Agent) -> AsyncIterator[Agent]:
    """Connected, until the end."""
    await (await agent.connect()).welcomed()

    async def beat() -> None:
        while not agent.ended.is_set():
            await agent.beat()
            await asyncio.sleep(0.1)

    task = asyncio.create_task(beat())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.disconnect()


async def refused(agent: Agent) -> agent_pb2.Goodbye:
    """What it is told instead of a welcome."""
    agent.heard.clear()
    await agent.connect()
    await asyncio.wait_for(agent.ended.wait(), 5)
    await agent.disconnect()
    assert agent.kinds() == ["goodbye"]
    return agent.heard[0].goodbye


def stored(home: Region) -> Any:
    """The board that the Store knows."""
    found = home.cache.node_status("n1")
    return found.inventory.get("hardwareId") if found else None


def told(home: Region, reason: str) -> list[tuple[str, int]]:
    events = home.events.list(kind="Node", namespace="", name="n1")
    return [(event.message, event.count) for event in events if event.reason == reason]


async def test_a_copy_is_refused_and_the_first_box_goes_on(home: Region) -> None:
    async with beating(on(await home.join("n1"), ONE)) as first:
        await eventually(lambda: stored(home) == ONE, "its board is known")
        await home.workload("hello")
        await eventually(lambda: first.runs() == ["hello-0"], "planned")
        seen, session = home.fleet.get("n1"), home.gateway.sessions.get("n1")
        assert seen is not None
        await eventually(lambda: seen.acked_generation and seen.replicas, "its word came back")
        before = (dict(seen.replicas), seen.instance_id, seen.acked_generation, len(first.heard))
        copy = on(first, OTHER)
        copy.hello.agent_version = "9.9"
        copy.hello.replicas.append(agent_pb2.ReplicaStatus(replica_uid="of the copy"))
        for _ in range(2):
            goodbye = await refused(copy)
            assert goodbye.reason == "IdentityCopied" and goodbye.retry_after_ms >= 60_000
            for part in ("n1 is connected", "machine-id", "join --force", "switch that one off"):
                assert part in goodbye.message
        ((message, count),) = told(home, "IdentityCopied")
        assert count == 2 and "10.0.0.2" in message and "edgectl revoke node/n1" in message
        assert home.gateway.sessions.get("n1") is session and not first.ended.is_set()
        after = (dict(seen.replicas), seen.instance_id, seen.acked_generation, len(first.heard))
        assert after == before and seen.connected and seen.agent_version == "test"
        await asyncio.sleep(0.2)  # a status would have been written by now
        assert stored(home) == ONE
        assert not {"SessionSuperseded", "HardwareChanged"} & set(home.reasons("Node", "n1"))
        await home.workload("other")
        await eventually(lambda: first.runs() == ["hello-0", "other-0"], "the first is told more")


async def test_a_disk_that_moved_is_let_in_when_its_former_box_is_silent(home: Region) -> None:
    async with beating(on(await home.join("n1"), ONE)) as first:
        await eventually(lambda: stored(home) == ONE, "its board is known")
    moved = on(first, OTHER)
    goodbye = await refused(moved)
    assert goodbye.reason == "IdentityCopied" and "until now" in goodbye.message
    assert goodbye.retry_after_ms <= 1500 * PATIENCE_S
    await eventually(lambda: home.fleet.silence_s("n1") > PATIENCE_S, "it is silent")
    moved.heard.clear()
    async with beating(moved):
        await eventually(lambda: stored(home) == OTHER, "the new board is known")
        ((message, _),) = told(home, "HardwareChanged")
        assert "10.0.0.2" in message and "edgectl revoke node/n1" in message
        assert not told(home, "IdentityCopied")
        # Two takes of one box: now the other one would be the copy.
        assert (await refused(on(first, ONE))).reason == "IdentityCopied"
        again = on(moved, OTHER)
        async with beating(again):
            await asyncio.wait_for(moved.ended.wait(), 5)
            assert moved.goodbye() == "Superseded" and len(told(home, "HardwareChanged")) == 1


async def test_a_copy_does_not_take_the_place_of_a_box_whose_uplink_breaks(home: Region) -> None:
    """The two were heard at once, so no disk moved; only after long is the first taken for dead."""
    first = on(await home.join("n1"), ONE)
    async with beating(first):
        await eventually(lambda: stored(home) == ONE, "its board is known")
        copy = on(first, OTHER)
        assert f"silent for {PATIENCE_S:g}s" in (await refused(copy)).message
        knocked_at = home.fleet.steady()
        await eventually(
            lambda: (
                home.fleet.steady() - home.fleet.silence_s("n1") > knocked_at + PATIENCE_S + 0.5
            ),
            "the first one is heard still",
        )
        assert f"silent for {COPY_PATIENCE_S:g}s" in (await refused(copy)).message
    await eventually(lambda: home.fleet.silence_s("n1") > PATIENCE_S, "it is silent")
    goodbye = await refused(copy)
    assert "until now" in goodbye.message and f"{COPY_PATIENCE_S:g}s" in goodbye.message
    async with beating(on(first, ONE)):
        assert (await refused(copy)).retry_after_ms >= 60_000
        assert not told(home, "HardwareChanged")
    await eventually(lambda: home.fleet.silence_s("n1") > COPY_PATIENCE_S, "it is dead")
    copy.heard.clear()
    async with beating(copy):
        assert told(home, "HardwareChanged")


@pytest.mark.parametrize(("before", "after"), [(ONE, ONE), ("", OTHER), (ONE, "")])
async def test_what_is_not_known_to_be_another_box_is_let_in_as_ever(
    home: Region, before: str, after: str
) -> None:
    first = await home.join("n1")
    first.hello.inventory.hardware_id = before
    async with beating(first):
        second = replace(first, heard=[], ended=asyncio.Event())
        second.hello.inventory.hardware_id = after
        async with beating(second):
            await asyncio.wait_for(first.ended.wait(), 5)
            assert first.goodbye() == "Superseded"
            assert "SessionSuperseded" in home.reasons("Node", "n1")
            assert not {"IdentityCopied", "HardwareChanged"} & set(home.reasons("Node", "n1"))


async def test_a_copy_that_is_first_after_a_restart_waits_for_the_true_box(tmp_path: Path) -> None:
    async with region(tmp_path, SETTINGS) as home, beating(on(await home.join("n1"), ONE)) as first:
        await eventually(lambda: stored(home) == ONE, "its board is known")
    patient = replace(SETTINGS, heartbeats_former_max=1000)
    async with region(tmp_path, patient) as home:
        copy, true = on(first, OTHER), on(first, ONE)
        copy.region = true.region = home
        assert (await refused(copy)).reason == "IdentityCopied"
        async with beating(true):
            assert (await refused(copy)).retry_after_ms >= 60_000
        assert not told(home, "HardwareChanged")


async def test_a_box_that_joins_in_place_of_another_did_not_copy_it(home: Region) -> None:
    async with beating(on(await home.join("n1"), ONE)):
        await eventually(lambda: stored(home) == ONE, "its board is known")
        record = home.cache.identity("node", "n1")
        assert isinstance(record, IdentityRecord)
        revoked = replace(record, revoked_at_ms=1, revoked_reason="broken")
        await home.store.txn([], [Put(keys.identity("node", "n1"), revoked.to_bytes())])
        async with beating(on(await home.join("n1"), OTHER)) as second:
            await eventually(lambda: stored(home) == OTHER, "its board is known")
            assert not {"IdentityCopied", "HardwareChanged"} & set(home.reasons("Node", "n1"))
            # It joined again, and says the same as before: that is written anew.
        record = home.cache.identity("node", "n1")
        assert isinstance(record, IdentityRecord)
        await home.store.txn([], [Put(keys.identity("node", "n1"), revoked.to_bytes())])
        third = on(await home.join("n1"), OTHER)
        third.hello.inventory.CopyFrom(second.hello.inventory)
        async with beating(third):
            joined = home.cache.identity("node", "n1")
            assert joined is not None
            await eventually(
                lambda: (
                    (said := home.cache.node_status("n1"))
                    and said.reported_at_ms >= joined.joined_at_ms
                ),
                "said since",
            )
