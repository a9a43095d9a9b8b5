"""Links that begin and end: one for each member at a time, and nothing stays of one that ended."""

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.fleet import Fleet
from orchestrator.mesh.link import Link
from orchestrator.mesh.links import Links
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.store import keys
from orchestrator.store.port import Put
from tests.integration.gateway_harness import eventually
from tests.integration.mesh_harness import Member, members


def streams(member: str) -> list[asyncio.Task[Any]]:
    return [t for t in asyncio.all_tasks() if t.get_name() == f"mesh-follow-{member}"]


async def move(group: Member, moved: Member, endpoint: str) -> None:
    """Another address in the record of a member."""
    (record,) = (r for r in group.cache.members() if r.name == moved.name)
    record = replace(record, peer_endpoint=endpoint)
    await group.store.txn([], [Put(keys.member(moved.name), record.to_bytes())])


async def test_a_link_to_a_former_address_that_ends_late_says_nothing_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_close, close = asyncio.Event(), Link._close
    may_close.set()

    async def slowly(self: Link, *arguments: Any) -> None:
        await may_close.wait()
        await close(self, *arguments)

    monkeypatch.setattr(Link, "_close", slowly)
    async with members(tmp_path, "a", "b") as (a, b):
        (former,) = streams("b")
        may_close.clear()
        await move(a, b, f"127.0.0.1:{b.port}")
        await asyncio.wait({former}, timeout=1.0)
        may_close.set()
        await eventually(lambda: a.hears(b) and former.done(), "a hears b anew")
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert a.hears(b) and not a.fleet.unasked


async def test_a_link_that_ends_while_its_certificate_is_renewed_leaves_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with members(tmp_path, "a", "b") as (a, _):
        monkeypatch.setattr(Link, "_complete", lambda self, stream: None)
        a.member.renew()
        await eventually(lambda: len(streams("b")) == 2, "a second stream is opened")
        before, link = streams("b"), a.mesh.links._links["b"].task
        link.cancel()
        await asyncio.wait({link}, timeout=30.0)
        assert link.done() and all(task.done() for task in before), "a stream outlives its link"


async def test_a_link_whose_pause_runs_out_just_as_it_is_told_to_end_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[asyncio.Timeout] = []

    async def pausing(_: Link) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as pause:
                pauses.append(pause)
                await asyncio.Event().wait()

    async with members(tmp_path, "a", "b") as (a, b):
        heard = NodesHeard(Fleet(0.0), a.cache, a.gateway.superseding, time.time)
        links = Links(a.cache, heard, a.member, a.events, "1.0", time.time)
        monkeypatch.setattr(Link, "_pause", pausing)
        assert b.proxy is not None
        b.proxy.cut()
        following = asyncio.create_task(links.run())
        await eventually(lambda: len(pauses) == 2, "both links to b pause")
        for pause in pauses:
            pause.reschedule(0.0)
        following.cancel()
        await asyncio.wait({following}, timeout=30.0)
        assert following.done(), "a link that was told to end goes on"
