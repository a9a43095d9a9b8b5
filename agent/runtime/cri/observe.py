"""The cheap picture of all pods: two list calls, and details only for what is new or changed.

`CriRuntime.list_pods` runs it every second. ListContainers says id and state but neither exit code
nor times; ContainerStatus does, at a price, so its answers are kept by container id until the state
changes or the container is gone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from agent.runtime.cri import translate
from agent.runtime.cri.ends import EndWatch
from agent.runtime.cri.pb import api_pb2 as pb
from agent.runtime.port import ContainerPhase, ContainerState, PodState

# The kernel's out-of-memory notice can reach the runtime a little after the exit it explains.
OOM_NOTICE_S = 2.0
EXIT_CODE_KILLED = 137
DETAIL_CALLS_AT_ONCE = 8

T = TypeVar("T")
FetchIp = Callable[[str], Awaitable[str]]
FetchContainer = Callable[[str], Awaitable[pb.ContainerStatusResponse]]


class Observer:
    """Keeps details by id; both caches are pruned to what the last lists named.

    `fetch_container` is verbose. `hears_ends`: `ends` would tell of every container that runs.
    """

    def __init__(self, fetch_ip: FetchIp, fetch_container: FetchContainer, ends: EndWatch) -> None:
        self.hears_ends = False
        self._fetch_ip = fetch_ip
        self._fetch_container = fetch_container
        self._ends = ends
        self._ips: dict[str, str] = {}
        self._containers: dict[str, ContainerState] = {}

    async def merge(
        self, pods: list[pb.PodSandbox], containers: list[pb.Container]
    ) -> list[PodState]:
        """The port's view of two lists, pods in order of creation."""
        self._prune({p.id for p in pods}, {c.id for c in containers})
        known = {p.id for p in pods}
        stale = [c for c in containers if c.pod_sandbox_id in known and self._is_stale(c)]
        addressless = [
            p.id
            for p in pods
            if p.state == pb.SANDBOX_READY
            and not self._ips.get(p.id)
            and not translate.shares_network(p)
        ]
        if stale or addressless:
            await self._refresh(stale, addressless)
        running = ContainerPhase.RUNNING
        self.hears_ends = self._ends.keep(
            {known.id for known in self._containers.values() if known.phase is running}
        )
        members: dict[str, list[ContainerState]] = {}
        for item in containers:
            state = self._containers.get(item.id)
            if state is not None:
                members.setdefault(item.pod_sandbox_id, []).append(state)
        return [
            translate.pod_state(p, self._ips.get(p.id, ""), members.get(p.id, ()))
            for p in sorted(pods, key=lambda p: p.created_at)
        ]

    def _is_stale(self, item: pb.Container) -> bool:
        state = self._containers.get(item.id)
        if state is None or state.phase is not translate.phase_of(item):
            return True
        return (
            state.phase is ContainerPhase.EXITED
            and state.exit_code == EXIT_CODE_KILLED
            and state.reason != "OOMKilled"
            and time.time() - state.finished_at < OOM_NOTICE_S
        )

    async def _refresh(self, stale: list[pb.Container], addressless: list[str]) -> None:
        gate = asyncio.Semaphore(DETAIL_CALLS_AT_ONCE)

        async def container(item: pb.Container) -> None:
            async with gate:
                answer = await _unless_gone(self._fetch_container(item.id))
            if answer is not None:
                status = answer.status
                # The list names the image as it was asked for; the status names any tag of it.
                state = translate.container_state(status, item.pod_sandbox_id, item.image.image)
                self._containers[item.id] = state
                if state.phase is ContainerPhase.RUNNING:
                    self._ends.begin(state.id, translate.pid_of(answer.info))

        async def address(pod_id: str) -> None:
            async with gate:
                self._ips[pod_id] = await _unless_gone(self._fetch_ip(pod_id)) or ""

        await asyncio.gather(*map(container, stale), *map(address, addressless))

    def _prune(self, pod_ids: set[str], container_ids: set[str]) -> None:
        for cache, live in ((self._ips, pod_ids), (self._containers, container_ids)):
            for gone in cache.keys() - live:
                del cache[gone]


async def _unless_gone(call: Awaitable[T]) -> T | None:
    """None when the thing was removed between the list and this call."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
