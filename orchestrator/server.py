"""One orchestrator process from first start to shutdown. Called by `main.py serve` and by tests.

Start: CA, Store, mirror, then the listeners; whatever fails is undone in the opposite order. Where
etcd is the Store it is waited for. Stop: no new work, goodbye to the agents, a grace for calls that
run, then the leader's seat, events and the Store.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.admin_context import AdminContext
from orchestrator.api.agent_upgrades import AgentUpgrades
from orchestrator.api.drilling import Drilling
from orchestrator.api.fencing import Fencing
from orchestrator.api.guards import Guards
from orchestrator.api.insight import Insight, build_insight
from orchestrator.api.overriding import Overriding
from orchestrator.api.regions import Regions
from orchestrator.api.relaying import Relaying
from orchestrator.api.releases import ReleaseDesk
from orchestrator.api.rollouts import Rollouts
from orchestrator.api.service import OperatorService
from orchestrator.api.thinking import Thinking
from orchestrator.background import Background
from orchestrator.config import Config, parse_address
from orchestrator.domain.guard import GuardSettings
from orchestrator.drill import DrillWatch
from orchestrator.gateway.service import AgentGateway
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.http import HttpServer
from orchestrator.identity.authority import Authority
from orchestrator.identity.rotation import Rotation
from orchestrator.installation import (
    ADMIN,
    ADMIN_CONTEXT,
    WrongInstallation,
    issue_context,
    prepare_authority,
    prepare_store,
)
from orchestrator.leader import Leader, LeaderSettings
from orchestrator.listeners import CannotListen, Listeners
from orchestrator.member_metrics import MemberCollector
from orchestrator.mesh.mesh import Mesh
from orchestrator.mesh.voice import Hearsay, Voice
from orchestrator.metrics import MeasuredStore, Metrics
from orchestrator.notify import notify
from orchestrator.parts import Parts, build_parts
from orchestrator.patience import patiently
from orchestrator.playing_dead import PlayingDead
from orchestrator.probes import Probes
from orchestrator.refusals import Refused, unavailable
from orchestrator.roll_call import RollCall
from orchestrator.store import keys
from orchestrator.store.address import open_address
from orchestrator.store.etcd.adapter import EtcdStore
from orchestrator.version import running_version

log = logging.getLogger(__name__)

T = TypeVar("T")


def guard_settings(config: Config) -> GuardSettings:
    """How much may stop at once, and how long silence is doubted."""
    return GuardSettings(
        stops_max=config.hold_stops_above,
        share_max=config.hold_share_above,
        suspicion_s=config.suspicion_limit,
        spared_s=config.lost_after,
    )


class Orchestrator:
    """`start`, then `stop` once. `failed` is set when a task that must run has ended."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._background = Background()
        self._presence = Background(self._background.failed)
        self._undo = contextlib.AsyncExitStack()
        self._serving = False
        self._patient = False
        self._epoch_base = 0
        self._making_admin = False
        self._probes: Probes | None = None
        self.parts: Parts
        self.playing: PlayingDead
        self.drill: DrillWatch
        self.leader: Leader
        self.voice: Voice
        self.mesh: Mesh
        self.gateway: AgentGateway
        self.insight: Insight

    @property
    def failed(self) -> asyncio.Event:
        return self._background.failed

    async def start(self) -> None:
        """Returns when agents and operators are served. Raises UnusableFile, WrongInstallation,
        NotAdmitted, StoreError, CannotListen; nothing is left running then."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def prepare(self, *, patient: bool = False) -> tuple[MeasuredStore, Authority, Metrics]:
        """What the first start makes, and every later one checks: CA, Store, first admin.

        `patient`: wait for a Store that other machines serve. Raises as `start` does.
        """
        config = self._config
        self._patient = patient and config.shares_store
        authority = prepare_authority(config, self._clock, fresh=self._is_fresh())
        metrics = Metrics(running_version(), config.member_name, config.region)
        opened = await self._reach(
            lambda: open_address(config.store_address, config.etcd_access, create=True)
        )
        self._undo.push_async_callback(opened.close)
        store = MeasuredStore(opened, metrics)
        self._epoch_base = await self._reach(
            lambda: prepare_store(store, authority, config, self._clock)
        )
        await self._reach(lambda: self._write_admin_context(store, authority))
        return store, authority, metrics

    async def _reach(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Something at start that needs the Store and can be done twice."""
        return await (patiently(attempt) if self._patient else attempt())

    def _is_fresh(self) -> bool:
        """Whether this machine has no Store yet. Raises WrongInstallation when it lost its own."""
        config = self._config
        if config.shares_store:
            return False  # what is in etcd tells, not what is here
        database = Path(config.store_address.partition(":")[2])
        fresh = not database.exists()
        if fresh and self._admin_context.exists():
            # A new store would admit nobody whom the lost one knew.
            admin = self._admin_context.name
            raise WrongInstallation(
                f"{config.data_path} has {admin} and no {database.name}: was the database lost? "
                f"Restore it; or move {admin} away to begin anew"
            )
        return fresh

    async def _start(self) -> None:
        config, clock = self._config, self._clock
        if config.health_listen:
            self._probes = Probes(config.health_listen)
            await self._probes.start()
            self._undo.push_async_callback(self._probes.stop)
        store, authority, metrics = await self.prepare(patient=True)
        parts = self.parts = build_parts(
            config, store, authority, metrics, clock, running_version()
        )
        parts.cache.epoch_base = self._epoch_base
        self.playing = PlayingDead(config.region, parts.cache, parts.calls, clock)
        await self._come_in(parts)
        await self._reach(parts.cache.start)
        self._undo.push_async_callback(parts.cache.stop)
        await self._reach(parts.events.start)
        self._undo.push_async_callback(parts.events.stop)
        self._undo.push_async_callback(self._background.stop)
        self._build_agents_side(parts)
        listeners = self._listeners(parts)
        self._run_background(parts)
        self.playing.look()
        await listeners.start()
        self._undo.push_async_callback(self._end_calls, listeners)
        await self._start_http(metrics)
        self._undo.push_async_callback(self._go_away)
        await parts.registry.announce()
        await self._say_ready(True)
        notify("READY=1\nSTATUS=serving")
        for concern in config.concerns:
            log.warning("settings: %s", concern)
        log.info(
            "serving",
            extra={
                "member": config.member_name,
                "region": config.region,
                "listen": config.listen,
                "join_listen": config.join_listen,
                "version": running_version(),
            },
        )

    async def _come_in(self, parts: Parts) -> None:
        """Before anything is served: a namesake, or a version that does not fit, is refused."""
        self._undo.push_async_callback(self._go_away)
        await self._reach(parts.registry.claim)
        self._presence.start("member", self.playing.around(parts.registry.run))

    async def _go_away(self) -> None:
        """Twice is harmless. The first thing at a stop: agents are not sent here any more."""
        await self._presence.stop()
        await self.parts.registry.leave()

    @property
    def _admin_context(self) -> Path:
        return self._config.data_path / ADMIN_CONTEXT

    async def _write_admin_context(self, store: MeasuredStore, authority: Authority) -> None:
        """At the first start, so that somebody can operate it. Members that are first together
        may each make one: certificates of the same admin, all of which count."""
        path = self._admin_context
        known = await store.get(keys.identity("operator", ADMIN)) is not None
        if known and not self._making_admin:
            return
        self._making_admin = True  # tried again after an unknown outcome, it may be our own
        try:
            await issue_context(
                store, authority, self._config, self._clock, ADMIN, ("admin",), path
            )
        except Refused as refusal:
            log.info("others made the first admin: %s", refusal)
            return
        log.info("made the first admin", extra={"context": str(path)})

    def _build_agents_side(self, parts: Parts) -> None:
        config = self._config
        settings = GatewaySettings(
            member=config.member_name,
            region=config.region,
            version=running_version(),
            heartbeat_s=config.heartbeat_interval,
            accept_rate=config.accept_rate,
            session_age_s=config.session_age,
            autonomy_s=config.autonomy,
            periods=parts.periods,
        )
        self.gateway = AgentGateway(
            parts.store,
            parts.cache,
            parts.fleet,
            parts.events,
            parts.nodes,
            lambda: parts.member.current,
            config.endpoints,
            self._clock,
            settings,
            parts.roles,
            lambda: parts.freshness.behind_s,
        )
        self.leader = Leader(
            parts.store,
            parts.cache,
            parts.fleet,
            parts.events,
            self._clock,
            LeaderSettings(
                config.member_name, periods=parts.periods, guards=guard_settings(config)
            ),
            roles=parts.roles,
        )
        self.voice = Voice(self.leader, Hearsay(self._clock, parts.hub.said), parts.cache)
        self.leader.on_end = self.voice.keep_last_words
        self.leader.said_before = lambda: self.voice.explanations
        parts.explaining.use(self.voice)
        parts.events.deletes = lambda: self.leader.is_leading
        self.mesh = self._mesh(parts)
        parts.metrics.registry.register(
            MemberCollector(
                self.leader,
                self.voice,
                self.mesh.links.status,
                lambda: self.gateway.relays.active,
                lambda: self.mesh.forwarding.active,
            )
        )
        self.playing.also(self._leave_leading)
        self.drill = DrillWatch(
            config.member_name,
            parts.store,
            parts.cache,
            parts.fleet,
            self.leader,
            parts.events,
            self._clock,
        )

    def _leave_leading(self, dead: bool) -> None:
        """One that plays dead does not hand over: the others must find out, as in a real loss."""
        self.leader.resigns = not dead

    def _mesh(self, parts: Parts) -> Mesh:
        return Mesh(
            parts.fleet,
            parts.cache,
            parts.member,
            self.gateway.sessions,
            self.gateway.superseding,
            self.gateway.relays,
            self.voice,
            parts.events,
            self._clock,
            version=running_version(),
            instance_id=parts.registry.instance_id,
            heartbeat_s=self._config.heartbeat_interval,
            behind_s=lambda: parts.freshness.behind_s,
        )

    def _listeners(self, parts: Parts) -> Listeners:
        thinking = Thinking(parts.cache, parts.fleet, self._clock, self.voice, parts.periods)
        self._undo.callback(thinking.close)
        self.insight = self._build_insight(parts, thinking)
        operators = OperatorService(
            parts.applier,
            parts.reading,
            parts.deleter,
            parts.hub,
            Relaying(parts.catalog, self.mesh.forwarding, parts.events),
            parts.access,
            self.insight,
            parts.events,
            parts.cache,
            self._clock,
            Guards(parts.writes, parts.cache, parts.events, self._clock),
            Rollouts(parts.catalog, parts.applier, self.voice),
            self._regions(parts),
            self._drilling(parts),
            Fencing(
                parts.writes, parts.cache, parts.fleet, parts.periods, parts.events, self._clock
            ),
            Overriding(parts.writes, parts.cache, parts.events, self._clock),
            self._release_desk(parts),
            AgentUpgrades(
                parts.writes, parts.cache, parts.fleet, thinking, parts.events, self._clock
            ),
        )
        listeners = Listeners(parts, self.gateway, operators)
        listeners.serve_members(self.mesh.service)
        return listeners

    def _regions(self, parts: Parts) -> Regions:
        store = parts.store.inner if isinstance(parts.store, MeasuredStore) else parts.store
        return Regions(
            self._config.member_name,
            parts.writes,
            store if isinstance(store, EtcdStore) else None,
            parts.cache,
            self.mesh.links.status,
            lambda: len(self.gateway.sessions),
            lambda: parts.freshness.age_s,
            parts.events,
            self._clock,
        )

    def _drilling(self, parts: Parts) -> Drilling:
        return Drilling(
            self._config.region,
            parts.writes,
            parts.cache,
            parts.fleet,
            parts.events,
            self.drill,
            self._clock,
        )

    def _release_desk(self, parts: Parts) -> ReleaseDesk:
        return ReleaseDesk(
            parts.writes,
            parts.cache,
            parts.fleet,
            parts.authority,
            parts.events,
            self._clock,
            running_version(),
        )

    def _build_insight(self, parts: Parts, thinking: Thinking) -> Insight:
        return build_insight(
            thinking,
            parts.catalog,
            parts.explaining,
            parts.applier,
            parts.events,
            self.voice,
            time.monotonic,
        )

    def _run_background(self, parts: Parts) -> None:
        self._background.start("member-certificate", parts.member.run())
        self._background.start("region-ca", self._rotation(parts).run())
        self._background.start("join-tokens", parts.tokens.run(lambda: self.leader.is_leading))
        self._background.start("live-calls", parts.calls.run())
        self._background.start("freshness", parts.freshness.run())
        self._background.start("watch-hub", parts.hub.run())
        self._background.start("gateway", self.gateway.run())
        self._background.start("leader", self.playing.around(self.leader.run))
        self._background.start("mesh", self.playing.around(self.mesh.run))
        self._background.start("playing-dead", self.playing.run())
        self._background.start("drill", self.drill.run())
        if self._config.shares_store:
            context = AdminContext(self._admin_context, parts.cache, self._config.region)
            self._background.start("admin-context", context.run())
        calling = RollCall(
            self._config.member_name, parts.cache, parts.events, lambda: self.leader.term
        )
        self._background.start("roll-call", calling.run())
        told = self.insight.compliance.run(lambda: self.leader.is_leading)
        self._background.start("compliance", told)

    def _rotation(self, parts: Parts) -> Rotation:
        config, authority = self._config, parts.authority
        return Rotation(
            config.ca_path,
            config.region,
            authority,
            parts.member,
            lambda: parts.metrics.authority_ends(authority.ends_at),
        )

    async def _start_http(self, metrics: Metrics) -> None:
        if not self._config.metrics_listen:
            return
        host, port = parse_address("metrics_listen", self._config.metrics_listen)
        server = HttpServer(metrics.registry, self._trouble)
        try:
            await server.start(host, port)
        except OSError as error:
            address = self._config.metrics_listen
            raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error
        self._undo.push_async_callback(server.stop)

    def _trouble(self) -> str:
        """Why it is not ready; empty when it is."""
        if not self._serving:
            return "starting or stopping"
        if self.playing.active:
            return "a drill: the region plays dead"
        if not self.parts.cache.healthy:
            return self.parts.cache.doubt or "the store cannot be read"
        behind_s = self.parts.freshness.behind_s  # the mirror's watch notices later
        return f"the store has not answered for {behind_s:.0f} s" if behind_s else ""

    async def _end_calls(self, listeners: Listeners) -> None:
        grace_s = self._config.shutdown_grace
        await listeners.drain()
        refusal = unavailable("Shutdown", "this orchestrator stops", "try again in a moment")
        self.parts.calls.close_all("operator", refusal)
        # Nobody new is let in from now on: agents that are sent away must not come back to us.
        ending = asyncio.create_task(listeners.stop(grace_s))
        await self.gateway.shutdown(grace_s)
        self.mesh.telling.end()
        await ending

    async def stop(self) -> None:
        """Within the grace and a little. Everything acknowledged is in the Store already."""
        if self._serving:
            log.info("stopping")
            notify("STOPPING=1")
        await self._say_ready(False)
        await self._undo.aclose()

    async def _say_ready(self, ready: bool) -> None:
        self._serving = ready
        if self._probes is not None:
            await self._probes.say(ready=ready)
