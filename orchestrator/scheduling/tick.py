"""What the machines behind a tick take and give: the world, the moment, writes and events.

`steer.py` composes the machines; each knows these words and none of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.records import KeptRecord, StoredResource, TemplateRevision
from orchestrator.scheduling.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Moment:
    """`now`: unix seconds, which may jump. `steady`: seconds that never do; only differences mean
    something, and only within one process."""

    now: float
    steady: float


@dataclass(frozen=True, slots=True)
class Stray:
    """A stay that an agent reports and no record names. `generation_seen`: of the plan it has.

    `takes_over`: uid of the stay that its site replaced by it, without an orchestrator; empty: it
    was assigned once. `ready_for_s`: 0 while it is not ready.
    """

    node: str
    namespace: str
    workload: str
    workload_uid: str
    replica: str
    replica_uid: str
    epoch: int
    revision: int
    generation_seen: int
    takes_over: str = ""
    ready: bool = False
    ready_for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What an agent says of a stay that a record names."""

    epoch: int
    ready_for_s: float


@dataclass(frozen=True, slots=True)
class World:
    """What the Store and the agents say at one moment.

    `workloads` are the records behind `snapshot.workloads`. `revisions` is by (workload uid,
    number), `kept` by key: every record under `keys.KEPT`. `heard`, by (node, replica uid): of
    replicas that a site took over, what is said of the stays that their records name.
    """

    snapshot: Snapshot
    workloads: tuple[StoredResource, ...] = ()
    revisions: Mapping[tuple[str, int], TemplateRevision] = field(default_factory=dict)
    kept: Mapping[str, KeptRecord] = field(default_factory=dict)
    strays: tuple[Stray, ...] = ()
    heard: Mapping[tuple[str, str], Heard] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Write:
    """`value` None deletes. `expected` is the record's store revision; 0: it must not exist."""

    key: str
    value: bytes | None
    expected: int


@dataclass(frozen=True, slots=True)
class Tell:
    """An event."""

    kind: str
    namespace: str
    name: str
    warning: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction: all of `writes` or none. `tells` follow from them: what is refused is not
    told, and what stands is told even if another batch of the same tick is refused."""

    writes: tuple[Write, ...]
    tells: tuple[Tell, ...] = ()
