"""Watches: one stream of etcd's for each, taken up elsewhere where the last one stopped.

Called by the adapter. What makes it lose and repeat nothing:

- It goes on from the last *whole* revision that it handed out. A stream that broke amid the parts
  of a large transaction is taken up before that transaction.
- It concludes coverage from events, and from the progress marks of its own watch, which come in
  line with them. The revision in a header of events is not used: while a watch catches up, that is
  where the member is and not where the watch is. The answer to a progress request counts from etcd
  3.4.25 and 3.5.8 on; before, it can overtake events, and tells only that the member lives, and
  how far behind it is. `progress` says who asks for it.
- It asks etcd for one revision more than it needs, the one before the first, and drops that. etcd
  would start a watch at the compacted revision itself, whose deletions it has forgotten; asked for
  the one before, it says that it is compacted.

Gaps between revisions mean nothing: they are other prefixes' writes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc

from orchestrator.cancellation import is_cancelled
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import Broken
from orchestrator.store.etcd.link import REQUIRE_LEADER, Link
from orchestrator.store.etcd.pb import kv_pb2
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.port import (
    Compacted,
    Entry,
    EventType,
    StoreUnavailable,
    StoreUnusable,
    WatchBatch,
    WatchEvent,
)

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


@dataclass(frozen=True, slots=True)
class Span:
    """Keys from `low` up to `end`, and how many bytes of each are the root's."""

    low: bytes
    end: bytes
    root_bytes: int

    def entry(self, kv: kv_pb2.KeyValue) -> Entry:
        return Entry(
            # What a stranger put below our root need not be UTF-8; it must not end the watch.
            kv.key[self.root_bytes :].decode(errors="backslashreplace"),
            kv.value,
            kv.create_revision,
            kv.mod_revision,
            kv.version,
            kv.lease,
        )


async def watch(
    client: EtcdClient, span: Span, from_revision: int
) -> AsyncGenerator[WatchBatch, None]:
    """As the port's. Raises Compacted, StoreUnavailable, StoreUnusable."""
    clock = asyncio.get_running_loop().time
    covered = max(0, from_revision - 1)
    stream: _Stream | None = None
    failing_since: float | None = None
    try:
        while True:
            try:
                if stream is None:
                    stream = await _Stream.open(client, span, covered)
                batch = await stream.next()
            except (Broken, StoreUnavailable, grpc.RpcError, grpc.aio.UsageError) as error:
                client.check_open()
                # Once for each break: a reader who begins anew while etcd is away was told why.
                told = logging.DEBUG if failing_since or stream is None else logging.INFO
                if stream is not None:
                    stream.close()
                    client.judge(stream.link, error)
                    stream = None
                failing_since = failing_since or clock()
                if clock() - failing_since > client.settings.watch_resume_s:
                    raise StoreUnavailable(f"the watch cannot be resumed: {error}") from error
                why = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                log.log(told, "resuming a watch after revision %d: %s", covered, why)
                await asyncio.sleep(_PAUSE_S)
                continue
            failing_since = None
            if batch is not None and batch.revision > covered:
                covered = batch.revision
                yield batch
    finally:
        if stream is not None:
            stream.close()


class _Stream:
    """One watch on one stream to one member, until that ends."""

    def __init__(self, client: EtcdClient, link: Link, span: Span, covered: int) -> None:
        self.link = link
        self._client = client
        self._span = span
        self.covered = covered
        self._writing = asyncio.Lock()
        self._call = link.watch.Watch(None, metadata=REQUIRE_LEADER)
        self._reading: asyncio.Task[object] | None = None
        self._closed = asyncio.create_task(client.closed.wait())
        self._parts: list[kv_pb2.Event] = []  # of a revision of which more may come
        self._asked = False
        self._due = 0  # the member must be this far when it answers

    @staticmethod
    async def open(client: EtcdClient, span: Span, covered: int) -> "_Stream":
        """Raises Broken, StoreUnavailable, StoreUnusable, grpc's error."""
        stream = _Stream(client, await client.link(), span, covered)
        request = pb.WatchCreateRequest(
            key=span.low,
            range_end=span.end,
            start_revision=max(1, covered),
            progress_notify=True,
            fragment=True,
        )
        try:
            await stream._write(pb.WatchRequest(create_request=request))
        except BaseException as error:
            stream.close()
            client.judge(stream.link, error)
            raise
        client.followers.add(stream)
        return stream

    def covers(self, key: bytes) -> bool:
        return self._span.low <= key < self._span.end

    async def ask_progress(self) -> None:
        await self._write(_PROGRESS)

    async def _write(self, request: pb.WatchRequest) -> None:
        try:
            async with asyncio.timeout(self._client.settings.watch_probe_s), self._writing:
                await self._sent(request)
        except TimeoutError as error:
            self._blame("takes no request")
            raise Broken(f"etcd {self.link.endpoint} takes no request") from error
        except asyncio.CancelledError as error:
            # Not our reader's doing, but the channel's, which was closed meanwhile.
            if is_cancelled():
                raise
            raise Broken("the connection was closed") from error

    async def _sent(self, request: pb.WatchRequest) -> None:
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError as error:
            # The stream has ended already: its own error says more.
            await self._call.read()
            raise Broken(f"etcd {self.link.endpoint} ended the stream") from error

    async def next(self) -> WatchBatch | None:
        """What came; None when it was only a sign of life. Raises as `open`, and Compacted."""
        while True:
            response = await self._receive()
            self._client.note(response.header)
            if response.canceled:
                self._canceled(response)
            if response.created:
                continue
            if response.watch_id < 0:
                self._answered(response)
                return self._marked(response) if self.link.in_order else None
            if response.events:
                return self._whole_revisions(response)
            if not self._parts:
                return self._marked(response)

    def _marked(self, response: pb.WatchResponse) -> WatchBatch | None:
        if self._parts:
            return None
        self.covered = max(self.covered, response.header.revision)
        return WatchBatch(response.header.revision)

    def _canceled(self, response: pb.WatchResponse) -> None:
        if response.compact_revision:
            raise Compacted(response.compact_revision + 1)
        if "permission denied" in response.cancel_reason.lower():
            raise StoreUnusable(
                f"watching at etcd {self.link.endpoint}: {response.cancel_reason}; grant the "
                "certificate's user readwrite on the prefix"
            )
        raise Broken(f"etcd {self.link.endpoint} ended the watch: {response.cancel_reason}")

    def _whole_revisions(self, response: pb.WatchResponse) -> WatchBatch | None:
        """Hand out what is complete; keep the last revision while parts of it may follow."""
        events = self._parts + list(response.events)
        self._parts = []
        if response.fragment:
            last = events[-1].kv.mod_revision
            self._parts = [event for event in events if event.kv.mod_revision == last]
            events = events[: len(events) - len(self._parts)]
        events = [event for event in events if event.kv.mod_revision > self.covered]
        if not events:
            return None
        self.covered = events[-1].kv.mod_revision
        return WatchBatch(self.covered, tuple(self._event(event) for event in events))

    def _event(self, event: kv_pb2.Event) -> WatchEvent:
        deleted = event.type == kv_pb2.Event.DELETE
        return WatchEvent(
            EventType.DELETE if deleted else EventType.PUT, self._span.entry(event.kv)
        )

    async def _receive(self) -> pb.WatchResponse:
        """The next response. While none comes, ask the member whether it lives."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        while True:
            await asyncio.wait(
                {self._reading, self._closed},
                timeout=self._client.settings.watch_probe_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            self._client.check_open()
            if self._reading.done():
                reading, self._reading = self._reading, None
                if reading.cancelled():
                    raise Broken("the connection was closed")
                response = reading.result()
                if not isinstance(response, pb.WatchResponse):
                    raise Broken(f"etcd {self.link.endpoint} ended the stream")
                return response
            if self._asked:
                self._blame("has fallen silent")
                raise Broken(f"etcd {self.link.endpoint} has fallen silent")
            self._asked = True
            await self._write(_PROGRESS)

    def _answered(self, response: pb.WatchResponse) -> None:
        """A member that still lacks what was known at the question before this one is too slow."""
        if not self._asked:
            return  # `progress` asked, who waits for no time
        self._asked = False
        if response.header.revision < self._due:
            self._blame(f"is behind: at revision {response.header.revision}, not {self._due}")
            raise Broken(f"etcd {self.link.endpoint} is behind")
        self._due = self._client.revision_seen

    def _blame(self, reason: str) -> None:
        self._client.leave(self.link, reason)

    def close(self) -> None:
        self._client.followers.discard(self)
        self._closed.cancel()
        self._call.cancel()
        if self._reading is not None:
            # Nobody waits for it any more; without this its end would be reported as unseen.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._reading.cancel()
            self._reading = None
