"""The etcd client against scripted members, who say what a real etcd says too rarely."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.etcd.pb import kv_pb2, rpc_pb2_grpc
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.settings import EtcdSettings
from orchestrator.store.port import (
    LimitExceeded,
    Put,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
)
from tests.integration.etcd_server import TestAuthority
from tests.integration.store_conformance import check_whole_revisions, put, watching

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
Say = tuple[grpc.StatusCode, str]


@dataclass
class FakeMember(
    rpc_pb2_grpc.KVServicer, rpc_pb2_grpc.WatchServicer, rpc_pb2_grpc.MaintenanceServicer
):
    """Refuses calls with `errors` while there are any; plays each of `scripts` to one watch."""

    cluster_id: int = 7
    leader: int = 1
    version: str = "3.4.23"
    learner: bool = False
    revision: int = 100
    answers_after_s: float = 0.0
    errors: list[Say] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    scripts: list[list[pb.WatchResponse]] = field(default_factory=list)
    watches: list[pb.WatchCreateRequest] = field(default_factory=list)
    endpoint: str = ""

    def header(self, revision: int = 0) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=self.cluster_id, revision=revision or self.revision)

    async def Status(self, request: Any, context: Any) -> pb.StatusResponse:
        return pb.StatusResponse(
            header=self.header(), version=self.version, leader=self.leader, isLearner=self.learner
        )

    async def Range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
        await self._take(request, context)
        return pb.RangeResponse(header=self.header())

    async def Txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
        await self._take(request, context)
        return pb.TxnResponse(header=self.header(), succeeded=True)

    async def _take(self, request: Any, context: Any) -> None:
        self.calls.append(request)
        assert ("hasleader", "true") in context.invocation_metadata()
        await asyncio.sleep(self.answers_after_s)
        if self.errors:
            await context.abort(*self.errors.pop(0))

    async def Watch(self, requests: Any, context: Any) -> AsyncIterator[pb.WatchResponse]:
        first = await anext(requests)
        self.watches.append(first.create_request)
        yield pb.WatchResponse(header=self.header(), created=True)
        for response in self.scripts.pop(0) if self.scripts else []:
            yield response
        async for _ in requests:
            yield pb.WatchResponse(header=self.header(), watch_id=-1)


@asynccontextmanager
async def serving(folder: Path, *members: FakeMember) -> AsyncIterator[EtcdSettings]:
    authority = TestAuthority(folder)
    tls = authority.issue("member")
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())], tls.ca.read_bytes(), True
    )
    servers = []
    for member in members:
        server = grpc.aio.server()
        rpc_pb2_grpc.add_KVServicer_to_server(member, server)  # type: ignore[no-untyped-call]
        rpc_pb2_grpc.add_WatchServicer_to_server(member, server)  # type: ignore[no-untyped-call]
        rpc_pb2_grpc.add_MaintenanceServicer_to_server(member, server)  # type: ignore[no-untyped-call]
        member.endpoint = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        await server.start()
        servers.append(server)
    try:
        yield EtcdSettings(
            tuple(member.endpoint for member in members),
            authority.issue("polder"),
            attempt_s=0.3,
            deadline_s=2.0,
            close_s=0.1,
            watch_probe_s=0.2,
            watch_resume_s=1.0,
        )
    finally:
        for server in servers:
            await server.stop(None)


@asynccontextmanager
async def store_on(folder: Path, *members: FakeMember) -> AsyncIterator[EtcdStore]:
    async with serving(folder, *members) as settings:
        store = await open_etcd(settings)
        try:
            yield store
        finally:
            await store.close()


# -- which outcome is unknown ------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        (UNAVAILABLE, "etcdserver: request timed out"),
        (UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
        (UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
        (UNAVAILABLE, "etcdserver: leader changed"),
        (UNAVAILABLE, "etcdserver: server stopped"),
        (grpc.StatusCode.UNKNOWN, "something new"),
        (grpc.StatusCode.INTERNAL, "stream terminated by RST_STREAM"),
    ],
)
async def test_a_write_of_unknown_outcome_is_sent_once(tmp_path: Path, said: Say) -> None:
    member = FakeMember(errors=[said])
    async with store_on(tmp_path, member) as store:
        with pytest.raises(StoreUnavailable, match="whether a write was made is unknown"):
            await put(store, "/a")
        assert len(member.calls) == 1
        await put(store, "/b")


@pytest.mark.parametrize(
    "said",
    [
        (UNAVAILABLE, "etcdserver: no leader"),
        (UNAVAILABLE, "etcdserver: not capable"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
        (grpc.StatusCode.UNKNOWN, "raft proposal dropped"),
    ],
)
async def test_a_write_that_was_refused_is_sent_again(tmp_path: Path, said: Say) -> None:
    first, second = FakeMember(errors=[said]), FakeMember(errors=[said])
    async with store_on(tmp_path, first, second) as store:
        await put(store, "/a")
        assert len(first.calls) + len(second.calls) >= 2
        first.errors = second.errors = [said] * 100
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            await put(store, "/a")


async def test_reads_are_tried_again_elsewhere(tmp_path: Path) -> None:
    said = (UNAVAILABLE, "etcdserver: request timed out")
    first, second = FakeMember(errors=[said] * 2), FakeMember(errors=[said] * 2)
    async with store_on(tmp_path, first, second) as store:
        assert await store.get("/a") is None
        assert first.calls
        assert second.calls


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
         StoreFull),
        ((grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large"), LimitExceeded),
        ((grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"), StoreUnusable),
        ((grpc.StatusCode.DATA_LOSS, "etcdserver: corrupt cluster"), StoreUnusable),
    ],
)  # fmt: skip
async def test_what_is_definite_is_said_at_once(
    tmp_path: Path, said: Say, expected: type[StoreError]
) -> None:
    member = FakeMember(errors=[said])
    async with store_on(tmp_path, member) as store:
        with pytest.raises(expected):
            await put(store, "/a")
        assert len(member.calls) == 1


async def test_a_store_that_answers_late(tmp_path: Path) -> None:
    """Later than the first attempt waits, but within the deadline: reads wait longer each time."""
    member = FakeMember(answers_after_s=0.7)
    async with store_on(tmp_path, member) as store:
        assert await store.revision() == 100
        await put(store, "/a")
        member.answers_after_s = 5.0
        with pytest.raises(StoreUnavailable, match="unknown"):
            await put(store, "/b")


async def test_calls_under_way_are_bounded(tmp_path: Path) -> None:
    member = FakeMember(answers_after_s=0.2)
    async with store_on(tmp_path, member) as store:
        store._client.settings = replace(store._client.settings, pending_max=5)
        results = await asyncio.gather(
            *(store.txn([], [Put(f"/{n}", b"")]) for n in range(12)), return_exceptions=True
        )
        refused = [one for one in results if isinstance(one, StoreUnavailable)]
        assert len(refused) == 7
        assert all("nothing was written" in str(one) for one in refused)


# -- which members will do ---------------------------------------------------------------------


async def test_unfit_members_are_passed_over(tmp_path: Path) -> None:
    unfit = [FakeMember(leader=0), FakeMember(learner=True)]
    fit = FakeMember()
    async with store_on(tmp_path, *unfit, fit) as store:
        await put(store, "/a")
        assert len(fit.calls) == 1
        assert not unfit[0].calls
        assert not unfit[1].calls


async def test_a_member_of_another_cluster_is_never_written_to(tmp_path: Path) -> None:
    ours, stranger = FakeMember(), FakeMember()
    async with store_on(tmp_path, ours, stranger) as store:
        if store._client.endpoint == stranger.endpoint:
            ours, stranger = stranger, ours
        stranger.cluster_id = 8
        ours.leader = 0
        store._client.leave(await store._client.link(), "for the test")
        with pytest.raises(StoreUnavailable, match="is of cluster 8 and not 7"):
            await put(store, "/a")
        ours.leader = 1
        await put(store, "/a")
        assert not stranger.calls


async def test_an_old_etcd_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeMember(version="3.3.27")) as settings:
        with pytest.raises(StoreUnusable, match=r"3\.3\.27 is too old"):
            await open_etcd(settings)


# -- watches -----------------------------------------------------------------------------------


def events(*revisions: int, part: bool = False, head: int = 0) -> pb.WatchResponse:
    return pb.WatchResponse(
        header=pb.ResponseHeader(cluster_id=7, revision=head or revisions[-1]),
        fragment=part,
        events=[
            kv_pb2.Event(
                kv=kv_pb2.KeyValue(key=b"/polder//k/%d" % n, mod_revision=revision, version=1)
            )
            for n, revision in enumerate(revisions)
        ],
    )


END = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=7), canceled=True)


def seen_revisions(seen: Any) -> list[int]:
    return [event.entry.mod_revision for event in seen.events]


async def test_a_catching_up_watch_does_not_believe_the_head(tmp_path: Path) -> None:
    """The header of events tells where the member is; so does the answer to a progress request."""
    ahead = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=7, revision=90), watch_id=-1)
    member = FakeMember(
        scripts=[[events(10, 11, head=90), ahead, END], [events(11, 12, 40, head=90)]]
    )
    async with store_on(tmp_path, member) as store, watching(store, "/k/", 10) as seen:
        await seen.until_count(4)
        assert seen_revisions(seen) == [10, 11, 12, 40]
        check_whole_revisions(seen.batches)
        # One before the first that is wanted; see `watch`.
        assert [request.start_revision for request in member.watches] == [9, 11]


async def test_a_transaction_in_parts_is_never_split(tmp_path: Path) -> None:
    whole = [events(10, 11, 11, part=True), events(11, 11, part=True), events(11, 12)]
    member = FakeMember(scripts=[[*whole[:2], END], whole])
    async with store_on(tmp_path, member) as store, watching(store, "/k/", 10) as seen:
        await seen.until_count(7)
        assert seen_revisions(seen) == [10, 11, 11, 11, 11, 11, 12]
        check_whole_revisions(seen.batches)


async def test_progress_marks_of_the_watch_itself_count(tmp_path: Path) -> None:
    mark = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=7, revision=50))
    member = FakeMember(scripts=[[events(10), mark, END], [events(60)]])
    async with store_on(tmp_path, member) as store, watching(store, "/k/", 10) as seen:
        await seen.until_count(2)
        assert [batch.revision for batch in seen.batches] == [10, 50, 60]
        assert member.watches[1].start_revision == 50


async def test_a_member_that_stays_behind_is_left(tmp_path: Path) -> None:
    """It answers, and sends nothing, because the others' writes do not reach it."""
    slow, good = FakeMember(revision=100), FakeMember(revision=100)
    async with store_on(tmp_path, slow, good) as store:
        if store._client.endpoint == good.endpoint:
            slow, good = good, slow
        async with watching(store, "/k/", 101) as seen:
            await _until(lambda: bool(slow.watches))
            store._client.note(pb.ResponseHeader(revision=105))
            good.revision = 105
            good.scripts = [[events(105)]]
            await seen.until_count(1)
            assert store._client.endpoint == good.endpoint


async def test_permission_denied_is_for_an_operator(tmp_path: Path) -> None:
    denied = pb.WatchResponse(
        header=pb.ResponseHeader(cluster_id=7),
        created=True,
        canceled=True,
        watch_id=-1,
        cancel_reason="rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    )
    member = FakeMember(scripts=[[denied]])
    async with store_on(tmp_path, member) as store, watching(store, "/k/", 1) as seen:
        assert isinstance(await seen.error(), StoreUnusable)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the fake grows it
            await asyncio.sleep(0.01)
