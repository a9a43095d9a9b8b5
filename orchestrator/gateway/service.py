"""The agents' side of the orchestrator: Join, Session, Relay and Package.

The front door (`orchestrator/rpc.py`) has authenticated the caller before anything here runs: which
node it is comes from the certificate, never from a message.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from orchestrator.authz import caller_of
from orchestrator.cache import Cache, Change
from orchestrator.domain.admission import BURST_S, Admission, ComeBack
from orchestrator.domain.bucket import Bucket
from orchestrator.domain.pace import Pace
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.decision_proofs import DecisionProofs
from orchestrator.gateway.directories import Directories
from orchestrator.gateway.inventories import problems_of
from orchestrator.gateway.local_changes import LocalChanges
from orchestrator.gateway.monitor import Monitor
from orchestrator.gateway.node_status import NodeStatusWriter
from orchestrator.gateway.packages import Packages
from orchestrator.gateway.plans import PlanPublisher
from orchestrator.gateway.reader import SessionReader
from orchestrator.gateway.relays import RelayBroker, UnknownRelay
from orchestrator.gateway.roles import RoleBook
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.gateway.signposts import Signposts
from orchestrator.gateway.standing import Standing
from orchestrator.gateway.superseding import Superseding
from orchestrator.gateway.twins import Twins
from orchestrator.gateway.upgrades import Upgrades
from orchestrator.identity.member import MemberCredentials
from orchestrator.identity.nodes import NodeIdentities
from orchestrator.records import StoredResource
from orchestrator.refusals import Refused, invalid, not_found
from orchestrator.store import keys
from orchestrator.store.port import Store
from orchestrator.whereabouts import Whereabouts
from polder.v1 import agent_pb2, agent_pb2_grpc, common_pb2

log = logging.getLogger(__name__)

_AWAY_PAUSE_S = 0.05
_AWAY_RETRY_MS = 5_000  # another member is nearer in time
_SOON_MS = 300  # by then we do not listen any more
_HEAR_OUT_S = 1.0
_TELL_EVERY_S = 10.0
_FEEL_EVERY_S = 0.25

_WARNING = common_pb2.EVENT_TYPE_WARNING
Context = Any  # grpc.aio.ServicerContext is generic in its stubs only


class AgentGateway(agent_pb2_grpc.AgentServiceServicer):
    """One per member. `run` beside the servers; `shutdown` before they stop."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        fleet: Fleet,
        events: Recorder,
        identities: NodeIdentities,
        credentials: Callable[[], MemberCredentials],
        endpoints: tuple[str, ...],
        clock: Callable[[], float],
        settings: GatewaySettings,
        roles: RoleBook | None = None,
        behind_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`roles`: the member's, which its leader reads as well. `behind_s`: see `Standing`."""
        self._cache = cache
        self._fleet = fleet
        self._events = events
        self._identities = identities
        self._clock = clock
        self._settings = settings
        self.sessions = Sessions()
        twins = Twins(cache, fleet, self.sessions, events, settings)
        self.superseding = Superseding(fleet, self.sessions, events, settings.member, twins)
        self.relays = RelayBroker(self.sessions)
        self._whereabouts = Whereabouts(cache, endpoints)
        self._roles = roles or RoleBook(cache)
        proofs = DecisionProofs(credentials, clock)
        pace = Bucket(settings.plans_per_s, settings.plans_burst)
        self._plans = PlanPublisher(
            cache,
            self.sessions,
            events,
            credentials,
            self._whereabouts,
            pace,
            self._roles,
            proofs,
            settings.autonomy_s,
        )
        self._signposts = Signposts(cache, self.sessions, self._whereabouts)
        self.standing = Standing(self.sessions, behind_s)
        self._admission = Admission(settings.accept_rate, settings.greeting_max)
        self._begins = Bucket(settings.accept_rate, max(1.0, settings.accept_rate * BURST_S))
        self._pace = Pace(settings.accept_rate)
        self._monitor = Monitor(cache, fleet, self.sessions, settings)
        self._status_writer = NodeStatusWriter(
            store, cache, fleet, self.sessions, clock, settings.retry_store_s
        )
        self._directories = Directories(cache, self.sessions)
        self._local_changes = LocalChanges(
            store,
            cache,
            events,
            self.sessions,
            clock,
            settings.member,
            settings.retry_store_s,
            proofs,
        )
        self._upgrades = Upgrades(cache, self.sessions, fleet, events, settings.member)
        self._packages = Packages(store, cache)
        self._greeting = 0
        self._sent_away, self._sent_away_told_at = 0, -math.inf
        self._closed: agent_pb2.Goodbye | None = None  # what everybody is told who comes
        cache.subscribe(self._forget_former)

    async def run(self) -> None:
        """Publishes plans and watches over silence, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._plans.run(), name="plans")
            group.create_task(self._monitor.run(), name="monitor")
            group.create_task(self._status_writer.run(), name="node-status")
            group.create_task(self._signposts.run(), name="signposts")
            group.create_task(self._directories.run(), name="site-directories")
            group.create_task(self._local_changes.run(), name="local-changes")
            group.create_task(self._upgrades.run(), name="upgrades")
            group.create_task(self.standing.run(), name="standing")
            group.create_task(self._keep_pace(), name="pace")

    async def _keep_pace(self) -> None:
        """Lets in no more than the loop gets done."""
        while True:
            due = self._fleet.steady() + _FEEL_EVERY_S
            await asyncio.sleep(_FEEL_EVERY_S)
            now, before = self._fleet.steady(), self._pace.rate
            self._pace.felt(now - due, now)
            rate = self._pace.rate
            if rate == before:
                continue
            self._admission.slow_down(rate)
            self._begins.slow_down(rate)
            if rate < before:
                facts = {"late_s": round(now - due, 2), "sessions_per_s": round(rate, 1)}
                log.warning("too busy to begin sessions at accept_rate", extra=facts)

    async def shutdown(self, timeout_s: float = 5.0) -> None:
        """Send everybody away, one after the other, so that the other members can absorb them."""
        deadline = time.monotonic() + timeout_s
        await self._send_away(timeout_s * self._settings.drain_share)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                await self.sessions.emptied()

    async def _send_away(self, over_s: float) -> None:
        """No slower than another member would take them. With another one there they go to it at
        once, or come back to this address where another process serves it, too; else they are told
        when to come back, spread over time."""
        member = self._settings.member
        elsewhere = self._whereabouts.has_others(member)
        here_ms = _SOON_MS if self._whereabouts.has_siblings(member) else 0
        message = "this orchestrator stops"
        self._closed = agent_pb2.Goodbye(
            reason="Shutdown",
            message=message,
            retry_after_ms=_AWAY_RETRY_MS if elsewhere else 1000,
        )
        leaving = list(self.sessions)
        spread_s = len(leaving) / self._settings.accept_rate
        batch = max(10, math.ceil(len(leaving) * _AWAY_PAUSE_S / max(0.001, min(over_s, spread_s))))
        for count, session in enumerate(leaving, start=1):
            spread_ms = int(1000 * (0.2 + random.random() * spread_s))
            retry_after_ms = here_ms if elsewhere else spread_ms
            session.close("Shutdown", message, retry_after_ms)
            if count % batch == 0:
                await asyncio.sleep(_AWAY_PAUSE_S)

    def _forget_former(self, changes: list[Change]) -> None:
        """A node that was deleted said nothing of the one that joins under its name next."""
        nodes = keys.spec_prefix("Node")
        for change in changes:
            if change.key.startswith(nodes) and _uid(change.previous) != _uid(change.value):
                name = change.key.rpartition("/")[2]
                seen = self._fleet.get(name)
                if change.previous is None and seen is not None and seen.connected:
                    continue  # its session, here or elsewhere, is quicker than the mirror
                self._fleet.forget(name)

    # --- the RPCs --------------------------------------------------------------------------------

    async def Join(  # noqa: N802
        self, request: agent_pb2.JoinRequest, context: Context
    ) -> agent_pb2.JoinResponse:
        """Raises Refused and StoreError."""
        return await self._identities.join(request)

    async def Session(  # type: ignore[override]  # noqa: N802 - it writes: see orchestrator/rpc.py
        self, request_iterator: AsyncIterator[agent_pb2.SessionRequest], context: Context
    ) -> None:
        """From Hello until either side ends it. Raises Refused and StoreError."""
        caller = caller_of(context)
        identity = caller.node
        hello = await self._greeted(identity.node, request_iterator)
        if isinstance(hello, agent_pb2.Goodbye):
            await self._part(hello, request_iterator, context)
            return
        await self._identities.confirm_serial(identity, caller.serial)
        problems = problems_of(hello.inventory, identity)
        if problems:
            await context.write(self._refuse_inventory(identity.node, problems))
            return
        session = LiveSession(identity, caller.serial, hello, self._fleet.steady())
        serving = self._serve(session, hello, request_iterator, context)
        del hello  # as long as anything here holds it, it stays as long as the session
        await serving

    async def Relay(  # noqa: N802
        self, request_iterator: AsyncIterator[agent_pb2.RelayRequest], context: Context
    ) -> AsyncIterator[agent_pb2.RelayResponse]:
        """One log or exec. Raises Refused."""
        node = caller_of(context).node.node
        first = await self._first(request_iterator)
        if first is None or not first.HasField("open"):
            raise invalid("the first message of a relay must be its open")
        try:
            async for response in self.relays.serve(node, first.open, request_iterator):
                yield response
        except UnknownRelay as error:
            raise not_found(str(error)) from error

    async def Package(  # type: ignore[override]  # noqa: N802 - it writes, as Session does
        self, request: agent_pb2.PackageRequest, context: Context
    ) -> None:
        """The bytes of a package. Raises Refused and StoreError."""
        await self._packages.send(caller_of(context).node.node, request, context.write)

    # --- a session -------------------------------------------------------------------------------

    async def _greeted(
        self, node: str, requests: AsyncIterator[agent_pb2.SessionRequest]
    ) -> agent_pb2.Hello | agent_pb2.Goodbye:
        """Its Hello once its turn has come, or what it is told instead. Raises Refused."""
        settings = self._settings
        self._greeting += 1
        try:
            if self._closed is not None:
                return self._closed
            if len(self.sessions) >= settings.sessions_max:
                return _overloaded("as many sessions as it can serve", random.uniform(10.0, 30.0))
            if self._greeting > settings.greeting_max:
                return _overloaded("as many new sessions as it can hold", random.uniform(2.0, 10.0))
            answer = self._admission.ask(node, self._fleet.steady(), dice=random.random())
            if isinstance(answer, ComeBack):
                self._note_sent_away()
                return _overloaded("more new sessions than it can begin at once", answer.retry_s)
            if answer.wait_s > 0:
                await asyncio.sleep(answer.wait_s)
            hello = await self._hello(requests)
            # Their turns were one after the other, but who said Hello late, or whom we could not
            # read while the loop was busy, would begin all at once.
            late_s = self._begins.take(self._fleet.steady())
            if late_s > 0:
                await asyncio.sleep(late_s)
            return self._closed or hello
        finally:
            self._greeting -= 1

    def _note_sent_away(self) -> None:
        """Once in a while: each of thousands would fill the log when it matters most."""
        self._sent_away += 1
        now = self._fleet.steady()
        if now - self._sent_away_told_at >= _TELL_EVERY_S:
            log.warning(
                "agents are told to come back later: more than accept_rate come at once",
                extra={"agents": self._sent_away, "accept_rate": self._settings.accept_rate},
            )
            self._sent_away, self._sent_away_told_at = 0, now

    async def _part(
        self,
        goodbye: agent_pb2.Goodbye,
        requests: AsyncIterator[agent_pb2.SessionRequest],
        context: Context,
    ) -> None:
        """Say goodbye to a stream that was not let in, and hear its first message out.

        A gRPC client whose write fails may never read what it was told.
        """
        await context.write(agent_pb2.SessionResponse(goodbye=goodbye))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_OUT_S):
                await anext(requests, None)

    async def _hello(self, requests: AsyncIterator[agent_pb2.SessionRequest]) -> agent_pb2.Hello:
        first = await self._first(requests)
        if first is None or not first.HasField("hello"):
            raise invalid("the first message of a session must be its Hello")
        hello: agent_pb2.Hello = first.hello
        return hello

    async def _first(self, requests: AsyncIterator[Any]) -> Any:
        """The first message, or None when the stream ends before. Raises Refused when late."""
        try:
            async with asyncio.timeout(self._settings.hello_timeout_s):
                return await anext(requests, None)
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            raise Refused(code, "NoHello", "nothing was said on the new stream") from None

    async def _serve(
        self,
        session: LiveSession,
        hello: agent_pb2.Hello,
        requests: AsyncIterator[agent_pb2.SessionRequest],
        context: Context,
    ) -> None:
        goodbye = self.superseding.enter(session, hello.inventory.addresses)
        if goodbye is not None:
            await self._part(goodbye, requests, context)
            return
        version, boot_id = hello.agent_version[:64], hello.boot_id[:128]
        self._status_writer.report(session.node, version, boot_id, hello.inventory)
        shares = partial(self._roles.shared_by, session.node)
        reader = SessionReader(
            session,
            self._cache,
            self._fleet,
            self._events,
            self._identities,
            self._clock,
            self._settings,
            partial(self._status_writer.report, session.node, version, boot_id),
            shares,
            lambda changes: self._local_changes.report(session, changes, shares),
            lambda status: self._upgrades.report(session, status),
        )
        reading: asyncio.Task[None] | None = None
        try:
            reader.greet(hello)
            session.send(agent_pb2.SessionResponse(welcome=self._welcome(session)))
            self._directories.welcome(session)
            self._plans.welcome(session, hello.plan_generation)
            self._upgrades.welcome(session)
            del hello
            reading = asyncio.create_task(
                self._read(reader, session, requests), name=f"session-{session.node}"
            )
            await self._write(session, context)
        finally:
            session.outbox.close()
            self.superseding.leave(session, self._clock())
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})
        if reading.done() and not reading.cancelled() and (error := reading.exception()):
            raise error

    async def _read(
        self,
        reader: SessionReader,
        session: LiveSession,
        requests: AsyncIterator[agent_pb2.SessionRequest],
    ) -> None:
        try:
            await reader.run(requests)
        finally:
            session.outbox.close()  # lets the writer end

    async def _write(self, session: LiveSession, context: Context) -> None:
        while (message := await session.outbox.take()) is not None:
            try:
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await context.write(message)
            except TimeoutError:
                log.info("closing a session that is not read", extra={"node": session.node})
                return
            del message  # perhaps a plan, and the next one may be days away

    def _welcome(self, session: LiveSession) -> agent_pb2.Welcome:
        settings = self._settings
        age_ms = settings.session_age_s * 1000 * random.uniform(0.75, 1.25)
        return agent_pb2.Welcome(
            member=settings.member,
            region=settings.region,
            version=settings.version,
            now_ms=int(self._clock() * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_s * 1000),
            endpoints=self._signposts.for_welcome(session),
            session_age_max_ms=int(age_ms),
            standing=self.standing.for_welcome(),
        )

    def _refuse_inventory(self, node: str, problems: list[str]) -> agent_pb2.SessionResponse:
        message = f"refused for what it says of itself: {'; '.join(problems[:5])}"
        self._tell(node, _WARNING, "InvalidInventory", message)
        return agent_pb2.SessionResponse(
            goodbye=agent_pb2.Goodbye(
                reason="InvalidInventory",
                message=message,
                retry_after_ms=self._settings.refused_retry_after_ms,
            )
        )

    def _tell(self, node: str, severity: int, reason: str, message: str) -> None:
        source = f"gateway/{self._settings.member}"
        self._events.record("Node", "", node, severity, reason, message, source)


def _overloaded(why: str, retry_s: float) -> agent_pb2.Goodbye:
    return agent_pb2.Goodbye(
        reason="Overloaded",
        message=f"this orchestrator has {why}",
        retry_after_ms=math.ceil(retry_s * 1000),
    )


def _uid(value: object) -> str:
    return value.uid if isinstance(value, StoredResource) else ""
