"""The world at one revision, as plain values: everything that `plan()` may know.

The leader builds it (`orchestrator/leader_snapshot.py`); tests and benchmarks write it by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.domain.liveness import Liveness
from orchestrator.records import NodePlacement
from polder.manifest import Placement, Taint
from polder.manifest.placement import Failover
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts

HostPort = tuple[int, str]  # number, protocol


@dataclass(frozen=True, slots=True)
class Resources:
    """Amounts, allocatable on a node or requested by a replica."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Template:
    """What one revision of a workload asks of a node, and the Secrets that it names."""

    request: Resources = Resources()
    host_ports: tuple[HostPort, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One box. `allocatable` None: it never told, so nothing fits. `since`: of the silence."""

    name: str
    site: str = ""
    country: str = ""
    region: str = ""
    provider: str = ""
    arch: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    draining: bool = False
    deleting: bool = False
    # It is heard of, and says that it cannot start anything: its runtime is down.
    not_ready: bool = False
    allocatable: Resources | None = None
    # What is known of its devices, by resource name: attributes of each that was told of.
    devices: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    liveness: Liveness = Liveness.LIVE
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """One location: what its nodes are judged by. Degrees (WGS 84); None: not declared."""

    name: str
    facts: SiteFacts
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a namespace may use in total; None: as much as there is."""

    replicas: int | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    devices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A tenant's rules. `readable` False: the record is not understood, and nothing new placed."""

    name: str
    floor: SovereigntySpec = SovereigntySpec()
    quota: Quota | None = None
    pack: bool = False
    preemptible: bool = True
    readable: bool = True


class Mode(Enum):
    REPLICAS = "replicas"
    PER_SITE = "perSite"
    PER_NODE = "perNode"


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` replicas, or so many per site or node. `revision` is the template's that counts."""

    uid: str
    namespace: str
    name: str
    count: int = 1
    mode: Mode = Mode.REPLICAS
    priority: int = 0
    placement: Placement = Placement()
    revision: int = 1
    created_at_ms: int = 0
    deleting: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    sovereignty: SovereigntySpec = SovereigntySpec()
    failover: Failover = Failover()


@dataclass(frozen=True, slots=True)
class Observed:
    """What its agent says of a replica."""

    running: bool
    ready: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`complete` False: something could not be read, so nothing may be concluded from absence.

    `templates` is by (workload uid, revision number), for every revision that is still stored.
    `observed` and `gone` are by (node, replica uid): a node speaks only for itself.
    `secrets` is the version of every Secret by (namespace, name).
    `sites` and `namespaces` are by name. A site that is not there is not declared; a namespace that
    is not there has no rules.
    `ahead` are nodes that use a newer generation than the store knows: it came from a backup.
    """

    revision: int
    nodes: tuple[Node, ...] = ()
    workloads: tuple[Workload, ...] = ()
    placements: Mapping[str, NodePlacement] = field(default_factory=dict)
    templates: Mapping[tuple[str, int], Template] = field(default_factory=dict)
    observed: Mapping[tuple[str, str], Observed] = field(default_factory=dict)
    gone: frozenset[tuple[str, str]] = frozenset()
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    ahead: frozenset[str] = frozenset()
    sites: Mapping[str, Site] = field(default_factory=dict)
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    complete: bool = True
