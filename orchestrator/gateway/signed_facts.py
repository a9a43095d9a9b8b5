"""Policies and facts for a plan: what an agent judges by, alone. Called by `plans.py`."""

from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import CannotCompose, DemandsOf
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.demands import said
from polder.manifest import InvalidManifest


class SignedFacts:
    """Over the mirror as it is when a plan is composed."""

    def __init__(self, book: FactBook) -> None:
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
