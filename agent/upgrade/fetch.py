"""Fetches packages from an orchestrator: resumed, paced, and checked. Used by `desk.py`.

It goes over the session's own connection, with a flow control of its own, and takes at most half of
the uplink's time: what the box is there for goes first.
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc

from agent.durable import sync_directory
from agent.upgrade.files import UpgradeFiles, sha256_of
from polder.release import Package
from polder.v1 import agent_pb2, agent_pb2_grpc

STALL_S = 60.0  # nothing came for so long: the connection is as good as gone
PAUSE_MAX_S = 1.0
ROOM_LEFT_BYTES = 128 << 20  # for the box to go on with

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryStreamCall[agent_pb2.PackageRequest, agent_pb2.PackageResponse]


class FetchFailed(Exception):
    """For now; the message says why."""


class FetchRefused(Exception):
    """For good. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_room(files: UpgradeFiles, packages: Sequence[Package]) -> None:
    """Raises FetchRefused when what is still to come does not fit, and OSError."""
    missing = 0
    for package in packages:
        if not files.package(package.sha256).exists():
            part = files.part(package.sha256)
            missing += package.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(files.folder).free
    if missing > 0 and free < missing + ROOM_LEFT_BYTES:
        raise FetchRefused(
            "NoRoom",
            f"{missing >> 20} MiB of packages are to come, {ROOM_LEFT_BYTES >> 20} MiB must stay "
            f"free, and {free >> 20} MiB are free at {files.folder}",
        )


async def fetch(channel: grpc.aio.Channel, files: UpgradeFiles, package: Package) -> None:
    """Until it is here, whole and right. Raises FetchFailed, FetchRefused and OSError."""
    whole = files.package(package.sha256)
    if whole.exists():
        if await asyncio.to_thread(sha256_of, whole) == package.sha256:
            return
        whole.unlink()
    part = files.part(package.sha256)
    if part.exists() and part.stat().st_size > package.size:
        part.unlink()
    if not part.exists() or part.stat().st_size < package.size:
        await _receive(channel, part, package)
    if await asyncio.to_thread(sha256_of, part) != package.sha256:
        part.unlink()
        raise FetchRefused("BadPackage", f"what came is not the package {package.sha256[:12]}")
    part.replace(whole)
    await asyncio.to_thread(sync_directory, files.folder)


async def _receive(channel: grpc.aio.Channel, part: Path, package: Package) -> None:
    """The rest of the package, on the disk."""
    with part.open("ab") as out:
        request = agent_pb2.PackageRequest(sha256=package.sha256, offset=out.tell())
        try:
            call = agent_pb2_grpc.AgentServiceStub(channel).Package(request)
            try:
                await _append(call, out, package.size)
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            said = (error.details() or "")[:200]
            raise FetchFailed(f"{error.code().name}: {said}") from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise FetchFailed("the session's connection has gone") from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise FetchFailed("the session's connection was closed") from error
        finally:
            await asyncio.to_thread(_sync, out)


async def _append(call: "_Call", out: IO[bytes], size: int) -> None:
    """As `_receive`, which knows what gRPC raises."""
    loop = asyncio.get_running_loop()
    offset = out.tell()
    while offset < size:
        begun = loop.time()
        try:
            async with asyncio.timeout(STALL_S):
                answer = await call.read()
        except TimeoutError:
            raise FetchFailed(f"nothing came for {STALL_S:g} s") from None
        if not isinstance(answer, agent_pb2.PackageResponse):
            raise FetchFailed(f"it ended at {offset} of {size} bytes")
        offset += len(answer.data)
        if offset > size:
            raise FetchRefused("BadPackage", f"it has more than {size} bytes")
        await asyncio.to_thread(out.write, answer.data)
        await asyncio.sleep(min(PAUSE_MAX_S, loop.time() - begun))


def _is_cancelled() -> bool:
    """Whether it is this task that is to end: gRPC raises the same for a call that is cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _sync(out: IO[bytes]) -> None:
    """What came so far need not come again after a power cut."""
    out.flush()
    os.fsync(out.fileno())
