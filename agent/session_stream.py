"""One Session stream on one channel, from Hello to its end. `agent/session.py` opens them.

A stream never reconnects. It ends with a SessionEnd that says why, and whoever waits decides.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from agent.channel import detail_of
from agent.outbox import EventQueue, Outbox, Overflow
from agent.patience import patience
from polder.v1 import agent_pb2, agent_pb2_grpc, plan_pb2

log = logging.getLogger(__name__)

HELLO_MAX_BYTES = 12 << 20
HEARTBEAT_MIN_S, HEARTBEAT_MAX_S = 0.1, 300.0
UNPROVEN_MAX = 10  # batches of events, each of a hundred
REFUSALS = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Tests use smaller ones."""

    dial_max_s: float = 20.0  # until the server has proved itself; less in the first rounds
    welcome_max_s: float = 40.0  # once connected; less in the first rounds
    write_s: float = 20.0  # a server that reads nothing for so long is as good as gone
    coalesce_s: float = 0.1
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 8.0
    drain_s: float = 4 * 3600.0  # for logs and execs of a connection that a renewal replaced
    renew_answer_s: float = 30.0


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """Why a stream ended. `goodbye`: the server said so; `refused`: it does not know us; `slow`:
    it said nothing in time."""

    reason: str
    message: str
    goodbye: bool = False
    refused: bool = False
    slow: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """For `edge-agent status` and conditions. Times are unix seconds; skew is ours minus theirs.

    `member_cut_off`: the member reads nothing from its Store, so that nobody leads through it.
    """

    connected: bool = False
    member_cut_off: bool = False
    endpoint: str = ""
    member: str = ""
    region: str = ""
    since: float = 0.0
    last_contact: float = 0.0
    last_error: str = ""
    clock_skew_s: float = 0.0

    @property
    def hears_orchestrator(self) -> bool:
        """What is decided for this node would come over this session."""
        return self.connected and not self.member_cut_off


class SessionEnded(Exception):
    def __init__(self, end: SessionEnd) -> None:
        super().__init__(f"{end.reason}: {end.message}")
        self.end = end


class Node(Protocol):
    """What a session asks of the rest of the agent. Nothing here may block."""

    def hello(self) -> agent_pb2.Hello:
        """Who runs here and the complete state of every replica."""
        ...

    def gone(self) -> list[str]:
        """Replica uids that the plan wants stopped and of which nothing is left."""
        ...

    def heartbeat(self) -> agent_pb2.Heartbeat:
        """Without its sequence number."""
        ...

    def offer_plan(self, signed: plan_pb2.SignedNodePlan) -> None:
        """A plan arrived. It is verified and acknowledged later."""
        ...


if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[agent_pb2.SessionRequest, agent_pb2.SessionResponse]

Relay = Callable[[grpc.aio.Channel, agent_pb2.OpenRelay], None]
Told = Callable[["SessionStream", Sequence[str]], None]
"""The server says where orchestrators are now."""
Stands = Callable[["SessionStream", agent_pb2.MemberStanding], None]
"""The server says how it is itself connected."""


class Affairs(Protocol):
    """What a session carries for operators at the site. Nothing here may block."""

    def changes(self) -> agent_pb2.LocalChanges | None:
        """What they did that the orchestrator does not know; None: nothing."""
        ...

    def taken(self, said: agent_pb2.LocalChangesTaken) -> None: ...

    def directory(self, said: agent_pb2.SiteDirectory) -> None: ...


class Upgrades(Protocol):
    """What a session carries of upgrades of this agent. Nothing here may block."""

    def told(self, channel: grpc.aio.Channel, said: agent_pb2.AgentUpgrade) -> None:
        """Packages are fetched over the channel."""
        ...

    def status(self) -> agent_pb2.UpgradeStatus | None:
        """How far it has come; None: there was never any."""
        ...


class SessionStream:
    """Use: `welcome = await open()`, then `await serve()`; `close()` from anywhere."""

    def __init__(
        self, channel: grpc.aio.Channel, endpoint: str, node: Node, events: EventQueue,
        relay: Relay, timing: Timing, told: Told = lambda _stream, _endpoints: None,
        stands: Stands = lambda _stream, _standing: None, affairs: Affairs | None = None,
        upgrades: Upgrades | None = None,
    ) -> None:  # fmt: skip
        self.channel = channel
        self.endpoint = endpoint
        self.welcome = agent_pb2.Welcome()
        self.last_contact = 0.0  # unix seconds of the last message from the server
        self._node = node
        self._events = events
        self._unproven: deque[tuple[float, agent_pb2.AgentEvents]] = deque(maxlen=UNPROVEN_MAX)
        self._relay = relay
        self._told = told
        self._stands = stands
        self._affairs = affairs
        self._changes_wait = False
        self._upgrades = upgrades
        self._upgrade_waits = False
        self._timing = timing
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._call: _Call | None = None
        self._renewed: asyncio.Future[agent_pb2.RenewResponse] | None = None
        self._closing: SessionEnd | None = None
        self._sequence = 0

    async def open(self, number: int, dial_s: float, welcome_s: float) -> agent_pb2.Welcome:
        """Dial and introduce ourselves; `number` counts our sessions. Raises SessionEnded.

        A name that does not resolve, packets that nobody answers, and a server that accepts
        connections and says nothing cost `dial_s`; one that lets us in and says nothing costs
        `welcome_s` more.
        """
        loop = asyncio.get_running_loop()
        dialled = True
        waiting: asyncio.Timeout | None = None

        def check_dialled() -> None:
            nonlocal dialled
            dialled = self.channel.get_state() is grpc.ChannelConnectivity.READY
            if not dialled and waiting is not None and not waiting.expired():
                waiting.reschedule(loop.time())

        check = loop.call_later(dial_s, check_dialled)
        try:
            async with patience(dial_s + welcome_s) as waiting:
                self._call = agent_pb2_grpc.AgentServiceStub(self.channel).Session(None)
                # From here on changes of replicas wait in the outbox: nothing falls between the
                # complete state in Hello and the first delta.
                hello = _bounded(self._node.hello())
                hello.session_number = number
                await self._call.write(agent_pb2.SessionRequest(hello=hello))
                first = await self._call.read()
        except TimeoutError:
            self.cancel()
            waited = (welcome_s, "Welcome") if dialled else (dial_s, "connection")
            raise SessionEnded(_nothing(self.endpoint, *waited)) from None
        except grpc.RpcError as error:
            raise SessionEnded(_end_of(error)) from error
        except asyncio.InvalidStateError as error:  # the call ended between two of our steps
            raise SessionEnded(await self._ended()) from error
        except BaseException:
            self.cancel()
            raise
        finally:
            check.cancel()
        if not isinstance(first, agent_pb2.SessionResponse):
            raise SessionEnded(await self._ended())
        if first.HasField("goodbye"):
            self.cancel()
            raise SessionEnded(_end_of_goodbye(first.goodbye))
        if not first.HasField("welcome"):
            self.cancel()
            raise SessionEnded(SessionEnd("Protocol", "the first message was no Welcome"))
        self.welcome = first.welcome
        self.last_contact = time.time()
        if gone := self._node.gone():
            self.replicas_changed([], gone)
        return self.welcome

    async def serve(self) -> SessionEnd:
        """Read and write until either side ends it. Never raises but CancelledError."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            end = next(task for task in (reader, writer) if task in done).result()
            if reader not in done:
                # A failed write says little; the status that the reader gets says why. And a server
                # that we told goodbye reads what is on its way before it closes.
                late, _ = await asyncio.wait({reader}, timeout=0.5)
                end = reader.result() if late else end
            if self._closing is None and not end.goodbye:
                self._take_back_events()
            return self._closing or end
        finally:
            self.cancel()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            if self._renewed is not None and not self._renewed.done():
                self._renewed.cancel()

    def cancel(self) -> None:
        """Abandon the call at once."""
        if self._call is not None:
            self._call.cancel()

    def close(self, reason: str, message: str = "") -> None:
        """End it from our side; `serve` returns soon."""
        self._closing = self._closing or SessionEnd(reason, message)
        self._wake.set()

    # --- what others want to say ---------------------------------------------------------------

    def replicas_changed(
        self, changed: list[agent_pb2.ReplicaStatus], gone: list[str] | None = None
    ) -> None:
        self._put(lambda: self._outbox.put_replicas(changed, gone or ()))

    def standbys_changed(self, standbys: list[agent_pb2.StandbyStatus]) -> None:
        self._put(lambda: self._outbox.put_standbys(standbys))

    def inventory_changed(self, inventory: agent_pb2.NodeInventory) -> None:
        self._put(lambda: self._outbox.put_inventory(inventory))

    def acknowledge(self, ack: agent_pb2.PlanAck) -> None:
        self._put(lambda: self._outbox.put_urgent(agent_pb2.SessionRequest(plan_ack=ack)))

    def events_waiting(self) -> None:
        self._wake.set()

    def changes_waiting(self) -> None:
        """Of local operators. They are put together when they are sent."""
        self._changes_wait = True
        self._wake.set()

    def upgrade_waiting(self) -> None:
        """What is told of it is what holds when it is sent."""
        self._upgrade_waits = True
        self._wake.set()

    async def renew(self, csr: bytes) -> agent_pb2.RenewResponse:
        """Ask for a new certificate. Raises TimeoutError, and SessionEnded when the stream ends."""
        if self._renewed is not None and not self._renewed.done():
            raise SessionEnded(SessionEnd("Busy", "a renewal is under way"))
        self._renewed = asyncio.get_running_loop().create_future()
        request = agent_pb2.SessionRequest(renew=agent_pb2.RenewRequest(csr=csr))
        self._put(lambda: self._outbox.put_urgent(request))
        await asyncio.wait({self._renewed}, timeout=self._timing.renew_answer_s)
        if not self._renewed.done():
            self._renewed.cancel()
            raise TimeoutError("no answer to the renewal request")
        if self._renewed.cancelled():
            raise SessionEnded(SessionEnd("Lost", "the session ended during the renewal"))
        return self._renewed.result()

    def _put(self, put: Callable[[], None]) -> None:
        try:
            put()
        except Overflow:
            self.close("Overflow", "more waits to be sent than a session holds; starting afresh")
        self._wake.set()

    # --- the two directions --------------------------------------------------------------------

    async def _read(self) -> SessionEnd:
        assert self._call is not None
        while True:
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                return _end_of(error)
            except asyncio.InvalidStateError:
                return await self._ended()
            if not isinstance(message, agent_pb2.SessionResponse):
                return await self._ended()
            self.last_contact = time.time()
            match message.WhichOneof("message"):
                case "plan":
                    self._node.offer_plan(message.plan)
                case "renew":
                    if self._renewed is not None and not self._renewed.done():
                        self._renewed.set_result(message.renew)
                case "open_relay":
                    self._relay(self.channel, message.open_relay)
                case "endpoints":
                    self._told(self, message.endpoints.endpoints)
                case "standing":
                    self._stands(self, message.standing)
                case "site_directory" if self._affairs is not None:
                    self._affairs.directory(message.site_directory)
                case "local_changes_taken" if self._affairs is not None:
                    self._affairs.taken(message.local_changes_taken)
                case "upgrade" if self._upgrades is not None:
                    self._upgrades.told(self.channel, message.upgrade)
                case "goodbye":
                    return _end_of_goodbye(message.goodbye)
                case "welcome":
                    self.welcome = message.welcome  # the interval may change
                case unknown:  # a newer server; not ours to judge
                    log.debug("message ignored", extra={"kind": unknown})

    async def _write(self) -> SessionEnd:
        heartbeat_at = time.monotonic() + self._interval_s
        flushed_at = 0.0
        try:
            await self._send(self._heartbeat())
            self._wake.set()  # events may have waited for a session
            while self._closing is None:
                timeout = heartbeat_at - time.monotonic()
                if timeout <= 0:
                    await self._send(self._heartbeat())
                    heartbeat_at = max(heartbeat_at + self._interval_s, time.monotonic())
                elif await _signalled(self._wake, timeout):
                    # The first change after a quiet time goes at once; a burst goes together.
                    early = flushed_at + self._timing.coalesce_s - time.monotonic()
                    if early > 0 and not self._outbox.has_urgent and self._closing is None:
                        await asyncio.sleep(early)
                    self._wake.clear()
                    await self._flush()
                    flushed_at = time.monotonic()
            await self._flush()
            await self._half_close()
            return self._closing
        except TimeoutError:
            return SessionEnd("Stalled", f"{self.endpoint} reads nothing")
        except grpc.RpcError as error:
            return _end_of(error)
        except asyncio.InvalidStateError:
            return SessionEnd("Lost", "the call has ended")

    async def _flush(self) -> None:
        while (request := self._outbox.take()) is not None:
            await self._send(request)
        if self._changes_wait and self._affairs is not None:
            self._changes_wait = False
            if (changes := self._affairs.changes()) is not None:
                await self._send(agent_pb2.SessionRequest(local_changes=changes))
        if self._upgrade_waits and self._upgrades is not None:
            self._upgrade_waits = False
            if (status := self._upgrades.status()) is not None:
                await self._send(agent_pb2.SessionRequest(upgrade=status))
        while (batch := self._events.take()) is not None:
            try:
                await self._send(agent_pb2.SessionRequest(events=batch))
            except BaseException:
                self._events.give_back(batch)
                raise
            self._unproven.append((time.monotonic(), batch))

    def _take_back_events(self) -> None:
        """What was written to a connection that is dead, as far as that can be: nobody says what
        arrived, and twice is better than never."""
        timing = self._timing  # by this a dead one is noticed, and not to the second
        since = time.monotonic() - 2 * (timing.keepalive_s + timing.keepalive_timeout_s)
        while self._unproven:
            sent_at, batch = self._unproven.pop()
            if sent_at >= since:
                self._events.give_back(batch)

    async def _send(self, request: agent_pb2.SessionRequest) -> None:
        assert self._call is not None
        async with patience(self._timing.write_s):
            await self._call.write(request)

    async def _half_close(self) -> None:
        assert self._call is not None
        async with patience(self._timing.write_s):
            await self._call.done_writing()

    def _heartbeat(self) -> agent_pb2.SessionRequest:
        heartbeat = self._node.heartbeat()
        self._sequence += 1
        heartbeat.sequence = self._sequence
        return agent_pb2.SessionRequest(heartbeat=heartbeat)

    @property
    def age_max_s(self) -> float:
        """When to open the next session at the nearest member; 0: never."""
        return self.welcome.session_age_max_ms / 1000

    @property
    def _interval_s(self) -> float:
        asked = self.welcome.heartbeat_interval_ms / 1000 or 5.0
        return min(HEARTBEAT_MAX_S, max(HEARTBEAT_MIN_S, asked))

    async def _ended(self) -> SessionEnd:
        assert self._call is not None
        code, details = await self._call.code(), await self._call.details()
        if code is grpc.StatusCode.OK:
            return SessionEnd("Closed", f"{self.endpoint} closed the session")
        return _end(code, details or "", await self._call.trailing_metadata())


async def _signalled(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _nothing(endpoint: str, waited_s: float, what: str) -> SessionEnd:
    message = f"no {what} from {endpoint} within {waited_s:g} s"
    return SessionEnd("No" + what.capitalize(), message, slow=True)


def _bounded(hello: agent_pb2.Hello) -> agent_pb2.Hello:
    """A Hello that is too large loses the logs of crashed containers, not its completeness."""
    if hello.ByteSize() > HELLO_MAX_BYTES:
        for replica in hello.replicas:
            for container in replica.containers:
                container.last_exit.last_log = ""
    return hello


def _end_of(error: grpc.RpcError) -> SessionEnd:
    if isinstance(error, grpc.aio.AioRpcError):
        return _end(error.code(), error.details() or "", error.trailing_metadata())
    return SessionEnd("Lost", str(error))


def _end(code: grpc.StatusCode, details: str, metadata: Iterable[Any] | None) -> SessionEnd:
    detail = detail_of(metadata)
    reason = detail.reason if detail else code.name
    return SessionEnd(reason, details[:500], refused=code in REFUSALS)


def _end_of_goodbye(goodbye: agent_pb2.Goodbye) -> SessionEnd:
    return SessionEnd(
        goodbye.reason,
        goodbye.message,
        goodbye=True,
        refused=goodbye.reason == "Revoked",
        retry_after_s=goodbye.retry_after_ms / 1000,
    )
