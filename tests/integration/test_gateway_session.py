"""A scripted agent over real mTLS: what it is given, what it is believed, how it is sent away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cache import Change
from orchestrator.gateway import plans
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.identity.pem import new_key
from orchestrator.records import IdentityRecord
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from tests.integration.gateway_harness import (
    Region,
    csr_of,
    eventually,
    good_inventory,
    region,
    status_of,
)

FAST = GatewaySettings("m1", "eu", "test", heartbeat_s=0.2, hello_timeout_s=0.5, retry_store_s=0.1)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path) as made:
        yield made


async def test_apply_reaches_the_agent_signed_and_its_word_comes_back(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await eventually(lambda: home.cache.node_status("n1"), "the inventory is stored")
    await home.workload("hello", replicas=2)
    await eventually(lambda: agent.runs() == ["hello-0", "hello-1"], "the plan is there")
    assert len({item.replica_uid for item in agent.plan.assignments}) == 2
    seen = home.fleet.get("n1")
    assert seen is not None and seen.connected
    await eventually(lambda: seen.acked_generation == agent.plan.generation, "the ack arrived")
    await eventually(lambda: len([r for r in seen.replicas.values() if r.ready]) == 2, "ready")
    await home.workload("hello", replicas=1)
    await eventually(lambda: agent.runs() == ["hello-0"] and not agent.plan.stops, "scaled down")
    await home.delete("Workload", "hello")
    await eventually(lambda: not home.cache.resource("Workload", "default", "hello"), "deleted")
    await eventually(lambda: not list(home.cache.revisions()), "its templates went too")
    await home.told("Replica", "hello-1", "Placed", "ScaledDown")


async def test_a_plan_in_use_is_not_sent_again(home: Region) -> None:
    agent = await (await home.join("n1")).connect()
    await eventually(lambda: home.cache.node_status("n1"), "seen")
    await home.workload("hello")
    await eventually(lambda: agent.runs() == ["hello-0"], "planned")
    await agent.disconnect()
    agent.hello.plan_generation = agent.plan.generation
    agent.hello.replicas.extend(status_of(item) for item in agent.plan.assignments)
    agent.heard.clear()
    await (await agent.connect()).welcomed()
    await home.workload("other")
    await eventually(lambda: agent.runs() == ["hello-0", "other-0"], "the next plan")
    assert agent.kinds() == ["welcome", "plan"]


async def test_more_plans_wait_until_those_under_way_are_answered(
    home: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "UNDER_WAY_MAX", 2)
    agents = [await (await home.join(f"n{n}")).connect() for n in range(4)]
    for agent in agents:
        await agent.welcomed()
        agent.obedient = False
        await eventually(lambda a=agent: home.cache.node_status(a.node), "seen")
    await home.workload("hello", perNode=1)
    await eventually(
        lambda: all(home.cache.placement(a.node).generation for a in agents), "decided"
    )

    def having() -> list[Any]:
        return [agent for agent in agents if "plan" in agent.kinds()]

    await eventually(lambda: len(having()) == 2, "two have theirs")
    await asyncio.sleep(0.2)
    first = having()
    assert len(first) == 2
    await first[0].say(plan_ack=agent_pb2.PlanAck(generation=first[0].plan.generation))
    await eventually(lambda: len(having()) == 3, "a refusal is an answer")
    await first[1].disconnect()
    await eventually(lambda: len(having()) == 4, "who is gone is not waited for")


async def test_who_does_not_answer_its_plan_holds_up_nobody_for_long(
    home: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "UNDER_WAY_MAX", 1)
    monkeypatch.setattr(plans, "PATIENCE_S", 0.5)
    agents = [await (await home.join(f"n{n}")).connect() for n in range(2)]
    for agent in agents:
        await agent.welcomed()
        agent.obedient = False
        await eventually(lambda a=agent: home.cache.node_status(a.node), "seen")
    await home.workload("hello", perNode=1)
    await eventually(lambda: all("plan" in agent.kinds() for agent in agents), "both")


async def test_an_agent_that_is_ahead_gets_a_generation_that_it_accepts(home: Region) -> None:
    """As after restoring the store from a backup. Absurd claims are not followed."""
    agent = await (await home.join("n1")).connect()
    await eventually(lambda: home.cache.node_status("n1"), "seen")
    await home.workload("hello")
    await eventually(lambda: agent.runs() == ["hello-0"], "planned")
    uid = agent.plan.assignments[0].replica_uid
    await agent.disconnect()
    agent.hello.plan_generation = 50
    agent.hello.replicas.append(status_of(agent.plan.assignments[0]))
    await agent.connect()
    await eventually(lambda: agent.plan.generation == 51, "a newer generation")
    assert [item.replica_uid for item in agent.plan.assignments] == [uid]
    await agent.disconnect()
    agent.hello.plan_generation = (1 << 63) - 1
    await (await agent.connect()).welcomed()
    await home.workload("other")
    await eventually(lambda: len(home.cache.placement("n1").assignments) == 2, "decided")
    assert home.cache.placement("n1").generation == 52
    await agent.disconnect()


async def test_a_restart_of_the_orchestrator_changes_nothing(tmp_path: Path) -> None:
    async with region(tmp_path) as home:
        agent = await (await home.join("n1")).connect()
        await eventually(lambda: home.cache.node_status("n1"), "seen")
        await home.workload("hello", replicas=3)
        await eventually(lambda: len(agent.runs()) == 3, "planned")
        plan = agent.plan
        term = home.leader.term
        await agent.disconnect()
    async with region(tmp_path) as home:
        await eventually(lambda: home.leader.stats.ticks > 0, "the new leader plans")
        assert home.leader.term > term
        placement = home.cache.placement("n1")
        assert placement.generation == plan.generation
        assert {a.replica_uid for a in placement.assignments} == {
            a.replica_uid for a in plan.assignments
        }


async def test_a_changed_secret_reaches_only_who_names_it(home: Region) -> None:
    secretive, plain = await home.join("n1"), await home.join("n2")
    template = {
        "containers": [
            {
                "name": "app",
                "image": "x",
                "env": [{"name": "KEY", "secret": {"name": "key", "key": "value"}}],
            }
        ]
    }
    await home.put("Secret", "key", {"data": {"value": "one"}})
    await home.put("Secret", "other", {"data": {"value": "not yours"}})
    for agent in (secretive, plain):
        await (await agent.connect()).welcomed()
        await eventually(lambda a=agent: home.cache.node_status(a.node), "seen")
    node = home.cache.resource("Node", "", "n1")
    assert node is not None
    await home.put("Node", "n1", node.spec, labels={"zone": "a"})
    await home.workload("web", template, placement={"nodeSelector": {"zone": "a"}})
    await home.workload("all", perNode=1)
    await eventually(lambda: secretive.runs() == ["all-n1", "web-0"], "n1 is planned")
    await eventually(lambda: plain.runs() == ["all-n2"], "n2 is planned")
    assert [dict(s.data) for s in secretive.plan.secrets] == [{"value": b"one"}]
    assert not plain.plan.secrets
    before = plain.plan.generation
    await home.put("Secret", "key", {"data": {"value": "two"}})
    await eventually(
        lambda: [dict(s.data) for s in secretive.plan.secrets] == [{"value": b"two"}], "renewed"
    )
    assert plain.plan.generation == before


async def test_the_newer_session_of_a_node_wins(home: Region) -> None:
    first = await home.join("n1")
    await (await first.connect()).welcomed()
    second = replace(first, heard=[], ended=asyncio.Event())
    second.hello.instance_id = "another"
    await (await second.connect()).welcomed()
    await asyncio.wait_for(first.ended.wait(), 5)
    assert first.goodbye() == "Superseded"
    assert "SessionSuperseded" in home.reasons("Node", "n1")
    seen = home.fleet.get("n1")
    assert seen is not None and seen.connected and seen.instance_id == "another"
    assert len(home.gateway.sessions) == 1
    await second.disconnect()
    await eventually(lambda: not seen.connected, "the end is noticed")


async def test_a_revoked_node_is_sent_away_and_not_let_in_again(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    record = home.cache.identity("node", "n1")
    assert isinstance(record, IdentityRecord)
    revoked = replace(record, revoked_at_ms=1, revoked_reason="stolen")
    await home.store.txn([], [Put(keys.identity("node", "n1"), revoked.to_bytes())])
    await asyncio.wait_for(agent.ended.wait(), 5)
    assert agent.error is not None and agent.error.code().name == "UNAUTHENTICATED"
    await eventually(lambda: len(home.gateway.sessions) == 0, "no session is left")
    await agent.disconnect()
    await agent.connect()
    await asyncio.wait_for(agent.ended.wait(), 5)
    assert agent.error is not None and agent.error.code().name == "UNAUTHENTICATED"
    await agent.disconnect()


async def test_a_renewed_certificate_retires_the_old_one(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    fresh = replace(agent, key=new_key(), heard=[], ended=asyncio.Event())
    await agent.say(renew=agent_pb2.RenewRequest(csr=csr_of(fresh.key)))
    await eventually(lambda: "renew" in agent.kinds(), "an answer")
    answer = next(m.renew for m in agent.heard if m.HasField("renew"))
    assert not answer.error
    fresh.chain = list(answer.certificate_chain)
    await (await fresh.connect()).welcomed()
    await eventually(
        lambda: (record := home.cache.identity("node", "n1")) and len(record.serials) == 1,
        "the old serial is retired",
    )
    for either in (agent, fresh):
        await either.disconnect()


async def test_a_refused_renewal_says_why(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await agent.say(renew=agent_pb2.RenewRequest(csr=b"nonsense"))
    await eventually(lambda: "renew" in agent.kinds(), "an answer")
    assert next(m.renew for m in agent.heard if m.HasField("renew")).error
    await agent.disconnect()


@pytest.mark.parametrize(
    ("amount", "value"), [("cpu_millis", -1), ("memory_bytes", 1 << 62), ("disk_bytes", -5)]
)
async def test_an_absurd_inventory_is_refused_and_others_are_unaffected(
    home: Region, amount: str, value: int
) -> None:
    good = await (await (await home.join("good")).connect()).welcomed()
    bad = await home.join("bad")
    setattr(bad.hello.inventory.allocatable, amount, value)
    await bad.connect()
    await asyncio.wait_for(bad.ended.wait(), 5)
    assert bad.goodbye() == "InvalidInventory"
    assert "InvalidInventory" in home.reasons("Node", "bad")
    # A good node that starts to talk nonsense keeps its session and its last good inventory.
    nonsense = good_inventory()
    nonsense.allocatable.cpu_millis = -7
    await good.say(inventory=nonsense)
    await eventually(lambda: "InvalidInventory" in home.reasons("Node", "good"), "told")
    await home.workload("hello")
    await eventually(lambda: good.runs() == ["hello-0"], "the good node works")
    await bad.disconnect()


async def test_what_a_standby_is_able_to_is_kept_until_it_says_otherwise(home: Region) -> None:
    def said(*replicas: str, reason: str = "") -> list[agent_pb2.StandbyStatus]:
        return [
            agent_pb2.StandbyStatus(workload_uid="w", replica=r, able=not reason, reason=reason)
            for r in replicas
        ]

    agent = await home.join("n1")
    agent.hello.standbys.extend(said("web-0", "web-1"))
    await (await agent.connect()).welcomed()
    seen = home.fleet.get("n1")
    assert seen is not None and sorted(seen.standbys) == [("w", "web-0"), ("w", "web-1")]
    await agent.say(replica_status=agent_pb2.ReplicaStatusUpdate(gone=["x"]))
    await agent.say(
        replica_status=agent_pb2.ReplicaStatusUpdate(standbys=said("web-1", reason="NoRoom"))
    )
    await eventually(lambda: list(seen.standbys) == [("w", "web-1")], "all of them, anew")
    assert seen.standbys["w", "web-1"].reason == "NoRoom"


async def test_a_certificate_of_somebody_else_is_refused(home: Region) -> None:
    bad = await home.join("bad")
    bad.hello.inventory.site_endpoints.append("192.0.2.1:7445")
    bad.hello.inventory.site_certificate = b"not mine"
    await bad.connect()
    await asyncio.wait_for(bad.ended.wait(), 5)
    assert bad.goodbye() == "InvalidInventory"


async def test_numbers_that_are_none_are_thrown_away_but_the_node_lives(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await agent.beat(usage=agent_pb2.Usage(temperature_celsius=float("nan")))
    await eventually(lambda: "InvalidHeartbeat" in home.reasons("Node", "n1"), "told")
    seen = home.fleet.get("n1")
    assert seen is not None and seen.heartbeat is None and seen.connected
    await agent.disconnect()


async def test_heartbeats_wake_nobody_unless_something_visible_changed(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    seen = home.fleet.get("n1")
    assert seen is not None
    touched: list[str] = []
    home.fleet.subscribe(touched.append)
    for number in range(5):
        await agent.beat(sequence=number, usage=agent_pb2.Usage(cpu_millis=number))
    await eventually(lambda: seen.heartbeat and seen.heartbeat.sequence == 4, "heard")
    assert touched == []
    pressure = agent_pb2.NodeCondition(type="DiskPressure", status=True)
    await agent.beat(sequence=5, conditions=[pressure])
    await eventually(lambda: touched == ["n1"], "a condition is news")
    await agent.disconnect()


async def test_an_agent_speaks_for_itself_only(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await eventually(lambda: home.cache.node_status("n1"), "seen")
    await home.workload("hello")
    await eventually(lambda: agent.runs() == ["hello-0"], "planned")

    def event(kind: str, name: str, reason: str) -> common_pb2.Event:
        ref = common_pb2.ResourceRef(kind=kind, namespace="default", name=name)
        return common_pb2.Event(object=ref, type=1, reason=reason, message="m", source="operator/x")

    batch = agent_pb2.AgentEvents(
        events=[
            event("Replica", "hello-0", "Pulled"),
            event("Replica", "somebody-elses-0", "Lied"),
            event("Node", "n2", "Slander"),
            event("Operator", "root", "Nonsense"),
        ],
        dropped=3,
    )
    await agent.say(events=batch)
    await eventually(lambda: "EventsDropped" in home.reasons("Node", "n1"), "taken")
    (pulled,) = [e for e in home.events.list() if e.reason == "Pulled"]
    assert pulled.source == "agent/n1"
    assert home.reasons("Replica", "somebody-elses-0") == []
    assert "Lied" in home.reasons("Node", "n1")  # told, but as its own word
    assert home.reasons("Node", "n2") == [] and home.reasons("Operator", "root") == []
    await agent.disconnect()


async def test_an_impossible_ack_and_a_refused_plan_are_told(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await agent.say(plan_ack=agent_pb2.PlanAck(generation=99, accepted=True))
    await eventually(lambda: "ImpossibleAck" in home.reasons("Node", "n1"), "told")
    seen = home.fleet.get("n1")
    assert seen is not None and seen.acked_generation == 0
    await eventually(lambda: home.cache.node_status("n1"), "seen")
    agent.obedient = False
    await home.workload("hello")
    await eventually(lambda: agent.runs() == ["hello-0"], "planned")
    refused = agent_pb2.PlanAck(generation=1, reason="BadSignature", message="no")
    await agent.say(plan_ack=refused)
    await eventually(lambda: seen.plan_error == "BadSignature: no", "kept for `get`")
    await agent.disconnect()


async def test_a_half_open_stream_is_closed(tmp_path: Path) -> None:
    async with region(tmp_path, FAST) as home:
        agent = await (await (await home.join("n1")).connect()).welcomed()
        await asyncio.wait_for(agent.ended.wait(), 5)
        assert agent.goodbye() == "HeartbeatTimeout"
        await agent.disconnect()


async def test_a_stream_that_says_nothing_or_the_wrong_thing_is_refused(tmp_path: Path) -> None:
    async with region(tmp_path, FAST) as home:
        agent = await home.join("n1")
        agent.hello = agent_pb2.Hello()
        channel = agent.channel()
        silent = agent_pb2_grpc.AgentServiceStub(channel).Session()
        assert (await silent.code()).name == "DEADLINE_EXCEEDED"
        rude = agent_pb2_grpc.AgentServiceStub(channel).Session()
        await rude.write(agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat()))
        assert (await rude.code()).name == "INVALID_ARGUMENT"
        await channel.close()


async def test_a_flood_of_statuses_slows_only_its_sender(tmp_path: Path) -> None:
    settings = replace(FAST, heartbeat_s=5.0, messages_per_s=20.0, messages_burst=5)
    async with region(tmp_path, settings) as home:
        flooder = await (await (await home.join("n1")).connect()).welcomed()
        calm = await (await (await home.join("n2")).connect()).welcomed()
        update = agent_pb2.ReplicaStatusUpdate()
        for number in range(1500):
            update.changed.add(replica_uid=f"u{number}", message="x" * 2000)

        async def flood() -> None:
            for _ in range(10):
                await flooder.say(replica_status=update)

        flooding = asyncio.create_task(flood())
        await eventually(lambda: "TooManyReplicas" in home.reasons("Node", "n1"), "bounded")
        seen, other = home.fleet.get("n1"), home.fleet.get("n2")
        assert seen is not None and other is not None
        assert len(seen.replicas) == 1000
        assert all(len(status.message) == 1024 for status in seen.replicas.values())
        for sequence in range(3):
            await calm.beat(sequence=sequence)
        await eventually(lambda: other.heartbeat and other.heartbeat.sequence == 2, "unaffected")
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await flooder.disconnect()
        await calm.disconnect()


async def test_too_many_sessions_are_told_to_come_back_later(tmp_path: Path) -> None:
    async with region(tmp_path, replace(FAST, heartbeat_s=5.0, sessions_max=1)) as home:
        first = await (await (await home.join("n1")).connect()).welcomed()
        second = await (await home.join("n2")).connect()
        await asyncio.wait_for(second.ended.wait(), 5)
        assert second.goodbye() == "Overloaded"
        assert second.heard[-1].goodbye.retry_after_ms >= 1000
        assert len(home.gateway.sessions) == 1 and not first.ended.is_set()
        for agent in (first, second):
            await agent.disconnect()


async def test_shutdown_says_goodbye_to_all(home: Region) -> None:
    agents = [await (await (await home.join(f"n{i}")).connect()).welcomed() for i in range(3)]
    await home.gateway.shutdown()
    for agent in agents:
        await asyncio.wait_for(agent.ended.wait(), 5)
    assert {agent.goodbye() for agent in agents} == {"Shutdown"}
    assert all(agent.heard[-1].goodbye.retry_after_ms > 0 for agent in agents)
    late = await home.join("late")
    await late.connect()
    await asyncio.wait_for(late.ended.wait(), 5)
    assert late.goodbye() == "Shutdown"
    for agent in (*agents, late):
        await agent.disconnect()


async def test_a_plan_that_cannot_be_whole_is_not_sent(home: Region) -> None:
    agent = await (await (await home.join("n1")).connect()).welcomed()
    await eventually(lambda: home.cache.node_status("n1"), "seen")
    workload = await home.workload("hello")
    await eventually(lambda: agent.runs() == ["hello-0"], "planned")
    revision = home.cache.revision_of(workload.uid, 1)
    assert revision is not None
    await home.remove(keys.revision(workload.uid, 1))
    await home.workload("other")
    await eventually(lambda: "PlanNotSent" in home.reasons("Node", "n1"), "told")
    assert agent.runs() == ["hello-0"]
    await home.store.txn([], [Put(keys.revision(workload.uid, 1), revision.to_bytes())])
    await eventually(lambda: agent.runs() == ["hello-0", "other-0"], "sent when it can be")
    await agent.disconnect()


async def test_a_session_that_is_quicker_than_the_mirror_is_not_forgotten(home: Region) -> None:
    """The node joined through another member, and connects here before its record has come."""
    agent = await (await home.join("n1")).connect()
    await agent.welcomed()
    node = home.cache.resource("Node", "", "n1")
    assert node is not None
    came = Change(keys.spec("Node", "", "n1"), node.store_revision, node, None)
    home.gateway._forget_former([came])
    seen = home.fleet.get("n1")
    assert seen is not None and seen.connected
    gone = Change(keys.spec("Node", "", "n1"), node.store_revision + 1, None, node)
    home.gateway._forget_former([gone])
    assert home.fleet.get("n1") is None
    await agent.disconnect()
