"""A replica's state as it is reported: values that compare equal when there is nothing to say.

Made by `agent/domain/report.py` from the state machine's memory, turned into protobuf by
`agent/translate.py` only when they differ from what was published last. No field depends on the
current time, so that an idle node publishes nothing.
"""

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ORPHANED = "orphaned"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Exit:
    """How one run of a container ended. Times in unix seconds, 0 when unknown."""

    exit_code: int
    reason: str
    message: str
    started_at: float
    finished_at: float
    last_log: str = ""


@dataclass(frozen=True, slots=True)
class ContainerView:
    """`state` is waiting, running or exited."""

    name: str
    id: str
    state: str
    ready: bool
    restarts: int
    reason: str = ""
    message: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    last_exit: Exit | None = None
    image: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """`revision`, `epoch`, `digest`: of what runs; of the assignment if nothing does.

    `ready_since` by the steady clock, 0 when it is not ready. `takes_over`: uid of the stay that
    this one took over from by the site's own decision. `present`: something of it is on the box, or
    may be on its way there.
    """

    namespace: str
    workload: str
    workload_uid: str
    replica: str
    uid: str
    phase: Phase
    ready: bool
    reason: str
    message: str
    revision: int
    epoch: int
    restarts: int
    pod_ip: str
    started_at: float
    digest: str
    containers: tuple[ContainerView, ...]
    ready_since: float = 0.0
    takes_over: str = ""
    present: bool = True
