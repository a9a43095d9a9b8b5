"""The running agent: makes the pieces, connects them, keeps them going. Called by `agent/main.py`.

    IdentityStore --> SessionClient <-> SessionStream --OpenRelay--> RelayHub --> ReplicaSources
                           |  ^                                                        |
               plans       v  | statuses, events                                       v
                  PlanIntake --> PlanKeeper --> SiteLoop --> Supervisor <-------> Runtime (CRI)
                                                   ^             ^
    operators at the site --> LocalServer ---------+-------------+

Start: lock, identity, last good plan, supervisor; then systemd hears READY; only then is anybody
dialled. A box without a network is a working box.
"""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent import connection_policy as policy
from agent import lean, state_form, steady_clock
from agent.config import AgentConfig
from agent.domain.plan import ParsedPlan
from agent.identity_store import IdentityStore, NotJoined, SubprocessPlanVerifier
from agent.inventory import Box, Inventory, boot_id, take, with_runtime
from agent.local import assembly as local
from agent.local.affairs import Affairs
from agent.local.server import LocalServer
from agent.node import AgentNode, inventory_message
from agent.notify import StateLock, notify, watchdog_interval_s
from agent.plan_intake import PlanIntake
from agent.relay import RelayHub
from agent.runtime.port import Runtime, RuntimeFailure
from agent.session import CLOCK_SKEW_MAX_S, SessionClient
from agent.session_stream import ConnectionState
from agent.site import assembly
from agent.site.certificate import SiteCertificate
from agent.sources import ReplicaSources
from agent.state import PlanKeeper
from agent.status_file import StatusFile
from agent.supervisor import Supervisor, SupervisorConfig
from agent.trim import trim
from agent.upgrade.files import UpgradeFiles
from agent.upgrade.upgrades import Upgrades
from polder.overrides import Override
from polder.v1 import agent_pb2, common_pb2

if TYPE_CHECKING:
    from agent.upgrade.desk import Desk

log = logging.getLogger(__name__)

JOIN_POLL_S = 1.0
SETTLE_S = 10.0
LOOK_EVERY_S = 60.0  # inventory, certificate, a plan that could not be written
STATUS_EVERY_S = 2.0  # what is as before is not written
TRIM_AFTER_S = 15.0
TRIM_EVERY_S = 60.0  # handshakes with peers and orchestrators touch 4 MB of code, and are seldom


def make_runtime(kind: str, config: AgentConfig) -> Runtime:
    """`cri`, or `simulated` for tests and fleets of thousands."""
    if kind == "simulated":
        from agent.runtime.simulated import SimulatedRuntime

        return SimulatedRuntime()
    from agent.runtime.cri.adapter import CriRuntime

    return CriRuntime(str(config.runtime_socket))


async def run(config: AgentConfig, runtime_kind: str = "cri", profile: str = "") -> None:
    """Until SIGTERM or SIGINT. `profile` names the box's hardware profile.

    Raises Locked, LaterState, IdentityFailure and OSError at the start.
    """
    state_form.check(config.state_dir)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    store = IdentityStore(config.state_dir)
    if not await _wait_until_joined(store, stopping):
        return
    lock = StateLock(config.state_dir)
    with lean.patient_threads():
        runtime = make_runtime(runtime_kind, config)
    try:
        agent = await Agent.assemble(config, store, runtime, profile)
        await agent.run(stopping)
    finally:
        notify("STOPPING=1")
        await runtime.close()
        lock.release()


async def _wait_until_joined(store: IdentityStore, stopping: asyncio.Event) -> bool:
    """A service that was started before `edge-agent join` needs no second start."""
    said = False
    while not stopping.is_set():
        try:
            store.load()
            return True
        except NotJoined as error:
            if not said:
                log.warning("waiting", extra={"reason": str(error)})
                notify(f"READY=1\nSTATUS={error}")
                said = True
        notify("WATCHDOG=1")
        try:
            async with asyncio.timeout(JOIN_POLL_S):
                await stopping.wait()
        except TimeoutError:
            continue
    return False


class Agent:
    """All pieces of one joined agent. Use `assemble`, then `run`."""

    def __init__(
        self,
        config: AgentConfig,
        store: IdentityStore,
        runtime: Runtime,
        box: Box,
        inventory: Inventory,
        certificate: SiteCertificate | None,
        book: local.Book,
    ) -> None:
        identity = store.load()
        self._certificate = certificate
        self._book = book
        self._config = config
        self._store = store
        self._runtime = runtime
        self._box = box
        self._complaints: set[str] = set()
        self.supervisor = Supervisor(
            runtime,
            SupervisorConfig(
                node=identity.id.node,
                site=identity.id.site,
                arch=inventory.arch,
                state_dir=config.state_dir,
                log_dir=config.log_dir,
                cgroup_parent=config.cgroup_parent,
                host_paths=config.host_paths,
                runtime_socket=config.runtime_socket,
            ),
        )
        self.keeper = PlanKeeper(
            config.state_dir,
            identity.id,
            SubprocessPlanVerifier(store),
            self.supervisor.conditions,
            use=self._use_plan,
            report=self.supervisor.report,
        )
        self.node = AgentNode(box, inventory, self.supervisor, self.keeper)
        self._affairs = Affairs(book.journal, book.directory)
        sources = ReplicaSources(self.supervisor, runtime)
        self.relays = RelayHub(sources)
        self.upgrades = Upgrades(UpgradeFiles(config.state_dir), self._upgrade_desk)
        self.client = SessionClient(
            store,
            self.node,
            self.relays,
            on_state=self._connection_changed,
            affairs=self._affairs,
            upgrades=self.upgrades,
        )
        self.upgrades.publish = self.client.publish_upgrade
        self.node.intake = PlanIntake(self.keeper, self._acknowledge)
        self.site = assembly.assemble(
            config, store, certificate, runtime, self.supervisor, self.node, self.client
        )
        self.node.standbys = self.site.standbys
        self.local, saw = self._local_server(book, sources)
        self.supervisor.on_status = self._status_changed
        self.supervisor.on_event = saw
        self.site.on_overrides = self._decided
        book.journal.on_change = self.client.publish_changes
        self._status = StatusFile(config.state_dir)

    @classmethod
    async def assemble(
        cls, config: AgentConfig, store: IdentityStore, runtime: Runtime, profile: str = ""
    ) -> "Agent":
        """Look at the box and the runtime, and connect the pieces."""
        disk = await _container_disk(runtime, config.state_dir)
        box = Box(disk=disk, state_dir=config.state_dir, profile=profile)
        inventory = take(box, config.reserved, config.devices, config.host_paths)
        inventory = with_runtime(inventory, await _runtime_version(runtime, ""))
        certificate = await assembly.site_certificate(config, store)
        inventory = assembly.in_site(inventory, config, certificate)
        book = await local.open_book(config.state_dir, boot_id(box))
        return cls(config, store, runtime, box, inventory, certificate, book)

    def _local_server(
        self, book: local.Book, sources: ReplicaSources
    ) -> tuple[LocalServer | None, Callable[[common_pb2.Event], None]]:
        """None where operators are not to come, or cannot; and who sees the agent's events."""
        publish, listen = self.client.publish_event, self._config.local_listen
        if not listen:
            return None, publish
        if self._certificate is None:
            text = "it has no site certificate to show operators; the log says why"
            self.supervisor.conditions.set("LocalPortUnavailable", "NoCertificate", text)
            return None, publish
        server, showing = local.assemble(
            listen,
            self._certificate,
            self._store,
            book,
            self.supervisor,
            self.site,
            self.node,
            sources,
            lambda: self.keeper.current,
        )

        def saw(event: common_pb2.Event) -> None:
            showing.saw(event)
            publish(event)

        return server, saw

    def _upgrade_desk(self) -> "Desk":
        from agent.upgrade import box
        from agent.upgrade.desk import Desk

        config, arch = self._config, self.node.inventory.arch
        files = UpgradeFiles(config.state_dir)
        return Desk(files, self._store, lambda: box.here(config, arch))

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set. Containers run on afterwards."""
        identity = self._store.load()
        log.info("agent", extra={"node": str(identity.id), "serial": identity.serial})
        self._use_inventory(self.node.inventory)
        if self._book.damaged:
            self.supervisor.report("LocalMemoryDamaged", self._book.damaged)
        await self.site.boot()
        await self.keeper.boot()
        assert self.node.intake is not None
        jobs = [
            self.supervisor.run(),
            self.site.run(),
            self.node.intake.run(),
            self._connect(),
            self._look_around(),
            self._keep_status(),
            self._sign_of_life(),
            self.upgrades.run(),
            _become_small(),
        ]
        if self.local is not None:
            jobs.append(self.local.run(self.supervisor.conditions))
        tasks = [asyncio.create_task(job) for job in jobs]
        notify("READY=1")
        # What was imported stays: the collector need not walk it ever again.
        gc.collect()
        gc.freeze()
        stop = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                notify("STOPPING=1")
                await asyncio.gather(self.site.stop(), self.client.stop())
            for task in done - {stop}:
                task.result()  # a piece that ends is a defect: systemd restarts us
        finally:
            for task in (stop, *tasks):
                task.cancel()
            await asyncio.gather(stop, *tasks, return_exceptions=True)
            await self.relays.close()

    async def _connect(self) -> None:
        """Speak only once what is said about adopted containers is true."""
        await self.supervisor.wait_settled(SETTLE_S)
        await self.client.run()

    async def _look_around(self) -> None:
        while True:
            self._check_certificate()
            await steady_clock.sleep(LOOK_EVERY_S)
            await self.keeper.retry_save()
            known = self.node.inventory
            config = self._config
            fresh = take(self._box, config.reserved, config.devices, config.host_paths)
            fresh = with_runtime(
                fresh, await _runtime_version(self._runtime, known.runtime_version)
            )
            fresh = assembly.in_site(fresh, config, self._certificate)
            if fresh != known:
                self._use_inventory(fresh)
                self.client.publish_inventory(inventory_message(fresh))
                self.site.box_changed()

    def _use_inventory(self, inventory: Inventory) -> None:
        self.node.inventory = inventory
        devices: dict[str, tuple[str, ...]] = {}
        for accelerator in inventory.accelerators:
            found = devices.get(accelerator.resource, ())
            devices[accelerator.resource] = (*found, accelerator.id)
        self.supervisor.set_devices(devices)
        for complaint in inventory.complaints:
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                self.supervisor.report("DeviceSpecUnreadable", complaint)

    def _use_plan(self, plan: ParsedPlan) -> None:
        self.site.use_plan(plan)

    def _status_changed(
        self, changed: Sequence[agent_pb2.ReplicaStatus], gone: Sequence[str]
    ) -> None:
        self.client.publish_replicas(changed, gone)
        self.site.replicas_changed()

    def _decided(self, overrides: tuple[Override, ...]) -> None:
        self._affairs.decided(overrides)
        self.client.publish_changes()

    def _acknowledge(self, ack: agent_pb2.PlanAck) -> None:
        if self.keeper.current is not None:
            self.client.use_endpoints(self.keeper.current.endpoints)
        self.client.publish_ack(ack)

    # --- conditions, status, systemd ------------------------------------------------------------

    def _connection_changed(self, state: ConnectionState) -> None:
        self._write_status()
        conditions = self.supervisor.conditions
        if not state.connected:
            conditions.clear("MemberCutOff")
            return
        if state.hears_orchestrator:
            self.site.orchestrator_heard()
            conditions.clear("MemberCutOff")
        else:
            message = f"{state.member} is itself cut off from its store: nobody leads through it"
            conditions.set("MemberCutOff", "MemberCutOff", message)
        if abs(state.clock_skew_s) > CLOCK_SKEW_MAX_S:
            message = f"this box's clock is {state.clock_skew_s:+.0f} s off {state.member}'s"
            conditions.set("ClockSkew", "ClockSkew", message)
        else:
            conditions.clear("ClockSkew")

    def _check_certificate(self) -> None:
        identity = self._store.load()
        trouble = policy.certificate_trouble(identity.not_before, identity.not_after, time.time())
        for type_ in policy.CERTIFICATE_CONDITIONS:
            if trouble is not None and trouble.condition == type_:
                self.supervisor.conditions.set(type_, trouble.reason, trouble.message)
            else:
                self.supervisor.conditions.clear(type_)

    async def _keep_status(self) -> None:
        while True:
            self._write_status()
            await steady_clock.sleep(STATUS_EVERY_S)

    def _write_status(self) -> None:
        running, _ = self.supervisor.counts()
        generation, site = self.keeper.generation, self.site.shown()
        self._status.write(self.client.state, generation, running, site)

    async def _sign_of_life(self) -> None:
        interval = watchdog_interval_s()
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval or 3600.0)


async def _become_small() -> None:
    """After the rush of the start (containers adopted, session open), and then now and then."""
    await asyncio.sleep(TRIM_AFTER_S)
    while True:
        trim()
        await steady_clock.sleep(TRIM_EVERY_S)


async def _container_disk(runtime: Runtime, state_dir: Path) -> Path:
    """The file system that images and containers fill; ours, if the runtime does not say."""
    try:
        async with asyncio.timeout(5):
            for use in await runtime.image_use():
                if use.mountpoint and Path(use.mountpoint).exists():
                    return Path(use.mountpoint)
    except (RuntimeFailure, TimeoutError) as error:
        log.warning("the runtime does not say where images are", extra={"error": str(error)})
    return state_dir


async def _runtime_version(runtime: Runtime, known: str) -> str:
    try:
        async with asyncio.timeout(5):
            return (await runtime.info()).version
    except (RuntimeFailure, TimeoutError):
        return known
