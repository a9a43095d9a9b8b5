"""The agent's one connection to the orchestrator: dials, stays, moves on, renews.

`agent/main.py` runs it for as long as the agent lives. What happens on a stream is in
`agent/session_stream.py`; which endpoint comes next, and when, is in `agent/connection_policy.py`.
Losing every orchestrator changes nothing on the box: this module only ever retries.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from agent import connection_policy as policy
from agent.channel import open_channel
from agent.identity_store import (
    CredentialsRefused,
    IdentityFailure,
    IdentityStore,
    NodeIdentity,
    from_pem,
)
from agent.outbox import EventQueue
from agent.relay import RelayHub
from agent.session_stream import (
    Affairs,
    ConnectionState,
    Node,
    SessionEnd,
    SessionEnded,
    SessionStream,
    Timing,
    Upgrades,
)
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

CLOCK_SKEW_MAX_S = 30.0
WIND_UP_S = 10.0  # a session that is asked to end
RENEWAL_CHECK_MAX_S = 3600.0  # a suspended box wakes up with a clock that has jumped


class SessionClient:
    """Keeps one session open. Statuses, events and acknowledgements go through `publish_*`."""

    def __init__(
        self,
        store: IdentityStore,
        node: Node,
        relays: RelayHub,
        *,
        timing: Timing | None = None,
        dice: Callable[[], float] = random.random,
        on_state: Callable[[ConnectionState], None] = lambda _state: None,
        affairs: Affairs | None = None,
        upgrades: Upgrades | None = None,
    ) -> None:
        self._store = store
        self._node = node
        self._relays = relays
        self._timing = timing or Timing()
        self._dice = dice
        self._on_state = on_state
        self._affairs = affairs
        self._upgrades = upgrades
        self._events = EventQueue()
        self._current: SessionStream | None = None
        self._open: set[SessionStream] = set()  # two while one takes over from the other
        self._served: dict[SessionStream, asyncio.Task[SessionEnd]] = {}
        self._takeover: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # of what replaces a session that is well
        self._age: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts = policy.Attempts(store.load().endpoints)
        self._told = False  # by a session, where orchestrators are
        self._number = 0
        self._state = ConnectionState()
        self._stopping = asyncio.Event()
        self._since = 0.0  # monotonic
        self._renewed_at = -math.inf  # monotonic

    @property
    def state(self) -> ConnectionState:
        if self._current is None:
            return self._state
        return replace(self._state, last_contact=self._current.last_contact)

    # --- what the rest of the agent says --------------------------------------------------------

    def publish_replicas(
        self, changed: Sequence[agent_pb2.ReplicaStatus], gone: Sequence[str] = ()
    ) -> None:
        """Nothing to do without a session: the next Hello is complete."""
        for stream in self._open:
            stream.replicas_changed(list(changed), list(gone))

    def publish_standbys(self, standbys: Sequence[agent_pb2.StandbyStatus]) -> None:
        """Of every role of the plan. Nothing to do without a session, as above."""
        for stream in self._open:
            stream.standbys_changed(list(standbys))

    def publish_inventory(self, inventory: agent_pb2.NodeInventory) -> None:
        for stream in self._open:
            stream.inventory_changed(inventory)

    def publish_event(self, event: common_pb2.Event) -> None:
        """Kept, within bounds, until somebody can be told."""
        self._events.put(event)
        if self._current is not None:
            self._current.events_waiting()

    def publish_changes(self) -> None:
        """Of local operators: `affairs` knows them. Nothing to do without a session, as above."""
        if self._current is not None:
            self._current.changes_waiting()

    def publish_upgrade(self) -> None:
        """As `publish_changes`: `upgrades` knows."""
        if self._current is not None:
            self._current.upgrade_waiting()

    def publish_ack(self, ack: agent_pb2.PlanAck) -> None:
        """Lost without a session: the next Hello names the generation in use."""
        if self._current is not None:
            self._current.acknowledge(ack)

    def use_endpoints(self, endpoints: Sequence[str]) -> None:
        """A plan names orchestrators. It may be an old one: what a session said, since this process
        began, is newer. An empty list changes nothing."""
        if not self._told:
            self._keep(endpoints)

    def _hear(self, stream: SessionStream, endpoints: Sequence[str]) -> None:
        """The session says where orchestrators are; one that is being left does not count."""
        if stream is self._current and endpoints:
            self._told = True
            self._keep(endpoints)

    def _stands(self, stream: SessionStream, standing: agent_pb2.MemberStanding) -> None:
        """As `_hear`, of how the member is itself connected."""
        if stream is self._current and standing.cut_off != self._state.member_cut_off:
            facts = {"member": self._state.member, "cut_off": standing.cut_off}
            log.log(logging.WARNING if standing.cut_off else logging.INFO, "standing", extra=facts)
            self._change(member_cut_off=standing.cut_off)

    def _keep(self, endpoints: Sequence[str]) -> None:
        in_use = self._current.endpoint if self._current is not None else ""
        wanted = policy.pinned(policy.usable(endpoints), in_use)
        try:
            self._store.update_endpoints(wanted)
        except IdentityFailure as error:
            log.warning("endpoints not stored", extra={"error": str(error)})
        self._attempts = policy.with_endpoints(self._attempts, wanted)

    # --- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`. Errors of orchestrators, networks and disks never end it."""
        renewal = self._renewal = asyncio.create_task(self._renew_forever())
        try:
            while not self._stopping.is_set():
                if renewal.done():
                    renewal.result()  # a defect: certificates must never stop being renewed
                if self._current is None:
                    await self._connect()
                else:
                    await self._wait_for_end(self._current)
        finally:
            renewal.cancel()
            self._forget_age()
            if self._takeover is not None:
                self._takeover.cancel()
            for task in [*self._tasks, *self._served.values()]:
                task.cancel()
            await asyncio.gather(
                renewal, *self._tasks, *self._served.values(), return_exceptions=True
            )
            for stream in list(self._open):
                stream.cancel()
                await stream.channel.close(None)

    async def stop(self, flush_s: float = 1.0) -> None:
        """Send what waits, then end `run`. Containers are nobody's business here."""
        self._stopping.set()
        if self._current is not None:
            stream = self._current
            stream.close("Stopping", "the agent stops")
            await asyncio.wait({self._served[stream]}, timeout=flush_s)

    async def _connect(self) -> None:
        endpoint = self._attempts.endpoint
        try:
            identity = self._store.load()
            stream = await self._open_stream(endpoint, identity)
        except SessionEnded as error:
            await self._pause(error.end, lived_s=-1.0)
            return
        except IdentityFailure as error:
            await self._pause(SessionEnd("Identity", str(error)), lived_s=-1.0)
            return
        self._adopt(stream)

    async def _open_stream(self, endpoint: str, identity: NodeIdentity) -> SessionStream:
        timing = self._timing
        channel = open_channel(
            endpoint,
            identity,
            keepalive_s=timing.keepalive_s,
            keepalive_timeout_s=timing.keepalive_timeout_s,
        )
        stream = SessionStream(
            channel, endpoint, self._node, self._events, self._relays.start, timing, self._hear,
            self._stands, self._affairs, self._upgrades,
        )  # fmt: skip
        self._open.add(stream)
        self._number += 1
        try:
            dial_s = min(timing.dial_max_s, self._attempts.dial_s)
            await stream.open(
                self._number, dial_s, min(timing.welcome_max_s, self._attempts.welcome_s)
            )
        except BaseException:
            self._open.discard(stream)
            await channel.close(None)
            raise
        return stream

    def _adopt(self, stream: SessionStream) -> None:
        welcome = stream.welcome
        now = time.time()
        self._current = stream
        self._since = time.monotonic()
        self._served[stream] = asyncio.create_task(stream.serve())
        skew = now - welcome.now_ms / 1000 if welcome.now_ms else 0.0
        self._change(
            connected=True,
            member_cut_off=welcome.standing.cut_off,
            endpoint=stream.endpoint,
            member=welcome.member,
            region=welcome.region,
            since=now,
            last_contact=now,
            clock_skew_s=skew,
            last_error="",
        )
        self._hear(stream, welcome.endpoints)
        stream.changes_waiting()
        stream.upgrade_waiting()
        self._attempts = policy.at(self._attempts, stream.endpoint)
        self._wait_for_age(stream)
        facts = {"endpoint": stream.endpoint, "member": welcome.member, "region": welcome.region}
        log.info("session opened", extra=facts)
        if abs(skew) > CLOCK_SKEW_MAX_S:
            log.warning("this box's clock differs from the orchestrator's", extra={"skew_s": skew})

    async def _wait_for_end(self, stream: SessionStream) -> None:
        served = self._served[stream]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            ends = {served, stopping} | ({self._renewal} if self._renewal else set())
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if self._stopping.is_set():
            await asyncio.wait({served}, timeout=WIND_UP_S)
        if not served.done():
            return
        if self._takeover is not None and not self._takeover.done():
            # The server may end the old session before it welcomes the new one.
            await asyncio.wait({self._takeover})
        if self._current is not stream:
            return
        self._current = None
        self._forget_age()
        self._spawn(self._dispose(stream))
        if not self._stopping.is_set():
            await self._pause(served.result(), lived_s=time.monotonic() - self._since)

    async def _pause(self, end: SessionEnd, *, lived_s: float) -> None:
        """Wait as the policy says. `lived_s` is negative when there was no session at all."""
        attempts, now, dice = self._attempts, time.monotonic(), self._dice()
        if end.refused:
            wait = policy.after_refusal(attempts, now=now, dice=dice)
        elif end.goodbye:
            wait = policy.after_goodbye(
                attempts,
                reason=end.reason,
                retry_after_s=end.retry_after_s,
                lived_s=lived_s,
                now=now,
                dice=dice,
            )
        elif lived_s >= 0:
            wait = policy.after_session(attempts, lived_s=lived_s, now=now, dice=dice)
        else:
            wait = policy.after_failure(attempts, now=now, dice=dice, slow=end.slow)
        self._attempts = wait.attempts
        facts = {
            "endpoint": attempts.endpoint,
            "reason": end.reason,
            "detail": end.message,
            "next": wait.attempts.endpoint,
            "wait_s": round(wait.seconds, 2),
        }
        # A region that is gone for a day would fill the journal: each doubling says it once.
        failures = wait.attempts.failures
        loud = self._state.connected or failures & (failures - 1) == 0
        log.log(logging.WARNING if loud else logging.DEBUG, "no session", extra=facts)
        self._change(
            connected=False,
            member_cut_off=False,
            last_error=f"{attempts.endpoint}: {end.reason}: {end.message}",
            last_contact=self._state.last_contact if lived_s < 0 else time.time(),
        )
        try:
            async with asyncio.timeout(wait.seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _dispose(self, stream: SessionStream, *, drain: bool = False) -> None:
        """Let relays finish if they may, then close the connection."""
        if drain:
            await asyncio.wait({self._served[stream]}, timeout=self._timing.write_s)
            await self._relays.drained(stream.channel, self._timing.drain_s)
        stream.cancel()
        await stream.channel.close(None)
        self._open.discard(stream)
        served = self._served.pop(stream, None)
        if served is not None:
            await asyncio.wait({served})

    def _change(self, **facts: Any) -> None:
        self._state = replace(self._state, **facts)
        self._on_state(self._state)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- renewal --------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        failures = 0
        while True:
            try:
                await self._renew_when_due()
                failures = 0
            except (IdentityFailure, SessionEnded, TimeoutError, OSError) as error:
                not_after = self._store.load().not_after
                pause = policy.renewal_retry_s(not_after, time.time(), failures, dice=self._dice())
                failures += 1
                facts = {"error": str(error), "retry_s": round(pause, 1)}
                log.warning("certificate not renewed", extra=facts)
                await asyncio.sleep(pause)

    async def _renew_when_due(self) -> None:
        identity = self._store.load()
        due = policy.renewal_due_at(
            identity.not_before, identity.not_after, dice=_fixed_dice(identity.serial)
        )
        pause = policy.renewal_pause_s(identity.not_before, identity.not_after)
        wait = max(due - time.time(), self._renewed_at + pause - time.monotonic())
        if wait > 0:
            await asyncio.sleep(min(wait, RENEWAL_CHECK_MAX_S))
        elif self._current is None:
            await asyncio.sleep(1.0)
        else:
            async with self._turn:
                if self._current is not None:
                    await self._renew(self._current, identity)

    async def _renew(self, stream: SessionStream, identity: NodeIdentity) -> None:
        """New key, new certificate, then a new session before the old one goes."""
        staged = await self._store.stage()
        try:
            answer = await stream.renew(staged.csr)
            if answer.error:
                raise CredentialsRefused("Renewal", answer.error)
            renewed = await staged.commit(
                answer.certificate_chain,
                answer.trust_bundle or from_pem(identity.roots_pem),
                policy.pinned(policy.usable(answer.endpoints), stream.endpoint)
                or identity.endpoints,
                expected=identity.id,
            )
        except BaseException:
            staged.discard()
            raise
        self._renewed_at = time.monotonic()
        log.info("certificate renewed", extra={"serial": renewed.serial})
        self._attempts = policy.with_endpoints(self._attempts, renewed.endpoints)
        await self._replace((stream.endpoint,), renewed, "the certificate was renewed")

    # --- a new session before the old one goes --------------------------------------------------

    def _wait_for_age(self, stream: SessionStream) -> None:
        """An old session is replaced: agents that fled come back to their nearest member, and
        members that were started again get their share."""
        self._forget_age()
        if stream.age_max_s > 0:
            age_s = max(policy.AGE_MIN_S, stream.age_max_s)
            loop = asyncio.get_running_loop()
            self._age = loop.call_later(age_s, lambda: self._spawn(self._grow_old(stream)))

    def _forget_age(self) -> None:
        if self._age is not None:
            self._age.cancel()
            self._age = None

    async def _grow_old(self, stream: SessionStream) -> None:
        async with self._turn:
            if self._current is stream and not self._stopping.is_set():
                try:
                    identity = self._store.load()
                except IdentityFailure as error:
                    log.warning("the session stays as it is", extra={"error": str(error)})
                else:
                    endpoints = policy.nearer(self._attempts)
                    await self._replace(endpoints, identity, "the session was old")
        if self._current is stream:
            self._wait_for_age(stream)

    async def _replace(self, endpoints: Sequence[str], identity: NodeIdentity, why: str) -> None:
        """`_wait_for_end` waits for it, too, if the old session ends meanwhile."""
        self._takeover = asyncio.create_task(self._take_over(endpoints, identity, why))
        await asyncio.wait({self._takeover})

    async def _take_over(self, endpoints: Sequence[str], identity: NodeIdentity, why: str) -> None:
        """A session on a new connection to the first that answers; the old one until that works."""
        old = self._current
        if old is None:
            return
        for endpoint in endpoints:
            try:
                fresh = await self._open_stream(endpoint, identity)
            except SessionEnded as error:
                facts = {"endpoint": endpoint, "why": why, "error": str(error)}
                log.info("the old session stays for now", extra=facts)
                if self._served[old].done():
                    return  # the whole list is tried next, not only what is nearer
                continue
            self._adopt(fresh)
            self._open.discard(old)
            old.close("Superseded", why)
            self._spawn(self._dispose(old, drain=True))
            return


def _fixed_dice(serial: str) -> float:
    """The same for one certificate however often it is asked, different between boxes."""
    return random.Random(serial).random()
