"""What is declared of sites, and demanded by workloads and floors, read from the mirror.

Used by whoever needs facts outside of a snapshot: the gateway for signed plans, and apply for
its checks. A graph of owners is worked through once per version of its Provider.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.cache import Cache
from orchestrator.records import StoredResource
from orchestrator.scheduling.reasons import NO_POLICY, merged
from polder.manifest import (
    InvalidManifest,
    NamespaceSpec,
    ProviderSpec,
    SiteSpec,
    WorkloadSpec,
)
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import ProviderProfile, SiteFacts, analyse_provider, site_facts


class FactBook:
    """`unwritten` are records by (kind, namespace, name) that stand for those of the mirror."""

    def __init__(
        self, cache: Cache, unwritten: Mapping[tuple[str, str, str], Any] | None = None
    ) -> None:
        self._cache = cache
        self._unwritten = unwritten or {}
        self._profiles: dict[str, tuple[object, ProviderProfile | None]] = {}

    def site(self, name: str) -> SiteFacts:
        """A site that is not declared, or that this version cannot read, has no facts."""
        spec = self._spec("Site", "", name)
        if not isinstance(spec, SiteSpec):
            return SiteFacts(name)
        return site_facts(name, spec, self._provider(spec.provider))

    def sites(self) -> list[SiteFacts]:
        """Of every declared site, by name."""
        names = {item.name for item in self._cache.resources("Site")}
        names |= {name for kind, _, name in self._unwritten if kind == "Site"}
        return [self.site(name) for name in sorted(names)]

    def floor(self, namespace: str) -> SovereigntySpec:
        """Raises InvalidManifest for a record that this version cannot read."""
        spec = self._spec("Namespace", "", namespace, strict=True)
        return spec.floor if isinstance(spec, NamespaceSpec) else NO_POLICY

    def policy(self, namespace: str, workload: str) -> SovereigntySpec:
        """What holds for its replicas, the floor included. Raises InvalidManifest."""
        floor = self.floor(namespace)
        spec = self._spec("Workload", namespace, workload, strict=True)
        own = spec.sovereignty if isinstance(spec, WorkloadSpec) else NO_POLICY
        return merged(floor, own)

    def _provider(self, name: str) -> ProviderProfile | None:
        spec = self._spec("Provider", "", name)
        known = self._profiles.get(name)
        if known is None or known[0] is not spec:
            profile = analyse_provider(name, spec) if isinstance(spec, ProviderSpec) else None
            known = self._profiles[name] = (spec, profile)
        return known[1]

    def _spec(self, kind: str, namespace: str, name: str, *, strict: bool = False) -> object:
        coming = self._unwritten.get((kind, namespace, name))
        if coming is not None:
            return coming
        found: StoredResource | None = self._cache.resource(kind, namespace, name)
        if found is None:
            return None
        try:
            return found.decoded
        except InvalidManifest:
            if strict:
                raise
            return None
