"""A thin client of etcd's v3 protocol: which member is asked, how long, and who may ask again.

Called by the adapter and the watch. One endpoint is used until it fails, then the next in an order
that every process shuffles for itself. A call that changes something is sent once: it is tried
again only when it is certain that etcd has not acted on it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from orchestrator.cancellation import is_cancelled
from orchestrator.store.etcd.errors import (
    Broken,
    CertificateRefused,
    is_temporary,
    is_the_members,
    message,
    nothing_was_done,
    translate,
)
from orchestrator.store.etcd.link import REQUIRE_LEADER, Link, Unfit, open_fit_link, open_link
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.etcd.settings import EtcdSettings
from orchestrator.store.port import NothingWritten, StoreUnavailable

log = logging.getLogger(__name__)

_PAUSE_S = 0.05
_PAUSE_S_MAX = 0.5


class Answer(Protocol):
    """Every response of etcd's has a header."""

    @property
    def header(self) -> pb.ResponseHeader: ...


class Follower(Protocol):
    """A stream that follows a span of keys; see `progress`."""

    link: Link
    covered: int

    def covers(self, key: bytes) -> bool: ...

    async def ask_progress(self) -> None:
        """Raises what a broken stream raises."""
        ...


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one endpoint says of itself; `error` when it does not. Sizes in bytes."""

    endpoint: str
    error: str = ""
    member_id: int = 0
    version: str = ""
    is_leader: bool = False
    revision: int = 0
    raft_term: int = 0
    raft_index: int = 0
    applied_index: int = 0
    db_bytes: int = 0
    db_bytes_in_use: int = 0
    alarms: tuple[str, ...] = ()


class EtcdClient:
    """Belongs to the event loop that uses it first. End it with `close()`."""

    def __init__(self, settings: EtcdSettings, chance: random.Random | None = None) -> None:
        self.settings = settings
        self._chance = chance or random.Random()
        self._order = list(settings.endpoints)
        self._chance.shuffle(self._order)
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._retired: set[Link] = set()
        self._pending = 0
        self._cluster_id = 0
        self.followers: set[Follower] = set()
        self.revision_seen = 0
        """The newest revision that any member spoke of: a member far behind it is slow."""
        self.closed: asyncio.Event = asyncio.Event()

    @property
    def endpoint(self) -> str:
        """The endpoint in use; empty when there is none."""
        return self._link.endpoint if self._link is not None else ""

    # --- calls -----------------------------------------------------------------------------------

    async def call(
        self, doing: str, send: Callable[[Link, float], Awaitable[A]], *, again: bool
    ) -> A:
        """Send a call and give etcd's answer. `send` gets a link and a timeout in seconds.

        `again`: it may be tried again after any temporary error, since twice is like once.
        Raises the port's errors.
        """
        self.check_open()
        if self._pending >= self.settings.pending_max:
            raise NothingWritten(
                f"{self._pending} calls already wait for etcd: nothing was written; retry with "
                "backoff, and check that etcd keeps up"
            )
        self._pending += 1
        try:
            return await self._try(doing, send, again)
        finally:
            self._pending -= 1

    async def _try(self, doing: str, send: Callable[[Link, float], Awaitable[A]], again: bool) -> A:
        clock = asyncio.get_running_loop().time
        deadline_s = self.settings.deadline_s
        until = clock() + (deadline_s if again else min(deadline_s, self.settings.write_s))
        tries = 0
        while True:
            link = await self._link_before(until)
            timeout_s = max(0.001, until - clock())
            if again:
                timeout_s = min(timeout_s, self.settings.attempt_s * float(1 << min(tries, 10)))
            try:
                answer = await send(link, timeout_s)
            except grpc.RpcError as error:
                self.judge(link, error)
                repeatable = nothing_was_done(error) or (again and is_temporary(error))
                tries += 1
                pause_s = self._pause_s(tries)
                if not repeatable or self.closed.is_set() or clock() + pause_s >= until:
                    raise translate(error, doing, link.endpoint) from error
                await asyncio.sleep(pause_s)
            except grpc.aio.UsageError:
                # The link was left just now, by somebody else: nothing was sent.
                self.leave(link, "its channel is closed")
                self.check_open()
                await asyncio.sleep(self._pause_s(tries))
                if clock() >= until:
                    raise NothingWritten(f"{doing}: nothing was written") from None
            except Broken as error:  # a stream that ended without a word
                tries += 1
                if not again or clock() + _PAUSE_S_MAX >= until:
                    raise StoreUnavailable(f"{doing} at etcd {link.endpoint}: {error}") from error
            except asyncio.CancelledError as error:
                # Not our caller's doing, but the channel's, which was closed meanwhile.
                if is_cancelled():
                    raise
                raise StoreUnavailable(
                    f"{doing} at etcd {link.endpoint}: the connection was closed; whether a write "
                    "was made is unknown"
                ) from error
            else:
                self.note(answer.header)
                return answer

    def note(self, header: pb.ResponseHeader) -> None:
        self.revision_seen = max(self.revision_seen, header.revision)

    def _pause_s(self, tries: int) -> float:
        return min(_PAUSE_S_MAX, _PAUSE_S * float(1 << min(tries, 10))) * self._chance.uniform(
            0.5, 1
        )

    # --- links -----------------------------------------------------------------------------------

    async def _link_before(self, until: float) -> Link:
        """As `link`, but tries the endpoints again and again until then."""
        clock = asyncio.get_running_loop().time
        tries = 0
        while True:
            try:
                async with asyncio.timeout_at(until):
                    return await self.link()
            except TimeoutError as error:
                raise NothingWritten(
                    "no endpoint of etcd was found in time; nothing was written"
                ) from error
            except StoreUnavailable:
                tries += 1
                pause_s = self._pause_s(tries)
                if self.closed.is_set() or clock() + pause_s >= until:
                    raise
                await asyncio.sleep(pause_s)

    async def link(self) -> Link:
        """The link in use, or a new one to the first endpoint that is fit.

        Raises StoreUnavailable with every endpoint's reason, CertificateRefused, StoreUnusable.
        """
        self.check_open()
        if self._link is not None:
            return self._link
        if self._connecting is None:
            # One task for all who wait: a store that is away costs each of them one round.
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        await asyncio.wait([connecting])
        self.check_open()
        return connecting.result()

    def _connected(self, connecting: asyncio.Task[Link]) -> None:
        self._connecting = None
        if not connecting.cancelled() and connecting.exception() is None:
            self._link = connecting.result()

    async def _connect(self) -> Link:
        reasons: list[str] = []
        identity = 0
        for endpoint in list(self._order):
            try:
                link, status = await open_fit_link(
                    endpoint,
                    self.settings.tls,
                    timeout_s=self.settings.connect_s,
                    cluster_id=self._cluster_id,
                )
            except Unfit as error:
                identity += error.identity
                reasons.append(f"{endpoint}: {error}")
                self._put_last(endpoint)
                self.check_open()
                continue
            if not self._cluster_id:
                log.info("etcd cluster %x, version %s", status.header.cluster_id, status.version)
            self._cluster_id = status.header.cluster_id
            self.note(status.header)
            return link
        text = "no endpoint of etcd can be used; nothing was written: " + "; ".join(reasons)
        if identity == len(reasons):
            raise CertificateRefused(f"{text}; one side refuses the other's certificate")
        raise NothingWritten(text)

    def _put_last(self, endpoint: str) -> None:
        self._order.remove(endpoint)
        self._order.append(endpoint)

    def judge(self, link: Link, error: BaseException) -> None:
        """Leave the member if the error is its own."""
        if isinstance(error, grpc.RpcError) and is_the_members(error):
            self.leave(link, message(error))

    def leave(self, link: Link, reason: str) -> None:
        """Use another endpoint from now on; what is under way on this one may still end."""
        if link in self._retired or self.closed.is_set():
            return
        log.warning("leaving etcd %s: %s", link.endpoint, reason)
        if self._link is link:
            self._link = None
            self._put_last(link.endpoint)
        self._retired.add(link)
        task = asyncio.create_task(link.channel.close(self.settings.deadline_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        task.add_done_callback(lambda _: self._retired.discard(link))

    # --- the rest --------------------------------------------------------------------------------

    async def members(self) -> tuple[MemberStatus, ...]:
        """What every configured endpoint says of itself, asked at once. Raises StoreUnusable."""
        self.check_open()
        found = await asyncio.gather(*(self._ask(one) for one in self.settings.endpoints))
        return tuple(found)

    async def _ask(self, endpoint: str) -> MemberStatus:
        link = await open_link(endpoint, self.settings.tls)
        try:
            status = await link.status(self.settings.connect_s)
        except grpc.RpcError as error:
            return MemberStatus(endpoint, error=message(error))
        finally:
            await link.channel.close(None)
        return MemberStatus(
            endpoint,
            member_id=status.header.member_id,
            version=status.version,
            is_leader=status.leader == status.header.member_id,
            revision=status.header.revision,
            raft_term=status.raftTerm,
            raft_index=status.raftIndex,
            applied_index=status.raftAppliedIndex,
            db_bytes=status.dbSize,
            db_bytes_in_use=status.dbSizeInUse,
            alarms=tuple(status.errors),
        )

    async def keep_alive(self, lease: int) -> pb.LeaseKeepAliveResponse:
        """Renew once. Raises the port's errors; a TTL of 0 in the answer: no such lease."""
        request = pb.LeaseKeepAliveRequest(ID=lease)

        async def send(link: Link, timeout_s: float) -> pb.LeaseKeepAliveResponse:
            stream = link.lease.LeaseKeepAlive(None, metadata=REQUIRE_LEADER, timeout=timeout_s)
            try:
                await stream.write(request)
                answer = await stream.read()
                if not isinstance(answer, pb.LeaseKeepAliveResponse):
                    raise Broken("the stream ended without an answer")
                return answer
            except asyncio.InvalidStateError as error:
                raise Broken("the stream ended before the request") from error
            finally:
                stream.cancel()

        return await self.call("renewing a lease", send, again=True)

    def check_open(self) -> None:
        if self.closed.is_set():
            raise NothingWritten("the store is closed")

    async def close(self) -> None:
        """Let what is under way end, for a short while. Again is harmless."""
        if self.closed.is_set():
            return
        self.closed.set()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        link, self._link = self._link, None
        closing = [one.channel.close(None) for one in self._retired]
        if link is not None:
            closing.append(link.channel.close(self.settings.close_s))
        await asyncio.gather(*closing, *self._retiring, return_exceptions=True)
