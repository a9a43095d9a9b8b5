"""Carries out the operations that the state machine asks for, and says how each went.

Called by `agent/supervisor.py`, one task per operation. Everything that takes resources of the box
is bounded here: pulls, starts, stops and probes at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from agent import pod_logs
from agent.domain import labels
from agent.domain.compose import as_user
from agent.domain.instructions import (
    Done,
    EnsureImage,
    ExitRead,
    Failed,
    Operation,
    Outcome,
    Probed,
    ReadExit,
    RemoveContainer,
    RemovePod,
    RunPod,
    RunProbe,
    StartContainer,
    StopContainer,
    UpdateFiles,
)
from agent.probes import Prober
from agent.runtime.port import (
    ContainerFailure,
    ImageUser,
    NotFound,
    PodSpec,
    Runtime,
    RuntimeFailure,
    RuntimeUnavailable,
    SandboxFailure,
)
from agent.slots import Slots
from agent.volumes import Owner, Volumes

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 3
STARTS_AT_ONCE = 4
STOPS_AT_ONCE = 32  # they mostly wait for a grace period
LAST_WORDS_TRIES = 10
LAST_WORDS_EVERY_S = 0.05

NOT_GUARDED = "NotGuarded"

Answer = Done | Failed | Probed | ExitRead

Guard = Callable[[str, bool], str]
"""Of an exclusive stay's uid, and whether its sandbox is there: why no more of it may start."""


def no_guard(_uid: str, _pod_runs: bool) -> str:
    """Until the dead-man's switch is there."""
    return "there is no dead-man's switch on this node"


class Operations:
    """`arch` as in OCI images: images of another one are refused. `guard` is asked right before
    anything exclusive starts: whatever went wrong elsewhere, it must not run without a deadline."""

    def __init__(self, runtime: Runtime, prober: Prober, arch: str, volumes: Volumes) -> None:
        self._runtime = runtime
        self._volumes = volumes
        self.guard: Guard = no_guard
        self._prober = prober
        self._arch = arch
        self._pulls = asyncio.Semaphore(PULLS_AT_ONCE)
        self._starts = Slots(STARTS_AT_ONCE)
        self._stops = asyncio.Semaphore(STOPS_AT_ONCE)

    async def perform(self, operation: Operation) -> Answer:
        """Always answers, unless it is cancelled."""
        try:
            if isinstance(operation, RunProbe):
                return Probed(operation, *await self._prober.check(operation))
            if isinstance(operation, ReadExit):
                return await self._read_exit(operation)
            async with self._slot(operation):
                return Done(operation, await self._call(operation))
        except RuntimeFailure as failure:
            outcome = Outcome.FAILED
            if isinstance(failure, RuntimeUnavailable):
                outcome = Outcome.UNKNOWN
            elif isinstance(failure, NotFound):
                outcome = Outcome.NOT_FOUND
            error: tuple[Outcome, str, str] = (outcome, failure.reason, failure.message)
        except Exception as mistake:  # one replica's mishap must not end the others' supervision
            log.exception("operation failed", extra={"operation": type(operation).__name__})
            error = (Outcome.UNKNOWN, "Internal", f"{type(mistake).__name__}: {mistake}")
        if isinstance(operation, RunProbe):
            return Probed(operation, None, error[2])
        return Failed(operation, *error)

    def _slot(self, operation: Operation) -> AbstractAsyncContextManager[None]:
        match operation:
            case EnsureImage():
                return self._pulls
            case StartContainer():
                return self._starts.taken(0)
            case RunPod():
                return self._starts.taken(1)
            case _:
                return self._stops

    async def _call(self, operation: Operation) -> str:
        runtime = self._runtime
        match operation:
            case EnsureImage():
                return await runtime.ensure_image(
                    operation.image, operation.policy, operation.auth, self._arch
                )
            case RunPod():
                if why := self._objection(operation.uid, operation.spec, False):
                    raise SandboxFailure(NOT_GUARDED, why)
                return await runtime.run_pod(operation.spec)
            case StartContainer():
                return await self._start(operation)
            case UpdateFiles():
                return await _no_value(self._volumes.update(operation.pod_id, operation.files))
            case StopContainer():
                return await _no_value(
                    runtime.stop_container(operation.container_id, operation.grace_s)
                )
            case RemoveContainer():
                await runtime.remove_container(operation.container_id)
                pod_logs.delete_run(operation.log_path)
                return ""
            case RemovePod():
                await runtime.remove_pod(operation.pod_id)
                await self._volumes.discard(operation.pod_id)
                return ""
            case RunProbe() | ReadExit():
                raise AssertionError("handled above")
            case _:
                assert_never(operation)

    async def _start(self, operation: StartContainer) -> str:
        spec = operation.spec
        image = ImageUser()
        if spec.run_as_user is None:
            image = await self._runtime.image_user(spec.image)
        spec = as_user(spec, image)
        uid = spec.run_as_user if spec.run_as_user is not None else image.uid
        shown = await self._volumes.prepare(
            operation.pod_id, operation.files, operation.mounts, Owner(uid, spec.run_as_group)
        )
        spec = replace(
            spec,
            mounts=(*spec.mounts, *shown.mounts),
            devices=(*spec.devices, *shown.devices),
        )
        if why := self._objection(operation.uid, operation.pod, True):
            raise ContainerFailure(NOT_GUARDED, why)
        return await self._runtime.start_container(operation.pod_id, operation.pod, spec)

    def _objection(self, uid: str, pod: PodSpec, pod_runs: bool) -> str:
        return self.guard(uid, pod_runs) if labels.CGROUP_PARENT in pod.annotations else ""

    async def _read_exit(self, operation: ReadExit) -> ExitRead:
        try:
            state = await self._runtime.container_status(operation.container_id)
        except RuntimeFailure:
            state = None
        path = operation.log_path or (state.log_path if state is not None else "")
        return ExitRead(operation, state, await _last_words(Path(path)) if path else "")


async def _last_words(path: Path) -> str:
    """The end of a run's log. Runtimes write the last of it a moment after they tell the exit."""
    for _ in range(LAST_WORDS_TRIES):
        text = pod_logs.tail(path)
        if text or not path.exists():
            return text
        await asyncio.sleep(LAST_WORDS_EVERY_S)
    return pod_logs.tail(path)


async def _no_value(call: Awaitable[None]) -> str:
    await call
    return ""
