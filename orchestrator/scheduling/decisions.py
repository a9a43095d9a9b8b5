"""What `plan()` answers: values that the leader commits, and that tests and people read."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling.placements import Place
from orchestrator.scheduling.reasons import Reason, ReasonCount

__all__ = [
    "Bind",
    "Cause",
    "Explanation",
    "NonCompliant",
    "Orphan",
    "Place",
    "Plan",
    "Revise",
    "Standbys",
    "Stop",
    "Unbind",
]


class Cause(StrEnum):
    """Why a replica stops on a node. There is no stop without one."""

    WORKLOAD_DELETED = "WorkloadDeleted"
    SCALED_DOWN = "ScaledDown"
    MOVED = "Moved"  # a newer holder exists, or the new revision has no room here
    DRAINED = "Drained"
    NODE_LOST = "NodeLost"
    NODE_DELETED = "NodeDeleted"
    UNTOLERATED = "Untolerated"
    UNSATISFIABLE = "Unsatisfiable"
    IMAGE_PLATFORM = "ImagePlatform"  # it never started: its image is not for the node
    NON_COMPLIANT = "NonCompliant"  # its site no longer meets its policy; a replacement is ready
    PREEMPTED = "Preempted"  # its room goes to a workload of higher priority
    REPLACEMENT_FAILED = (
        "ReplacementFailed"  # it was to take over; its node will not do, or it is not needed
    )
    UPDATED = "Updated"  # its successor of another revision is ready
    COMPLETED = "Completed"  # it ran once, and its job is over or needs it no more
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # its job took too long
    REPLACED = "Replaced"  # the next run of its schedule takes its place
    JOB_FAILED = "JobFailed"  # another replica of its job failed too often
    TAKEN_OVER = "TakenOver"  # its site runs it on another node
    JOB_RETRY = "JobRetry"  # it failed, and is tried again as a new stay


@dataclass(frozen=True, slots=True)
class Stop:
    """A replica must leave a node. `moved_to`: only once that node has been told."""

    node: str
    assignment: AssignmentRecord
    cause: Cause
    message: str
    moved_to: str = ""


@dataclass(frozen=True, slots=True)
class Revise:
    """A replica stays and gets another template."""

    node: str
    assignment: AssignmentRecord
    revision: int


@dataclass(frozen=True, slots=True)
class Standbys:
    """A replica stays, and other nodes are to take it over, or vote on it."""

    node: str
    assignment: AssignmentRecord
    standbys: tuple[str, ...]
    group: GroupRecord | None = None


@dataclass(frozen=True, slots=True)
class Bind:
    """The data of a replica's local volumes is on this node from now on."""

    namespace: str
    replica: str
    volumes: tuple[str, ...]
    node: str


@dataclass(frozen=True, slots=True)
class Unbind:
    """The node that had the data of a replica's local volumes has no record any more."""

    namespace: str
    replica: str
    node: str


@dataclass(frozen=True, slots=True)
class NonCompliant:
    """A replica that runs where its policy forbids it now. `replacement`: a node, or empty."""

    node: str
    assignment: AssignmentRecord
    reasons: tuple[Reason, ...]
    replacement: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why something is not as its workload asks. `code` is CamelCase:

    Unschedulable (no node fits), CannotMove (it has to leave, and no node fits), UpdateWaits (its
    budget lets no more change for now), DrainBlocked (a drain waits for the same), ReplacementWaits
    (the old one stops when the new one is ready), NodeDaemon (it stays on a drained node, since it
    belongs to the node), FlapDamped (its node is lost, and it was moved for that just before),
    StoppedLocally (operators of its site stopped it), SiteFrozen (they froze all of the site),
    NonCompliant (its site no longer meets its policy, and no compliant node fits), QuotaExceeded,
    ExclusiveWaits (it would be placed, and what ran before may still run), NoMajority (so few of
    its group are heard, or there are so few nodes, that nobody takes it over),
    Preempting (lower priorities make room), NamespaceUnreadable, MissingRevision (its template is
    not in the store), Frozen (nothing about it changes until `edgectl thaw`), Held (too many would
    stop at once: they wait for an approval), NodeSuspect (its node is silent with too many others
    to be lost). `replicas` may be many, and then makes their names only when asked; what another
    member said of a great many leaves some `unnamed`.
    """

    namespace: str
    workload: str
    code: str
    message: str
    replicas: Sequence[str] = ()
    reasons: tuple[ReasonCount, ...] = ()
    unnamed: int = 0

    @property
    def replica_count(self) -> int:
        return len(self.replicas) + self.unnamed


@dataclass(frozen=True, slots=True)
class Orphan:
    """An assignment whose workload or node is in no record. It is kept."""

    node: str
    assignment: AssignmentRecord
    missing: str  # workload, node


@dataclass(frozen=True, slots=True)
class Plan:
    """`revision` is the snapshot's. An empty plan changes nothing."""

    revision: int
    place: Sequence[Place] = ()
    stop: tuple[Stop, ...] = ()
    revise: tuple[Revise, ...] = ()
    standbys: tuple[Standbys, ...] = ()
    bind: tuple[Bind, ...] = ()
    unbind: tuple[Unbind, ...] = ()
    noncompliant: tuple[NonCompliant, ...] = ()
    # Stops that their agents reported done: (node, replica uid).
    prune: tuple[tuple[str, str], ...] = ()
    # Nodes that need a new generation of the same plan, mostly because a Secret or a fact changed.
    refresh: tuple[str, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    # How many replicas each workload should have now, by uid.
    desired: tuple[tuple[str, int], ...] = ()
    orphans: tuple[Orphan, ...] = ()
    finished_workloads: tuple[str, ...] = ()
    finished_nodes: tuple[str, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether committing it would write nothing."""
        return not (
            self.place
            or self.stop
            or self.revise
            or self.standbys
            or self.bind
            or self.unbind
            or self.prune
            or self.refresh
            or self.finished_workloads
            or self.finished_nodes
        )
