"""A Runtime in memory: nothing really runs. For tests, and for fleets of thousands of agents.

It behaves as the CRI adapter does where a caller can tell: host ports conflict, removing a pod
kills its containers, exits carry codes and times, `changed` wakes up. It is deterministic: ids
count up, time comes from the clock that is passed in, and failures happen only on demand:

    runtime = SimulatedRuntime(clock=lambda: now)
    runtime.images["app:2"] = ImageFailure("ImageNotFound", "app:2: not found")
    runtime.fail_next("run_pod", SandboxFailure("NetworkSetup", "no address left"))
    runtime.crash(container_id, code=1)
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ContainerSpec,
    ContainerState,
    ExecSession,
    ImageFailure,
    ImageUse,
    ImageUser,
    NotFound,
    PodSpec,
    PodState,
    PullPolicy,
    RegistryAuth,
    RuntimeFailure,
    RuntimeInfo,
    RuntimeUnavailable,
    SandboxFailure,
)

EXIT_KILLED = 137
EXIT_UNSEEN = 255
STDIN_CHUNKS_MAX = 64

# (container, command) -> (exit code, output)
ExecHandler = Callable[[ContainerState, Sequence[str]], tuple[int, bytes]]


@dataclass(slots=True)
class Delays:
    """Seconds that calls take. 0 does not even yield to the event loop."""

    pull_s: float = 0.0
    run_pod_s: float = 0.0
    start_container_s: float = 0.0
    stop_container_s: float = 0.0


@dataclass(slots=True)
class _Pod:
    state: PodState
    spec: PodSpec
    containers: dict[str, ContainerState] = field(default_factory=dict)


def _succeed(_container: ContainerState, _command: Sequence[str]) -> tuple[int, bytes]:
    return 0, b""


class SimulatedRuntime:
    """Implements agent.runtime.port.Runtime. The public attributes are knobs, free to change.

    images: what a pull of that reference gives: an error to raise, or None for success. References
        that are not named succeed.
    exits: image -> exit code: its containers end at once with that code.
    lasts: image -> seconds: how long those containers run before they end.
    users: image -> as whom it wants to run; root when it is not named.
    available: False makes every call raise RuntimeUnavailable; pods live on.
    busy_ports: (protocol, host port) that some process on the box is said to hold.
    exec_handler: what exec and exec_sync give.
    """

    makes_cgroups = False

    def __init__(
        self, *, clock: Callable[[], float] = time.time, delays: Delays | None = None
    ) -> None:
        self.delays = delays or Delays()
        self.images: dict[str, ImageFailure | None] = {}
        self.exits: dict[str, int] = {}
        self.lasts: dict[str, float] = {}
        self.users: dict[str, ImageUser] = {}
        self.available = True
        self.busy_ports: set[tuple[str, int]] = set()
        self.exec_handler: ExecHandler = _succeed
        self.pulls: list[str] = []
        self.image_bytes = 4 << 20
        self._clock = clock
        self._present: set[str] = set()
        self._pods: dict[str, _Pod] = {}
        self._making: set[str] = set()  # uids of pods
        self._failures: dict[str, deque[RuntimeFailure]] = {}
        self._ids = 0
        self._changed = asyncio.Event()

    # ---- hooks for tests ----

    def fail_next(self, method: str, *failures: RuntimeFailure) -> None:
        """The next calls of that method raise these, one each."""
        self._failures.setdefault(method, deque()).extend(failures)

    def crash(self, container_id: str, code: int = 1, reason: str = "") -> None:
        """End a running container. Raises NotFound when it is not there or not running."""
        state = self._container(container_id)
        if state.phase is not ContainerPhase.RUNNING:
            raise NotFound("NotFound", f"container {container_id} is not running")
        self._finish(state, code, reason)

    def break_sandbox(self, pod_id: str, code: int = EXIT_KILLED, reason: str = "Error") -> None:
        """The sandbox is no longer ready and its containers are dead."""
        pod = self._pod(pod_id)
        for state in list(pod.containers.values()):
            if state.phase is ContainerPhase.RUNNING:
                self._finish(state, code, reason)
        pod.state = replace(pod.state, ready=False)

    def reboot(self) -> None:
        """Every sandbox is broken; records and images remain, as on a box that lost power. Nobody
        saw how what ran then ended, and containerd says so."""
        for pod_id in self._pods:
            self.break_sandbox(pod_id, EXIT_UNSEEN, "Unknown")

    # ---- the port ----

    async def info(self) -> RuntimeInfo:
        self._enter("info")
        return RuntimeInfo("simulated 1", runtime_ready=True, network_ready=True)

    async def list_pods(self) -> Sequence[PodState]:
        self._enter("list_pods")
        return [
            replace(pod.state, containers=tuple(pod.containers.values()))
            for pod in self._pods.values()
        ]

    async def changed(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    @property
    def hears_ends(self) -> bool:
        return True

    async def ensure_image(
        self, image: str, policy: PullPolicy, auth: RegistryAuth | None, arch: str
    ) -> str:
        self._enter("ensure_image")
        if policy is PullPolicy.NEVER and image not in self._present:
            raise ImageFailure("ImageNeverPull", f"{image}: not on this node and pull is Never")
        if policy is PullPolicy.ALWAYS or image not in self._present:
            self.pulls.append(image)
            await _pause(self.delays.pull_s)
            failure = self.images.get(image)
            if failure is not None:
                raise failure
            self._present.add(image)
        return image

    async def image_user(self, image: str) -> ImageUser:
        self._enter("image_user")
        return self.users.get(image, ImageUser())

    def preload(self, *images: str) -> None:
        """Put images on the box, as an import would."""
        self._present.update(images)

    async def run_pod(self, spec: PodSpec) -> str:
        self._enter("run_pod")
        # As containerd does: the name is taken from the beginning, whoever waits for the answer.
        if spec.uid in self._making or any(p.state.uid == spec.uid for p in self._pods.values()):
            raise SandboxFailure("SandboxCreate", f"name {spec.name} is reserved for {spec.uid}")
        self._making.add(spec.uid)
        try:
            await _pause(self.delays.run_pod_s)
        finally:
            self._making.discard(spec.uid)
        self._check_ports(spec)
        pod_id = self._new_id("pod")
        self._pods[pod_id] = _Pod(
            PodState(
                id=pod_id,
                name=spec.name,
                namespace=spec.namespace,
                uid=spec.uid,
                ready=True,
                labels=dict(spec.labels),
                annotations=dict(spec.annotations),
                created_at=self._clock(),
                ip=f"10.213.{self._ids // 250 % 250}.{self._ids % 250 + 2}",
                containers=(),
            ),
            spec,
        )
        self._changed.set()
        return pod_id

    def _check_ports(self, spec: PodSpec) -> None:
        for port in spec.ports:
            wanted = (port.protocol, port.host_port)
            if not port.host_port:
                continue
            if wanted in self.busy_ports:
                raise SandboxFailure(
                    "HostPortInUse", f"host port {port.host_port} is taken by a process"
                )
            for pod in self._pods.values():
                if any((p.protocol, p.host_port) == wanted for p in pod.spec.ports):
                    raise SandboxFailure(
                        "HostPortInUse",
                        f"host port {port.host_port} is taken by pod {pod.spec.name}",
                    )

    async def start_container(self, pod_id: str, pod: PodSpec, spec: ContainerSpec) -> str:
        self._enter("start_container")
        await _pause(self.delays.start_container_s)
        home = self._pods.get(pod_id)
        if home is None or not home.state.ready:
            raise ContainerFailure("ContainerCreate", f"sandbox {pod_id} is not ready")
        now = self._clock()
        state = ContainerState(
            id=self._new_id("container"),
            pod_id=pod_id,
            name=spec.name,
            attempt=spec.attempt,
            phase=ContainerPhase.RUNNING,
            image=spec.image,
            labels=dict(spec.labels),
            annotations=dict(spec.annotations),
            created_at=now,
            started_at=now,
            log_path=f"{pod.log_directory}/{spec.name}_{spec.attempt}.log",
        )
        home.containers[state.id] = state
        self._changed.set()
        if spec.image in self.exits:
            self._end_after(state.id, self.exits[spec.image], self.lasts.get(spec.image, 0.0))
        return state.id

    def _end_after(self, container_id: str, code: int, seconds: float) -> None:
        if seconds > 0:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._end_after, container_id, code, 0.0)
            return
        state = self._find(container_id)
        if state is not None and state.phase is ContainerPhase.RUNNING:
            self._finish(state, code)

    async def container_status(self, container_id: str) -> ContainerState:
        self._enter("container_status")
        return self._container(container_id)

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        self._enter("stop_container")
        await _pause(min(grace_s, self.delays.stop_container_s))
        state = self._find(container_id)
        if state is not None and state.phase is ContainerPhase.RUNNING:
            self._finish(state, EXIT_KILLED if grace_s <= 0 else 0)

    async def remove_container(self, container_id: str) -> None:
        self._enter("remove_container")
        state = self._find(container_id)
        if state is not None:
            del self._pods[state.pod_id].containers[container_id]
            self._changed.set()

    async def remove_pod(self, pod_id: str) -> None:
        self._enter("remove_pod")
        if self._pods.pop(pod_id, None) is not None:
            self._changed.set()

    async def exec(
        self, container_id: str, command: Sequence[str], *, stdin: bool, tty: bool
    ) -> ExecSession:
        self._enter("exec")
        code, output = self.exec_handler(self._running(container_id), command)
        return SimulatedExec(code, output, stdin=stdin)

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: float
    ) -> tuple[int, bytes]:
        self._enter("exec_sync")
        return self.exec_handler(self._running(container_id), command)

    async def reopen_log(self, container_id: str) -> None:
        self._enter("reopen_log")
        self._container(container_id)

    async def image_use(self) -> Sequence[ImageUse]:
        self._enter("image_use")
        return [ImageUse(len(self._present) * self.image_bytes, "/simulated")]

    async def close(self) -> None:
        self._changed.set()

    # ---- inside ----

    def _enter(self, method: str) -> None:
        """What every call does first: be unavailable, or fail as asked."""
        if not self.available:
            raise RuntimeUnavailable("RuntimeUnavailable", "the simulated runtime is switched off")
        waiting = self._failures.get(method)
        if waiting:
            raise waiting.popleft()

    def _new_id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self._ids}"

    def _pod(self, pod_id: str) -> _Pod:
        if pod_id not in self._pods:
            raise NotFound("NotFound", f"no pod {pod_id}")
        return self._pods[pod_id]

    def _find(self, container_id: str) -> ContainerState | None:
        for pod in self._pods.values():
            if container_id in pod.containers:
                return pod.containers[container_id]
        return None

    def _container(self, container_id: str) -> ContainerState:
        state = self._find(container_id)
        if state is None:
            raise NotFound("NotFound", f"no container {container_id}")
        return state

    def _running(self, container_id: str) -> ContainerState:
        state = self._container(container_id)
        if state.phase is not ContainerPhase.RUNNING:
            raise ContainerFailure("ExecFailed", f"container is {state.phase.value}")
        return state

    def _finish(self, state: ContainerState, code: int, reason: str = "") -> None:
        self._pods[state.pod_id].containers[state.id] = replace(
            state,
            phase=ContainerPhase.EXITED,
            exit_code=code,
            finished_at=self._clock(),
            reason=reason or ("Error" if code else "Completed"),
        )
        self._changed.set()


class SimulatedExec:
    """Gives the prepared output; then, with stdin, echoes it until it is closed."""

    def __init__(self, code: int, output: bytes, *, stdin: bool) -> None:
        self._code = code
        self._output = output
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue(STDIN_CHUNKS_MAX)
        self._open = stdin
        self.size: tuple[int, int] = (0, 0)

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        if self._output:
            yield "stdout", self._output
        while self._open or not self._stdin.empty():
            data = await self._stdin.get()
            if not data:
                return
            yield "stdout", data

    async def write(self, data: bytes) -> None:
        if not self._open:
            raise ContainerFailure("ExecFailed", "stdin is closed")
        if data:
            await self._stdin.put(data)

    async def close_stdin(self) -> None:
        if self._open:
            self._open = False
            await self._stdin.put(b"")

    async def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)

    @property
    def exit_code(self) -> int:
        return self._code

    async def close(self) -> None:
        await self.close_stdin()


async def _pause(delay_s: float) -> None:
    if delay_s > 0:
        await asyncio.sleep(delay_s)
