"""Waiting until something changed: by the runtime's container events, or by polling."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc

from agent.runtime.cri.pb import api_pb2 as pb

if TYPE_CHECKING:  # the generated module has it in its .pyi only
    from agent.runtime.cri.pb.api_pb2_grpc import RuntimeServiceAsyncStub

RECONNECT_S = 1.0


class ChangeWaiter:
    """GetContainerEvents where it is implemented (containerd 1.7, CRI-O 1.26); detected once.

    containerd 1.6 answers UNIMPLEMENTED: then `wait` is a plain sleep, and the caller polls.
    """

    def __init__(self, stub: "RuntimeServiceAsyncStub") -> None:
        self._stub = stub
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._supported = True

    async def wait(self, timeout_s: float) -> bool:
        if self._reader is None and self._supported:
            self._reader = asyncio.create_task(self._read(), name="cri-events")
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def tell(self) -> None:
        """Something is known to have changed."""
        self._changed.set()

    async def _read(self) -> None:
        while self._supported:
            try:
                async for _ in self._stub.GetContainerEvents(pb.GetEventsRequest()):
                    self._changed.set()
            except grpc.aio.AioRpcError as error:
                self._supported = error.code() is not grpc.StatusCode.UNIMPLEMENTED
            # Events may have been missed while the stream was down.
            if self._supported:
                self._changed.set()
                await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
