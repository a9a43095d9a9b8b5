"""A member that lost its Store says so to those who follow, and who ask whether it is ready."""

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import aio

from orchestrator.api.losing import LOST_S, Losing
from orchestrator.freshness import Freshness
from polder.errors import parse_detail
from polder.v1 import common_pb2, operator_pb2
from tests.integration.orchestrator_rig import Rig, manifest, running

SYNCED = operator_pb2.WATCH_TYPE_SYNCED
NORMAL = common_pb2.EVENT_TYPE_NORMAL


async def synced(rig: Rig) -> aio.UnaryStreamCall:  # type: ignore[type-arg]
    watch = rig.admin().Watch(operator_pb2.WatchRequest(kind="Namespace"))
    while (await watch.read()).type != SYNCED:
        pass
    return watch  # type: ignore[no-any-return]


def assert_sent_on(error: aio.AioRpcError) -> None:
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    told = parse_detail(tuple(error.trailing_metadata()))
    assert told is not None and told.reason == "StoreUnavailable"
    assert "hears of no changes" in (error.details() or "")


async def test_who_watches_is_sent_on_once(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        behind_s = 0.0
        rig.orchestrator.parts.hub.losing = Losing(lambda: behind_s, "a")
        slow = await synced(rig)
        behind_s = LOST_S - 1  # it answers slowly
        await rig.apply(manifest("Namespace", "one"))
        assert (await slow.read()).resource.metadata.name == "one"
        behind_s = LOST_S
        with pytest.raises(aio.AioRpcError) as raised:
            async with asyncio.timeout(20):
                await slow.read()
        assert_sent_on(raised.value)
        # Whoever comes now knows that it is old, and is not sent away again and again.
        late = await synced(rig)
        behind_s = 60.0
        await rig.apply(manifest("Namespace", "two"))
        assert (await late.read()).resource.metadata.name == "two"
        # After it came back it may be lost again.
        behind_s = 0.0
        await rig.apply(manifest("Namespace", "three"))
        assert (await late.read()).resource.metadata.name == "three"
        behind_s = LOST_S
        with pytest.raises(aio.AioRpcError):
            async with asyncio.timeout(20):
                await late.read()


async def test_who_follows_events_is_sent_on_and_who_only_asks_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        parts = rig.orchestrator.parts
        behind_s = 0.0
        parts.hub.losing = Losing(lambda: behind_s, "a")
        follow = rig.admin().Events(operator_pb2.EventsRequest(follow=True))
        await follow.read()
        parts.events.record("Node", "", "n1", NORMAL, "Reason", "before", "test")
        assert [event.message for event in (await follow.read()).events] == ["before"]
        behind_s = LOST_S
        with pytest.raises(aio.AioRpcError) as raised:
            async with asyncio.timeout(20):
                await follow.read()
        assert_sent_on(raised.value)
        asked = rig.admin().Events(operator_pb2.EventsRequest())
        assert [event.message async for answer in asked for event in answer.events] == ["before"]


async def test_readiness_goes_by_whether_the_store_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by the mirror's watch, which notices later."""
    async with running(tmp_path) as rig:
        assert rig.orchestrator._trouble() == ""
        monkeypatch.setattr(Freshness, "behind_s", 7.4)
        assert rig.orchestrator._trouble() == "the store has not answered for 7 s"
        monkeypatch.setattr(rig.orchestrator.parts.cache, "healthy", False)
        assert rig.orchestrator._trouble() == "the store cannot be read"
