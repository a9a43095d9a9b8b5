"""Pods, containers and waiting for the tests against a real containerd."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ContainerPhase, ContainerSpec, ContainerState, PodSpec, PortMapping
from devcluster.image import HELLO
from tests.emulated import patience

T = TypeVar("T")


async def eventually(
    probe: Callable[[], Awaitable[T]], accept: Callable[[T], bool], timeout_s: float = 10.0
) -> T:
    """The first value that is accepted. Fails with the last one after the deadline."""
    deadline = time.monotonic() + patience(timeout_s)
    while True:
        value = await probe()
        if accept(value):
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {value}"
        await asyncio.sleep(0.02)


class Pods:
    """Makes pods and containers on one adapter, and removes every pod at the end."""

    def __init__(self, runtime: CriRuntime, folder: Path) -> None:
        self.runtime = runtime
        self.folder = folder
        self._made: list[str] = []

    def spec(self, *ports: PortMapping, name: str = "", **labels: str) -> PodSpec:
        name = name or "pod"
        return PodSpec(
            name=name,
            namespace="test",
            uid=uuid.uuid4().hex,
            labels={"polder.eu/test": "yes", **labels},
            annotations={"polder.eu/note": "kept"},
            log_directory=str(self.folder / "logs" / uuid.uuid4().hex[:8]),
            ports=ports,
        )

    async def run(self, spec: PodSpec) -> str:
        pod_id = await self.runtime.run_pod(spec)
        self._made.append(pod_id)
        return pod_id

    async def shell(self, script: str, **fields: object) -> tuple[str, ContainerSpec]:
        """A pod of its own with one container that runs the script; (container id, its spec)."""
        spec = self.spec()
        pod_id = await self.run(spec)
        container = shell_container(script, **fields)
        return await self.runtime.start_container(pod_id, spec, container), container

    async def ended(self, container_id: str) -> ContainerState:
        return await eventually(
            lambda: self.runtime.container_status(container_id),
            lambda state: state.phase is ContainerPhase.EXITED,
        )

    async def ended_with_log(self, script: str, **fields: object) -> tuple[ContainerState, str]:
        container_id, _ = await self.shell(script, **fields)
        state = await self.ended(container_id)
        return state, await eventually(lambda: read_log(state.log_path), bool)

    async def remove_all(self) -> None:
        for pod_id in self._made:
            await self.runtime.remove_pod(pod_id)


async def read_log(path: str) -> str:
    """The container's output without the CRI prefix (time, stream, F or P)."""
    lines = Path(path).read_text().splitlines()
    return "\n".join(line.split(" ", 3)[3] for line in lines)


def shell_container(script: str, **fields: object) -> ContainerSpec:
    values: dict[str, object] = {"name": "app", "image": HELLO, "attempt": 0}
    return ContainerSpec(**{**values, "command": ("sh", "-c", script), **fields})  # type: ignore[arg-type]
