"""Any member answers what an operator asks, whoever leads and wherever the box is connected."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from polder.v1 import agent_pb2, common_pb2, operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_world import Box, Member, World, world
from tests.integration.orchestrator_rig import apply_request, ref, refusal, until, workload

pytestmark = pytest.mark.etcd
_prefixes = (f"/answers{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def three(tmp_path: Path, cluster: EtcdCluster) -> AsyncIterator[World]:
    async with world(tmp_path, cluster, next(_prefixes)) as made:
        yield made


async def status(stub: Any, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
    found = await stub.Get(operator_pb2.GetRequest(ref=ref(kind, name, namespace)))
    return dict(json.loads(found.resource.status_json))


async def eventually_status(
    stub: Any, kind: str, name: str, wanted: Any, what: str, timeout_s: float = 30.0
) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        while True:
            found = await status(stub, kind, name)
            if wanted(found):
                return found
            await asyncio.sleep(0.1)
    raise AssertionError(what)


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(dict(item) for item in found["conditions"] if item["type"] == kind)


async def rollout(stub: Any) -> Any:
    return await stub.Rollout(operator_pb2.RolloutRequest(ref=ref("Workload", "web", "default")))


async def rollout_once(stub: Any, phase: str) -> Any:
    """As soon as it is in that phase: the leader counts once in each of its ticks."""
    async with asyncio.timeout(20):
        while True:
            if (found := await rollout(stub)).status.phase == phase:
                return found
            await asyncio.sleep(0.05)


async def events(stub: Any) -> list[Any]:
    found: list[Any] = []
    async for answer in stub.Events(operator_pb2.EventsRequest()):
        found += answer.events
    return found


async def placed(three: World, holder: Member, asked: Member) -> Box:
    """A box at `holder` that runs web-0, as `asked` sees it; web-1 has no place."""
    box = await three.box("n1", holder)
    ask = three.ask(asked)
    app = {
        "name": "app",
        "image": "app:1",
        "resources": {"cpu": "3", "memory": "64Mi"},
    }
    await ask.Apply(apply_request(workload("web", replicas=2, template={"containers": [app]})))
    await eventually_status(ask, "Replica", "web-0", lambda s: s["phase"] == "Running", "runs")
    return box


async def test_every_member_shows_the_same_words_of_the_leader(three: World) -> None:
    leader, (holder, asked) = three.leader, three.others
    box = await placed(three, holder, asked)
    for member in three.members.values():
        ask = three.ask(member)
        shown = await eventually_status(
            ask, "Workload", "web", lambda s: s["unplaced"], f"{member.name} explains"
        )
        assert shown["unplaced"][0]["replica"] == "web-1"
        said = condition(shown, "Placed")
        assert said["status"] is False and said["source"] == f"leader/{leader.name}"
        assert "node fits" in said["message"] and said["lastHeardAt"]
        why = await ask.Why(operator_pb2.WhyRequest(ref=ref("Workload", "web", "default")))
        (item,) = why.workloads[0].waiting
        assert (item.code, item.replicas) == ("Unschedulable", 1)
        story = await ask.Story(operator_pb2.StoryRequest(ref=ref("Workload", "web", "default")))
        assert "node fits" in str(story)
        followed = await rollout_once(ask, "Proving")
        assert followed.status.replicas_wanted == 2
    for member in three.members.values():
        # Its clocks go on; the record has them every ten seconds only.
        async with asyncio.timeout(9):
            shown = await rollout(three.ask(member))
            while shown.status.seconds_left > 597:
                await asyncio.sleep(0.1)
                shown = await rollout(three.ask(member))
    await box.disconnect()


async def test_the_words_follow_the_leader_and_grow_old_without_one(three: World) -> None:
    holder, asked = three.others
    box = await placed(three, holder, asked)
    ask = three.ask(asked)
    await eventually_status(ask, "Workload", "web", lambda s: s["unplaced"], "explained")
    former = three.leader
    await three.stop(former)
    await until(lambda: sum(m.leads for m in three.members.values()) == 1, "another leads", 30)
    now = three.leader
    for member in three.members.values():
        await eventually_status(
            three.ask(member),
            "Workload",
            "web",
            lambda s: s["unplaced"] and condition(s, "Placed")["source"] == f"leader/{now.name}",
            f"{member.name} hears {now.name}",
        )
    assert box.runs() == ["web-0"], "nothing moved"
    said = [event for event in await events(ask) if event.reason == "Unschedulable"]
    assert len(said) == 1 and said[0].count == 1, "the next leader does not tell it again"
    await box.disconnect()


async def test_a_watch_through_a_follower_tells_what_the_leader_says(three: World) -> None:
    asked = three.others[0]
    ask = three.ask(asked)
    await ask.Apply(apply_request(workload("nowhere", replicas=1)))
    watch = ask.Watch(operator_pb2.WatchRequest(kind="Workload", namespace="default"))
    try:
        async with asyncio.timeout(20):
            async for event in watch:
                shown = json.loads(event.resource.status_json or b"{}")
                if shown.get("unplaced"):
                    break
        await three.box("n1", three.others[1])
        async with asyncio.timeout(30):
            async for event in watch:
                shown = json.loads(event.resource.status_json or b"{}")
                if shown.get("ready") == 1:
                    break
    finally:
        watch.cancel()


async def lines(call: Any, count: int) -> list[bytes]:
    data = b""
    async with asyncio.timeout(20):
        while data.count(b"\n") < count:
            data += (await anext(aiter(call))).data
    return data.splitlines()[:count]


async def test_logs_and_exec_go_to_the_member_that_has_the_node(three: World) -> None:
    leader, (holder, asked) = three.leader, three.others
    box = await placed(three, holder, asked)
    for member in (asked, leader, holder):
        ask = three.ask(member)
        logs = ask.Logs(
            operator_pb2.LogsRequest(
                namespace="default", replica="web-0", options=agent_pb2.LogOptions(follow=True)
            )
        )
        assert (await lines(logs, 3))[0] == b"line 1"
        relayed = box.relays[-1]
        logs.cancel()
        await asyncio.wait_for(relayed.over.wait(), 10)
        shell = ask.Exec()
        options = agent_pb2.ExecOptions(command=["sh"], stdin=True)
        start = operator_pb2.ExecStart(namespace="default", replica="web-0", options=options)
        await shell.write(operator_pb2.ExecRequest(start=start))
        await shell.write(operator_pb2.ExecRequest(stdin=b"hello"))
        assert (await shell.read()).stdout == b"HELLO"
        await shell.write(operator_pb2.ExecRequest(close_stdin=True))
        assert (await shell.read()).exit_code == 7
    for member in (asked, leader):
        assert not member.orchestrator.mesh.forwarding.active
    await until(lambda: not holder.orchestrator.gateway.relays.active, "no relay is left")
    await box.disconnect()


async def test_a_follow_ends_with_the_node_and_with_its_member(three: World) -> None:
    leader, (holder, asked) = three.leader, three.others
    box = await placed(three, holder, asked)
    ask = three.ask(asked)
    request = operator_pb2.LogsRequest(
        namespace="default", replica="web-0", options=agent_pb2.LogOptions(follow=True)
    )
    logs = ask.Logs(request)
    await lines(logs, 1)
    await box.move(leader)
    refused = await asyncio.wait_for(refusal(logs), 20)
    assert refused.reason == "NodeUnreachable" and refused.detail.hint
    await until(lambda: leader.sessions == 1, "it has moved")
    logs = ask.Logs(request)
    await lines(logs, 1)
    await box.move(holder)
    assert (await asyncio.wait_for(refusal(logs), 20)).reason == "NodeUnreachable"
    logs = ask.Logs(request)
    await lines(logs, 1)
    stopping = asyncio.create_task(three.stop(holder))
    refused = await asyncio.wait_for(refusal(logs), 20)
    assert refused.reason == "NodeUnreachable" and refused.detail.hint
    await stopping
    await box.disconnect()


async def test_what_is_revoked_at_one_member_is_refused_at_all_within_five_seconds(
    three: World,
) -> None:
    leader, (holder, asked) = three.leader, three.others
    box = await placed(three, holder, asked)
    admin = three.ask(leader)
    leader.admin = lambda: admin  # type: ignore[method-assign]
    credentials = await leader.operator("eve", "viewer:default")
    # Its streams: a watch at one member, logs through another to the member with the node.
    watch = holder.operators(credentials).Watch(operator_pb2.WatchRequest(kind="Workload"))
    await anext(aiter(watch))
    logs = asked.operators(credentials).Logs(
        operator_pb2.LogsRequest(
            namespace="default", replica="web-0", options=agent_pb2.LogOptions(follow=True)
        )
    )
    await lines(logs, 1)
    relayed = box.relays[-1]
    await admin.Revoke(operator_pb2.RevokeRequest(ref=ref("Operator", "eve")))
    async with asyncio.timeout(5):
        for call in (watch, logs):
            assert (await refusal(call)).reason == "Revoked"
        await relayed.over.wait()
        for member in three.members.values():
            listing = member.operators(credentials).List(operator_pb2.ListRequest(kind="Workload"))
            assert (await refusal(listing)).reason == "Revoked"
    # A node: its session and its relays, wherever they are.
    logs = three.ask(asked).Logs(
        operator_pb2.LogsRequest(
            namespace="default", replica="web-0", options=agent_pb2.LogOptions(follow=True)
        )
    )
    await lines(logs, 1)
    await three.ask(asked).Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    async with asyncio.timeout(5):
        await box.ended.wait()
        assert (await refusal(logs)).reason == "NodeUnreachable"
    assert box.error is not None and "revoked" in str(box.error.details())
    box.ended.clear()
    coming = asyncio.create_task(box.move(leader))
    await asyncio.wait_for(box.ended.wait(), 30)
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    assert box.error is not None and "revoked" in str(box.error.details())
    assert "welcome" not in box.kinds() and not leader.sessions


async def test_metrics_tell_each_members_own_part(three: World) -> None:
    holder, asked = three.others
    box = await placed(three, holder, asked)

    def numbers(member: Member, name: str) -> dict[str, float]:
        families = member.orchestrator.parts.metrics.registry.collect()
        (found,) = [family for family in families if family.name == name]
        return {"/".join(s.labels.values()): s.value for s in found.samples}

    for member in three.members.values():
        assert numbers(member, "polder_leading") == {"": float(member.leads)}
        assert numbers(member, "polder_leader_term") == numbers(holder, "polder_leader_term")
        assert numbers(member, "polder_leader_words_age_seconds")[""] < 10
        assert numbers(member, "polder_sessions") == {"": float(member is holder)}
        assert numbers(member, "polder_nodes_heard") == {"": 1.0}
        assert numbers(member, "polder_member_links_up") == {"": 2.0}
        assert len(numbers(member, "polder_node_cpu_millis")) == int(member is holder)
    await box.disconnect()


async def test_events_of_all_members_are_shown_by_each_and_once(three: World) -> None:
    holder, asked = three.others
    box = await placed(three, holder, asked)
    follow = three.ask(asked).Events(operator_pb2.EventsRequest(follow=True))
    await follow.read()
    warning = common_pb2.Event(
        object=ref("Node", "n1"),
        type=common_pb2.EVENT_TYPE_WARNING,
        reason="DiskSlow",
        message="slow",
        count=3,
    )
    await box.say(events=agent_pb2.AgentEvents(events=[warning]))
    heard: list[Any] = []
    async with asyncio.timeout(10):
        while not any(event.reason == "DiskSlow" for event in heard):
            heard += (await follow.read()).events
    follow.cancel()
    for member in three.members.values():
        found = await events(three.ask(member))
        (event,) = [event for event in found if event.reason == "DiskSlow"]
        assert event.count == 3
        said = [e for e in found if e.reason == "Unschedulable"]
        assert len(said) == 1 and said[0].count == 1, "by the leader alone"
    await box.disconnect()
