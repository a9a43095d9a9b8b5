"""One link: follows one other member for as long as its record stands, whatever happens to it.

`links.py` runs one per member. A stream that brings no pulse for five seconds is given up, and
opened anew after a wait with full jitter. When this member's certificate is renewed a new stream is
opened before the old one goes, so that nothing is doubted meanwhile.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from orchestrator.identity.member import SERVER_NAME, MemberCredentials, MemberIdentity
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.records import MemberRecord
from polder.v1 import member_pb2, member_pb2_grpc

log = logging.getLogger(__name__)

HUNG_AFTER_S = 5.0
_WAIT_BASE_S = 0.2
_WAIT_MAX_S = 2.0  # a member is one of a few: asking it often costs nothing
_STABLE_S = 10.0
_CHECK_EVERY_S = 1.0
_UNCLAIMED_PATIENCE = 3  # looks
_RENEW_RETRY_S = 10.0
_RETIRED_FOR_S = 3_600.0
_OPTIONS: list[tuple[str, Any]] = [
    # Members are dialled by address; all carry this name, and nobody else does.
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.default_authority", SERVER_NAME),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One other member as it is heard. `since` (of `reachable`) and `pulse_at` are unix seconds by
    this member's clock; 0: never. `clock_skew_s`: how far its clock is ahead. `present`: by its
    lease in the Store. `error`: why it cannot be reached."""

    member: str
    region: str
    present: bool
    reachable: bool
    since: float
    pulse_at: float = 0.0
    sessions: int = 0
    store_healthy: bool = False
    store_revision: int = 0
    store_age_ms: int = 0
    clock_skew_s: float = 0.0
    instance_id: str = ""
    version: str = ""
    error: str = ""


class _Stream:
    """One Follow, from dialling to its end."""

    def __init__(self, channel: aio.Channel, credentials: MemberCredentials) -> None:
        self.credentials = credentials
        self.stub = member_pb2_grpc.MemberServiceStub(channel)
        self.greeted = False
        self.retired = False  # a newer stream has taken over
        self.completed = asyncio.Event()
        self.completed_at: float | None = None


class LinkBroken(Exception):
    """The member is not who it should be, or says nothing."""


class Link:
    """`run` until cancelled. `on_change` is called when it can be reached, and cannot."""

    def __init__(
        self,
        record: MemberRecord,
        request: member_pb2.FollowRequest,
        identity: MemberIdentity,
        heard: NodesHeard,
        on_words: Callable[[str, member_pb2.LeaderSaid], None],
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._record = record
        self._request = request
        self._identity = identity
        self._nodes = heard
        self._heard = heard.of(record.name)
        self._on_words = on_words
        self._clock = clock
        self._on_change = on_change
        self._current: _Stream | None = None  # whose words count
        self._since = clock()
        self._hello = member_pb2.MemberHello()
        self._pulse = member_pb2.Pulse()
        self._skew_s = 0.0
        self._error = "not dialled yet"
        self._failures = 0
        self._wake = asyncio.Event()
        self._unclaimed = 0
        self._again = False
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stub(self) -> member_pb2_grpc.MemberServiceStub | None:
        """For other calls on the same connection; None while it cannot be reached."""
        stream = self._current
        return stream.stub if stream is not None and self._heard.peer.reachable else None

    def status(self, *, present: bool) -> LinkStatus:
        pulse, reachable = self._pulse, self._heard.peer.reachable
        return LinkStatus(
            member=self._record.name,
            region=self._record.region,
            present=present,
            reachable=reachable,
            since=self._since,
            pulse_at=self._heard.peer.heard_unix,
            sessions=pulse.sessions,
            store_healthy=pulse.store_healthy,
            store_revision=pulse.store_revision,
            store_age_ms=pulse.store_age_ms,
            clock_skew_s=self._skew_s,
            instance_id=self._hello.instance_id,
            version=self._hello.version or self._record.version,
            error="" if reachable else self._error,
        )

    def try_now(self) -> None:
        """It has just come: what was tried in vain before says nothing about that."""
        self._failures = 0
        self._wake.set()

    def look(self) -> None:
        """Once a second. Starts again when it has sessions that lost to one that is over."""
        found = self._heard.peer.reachable and self._nodes.unclaimed(self._heard)
        self._unclaimed = self._unclaimed + 1 if found else 0
        if self._unclaimed >= _UNCLAIMED_PATIENCE:
            self._unclaimed = 0
            self._again = True
            log.info("hears a member from the beginning", extra={"peer": self._record.name})

    # --- streams ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps one stream."""
        task = self._start()
        retry_at = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.wait({task}, timeout=_CHECK_EVERY_S)
                if task.done():
                    self._ended(task)
                    await self._pause()
                    task = self._start()
                elif self._wants_another() and loop.time() >= retry_at:
                    task = await self._renewed(task)
                    retry_at = loop.time() + _RENEW_RETRY_S
        finally:
            await _cancelled(task)
            for closing in self._closing:
                closing.cancel()
            self._current = None
            self._nodes.end(self._heard)

    def _start(self) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._follow(), name=f"mesh-follow-{self._record.name}")
        task.add_done_callback(_seen)  # also of one that ends while this link is being stopped
        return task

    def _wants_another(self) -> bool:
        """Its certificate is not the newest, or the member is to say everything again."""
        stream = self._current
        if stream is None:
            return False
        return self._again or stream.credentials is not self._identity.current

    async def _renewed(self, old: "asyncio.Task[None]") -> "asyncio.Task[None]":
        """Another stream; the old one until that has said everything."""
        self._again = False
        before = self._current
        fresh = self._start()
        try:
            if await self._takes_over(fresh, before):
                if before is not None:
                    before.retired = True
                await _cancelled(old)
                return fresh
        except asyncio.CancelledError:
            await _cancelled(fresh)
            raise
        await _cancelled(fresh)
        if self._current is not before:  # what the old one said meanwhile was not listened to
            await _cancelled(old)
        return old

    async def _takes_over(self, fresh: "asyncio.Task[None]", before: _Stream | None) -> bool:
        """Whether the new stream has said everything in time."""
        deadline = asyncio.get_running_loop().time() + HUNG_AFTER_S
        while not fresh.done() and asyncio.get_running_loop().time() < deadline:
            stream = self._current
            if stream is not None and stream is not before and stream.completed.is_set():
                return True
            await asyncio.sleep(0.05)
        return False

    async def _follow(self) -> None:
        """One stream, until it ends or hangs. Raises LinkBroken and AioRpcError."""
        credentials = self._identity.current
        tls = grpc.ssl_channel_credentials(
            credentials.roots_pem, credentials.key_pem, credentials.chain_pem
        )
        async with AsyncExitStack() as undo:
            channel = aio.secure_channel(self._record.peer_endpoint, tls, _OPTIONS)
            stream = _Stream(channel, credentials)
            undo.push_async_callback(self._close, stream, channel)
            call = stream.stub.Follow(self._request)
            undo.callback(call.cancel)
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(HUNG_AFTER_S) as hung:
                    async for message in call:
                        kind = message.WhichOneof("message")
                        if self._take(stream, kind, message):
                            hung.reschedule(loop.time() + HUNG_AFTER_S)
            except TimeoutError:
                raise LinkBroken(f"no pulse for {HUNG_AFTER_S:g} s") from None
            raise LinkBroken("the member ended the stream")

    async def _close(self, stream: _Stream, channel: aio.Channel) -> None:
        """Logs and execs that go over the connection may end first, when it has only grown old."""
        if not stream.retired:
            await channel.close(None)
            return
        closing = asyncio.create_task(_closed(channel), name="mesh-close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _take(self, stream: _Stream, kind: str | None, message: Any) -> bool:
        """Whether it shows that the member lives. Raises LinkBroken."""
        if kind == "hello":
            self._greet(stream, message.hello)
            return True
        if not stream.greeted:
            raise LinkBroken("the member does not say who it is")
        if kind == "pulse":
            self._pulse = message.pulse
            self._skew_s = message.pulse.now_ms / 1000 - self._clock()
            self._nodes.pulse(self._heard, message.pulse)
        if stream is not self._current:
            return kind == "pulse"  # a newer stream has the word
        if kind == "nodes":
            self._nodes.take(self._heard, message.nodes)
            if message.nodes.complete:
                self._complete(stream)
        elif kind == "leader":
            self._on_words(self._record.name, message.leader)
        return kind == "pulse"

    def _greet(self, stream: _Stream, hello: member_pb2.MemberHello) -> None:
        name = self._record.name
        if hello.member != name:
            raise LinkBroken(f"{hello.member} answers at {self._record.peer_endpoint}, not {name}")
        stream.greeted = True
        self._hello, self._current = hello, stream
        self._nodes.begin(self._heard)

    def _complete(self, stream: _Stream) -> None:
        stream.completed.set()
        stream.completed_at = asyncio.get_running_loop().time()
        if self._error:
            self._since, self._error = self._clock(), ""
            log.info("follows member %s", self._record.name, extra={"version": self._hello.version})
            self._on_change()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        stream, self._current = self._current, None
        error = None if task.cancelled() else task.exception()
        text = _text(error)
        if error is not None and not isinstance(error, LinkBroken | aio.AioRpcError):
            log.error("a link failed", exc_info=error, extra={"peer": self._record.name})
        at = stream.completed_at if stream is not None else None
        if at is not None and asyncio.get_running_loop().time() - at >= _STABLE_S:
            self._failures = 0
        self._failures += 1
        self._unheard(text)

    def _unheard(self, why: str) -> None:
        """Said when it begins, and then with each doubling of the attempts."""
        if self._heard.peer.reachable:
            self._since = self._clock()
        facts = {"peer": self._record.name, "endpoint": self._record.peer_endpoint, "reason": why}
        loud = not self._error or self._failures & (self._failures - 1) == 0
        log.log(logging.WARNING if loud else logging.DEBUG, "cannot follow a member", extra=facts)
        self._error = why
        self._nodes.end(self._heard)
        self._on_change()

    async def _pause(self) -> None:
        """Full jitter; no longer when the member has just come."""
        ceiling = min(_WAIT_MAX_S, _WAIT_BASE_S * 2 ** min(self._failures - 1, 8))
        self._wake.clear()
        try:
            async with asyncio.timeout(random.random() * ceiling):
                await self._wake.wait()
        except TimeoutError:
            pass


async def _closed(channel: aio.Channel) -> None:
    await channel.close(_RETIRED_FOR_S)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _seen(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()


def _text(error: BaseException | None) -> str:
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details() or ''}"[:300]
    return str(error)[:300] if error is not None else "cancelled"
