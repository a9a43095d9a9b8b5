"""Policies and facts for a plan: what an agent judges by alone, and gives to containers.

Called by `plans.py`.
"""

from functools import partial

from orchestrator.cache import Cache
from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import CannotCompose, DemandsOf, FactOf
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.demands import said
from orchestrator.scheduling.secrets import fact_of
from orchestrator.scheduling.snapshot import Node
from polder.manifest import InvalidManifest, SiteSpec


class SignedFacts:
    """Over the mirror as it is when a plan is composed."""

    def __init__(self, cache: Cache, book: FactBook) -> None:
        self._cache = cache
        self._book = book

    def demands_at(self, site: str) -> DemandsOf:
        """For one plan of a node of the site. What it gives raises CannotCompose.

        A demand that cannot be read is no absence of demands: then no plan is sent.
        """
        facts = self._book.site(site)
        known: dict[tuple[str, str], tuple[bytes, bytes]] = {}

        def demands_of(assignment: AssignmentRecord) -> tuple[bytes, bytes]:
            key = (assignment.namespace, assignment.workload)
            if key not in known:
                try:
                    known[key] = said(self._book.policy(*key), facts)
                except InvalidManifest as error:
                    message = f"what {key[0]}/{key[1]} demands cannot be read: {error}"
                    raise CannotCompose("UnreadableRecord", message) from error
            return known[key]

        return demands_of

    def of_node(self, name: str, site: str) -> FactOf:
        """What its plan can give to variables; the leader reads the same (`leader_snapshot.py`)."""
        resource = self._cache.resource("Node", "", name)
        status = self._cache.node_status(name)
        spec = self._site(site)
        node = Node(
            name,
            site=site,
            country=spec.country if spec is not None else "",
            region=spec.region if spec is not None else "",
            provider=spec.provider if spec is not None else "",
            arch=status.inventory.get("arch", "") if status is not None else "",
            labels=resource.labels if resource is not None else {},
        )
        return partial(fact_of, node)

    def _site(self, name: str) -> SiteSpec | None:
        found = self._cache.resource("Site", "", name)
        try:
            spec = found.decoded if found is not None else None
        except InvalidManifest:
            return None
        return spec if isinstance(spec, SiteSpec) else None
