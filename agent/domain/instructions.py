"""What the state machine hears and what it asks for: events in, instructions out.

`agent/supervisor.py` feeds events and executes instructions; `agent/domain/reconcile.py` decides.
An Operation is an instruction that takes time and is answered, exactly once, with Done, Failed,
Probed or ExitRead that carries it. Its `key` says what it occupies: the machine never asks for two
operations of one replica with the same key at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from agent.domain.files import PodFiles, Projected
from agent.domain.plan import ParsedPlan
from agent.domain.probes import ProbeKind
from agent.domain.view import ReplicaView
from agent.runtime.port import (
    ContainerSpec,
    ContainerState,
    PodSpec,
    PodState,
    PullPolicy,
    RegistryAuth,
)
from polder.manifest import Probe
from polder.manifest.volumes import VolumeMount

Key = tuple[str, str]


# --- instructions: operations -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnsureImage:
    """Have the image on the box. Done carries the reference to start."""

    uid: str
    image: str
    policy: PullPolicy
    auth: RegistryAuth | None

    @property
    def key(self) -> Key:
        return ("image", self.image)


@dataclass(frozen=True, slots=True)
class RunPod:
    """Create a sandbox. Done carries its id."""

    uid: str
    spec: PodSpec

    @property
    def key(self) -> Key:
        return ("pod", "")


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Create and start a container, after its volumes are there. Done carries its id."""

    uid: str
    pod_id: str
    pod: PodSpec
    spec: ContainerSpec
    files: PodFiles = PodFiles()
    mounts: tuple[VolumeMount, ...] = ()

    @property
    def key(self) -> Key:
        return ("container", self.spec.name)


@dataclass(frozen=True, slots=True)
class UpdateFiles:
    """Have these contents in the files of a pod that runs."""

    uid: str
    pod_id: str
    files: tuple[Projected, ...]

    @property
    def key(self) -> Key:
        return ("files", self.pod_id)


@dataclass(frozen=True, slots=True)
class StopContainer:
    """Stop signal, `grace_s` seconds, SIGKILL. `cause` is why: nothing is stopped without one."""

    uid: str
    container_id: str
    name: str
    grace_s: float
    cause: str

    @property
    def key(self) -> Key:
        return ("container", self.name)


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Forget a container that does not run, and delete its log."""

    uid: str
    container_id: str
    name: str
    log_path: str

    @property
    def key(self) -> Key:
        return ("remove", self.container_id)


@dataclass(frozen=True, slots=True)
class RemovePod:
    """Remove the sandbox, after its containers were stopped. `cause` is why."""

    uid: str
    pod_id: str
    cause: str

    @property
    def key(self) -> Key:
        return ("pod", "")


@dataclass(frozen=True, slots=True)
class RunProbe:
    """One check of a container. Answered with Probed."""

    uid: str
    container_id: str
    kind: ProbeKind
    probe: Probe
    pod_ip: str
    port: int  # 0 for exec

    @property
    def key(self) -> Key:
        return ("probe", f"{self.kind.value}/{self.container_id}")


@dataclass(frozen=True, slots=True)
class ReadExit:
    """How a container ended and the last lines that it wrote. Answered with ExitRead."""

    uid: str
    container_id: str
    name: str
    log_path: str

    @property
    def key(self) -> Key:
        return ("exit", self.container_id)


Operation = (
    EnsureImage
    | RunPod
    | StartContainer
    | UpdateFiles
    | StopContainer
    | RemoveContainer
    | RemovePod
    | RunProbe
    | ReadExit
)


# --- instructions: without an answer -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up an EnsureImage that nobody waits for any more; it will not be answered."""

    operation: EnsureImage


@dataclass(frozen=True, slots=True)
class ListPods:
    """Look at the runtime now, without waiting for the next turn."""


@dataclass(frozen=True, slots=True)
class Emit:
    """An event for operators."""

    namespace: str
    replica: str
    warning: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Publish:
    """A replica's status changed."""

    view: ReplicaView


@dataclass(frozen=True, slots=True)
class PublishGone:
    """Nothing of this replica is left on the node."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteLogs:
    """The replica is gone; so may its logs be."""

    directory: str


Instruction = Operation | Cancel | ListPods | Emit | Publish | PublishGone | DeleteLogs


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanAccepted:
    plan: ParsedPlan


@dataclass(frozen=True, slots=True)
class PodsListed:
    """`token`: from `Reconciler.listing_token()`, taken before the runtime was asked."""

    pods: Sequence[PodState]
    token: int


@dataclass(frozen=True, slots=True)
class RuntimeLost:
    """The runtime does not answer: that says nothing about containers, and changes nothing."""

    message: str


@dataclass(frozen=True, slots=True)
class DevicesFound:
    """Countable devices of the box: ids (CDI names or device paths) by resource name."""

    devices: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """What runs of that replica is to be exchanged once for the same again. `why`: for people."""

    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Done:
    operation: Operation
    value: str = ""


class Outcome(Enum):
    FAILED = "failed"  # it was refused, and left nothing behind
    UNKNOWN = "unknown"  # no answer: it may have happened
    NOT_FOUND = "not found"  # what it was about does not exist


@dataclass(frozen=True, slots=True)
class Failed:
    operation: Operation
    outcome: Outcome
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Probed:
    """`passed` None: the check could not be made (the runtime was away); it counts for nothing."""

    operation: RunProbe
    passed: bool | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class ExitRead:
    """`state` None: the runtime could not say. `last_log` is bounded by the reader."""

    operation: ReadExit
    state: ContainerState | None
    last_log: str = field(default="", repr=False)


Event = (
    PlanAccepted
    | PodsListed
    | RuntimeLost
    | DevicesFound
    | RestartAsked
    | Tick
    | Done
    | Failed
    | Probed
    | ExitRead
)
