"""Concentration: how much depends on one provider, owner's country, country or region.

An owner's country is that of the ultimate owners who control a provider: the ends of its chains of
holders, not the companies in between. Where nobody's control is declared the row says so.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller, require
from orchestrator.cache import Cache
from orchestrator.scheduling.snapshot import Node, Snapshot
from polder.manifest import InvalidManifest, ProviderSpec
from polder.roles import Level, level_in
from polder.sovereignty import ProviderProfile
from polder.sovereignty.ownership import (
    MAJORITY,
    MEASURES,
    Graph,
    control_by,
    graph_of,
    share_where,
    state_of,
)
from polder.v1 import operator_pb2

ROWS_MAX = 50
NOT_DECLARED = "(not declared)"
UNCLEAR = "(unclear: holders not declared)"
SPREAD = "(nobody controls it)"


class Concentration:
    """Serves Concentration."""

    def __init__(self, thinking: Thinking, cache: Cache) -> None:
        self._thinking = thinking
        self._cache = cache

    async def shares(
        self, caller: Caller, request: operator_pb2.ConcentrationRequest
    ) -> operator_pb2.ConcentrationResponse:
        """Raises Refused (Forbidden, Busy)."""
        if request.namespace:
            require(caller, Level.VIEWER, request.namespace, "read workloads")
        snapshot = self._thinking.snapshot()
        providers = list(self._cache.resources("Provider"))

        def reads(namespace: str) -> bool:
            wanted = request.namespace in ("", namespace)
            return wanted and level_in(caller.roles, namespace) >= Level.VIEWER

        def answer() -> operator_pb2.ConcentrationResponse:
            specs = {}
            for resource in providers:
                try:
                    specs[resource.name] = resource.decoded
                except InvalidManifest:
                    continue  # as good as not declared
            return concentrated(snapshot, specs, reads)

        response = await self._thinking.ask(answer)
        response.now_ms = int(self._thinking.now() * 1000)
        return response


def concentrated(
    snapshot: Snapshot, providers: Mapping[str, ProviderSpec], reads: Callable[[str], bool]
) -> operator_pb2.ConcentrationResponse:
    """Tables by provider, ownerCountry, country and region, of what `reads` admits."""
    replicas = {
        name: sum(reads(item.namespace) for item in placement.assignments)
        for name, placement in snapshot.placements.items()
    }
    owners = _owner_countries(snapshot, providers)
    ways: tuple[tuple[str, Callable[[Node], str]], ...] = (
        ("provider", lambda node: node.provider),
        ("ownerCountry", lambda node: owners.get(node.provider, NOT_DECLARED)),
        ("country", lambda node: node.country),
        ("region", lambda node: node.region),
    )
    return operator_pb2.ConcentrationResponse(
        tables=[_table(by, way, snapshot.nodes, replicas) for by, way in ways],
        replicas=sum(replicas.values()),
        nodes=len(snapshot.nodes),
    )


def _table(
    by: str, way: Callable[[Node], str], nodes: Iterable[Node], replicas: Mapping[str, int]
) -> operator_pb2.ConcentrationTable:
    held: Counter[str] = Counter()
    boxes: Counter[str] = Counter()
    cpu: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    sites: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes:
        name = way(node) or NOT_DECLARED
        held[name] += replicas.get(node.name, 0)
        boxes[name] += 1
        sites[name].add(node.site)
        if node.allocatable is not None:
            cpu[name] += max(0, node.allocatable.cpu_millis)
            memory[name] += max(0, node.allocatable.memory_bytes)
    names = sorted(boxes, key=lambda name: (-held[name], -cpu[name], name))
    rows = [
        operator_pb2.ConcentrationRow(
            name=name,
            sites=len(sites[name]),
            nodes=boxes[name],
            replicas=held[name],
            replicas_percent=_percent(held[name], held.total()),
            capacity_percent=max(
                _percent(cpu[name], cpu.total()), _percent(memory[name], memory.total())
            ),
        )
        for name in names[:ROWS_MAX]
    ]
    return operator_pb2.ConcentrationTable(
        by=by, rows=rows, rows_left_out=max(0, len(names) - ROWS_MAX)
    )


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _owner_countries(
    snapshot: Snapshot, providers: Mapping[str, ProviderSpec]
) -> Mapping[str, str]:
    profiles = {
        site.facts.provider.name: site.facts.provider
        for site in snapshot.sites.values()
        if site.facts.provider is not None
    }
    return {
        name: owner_country(providers[name], profile)
        for name, profile in profiles.items()
        if name in providers
    }


def owner_country(spec: ProviderSpec, profile: ProviderProfile) -> str:
    """The country of the ultimate owners who control it; two who share control: `DE+US`."""
    owned = profile.owned
    if owned is None:
        return NOT_DECLARED
    graph = graph_of(spec)
    ends = {
        entity: state_of(graph.country[entity])
        for entity in graph.order
        if entity not in graph.stakes and entity not in graph.dispersed
    }
    controls = [state for state in sorted(set(ends.values())) if _controls(graph, ends, state)]
    if controls:
        return "+".join(controls)
    return UNCLEAR if owned.anyone or owned.possible_reaches else SPREAD


def _controls(graph: Graph, ends: Mapping[str, str], state: str) -> bool:
    """Along chains that they control, or by their whole share."""

    def counts(entity: str) -> bool:
        return ends.get(entity) == state

    return control_by(graph, counts) is not None or any(
        share_where(graph, measure, counts) > MAJORITY for measure in MEASURES
    )
