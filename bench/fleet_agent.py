"""One agent of `bench fleet`: the agent's own code over a simulated runtime, without a process.

`bench/fleet_worker.py` runs thousands of these in one event loop. What differs from a box:

- the runtime is `agent.runtime.simulated`;
- cryptography (keys, requests, checks of plans) is the code of `agent.credentials`, called here and
  not in a process for each call;
- what only looks at the box itself (use of CPU and disks, log rotation, status file, watchdog) is
  looked at once for all, or left out.

Session, join, renewal, plan verification, plan files, reconciliation and reports are the agent's.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent import credentials, join, supervisor
from agent.config import Reserved
from agent.identity_store import (
    CredentialsRefused,
    IdentityStore,
    NodeIdentity,
    SubprocessPlanVerifier,
)
from agent.inventory import Amounts, Box, Inventory, UsageSampler, take, with_runtime
from agent.node import AgentNode
from agent.plan_intake import PlanIntake
from agent.relay import RelayHub
from agent.runtime.simulated import SimulatedRuntime
from agent.session import SessionClient
from agent.session_stream import ConnectionState, SessionStream
from agent.sources import ReplicaSources
from agent.state import PlanKeeper
from agent.supervisor import Supervisor, SupervisorConfig
from polder import __version__, tokens
from polder.v1 import agent_pb2

# The simulated runtime tells every change at once: asking it each second would find nothing new.
LIST_EVERY_S = 120.0
HOUSEKEEPING_S = 3600.0
SETTLE_S = 10.0
SAMPLE_EVERY_S = 1.0
_CAPACITY = Amounts(cpu_millis=16_000, memory_bytes=64 << 30, disk_bytes=512 << 30)
_ALLOCATABLE = Amounts(cpu_millis=15_000, memory_bytes=60 << 30, disk_bytes=460 << 30)

log = logging.getLogger(__name__)

supervisor.HOUSEKEEPING_S = HOUSEKEEPING_S


PLANS_AT_ONCE = 4
IN_TIME_S = 0.1
DIALS_AT_ONCE = 25


class SharedBox:
    """What the agents of a process share: the machine's inventory and use, looked at once for all,
    and cryptography without a process around it.

    `beats` counts their heartbeats.
    """

    def __init__(self, folder: Path) -> None:
        self.beats = 0
        self._plans = asyncio.Semaphore(PLANS_AT_ONCE)
        self.dials = asyncio.Semaphore(DIALS_AT_ONCE)
        self._box = Box(disk=folder)
        self._sampler = UsageSampler(self._box)
        self._inventory = with_runtime(take(self._box, Reserved()), "simulated 1")
        self._sampled_at = -SAMPLE_EVERY_S
        self._usage: agent_pb2.Usage | None = None

    async def credentials(
        self, name: str, header: dict[str, object], parts: Sequence[bytes] = (), *, timeout_s: float
    ) -> tuple[dict[str, object], list[bytes]]:
        """`agent.identity_store.Credentials`.

        Few plans at once: each box has a processor of its own, and would not be late with its
        heartbeat because thousands of others have got a plan in the same moment. So the next one is
        taken up once this process is in time with everything else, starting replicas included.
        """
        del timeout_s
        async with self._plans:
            await _in_time()
            try:
                return credentials.COMMANDS[name](header, parts)
            except credentials.Refused as error:
                raise CredentialsRefused(error.reason, str(error)) from error

    def inventory(self, name: str) -> Inventory:
        """Of a box with that host name, large enough for what is applied."""
        return replace(
            self._inventory,
            hostname=name,
            machine_id=name,
            capacity=_CAPACITY,
            allocatable=_ALLOCATABLE,
            reserved=Amounts(1_000, 4 << 30, 52 << 30),
        )

    def usage(self) -> agent_pb2.Usage:
        """Not older than a second."""
        now = time.monotonic()
        if self._usage is None or now - self._sampled_at >= SAMPLE_EVERY_S:
            sample = self._sampler.sample()
            self._sampled_at = now
            self._usage = agent_pb2.Usage(
                cpu_millis=sample.cpu_millis,
                memory_bytes=sample.memory_bytes,
                disk_bytes=sample.disk_bytes,
                network_rx_bytes=sample.network_rx_bytes,
                network_tx_bytes=sample.network_tx_bytes,
                temperature_celsius=sample.temperature_celsius,
                battery_percent=sample.battery_percent,
                on_battery=sample.on_battery,
            )
        return self._usage


async def _in_time() -> None:
    """Until the event loop is not late, or has been for long."""
    loop = asyncio.get_running_loop()
    for _ in range(50):
        due = loop.time() + IN_TIME_S / 5
        await asyncio.sleep(IN_TIME_S / 5)
        if loop.time() - due < IN_TIME_S:
            return


class FleetNode(AgentNode):
    """Heartbeats as large as those of a box, with figures that are shared."""

    def __init__(
        self,
        box: Box,
        shared: SharedBox,
        inventory: Inventory,
        runs: Supervisor,
        keeper: PlanKeeper,
    ) -> None:
        super().__init__(box, inventory, runs, keeper)
        self._shared = shared

    def heartbeat(self) -> agent_pb2.Heartbeat:
        self._shared.beats += 1
        return super().heartbeat()

    def _usage(self) -> agent_pb2.Usage | None:
        return self._shared.usage()


class FleetClient(SessionClient):
    """Few of a process dial at once, for the same reason: thousands of handshakes on one processor
    take longer than the patience of each box, and are all begun anew."""

    def __init__(self, shared: SharedBox, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._shared = shared

    async def _open_stream(self, endpoint: str, identity: NodeIdentity) -> SessionStream:
        async with self._shared.dials:
            return await super()._open_stream(endpoint, identity)


@dataclass(frozen=True, slots=True)
class Turn:
    """A session opened or ended. `at`: seconds of CLOCK_MONOTONIC, one for all processes."""

    at: float
    connected: bool
    member: str


class FleetAgent:
    """`join`, then `start`. `on_turn` hears of every session that opens or ends."""

    def __init__(
        self, name: str, folder: Path, shared: SharedBox, on_turn: Callable[[str, Turn], None]
    ) -> None:
        self.name = name
        self.connected = False
        self.member = ""
        self._folder = folder / name
        self._box = Box(root=self._folder / "box")  # holds its machine id and nothing else
        self._shared = shared
        self._on_turn = on_turn
        self._store = IdentityStore(self._folder, shared.credentials)
        self._tasks: list[asyncio.Task[None]] = []
        self.supervisor: Supervisor
        self.keeper: PlanKeeper
        self.client: SessionClient

    async def join(self, token: str) -> None:
        """Raises JoinFailed."""
        etc = self._box.root / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "machine-id").write_text(self.name)
        await join.join(
            self._store,
            tokens.parse(token),
            node=self.name,
            version=__version__,
            box=self._box,
        )

    def start(self) -> None:
        """Supervises and connects from now on. Once."""
        identity = self._store.load()
        inventory = self._shared.inventory(self.name)
        runtime = SimulatedRuntime()
        self.supervisor = Supervisor(
            runtime,
            SupervisorConfig(
                node=identity.id.node,
                site=identity.id.site,
                arch=inventory.arch,
                state_dir=self._folder,
                log_dir=self._folder / "pods",
            ),
            list_every_s=LIST_EVERY_S,
        )
        self.keeper = PlanKeeper(
            self._folder,
            identity.id,
            SubprocessPlanVerifier(self._store),
            self.supervisor.conditions,
            use=self.supervisor.submit_plan,
            report=self.supervisor.report,
        )
        node = FleetNode(self._box, self._shared, inventory, self.supervisor, self.keeper)
        relays = RelayHub(ReplicaSources(self.supervisor, runtime))
        self.client = FleetClient(self._shared, self._store, node, relays, on_state=self._turned)
        node.intake = PlanIntake(self.keeper, self._acknowledge)
        self.supervisor.on_status = self.client.publish_replicas
        self.supervisor.on_event = self.client.publish_event
        for work in (self.supervisor.run(), node.intake.run(), self._connect()):
            task = asyncio.create_task(work)
            task.add_done_callback(_failed)
            self._tasks.append(task)

    async def _connect(self) -> None:
        await self.keeper.boot()
        await self.supervisor.wait_settled(SETTLE_S)
        await self.client.run()

    def _acknowledge(self, ack: agent_pb2.PlanAck) -> None:
        if self.keeper.current is not None:
            self.client.use_endpoints(self.keeper.current.endpoints)
        self.client.publish_ack(ack)

    def _turned(self, state: ConnectionState) -> None:
        if state.connected != self.connected or state.member != self.member:
            self.connected, self.member = state.connected, state.member
            turn = Turn(time.monotonic(), state.connected, state.member)
            self._on_turn(self.name, turn)

    @property
    def assignments(self) -> int:
        """Of the plan in use, which was acknowledged."""
        return len(self.keeper.current.assignments) if self.keeper.current is not None else 0

    async def round_trip_s(self) -> float:
        """From a message on the session to the server's answer on it.

        The server reads a session's messages in order, so a heartbeat that is sent at the same time
        has arrived before. What is asked is a renewal without a request, which is refused at once.
        Raises SessionEnded and TimeoutError.
        """
        stream = self.client._current
        if stream is None:
            raise TimeoutError("not connected")
        started = time.monotonic()
        await stream.renew(b"")
        return time.monotonic() - started

    async def stop(self) -> None:
        """Without a goodbye."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _failed(task: asyncio.Task[None]) -> None:
    """Where systemd would start an agent again, a benchmark must not look as if all were well."""
    if not task.cancelled():
        log.error("a part of an agent ended", exc_info=task.exception())
