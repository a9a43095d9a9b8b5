"""Numbers for Prometheus: of this process, and of the agents, which open no port for it.

The front door counts calls, the Store wrapper times commits, and one collector reads sessions and
heartbeats when it is scraped. Cardinality is bounded: per-node series are cut at a limit, and no
label takes a value that a caller can choose.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.cache import Cache
from orchestrator.domain.holds import HoldKind, holds_in
from orchestrator.domain.overrides import overrides_in
from orchestrator.domain.upgrade_state import Phase, upgrades_in
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.store import keys
from orchestrator.store.around import StoreAround
from orchestrator.store.port import Compare, Op, Store, TxnResult

NODES_MAX = 20_000
_COUNTED = (
    "Provider", "Site", "Node", "Namespace", "Workload", "Secret", "Config", "Volume",
)  # fmt: skip
_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """One registry per process: nothing global, so that tests can have several."""

    def __init__(self, version: str, member: str, region: str) -> None:
        self.registry = CollectorRegistry()
        self._authority_ends: Gauge | None = None
        ProcessCollector(registry=self.registry)
        info = Gauge(
            "polder_build_info",
            "The running orchestrator.",
            ("version", "member", "region"),
            registry=self.registry,
        )
        info.labels(version, member, region).set(1)
        self.calls = Counter(
            "polder_rpc_calls_total", "Finished RPCs.", ("method", "code"), registry=self.registry
        )
        self.call_seconds = Histogram(
            "polder_rpc_seconds",
            "Duration of unary RPCs.",
            ("method",),
            buckets=_FAST_S,
            registry=self.registry,
        )
        self.streams = Gauge(
            "polder_rpc_streams", "Open streaming RPCs.", ("method",), registry=self.registry
        )
        self.commit_seconds = Histogram(
            "polder_store_commit_seconds",
            "From asking for a transaction to its durable answer.",
            buckets=_FAST_S,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self.store_errors = Counter(
            "polder_store_errors_total", "Failed store operations.", registry=self.registry
        )

    def authority_ends(self, ends_at: dict[str, float]) -> None:
        """When the CA's certificates end, in unix seconds: what nobody renews by itself. Again
        after a rotation."""
        if self._authority_ends is None:
            self._authority_ends = Gauge(
                "polder_certificate_expiry_timestamp_seconds",
                "End of validity of a CA certificate.",
                ("what",),
                registry=self.registry,
            )
        for what, when in ends_at.items():
            self._authority_ends.labels(what).set(when)

    def call(self, method: str, code: str, seconds: float | None) -> None:
        """A finished RPC. `seconds` None: a stream, whose duration says nothing."""
        key = (method, code)
        series = self._series.get(key)
        if series is None:  # finding a series by its labels costs more than counting in it
            series = (self.calls.labels(method, code), self.call_seconds.labels(method))
            self._series[key] = series
        series[0].inc()
        if seconds is not None:
            series[1].observe(seconds)

    def observe_fleet(self, fleet: Fleet, cache: Cache, silent_after_s: float) -> None:
        """Adds the series that are read when Prometheus asks."""
        self.registry.register(_FleetCollector(fleet, cache, silent_after_s))


_Reading = Callable[[NodeObservation], float]

# name, help, how to read it off a node that has sent a heartbeat
_PER_NODE: tuple[tuple[str, str, _Reading], ...] = (
    ("polder_node_cpu_millis", "CPU in use.", lambda n: n.heartbeat.usage.cpu_millis),  # type: ignore[union-attr]
    ("polder_node_memory_bytes", "Memory in use.", lambda n: n.heartbeat.usage.memory_bytes),  # type: ignore[union-attr]
    ("polder_node_disk_bytes", "Disk in use.", lambda n: n.heartbeat.usage.disk_bytes),  # type: ignore[union-attr]
    (
        "polder_node_temperature_celsius",
        "Hottest sensor; 0: none.",
        lambda n: n.heartbeat.usage.temperature_celsius,  # type: ignore[union-attr]
    ),
    (
        "polder_node_battery_percent",
        "Battery charge; -1: none.",
        lambda n: n.heartbeat.usage.battery_percent,  # type: ignore[union-attr]
    ),
    ("polder_node_replicas_running", "Replicas.", lambda n: n.heartbeat.replicas_running),  # type: ignore[union-attr]
    ("polder_node_replicas_ready", "Replicas.", lambda n: n.heartbeat.replicas_ready),  # type: ignore[union-attr]
    ("polder_agent_memory_bytes", "Of the agent.", lambda n: n.heartbeat.agent_memory_bytes),  # type: ignore[union-attr]
    ("polder_agent_cpu_seconds", "Of the agent.", lambda n: n.heartbeat.agent_cpu_seconds),  # type: ignore[union-attr]
)


class _FleetCollector(Collector):
    def __init__(self, fleet: Fleet, cache: Cache, silent_after_s: float) -> None:
        self._fleet = fleet
        self._cache = cache
        self._silent_after_s = silent_after_s

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not read the fleet

    def collect(self) -> Iterator[Metric]:
        steady = self._fleet.steady()
        # Copies in one step each: this runs in a thread beside the event loop.
        known = list(self._fleet.nodes())
        nodes = [node for node in known if self._is_heard(node, steady)]
        own = [node for node in nodes if node.peer is None]
        connected = sum(1 for node in known if node.connected and node.peer is None)
        yield _gauge("polder_sessions", "Agents connected to this member.", connected)
        yield _gauge("polder_nodes_heard", "Nodes heard of lately, by any member.", len(nodes))
        yield _gauge("polder_store_revision", "Of the mirror.", self._cache.revision)
        yield _gauge("polder_cache_age_seconds", "0: current.", self._cache.age_s())
        doubted = 1 if self._cache.doubt else 0
        yield _gauge("polder_store_doubted", "1: a read of it was not believed.", doubted)
        yield from self._guards(known)
        for kind in _COUNTED:
            family = GaugeMetricFamily(
                f"polder_resources_{kind.lower()}", f"Resources of kind {kind}."
            )
            family.add_metric((), len(list(self._cache.resources(kind))))
            yield family
        # Of its own agents: each member tells of its own, and no node is told twice.
        yield from _per_node(own[:NODES_MAX])

    def _guards(self, known: Sequence[NodeObservation]) -> Iterator[Metric]:
        """What waits for an operator: each of these is worth an alert when it is not 0."""
        freezes = len(self._cache.kept(keys.FREEZES))
        yield _gauge("polder_freezes", "Freezes that stand.", freezes)
        holds = GaugeMetricFamily(
            "polder_holds", "Held back until somebody approves.", labels=("kind",)
        )
        waiting = [h for h in holds_in(self._cache.kept(keys.HOLDS)).values() if not h.approved]
        for kind in HoldKind:
            holds.add_metric((kind.value,), sum(1 for hold in waiting if hold.kind is kind))
        yield holds
        standing = [o for o in overrides_in(self._cache.kept(keys.OVERRIDES)) if o.decision.stands]
        yield _gauge("polder_overrides", "Decisions of sites that stand.", len(standing))
        conflicts = sum(1 for override in standing if override.decision.conflict)
        text = "Decisions of sites that the orchestrator contradicts, and nobody has settled."
        yield _gauge("polder_override_conflicts", text, conflicts)
        paused = sum(u.phase is Phase.PAUSED for u in upgrades_in(self._cache.kept(keys.UPGRADES)))
        yield _gauge("polder_upgrades_paused", "Upgrades of agents that wait.", paused)
        refusing = sum(1 for node in known if node.plan_error)
        yield _gauge("polder_nodes_refusing_plans", "Nodes that refuse their plan.", refusing)

    def _is_heard(self, node: NodeObservation, steady: float) -> bool:
        word = node.last_word()
        if node.heartbeat is None or word is None:
            return False
        return steady - word <= self._silent_after_s


def _per_node(nodes: Sequence[NodeObservation]) -> Iterator[Metric]:
    for name, help_text, read in _PER_NODE:
        family = GaugeMetricFamily(name, help_text, labels=("node",))
        for node in nodes:
            family.add_metric((node.node,), float(read(node)))
        yield family


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text)
    family.add_metric((), value)
    return family


class MeasuredStore(StoreAround):
    """A Store that times commits and counts errors; otherwise the one that it wraps."""

    def __init__(self, inner: Store, metrics: Metrics) -> None:
        super().__init__(inner)
        self._metrics = metrics

    @property
    def inner(self) -> Store:
        """For what the port does not say, such as how etcd's members are."""
        return self._inner

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        started = time.perf_counter()
        try:
            result = await self._inner.txn(compares, ops)
        except Exception:
            self._metrics.store_errors.inc()
            raise
        self._metrics.commit_seconds.observe(time.perf_counter() - started)
        return result
