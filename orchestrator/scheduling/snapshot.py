"""The world at one revision, as plain values: everything that `plan()` may know.

The leader builds it (`orchestrator/leader_snapshot.py`); tests and benchmarks write it by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.domain.liveness import LOST_AFTER_S, Liveness
from orchestrator.domain.overrides import NOTHING_DECIDED, SiteDecisions
from orchestrator.records import NodePlacement
from polder.manifest import Placement, Taint
from polder.manifest.placement import Failover
from polder.manifest.policy import SovereigntySpec
from polder.manifest.update import Disruption, Update
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
    """What one revision of a workload asks of a node, and the Secrets and volumes that it names.

    `secrets`, `configs` and `facts` are what its node's plan carries for it.
    `local_volumes` tie a replica to the node that has their data. `host_paths` are paths of the
    box; `demands` is what its namespace has to allow, in the words of `NamespaceSpec.allow`.
    An image of it does not exist for `foreign_archs`, nor, as these say themselves, for
    `foreign_nodes`; see `domain/images.py`.
    """

    request: Resources = Resources()
    host_ports: tuple[HostPort, ...] = ()
    secrets: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    host_paths: tuple[str, ...] = ()
    local_volumes: tuple[str, ...] = ()
    demands: tuple[str, ...] = ()
    foreign_nodes: tuple[str, ...] = ()
    foreign_archs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One box. `allocatable` None: it never told, so nothing fits. `since`: of the silence.

    `cordoned`: why it gets no new replicas although it is not cordoned itself, such as "site x is
    cordoned"; `draining` also while a maintenance window drains its site. `drain_overdue`: the time
    for leaving is over. `suspect`: why its silence proves nothing, since so many are silent with it
    or a member that may hear it cannot be asked; nothing leaves it for being lost.
    """

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
    cordoned: str = ""
    drain_overdue: bool = False
    suspect: str = ""
    # Whether it has said how the nodes of its site reach it.
    reachable: bool = True
    # The number of a decision when its box joined: it votes in no exclusive group of before.
    joined_epoch: int = 0
    # What its own configuration lets replicas mount, with everything below.
    host_paths: tuple[str, ...] = ()


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
    """A tenant's rules. `readable` False: the record is not understood, and nothing new placed.

    `allow`: what its pods may demand beyond the safe defaults. `frozen`: nothing of it changes.
    """

    name: str
    floor: SovereigntySpec = SovereigntySpec()
    quota: Quota | None = None
    pack: bool = False
    preemptible: bool = True
    readable: bool = True
    allow: frozenset[str] = frozenset()
    frozen: bool = False


class Mode(Enum):
    REPLICAS = "replicas"
    PER_SITE = "perSite"
    PER_NODE = "perNode"


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` replicas, or so many per site or node. `revision` is what all are to run in the end.

    While a rollout goes on, replicas at sites that are not `admitted` (None: all are) have the
    `stable` revision (0: there is none in the store). `paused`: no replica changes its revision,
    and new ones get the stable one. `once`: a job, of which `indexes` are wanted now (None: all of
    `count`); stays in `resting` have ended and stay for their logs, those in `ending` stop with
    this cause and message, and neither counts for the replicas. `frozen`: nothing about it changes,
    neither place nor revision.
    """

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
    stable: int = 0
    admitted: frozenset[str] | None = None
    paused: bool = False
    update: Update = Update()
    disruption: Disruption = Disruption()
    once: bool = False
    indexes: tuple[int, ...] | None = None
    resting: frozenset[str] = frozenset()  # replica uids
    ending: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # by replica uid
    frozen: bool = False

    @property
    def held_elsewhere(self) -> bool:
        """Whether at sites that are not admitted there is nothing to place, and nothing to do."""
        return self.admitted is not None and not self.stable


IMAGE_PLATFORM = "ImagePlatform"
"""An agent's reason, and the scheduler's: the image is not for the node's architecture."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What its agent says of a replica.

    `ready_for_s`: since the leader saw it ready, on a clock that never jumps. `finished`: it runs
    once, and ended; `failed`: not well. `reason`: why it does not run, such as CrashLoop. `epoch`:
    by which it runs, and which its site may have raised.
    """

    running: bool
    ready: bool
    revision: int
    ready_for_s: float = 0.0
    finished: bool = False
    failed: bool = False
    restarts: int = 0
    reason: str = ""
    terminating: bool = False
    epoch: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether it cannot start since its image is not for the node. What runs is proof of the
        contrary."""
        return self.reason == IMAGE_PLATFORM and not self.running


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`complete` False: something could not be read, so nothing may be concluded from absence.

    `templates` is by (workload uid, revision number), for every revision that is still stored.
    `observed` and `gone` are by (node, replica uid): a node speaks only for itself.
    `foreign` are those of `observed` that are so: of very many, hardly any.
    `secrets` and `configs` are the version of every Secret and Config by (namespace, name).
    `sites` and `namespaces` are by name. A site that is not there is not declared; a namespace that
    is not there has no rules.
    `ahead` are nodes that use a newer generation than the store knows: it came from a backup.
    `reroled` are nodes whose plan says something else of their site than holds now.
    `volumes` is the node that has the data of a replica's local volumes, by (namespace, replica).
    `lost_after_s`: the silence after which a node counts as lost.
    `using` are nodes that said, at last, that they use the plan that holds now.
    `unrecorded`, by (workload uid, replica): (node, replica uid) of a stay that no record names.
    `local` is what operators decided at sites themselves.
    `fenced` are replica uids of stays that an operator vouches for: they run no more.
    `revision` only grows: epochs of what is decided come from it (`polder/epochs.py`).
    """

    revision: int
    nodes: tuple[Node, ...] = ()
    workloads: tuple[Workload, ...] = ()
    placements: Mapping[str, NodePlacement] = field(default_factory=dict)
    templates: Mapping[tuple[str, int], Template] = field(default_factory=dict)
    observed: Mapping[tuple[str, str], Observed] = field(default_factory=dict)
    foreign: frozenset[tuple[str, str]] = frozenset()
    gone: frozenset[tuple[str, str]] = frozenset()
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    configs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    ahead: frozenset[str] = frozenset()
    reroled: frozenset[str] = frozenset()
    sites: Mapping[str, Site] = field(default_factory=dict)
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    volumes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    complete: bool = True
    lost_after_s: float = LOST_AFTER_S
    using: frozenset[str] = frozenset()
    fenced: frozenset[str] = frozenset()
    unrecorded: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    local: SiteDecisions = NOTHING_DECIDED
