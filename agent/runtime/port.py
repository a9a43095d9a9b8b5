"""The Runtime port: how the agent starts, stops and observes pods on its box.

The supervisor (`agent/supervisor.py`) calls it with what `agent.domain.reconcile` decided.
Adapters: `agent/runtime/cri` (containerd, CRI-O through the CRI v1 socket) and
`agent/runtime/simulated.py` (in memory; for tests and for fleets of thousands of agents). Nothing
here knows Assignments or plans.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class RuntimeFailure(Exception):
    """Base of every error of a Runtime. `reason` is a CamelCase word for status and events.

    RuntimeFailure
     +- RuntimeUnavailable    temporary: the socket does not answer; says nothing about containers
     +- ImageFailure          ImageNotFound, ImageAuth, ImagePlatform, ImageRegistry, ImageNeverPull
     +- SandboxFailure        HostPortInUse, NetworkSetup, SandboxCreate
     +- ContainerFailure      ContainerCreate, ContainerStart (bad command, ...), ExecFailed
     +- NotFound              the pod or container does not exist (any more)
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class RuntimeUnavailable(RuntimeFailure): ...


class ImageFailure(RuntimeFailure): ...


class SandboxFailure(RuntimeFailure): ...


class ContainerFailure(RuntimeFailure): ...


class NotFound(RuntimeFailure): ...


class PullPolicy(Enum):
    IF_NOT_PRESENT = "IfNotPresent"
    ALWAYS = "Always"
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PortMapping:
    container_port: int
    host_port: int
    protocol: str = "TCP"  # TCP | UDP
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    host_path: str
    container_path: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Mount:
    host_path: str
    container_path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    """0 means: not limited. cpu_millis becomes shares, cpu_limit_millis a CFS quota."""

    cpu_millis: int = 0
    cpu_limit_millis: int = 0
    memory_bytes: int = 0
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a sandbox needs. `uid` is unique per pod instance; `labels` come back in PodState.

    With `host_network` nothing is mapped: `ports` says which of the node's ports it takes.
    """

    name: str
    namespace: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]
    log_directory: str
    ports: tuple[PortMapping, ...] = ()
    hostname: str = ""
    dns_servers: tuple[str, ...] = ()
    cgroup_parent: str = ""
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """`run_as_user` None and no `run_as_username`: as the image says. All capabilities but those
    in `capabilities` (NET_ADMIN, ...) are dropped. `unconfined`: without a seccomp filter."""

    name: str
    image: str  # as resolved by ensure_image
    attempt: int  # restarts so far: part of the log file's name
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    resources: Resources = Resources()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    run_as_user: int | None = None
    run_as_username: str = ""
    run_as_group: int | None = None
    capabilities: tuple[str, ...] = ()
    unconfined: bool = False
    read_only_root: bool = False
    privileged: bool = False
    stop_signal: str = ""
    tty: bool = False


@dataclass(frozen=True, slots=True)
class ImageUser:
    """As whom an image wants to run: by number or by name; neither means root."""

    uid: int | None = None
    name: str = ""


class ContainerPhase(Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ContainerState:
    """Times are unix seconds, 0 when not (yet) known. `exit_code` holds when EXITED."""

    id: str
    pod_id: str
    name: str
    attempt: int
    phase: ContainerPhase
    image: str
    labels: dict[str, str]
    annotations: dict[str, str]
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    reason: str = ""  # OOMKilled, Error, Completed, ...
    message: str = ""
    log_path: str = ""


@dataclass(frozen=True, slots=True)
class PodState:
    id: str
    name: str
    namespace: str
    uid: str
    ready: bool  # the sandbox is ready: its network and pause container are up
    labels: dict[str, str]
    annotations: dict[str, str]
    created_at: float
    ip: str
    containers: tuple[ContainerState, ...]


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """`version` such as `containerd 1.6.20`; the conditions are the runtime's own."""

    version: str
    runtime_ready: bool
    network_ready: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class ImageUse:
    """Bytes of disk that the runtime's images take."""

    used_bytes: int
    mountpoint: str


class ExecSession(Protocol):
    """One interactive exec. Iterate `output()` until it ends, then read `exit_code`."""

    def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """("stdout" | "stderr", data) in order. With a tty everything is stdout."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...

    @property
    def exit_code(self) -> int:
        """Valid once output() ended."""
        ...

    async def close(self) -> None: ...


class Runtime(Protocol):
    """All methods raise RuntimeUnavailable when the runtime does not answer within the deadline."""

    makes_cgroups: bool
    """What it starts is found in the cgroup that was asked for."""

    async def info(self) -> RuntimeInfo: ...

    async def list_pods(self) -> Sequence[PodState]:
        """Every pod with our label, exited containers included. Cheap: called every second."""
        ...

    async def changed(self, timeout_s: float) -> bool:
        """Wait until containers may have changed, or the timeout; True when an event said so."""
        ...

    @property
    def hears_ends(self) -> bool:
        """Of all that runs, as listed last, `changed` says at once when it ends."""
        ...

    async def ensure_image(
        self, image: str, policy: PullPolicy, auth: RegistryAuth | None, arch: str
    ) -> str:
        """Pull if the policy asks; returns the reference to start. Raises ImageFailure."""
        ...

    async def image_user(self, image: str) -> ImageUser:
        """Of an image that is on the box. Raises ImageFailure when it is not."""
        ...

    async def run_pod(self, spec: PodSpec) -> str:
        """Create and start a sandbox; returns its id. Raises SandboxFailure, leaving nothing."""
        ...

    async def start_container(self, pod_id: str, pod: PodSpec, spec: ContainerSpec) -> str:
        """Create and start; returns its id. Raises ContainerFailure; leaves nothing behind then."""
        ...

    async def container_status(self, container_id: str) -> ContainerState:
        """With exit code, reason and times. Raises NotFound."""
        ...

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """Stop signal, grace, then SIGKILL. No error if it is already gone."""
        ...

    async def remove_container(self, container_id: str) -> None: ...

    async def remove_pod(self, pod_id: str) -> None:
        """Stop the sandbox (its containers are killed) and remove it. No error if it is gone."""
        ...

    async def exec(
        self, container_id: str, command: Sequence[str], *, stdin: bool, tty: bool
    ) -> ExecSession: ...

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: float
    ) -> tuple[int, bytes]:
        """(exit code, bounded combined output) for probes. Raises TimeoutError."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """After log rotation renamed the file."""
        ...

    async def image_use(self) -> Sequence[ImageUse]: ...

    async def close(self) -> None: ...
