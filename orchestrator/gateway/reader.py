"""Reads one agent's messages into the fleet: the receiving half of a session.

The service runs one per session, until the agent ends the stream. Everything that an agent says is
checked and cut here; nothing that it can say reaches another node's facts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

from orchestrator.cache import Cache
from orchestrator.domain import inventory, reports
from orchestrator.domain.bucket import Bucket
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.gateway.inventories import problems_of
from orchestrator.gateway.sessions import LiveSession
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.records import AssignmentRecord
from orchestrator.refusals import Refused
from orchestrator.store.port import StoreError
from polder.identity import NodeId
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

_NORMAL, _WARNING = common_pb2.EVENT_TYPE_NORMAL, common_pb2.EVENT_TYPE_WARNING
_TYPES = (_NORMAL, _WARNING)


class Renewer(Protocol):
    """`orchestrator.identity.nodes.NodeIdentities`, as far as a session uses it."""

    async def renew(
        self, identity: NodeId, presented_serial: str, csr: bytes
    ) -> agent_pb2.RenewResponse:
        """Raises Refused and StoreError."""
        ...


class SessionReader:
    """`on_inventory` stores an inventory that was checked, `on_local_changes` what operators did at
    the node, `on_upgrade` how it is with an upgrade; they must not block. `shares`: replicas of
    others in which the node has a role."""

    def __init__(
        self,
        session: LiveSession,
        cache: Cache,
        fleet: Fleet,
        events: Recorder,
        identities: Renewer,
        clock: Callable[[], float],
        settings: GatewaySettings,
        on_inventory: Callable[[agent_pb2.NodeInventory], None],
        shares: Callable[[], Iterable[AssignmentRecord]] = tuple,
        on_local_changes: Callable[[agent_pb2.LocalChanges], None] = lambda _: None,
        on_upgrade: Callable[[agent_pb2.UpgradeStatus], None] = lambda _: None,
    ) -> None:
        self._shares = shares
        self._on_local_changes = on_local_changes
        self._on_upgrade = on_upgrade
        self._session = session
        self._cache = cache
        self._fleet = fleet
        self._events = events
        self._identities = identities
        self._clock = clock
        self._settings = settings
        self._on_inventory = on_inventory
        self._bucket = Bucket(settings.messages_per_s, settings.messages_burst)

    def greet(self, hello: agent_pb2.Hello) -> None:
        """The first message: from here on the fleet knows everything that runs on the node."""
        now = self._clock()
        seen = self._fleet.observe(self._session.node)
        seen.belong(None, self._session.name, self._settings.member)
        seen.last_seen, seen.heard_at = now, self._fleet.steady()
        seen.agent_version = hello.agent_version[:64]
        seen.connected_at = now
        seen.acked_generation = hello.plan_generation
        seen.plan_error = ""
        seen.upgrade = None  # it says it anew
        replicas: dict[str, agent_pb2.ReplicaStatus] = {}
        reports.on_our_clock(hello.replicas, int(now * 1000))
        self._told_refused(reports.merge(replicas, hello.replicas))
        seen.replicas = replicas
        seen.note_readiness(seen.last_seen)
        seen.complete = len(replicas) == len(hello.replicas)
        seen.standbys = reports.standbys(hello.standbys)
        # An agent that has the order to stop and reports no such replica has nothing of it left.
        placement = self._cache.placement(self._session.node)
        if seen.complete and hello.plan_generation >= placement.generation:
            seen.gone |= {s.replica_uid for s in placement.stops if s.replica_uid not in replicas}
        self._fleet.touch(self._session.node)

    async def run(self, requests: AsyncIterator[agent_pb2.SessionRequest]) -> None:
        """Until the agent ends its half. Raises what the stream raises."""
        async for request in requests:
            if self._session.is_closed():
                return
            kind = request.WhichOneof("message")
            if kind != "heartbeat":
                await self._pace()
                if self._session.is_closed():
                    return  # another session speaks for the node
            seen = self._fleet.heard(self._session.node, self._clock())
            self._session.last_heard = self._fleet.steady()
            match kind:
                case "heartbeat":
                    self._heartbeat(seen, request.heartbeat)
                case "replica_status":
                    self._replica_status(seen, request.replica_status)
                case "plan_ack":
                    self._plan_ack(seen, request.plan_ack)
                case "events":
                    self._take_events(request.events)
                case "renew":
                    await self._renew(request.renew)
                case "inventory":
                    self._inventory(request.inventory)
                case "local_changes":
                    self._on_local_changes(request.local_changes)
                case "upgrade":
                    self._on_upgrade(request.upgrade)
                case _:
                    log.debug("message ignored", extra={"node": self._session.node, "kind": kind})

    async def _pace(self) -> None:
        """Reading slower is felt by this agent alone, through its stream's flow control."""
        wait_s = self._bucket.take(self._fleet.steady())
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, 5.0))

    def _heartbeat(self, seen: NodeObservation, heartbeat: agent_pb2.Heartbeat) -> None:
        if not inventory.believable(heartbeat):
            # It lives, which is what counts; what it measured is thrown away.
            self._tell(_WARNING, "InvalidHeartbeat", "sends numbers that cannot be true")
            return
        before = reports.conditions_of(seen.heartbeat)
        seen.heartbeat, seen.heartbeat_at = reports.bounded_heartbeat(heartbeat), seen.last_seen
        if reports.conditions_of(heartbeat) != before:
            self._fleet.touch(self._session.node)

    def _replica_status(self, seen: NodeObservation, update: agent_pb2.ReplicaStatusUpdate) -> None:
        for uid in update.gone:
            seen.replicas.pop(uid, None)
        reports.on_our_clock(update.changed, int(seen.last_seen * 1000))
        self._told_refused(reports.merge(seen.replicas, update.changed))
        if update.standbys:
            seen.standbys = reports.standbys(update.standbys)
        seen.note_readiness(seen.last_seen)
        # Only what was to stop is of interest; the rest would pile up.
        stops = {stop.replica_uid for stop in self._cache.placement(seen.node).stops}
        seen.gone = {uid for uid in (*seen.gone, *update.gone) if uid in stops}
        self._fleet.touch(seen.node)

    def _plan_ack(self, seen: NodeObservation, ack: agent_pb2.PlanAck) -> None:
        # Another member may have sent it, over the session that this one took over from.
        made = self._cache.placement(seen.node).generation
        if ack.generation > max(made, self._session.generation_sent):
            message = f"acknowledges generation {ack.generation}, which was never sent"
            self._tell(_WARNING, "ImpossibleAck", message)
            return
        session = self._session
        session.generation_answered = max(session.generation_answered, ack.generation)
        if ack.accepted:
            seen.acked_generation = max(seen.acked_generation, ack.generation)
            seen.plan_error = ""
        else:
            seen.plan_error = f"{ack.reason}: {ack.message}"[: reports.TEXT_MAX]
            message = f"refuses plan generation {ack.generation}: {seen.plan_error}"
            self._tell(_WARNING, "PlanRefused", message)
        self._fleet.touch(seen.node)

    def _take_events(self, batch: agent_pb2.AgentEvents) -> None:
        placement = self._cache.placement(self._session.node)
        for event in batch.events[: reports.EVENTS_MAX]:
            about = reports.event_object(event, placement, self._shares)
            if about is None:
                log.info("an agent's event about others", extra={"node": self._session.node})
                continue
            kind, namespace, name, prefix = about
            self._events.record(
                kind,
                namespace,
                name,
                event.type if event.type in _TYPES else _NORMAL,
                event.reason[:64],
                prefix + event.message,
                f"agent/{self._session.node}",
                max(1, min(event.count, 1_000_000)),
            )
        dropped = batch.dropped + max(0, len(batch.events) - reports.EVENTS_MAX)
        if dropped > 0:
            self._tell(_WARNING, "EventsDropped", "had more to tell than fits")

    async def _renew(self, request: agent_pb2.RenewRequest) -> None:
        session = self._session
        try:
            response = await self._identities.renew(session.identity, session.serial, request.csr)
        except (Refused, StoreError) as error:
            response = agent_pb2.RenewResponse(error=str(error)[:500] or type(error).__name__)
        session.send(agent_pb2.SessionResponse(renew=response))

    def _inventory(self, reported: agent_pb2.NodeInventory) -> None:
        problems = problems_of(reported, self._session.identity)
        if problems:
            message = f"its new inventory is ignored: {'; '.join(problems[:5])}"
            self._tell(_WARNING, "InvalidInventory", message)
            return
        self._on_inventory(reported)

    def _told_refused(self, refused: int) -> None:
        if refused:
            message = f"reports more than {reports.REPLICAS_MAX} replicas; the rest is not shown"
            self._tell(_WARNING, "TooManyReplicas", message)

    def _tell(self, severity: int, reason: str, message: str) -> None:
        source = f"gateway/{self._settings.member}"
        self._events.record("Node", "", self._session.node, severity, reason, message, source)
