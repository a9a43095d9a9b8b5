"""Makes the pieces of a node's LocalService, and connects them. Called by `agent/service.py`.

LocalServer --> Door (Directory, Moments), Showing, Reach, Changing --> SiteLoop
                     |                                 |
Affairs <--------- Journal <---------------------------+
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.domain.plan import ParsedPlan
from agent.identity_store import IdentityStore
from agent.local.changing import Changing
from agent.local.directory import Directory
from agent.local.door import Door
from agent.local.journal import Journal
from agent.local.moments import Moments
from agent.local.reach import Reach
from agent.local.replicas import Replicas
from agent.local.server import LocalServer
from agent.local.showing import Showing, Sources
from agent.node import AgentNode
from agent.relay import RelaySources
from agent.site.certificate import SiteCertificate
from agent.site.loop import SiteLoop
from agent.site.memory import Memory
from agent.steady_clock import boottime
from agent.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Book:
    """What is kept in STATE/local. `damaged`: why not all of it could be read."""

    journal: Journal
    directory: Directory
    damaged: str


async def open_book(state_dir: Path, boot_id: str) -> Book:
    """Never fails: what cannot be read is said."""
    memory = Memory(state_dir / "local", boot_id)
    kept = await asyncio.to_thread(memory.load)
    return Book(Journal(memory, kept.bodies), Directory(memory, kept.bodies), kept.damaged)


def assemble(
    listen: str,
    certificate: SiteCertificate,
    store: IdentityStore,
    book: Book,
    supervisor: Supervisor,
    site: SiteLoop,
    node: AgentNode,
    relays: RelaySources,
    plan: Callable[[], ParsedPlan | None],
) -> tuple[LocalServer, Showing]:
    """Not yet listening. The second one wants to see the events of this agent."""

    def plan_at() -> float:
        found = plan()
        return found.issued_at if found is not None else 0.0

    moments = Moments(site.isolated_s, site.autonomy_s, plan_at, boottime)
    journal, directory = book.journal, book.directory
    replicas = Replicas(supervisor, plan)
    door = Door(store, certificate.der, directory, journal, moments, boottime, supervisor.report)
    showing = Showing(
        Sources(
            identity=store.load().id,
            supervisor=supervisor,
            site=site,
            node=node,
            directory=directory,
            journal=journal,
            replicas=replicas,
            plan=plan,
        )
    )
    reach = Reach(relays, replicas, door, directory, journal)
    changing = Changing(site, replicas, journal)
    return LocalServer(listen, certificate, door, showing, reach, changing), showing
