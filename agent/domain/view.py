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
    """`revision`, `epoch`, `digest`: of what runs; of the assignment if nothing does."""

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
