"""Makes the pieces of a node's part in its site, and connects them. Called by `agent/service.py`.

peers --> Network --> SiteLoop (SiteMachine) --effective plan--> Supervisor
                        |  ^                                         |
               Memory <-+  +-- Judge, Prefetch, SwitchClient <-------+ views
"""

import logging

from agent.config import AgentConfig
from agent.identity_store import IdentityFailure, IdentityStore
from agent.inventory import Inventory, with_site
from agent.node import AgentNode
from agent.runtime.port import Runtime
from agent.session import SessionClient
from agent.site.abilities import Judge
from agent.site.certificate import SiteCertificate, load_or_make
from agent.site.loop import SiteLoop
from agent.site.memory import Memory
from agent.site.network import Network, endpoints
from agent.site.prefetch import Prefetch
from agent.site.proofs import NodeProofs
from agent.site.surroundings import Surroundings
from agent.site.switch_client import SwitchClient, places
from agent.supervisor import Supervisor
from polder import __version__
from polder.v1 import site_pb2

log = logging.getLogger(__name__)


async def site_certificate(config: AgentConfig, store: IdentityStore) -> SiteCertificate | None:
    """None when the node's configuration wants neither peers nor operators here, or when none can
    be made: then what runs here runs, and nothing is taken over."""
    if not config.site_listen and not config.local_listen:
        return None
    try:
        return await load_or_make(config.state_dir, store.load().id, store.credentials)
    except IdentityFailure as error:
        log.error("no site certificate", extra={"error": str(error)})
        return None


def in_site(
    inventory: Inventory, config: AgentConfig, certificate: SiteCertificate | None
) -> Inventory:
    """With what peers and operators have to know of this node."""
    if certificate is None:
        return inventory

    def reached(listen: str, advertise: str) -> tuple[str, ...]:
        hosts = [host for host in advertise.split(",") if host]
        return endpoints(listen, hosts, inventory.addresses)

    peers = reached(config.site_listen, config.site_advertise)
    operators = reached(config.local_listen, config.local_advertise)
    return with_site(inventory, peers, operators, certificate.der)


def assemble(
    config: AgentConfig,
    store: IdentityStore,
    certificate: SiteCertificate | None,
    runtime: Runtime,
    supervisor: Supervisor,
    node: AgentNode,
    client: SessionClient,
) -> SiteLoop:
    """Not yet booted, nor listening."""
    identity = store.load().id
    hello = site_pb2.PeerHello(
        node=identity.node,
        site=identity.site,
        boot_id=node.boot_id,
        instance_id=node.instance_id,
        agent_version=__version__,
    )
    directory, table = places(config.state_dir)

    def switch_changed(alive: bool) -> None:
        loop.switch_changed(alive)

    switch = SwitchClient(
        directory,
        table,
        config.cgroup_parent,
        on_change=switch_changed,
    )
    loop = SiteLoop(
        identity.node,
        supervisor,
        Memory(directory, node.boot_id),
        Network(hello, certificate, config.site_listen),
        Prefetch(runtime, node.inventory.arch),
        Judge(supervisor.settings),
        switch,
        Surroundings(
            allocatable=lambda: node.inventory.allocatable,
            hears_orchestrator=lambda: client.state.hears_orchestrator,
            publish=client.publish_standbys,
            boot_id=node.boot_id,
        ),
        NodeProofs(store),
    )
    confined = runtime.makes_cgroups
    supervisor.use_guard(
        lambda uid, pod_runs: switch.objection(uid, pod_runs=pod_runs and confined)
    )
    if config.site_listen and certificate is None:
        text = "it has no site certificate, so that no peer knows it; the log says why"
        supervisor.conditions.set("SiteUnavailable", "NoCertificate", text)
    return loop
