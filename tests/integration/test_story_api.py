"""Story, events and status of a whole orchestrator: who may ask, whose life is told, how old."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from polder.v1 import operator_pb2
from tests.integration.orchestrator_rig import (
    Rig,
    manifest,
    ref,
    refusal,
    running,
    until,
    workload,
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        yield made


async def story(rig: Rig, kind: str, name: str, stub: Any = None) -> operator_pb2.StoryResponse:
    request = operator_pb2.StoryRequest(ref=ref(kind, name))
    answer: operator_pb2.StoryResponse = await (stub or rig.admin()).Story(request)
    return answer


async def status(rig: Rig, kind: str, name: str) -> dict[str, Any]:
    answer = await rig.admin().Get(operator_pb2.GetRequest(ref=ref(kind, name)))
    found: dict[str, Any] = json.loads(answer.resource.status_json)
    return found


async def events(rig: Rig, name: str, uid: str = "") -> list[str]:
    request = operator_pb2.EventsRequest(object=ref("Node", name), uid=uid)
    return [e.reason async for r in rig.admin().Events(request) for e in r.events]


async def test_a_workload_that_waits_says_what_for(rig: Rig) -> None:
    await rig.apply(workload("w", replicas=1))
    explaining = rig.orchestrator.parts.explaining
    await until(lambda: bool(explaining.unplaced("default", "w")), "explained")
    found = await story(rig, "Workload", "w")
    assert [entry.reason for entry in found.entries][:2] == ["Created", "Revision"]
    assert found.entries[1].source == "operator/admin"
    times = [entry.at_ms for entry in found.entries[:-1]]  # the last is how it is now
    assert times == sorted(times)
    assert found.next, "it waits for a node, and says so"
    assert found.next[0].source.startswith("leader/")
    replica = await story(rig, "Replica", "w-0")
    assert replica.entries[-1].reason == "Unplaced"
    conditions = {c["type"]: c for c in (await status(rig, "Replica", "w-0"))["conditions"]}
    assert conditions["Placed"]["status"] is False
    assert conditions["Placed"]["lastHeardAt"] > 0
    assert conditions["Placed"]["source"].startswith("leader/")


async def test_who_may_hear_a_story(rig: Rig) -> None:
    await rig.apply(manifest("Namespace", "ward"), workload("w", namespace="ward"))
    other = rig.operators(await rig.operator("eve", "viewer:default"))
    request = operator_pb2.StoryRequest(ref=ref("Workload", "w", "ward"))
    assert (await refusal(other.Story(request))).code is grpc.StatusCode.PERMISSION_DENIED
    own = rig.operators(await rig.operator("ann", "viewer:ward"))
    assert (await own.Story(request)).entries
    assert (await refusal(story(rig, "Workload", "none"))).code is grpc.StatusCode.NOT_FOUND
    assert (await refusal(story(rig, "Site", "ams-1"))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_freeze_is_what_comes_next(rig: Rig) -> None:
    await rig.apply(workload("w"))
    await rig.admin().Freeze(operator_pb2.FreezeRequest(namespace="default", reason="audit"))
    found = await story(rig, "Workload", "w")
    assert (found.next[0].reason, found.next[0].warning) == ("Frozen", True)
    assert "edgectl thaw --namespace default" in found.next[0].message


async def test_a_node_of_a_used_name_has_its_own_life(rig: Rig) -> None:
    await rig.node("n1")
    former = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "n1")))).resource
    await rig.admin().Delete(operator_pb2.DeleteRequest(ref=ref("Node", "n1")))
    cache = rig.orchestrator.parts.cache
    await until(lambda: cache.resource("Node", "", "n1") is None, "deleted")
    fleet = rig.orchestrator.parts.fleet
    fleet.heard("n1", time.time())  # a last word of the former, while its session is being closed
    await rig.node("n1")
    again = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "n1")))).resource
    assert again.metadata.uid != former.metadata.uid
    assert fleet.get("n1") is None, "what the former said is not its word"
    assert (await status(rig, "Node", "n1"))["ready"] is None
    everything = await events(rig, "n1")
    assert everything.index("Joined") < everything.index("JoinedAgain")
    assert await events(rig, "n1", again.metadata.uid) == ["JoinedAgain"]
    told = await story(rig, "Node", "n1")
    assert [entry.reason for entry in told.entries] == ["JoinedAgain", "Unknown"]


async def test_a_revoked_box_that_joins_again_stays_the_same_node(rig: Rig) -> None:
    await rig.node("n1")
    before = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "n1")))).resource
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1"), reason="lost"))
    assert (await status(rig, "Node", "n1"))["revoked"] is True
    await rig.node("n1")
    after = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "n1")))).resource
    assert after.metadata.uid == before.metadata.uid
    assert (await status(rig, "Node", "n1"))["revoked"] is False
    own = await events(rig, "n1", after.metadata.uid)
    assert "Joined" in own and own[-1] == "JoinedAgain"


async def test_a_status_says_of_when_it_is_while_the_store_is_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.apply(workload("w"))
    assert "asOfAt" not in await status(rig, "Workload", "w")
    cache = rig.orchestrator.parts.cache
    monkeypatch.setattr(cache, "age_s", lambda: 60.0)
    found = await status(rig, "Workload", "w")
    assert 0 < found["asOfAt"] <= time.time() * 1000
    assert (await status(rig, "Provider", "telco"))["asOfAt"] > 0


async def test_the_words_of_a_leader_that_is_silent_are_unknown(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.apply(workload("w", replicas=1))
    explaining = rig.orchestrator.parts.explaining
    await until(lambda: bool(explaining.unplaced("default", "w")), "explained")
    leader = rig.orchestrator.leader
    monkeypatch.setattr(type(leader), "told_ago_s", property(lambda _: 60.0))
    found = await status(rig, "Replica", "w-0")
    assert (found["phase"], found["reason"]) == ("Unknown", "LeaderSilent")
    assert found["observedAt"] > 0
    assert (await status(rig, "Workload", "w"))["unplaced"] == []
    told = await story(rig, "Workload", "w")
    assert told.next[0].reason == "LeaderSilent"
