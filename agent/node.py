"""What this node says about itself over a session: Hello, heartbeats, inventory.

Implements `agent.session_stream.Node` on top of the supervisor, the plan store and the inventory.
"""

import logging
import os
from collections.abc import Callable, Sequence

from agent.inventory import (
    Amounts,
    Box,
    Inventory,
    UsageSampler,
    boot_id,
    own_cpu_seconds,
    own_memory_bytes,
)
from agent.plan_intake import PlanIntake
from agent.state import PlanKeeper
from agent.supervisor import Supervisor
from polder import __version__
from polder.v1 import agent_pb2, plan_pb2

log = logging.getLogger(__name__)


class AgentNode:
    def __init__(
        self, box: Box, inventory: Inventory, supervisor: Supervisor, keeper: PlanKeeper
    ) -> None:
        self.inventory = inventory
        self.intake: PlanIntake | None = None
        self.standbys: Callable[[], Sequence[agent_pb2.StandbyStatus]] = tuple
        self._supervisor = supervisor
        self._keeper = keeper
        self._sampler = UsageSampler(box)
        self.boot_id = boot_id(box)
        self.instance_id = os.urandom(16).hex()

    def hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(
            agent_version=__version__,
            instance_id=self.instance_id,
            boot_id=self.boot_id,
            plan_generation=self._keeper.generation,
            inventory=inventory_message(self.inventory),
            replicas=self._supervisor.statuses(),
            standbys=self.standbys(),
        )

    def gone(self) -> list[str]:
        return self._supervisor.gone()

    def heartbeat(self) -> agent_pb2.Heartbeat:
        running, ready = self._supervisor.counts()
        return agent_pb2.Heartbeat(
            usage=self.usage(),
            conditions=self._supervisor.conditions.all(),
            replicas_running=running,
            replicas_ready=ready,
            agent_memory_bytes=own_memory_bytes(),
            agent_cpu_seconds=own_cpu_seconds(),
            plan_generation_lag=self.intake.lag if self.intake is not None else 0,
        )

    def offer_plan(self, signed: plan_pb2.SignedNodePlan) -> None:
        if self.intake is not None:
            self.intake.offer(signed)

    def allocatable(self) -> agent_pb2.Resources:
        return _resources(self.inventory.allocatable)

    def usage(self) -> agent_pb2.Usage | None:
        """Since it was last asked for; None: the box does not say."""
        try:
            sample = self._sampler.sample()
        except (OSError, ValueError) as error:  # a heartbeat without usage beats none
            log.debug("usage", extra={"error": str(error)})
            return None
        return agent_pb2.Usage(
            cpu_millis=sample.cpu_millis,
            memory_bytes=sample.memory_bytes,
            disk_bytes=sample.disk_bytes,
            network_rx_bytes=sample.network_rx_bytes,
            network_tx_bytes=sample.network_tx_bytes,
            temperature_celsius=sample.temperature_celsius,
            battery_percent=sample.battery_percent,
            on_battery=sample.on_battery,
        )


def inventory_message(inventory: Inventory) -> agent_pb2.NodeInventory:
    return agent_pb2.NodeInventory(
        arch=inventory.arch,
        os=inventory.os,
        kernel=inventory.kernel,
        runtime_version=inventory.runtime_version,
        machine_id=inventory.machine_id,
        hardware_id=inventory.hardware_id,
        model=inventory.model,
        hardware_profile=inventory.hardware_profile,
        capacity=_resources(inventory.capacity),
        reserved=_resources(inventory.reserved),
        allocatable=_resources(inventory.allocatable),
        accelerators=[
            agent_pb2.Accelerator(
                resource=a.resource,
                id=a.id,
                vendor=a.vendor,
                attributes={"nodes": ",".join(a.nodes)} if a.nodes else {},
            )
            for a in inventory.accelerators
        ],
        addresses=inventory.addresses,
        host_paths=inventory.host_paths,
        hostname=inventory.hostname,
        site_endpoints=inventory.site_endpoints,
        site_certificate=inventory.site_certificate,
        local_endpoints=inventory.local_endpoints,
    )


def _resources(amounts: Amounts) -> agent_pb2.Resources:
    return agent_pb2.Resources(
        cpu_millis=amounts.cpu_millis,
        memory_bytes=amounts.memory_bytes,
        disk_bytes=amounts.disk_bytes,
        devices=dict(amounts.devices),
    )
