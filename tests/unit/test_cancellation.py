"""A CancelledError that is not meant for a task ends nothing, and nobody waits because of it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
import pytest
from grpc import aio

from orchestrator.authz import Listener
from orchestrator.background import Background
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.metrics import Metrics
from orchestrator.rpc import FrontDoor
from orchestrator.store.port import RangeResult, WatchBatch


async def given_up() -> None:
    """As a call whose channel was closed by somebody else."""
    raise asyncio.CancelledError


async def test_a_task_that_something_else_cancelled_is_not_silently_gone() -> None:
    background = Background()
    background.start("gone", given_up())
    async with asyncio.timeout(30.0):
        await background.failed.wait()


async def test_tasks_that_are_stopped_are_no_failure() -> None:
    background = Background()
    background.start("runs", asyncio.sleep(60))
    await asyncio.sleep(0)
    await background.stop()
    assert not background.failed.is_set()


class Store:
    """Whose first watch is cancelled under who reads it."""

    def __init__(self) -> None:
        self.watches = 0

    async def revision(self) -> int:
        return 1

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        return RangeResult((), 1, False)

    async def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        self.watches += 1
        if self.watches == 1:
            raise asyncio.CancelledError
        yield WatchBatch(7)
        await asyncio.sleep(60)


async def test_a_watch_that_is_cancelled_under_the_mirror_is_taken_up_again() -> None:
    cache = Cache(Store(), lambda: 0.0)  # type: ignore[arg-type]
    await cache.start()
    async with asyncio.timeout(30.0):
        await cache.wait_for(7)
    await cache.stop()


class Door:
    """A server behind the front door, whose handlers are given up by what they wait for."""

    def __init__(self) -> None:
        calls = LiveCalls(Cache(Store(), lambda: 0.0), lambda: 0.0)  # type: ignore[arg-type]
        door = FrontDoor(Listener.MTLS, cast(Any, None), calls, Metrics("t", "m", "eu"))
        self.server = aio.server(interceptors=[door])
        self.waits, self.ended = asyncio.Event(), asyncio.Event()
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        generic = grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)
        self.server.add_generic_rpc_handlers((generic,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def check(self, request: bytes, context: object) -> bytes:
        if request:
            self.waits.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.ended.set()
        await given_up()
        return b""

    async def watch(self, request: bytes, context: object) -> AsyncGenerator[bytes, None]:
        yield b"first"
        await given_up()


@pytest.fixture
async def door() -> AsyncGenerator[tuple[Door, aio.Channel], None]:
    door = Door()
    await door.server.start()
    async with aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        yield door, channel
    await door.server.stop(0)


async def test_a_call_whose_handler_was_given_up_is_answered(door: tuple[Door, Any]) -> None:
    _, channel = door
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30.0)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    got = []
    with pytest.raises(aio.AioRpcError) as caught:
        async for message in channel.unary_stream("/grpc.health.v1.Health/Watch")(
            b"", timeout=30.0
        ):
            got.append(message)
    assert (got, caught.value.code()) == ([b"first"], grpc.StatusCode.INTERNAL)


async def test_a_caller_that_goes_is_no_failure(
    door: tuple[Door, Any], caplog: pytest.LogCaptureFixture
) -> None:
    made, channel = door
    call = channel.unary_unary("/grpc.health.v1.Health/Check")(b"wait")
    async with asyncio.timeout(30.0):
        await made.waits.wait()
        call.cancel()
        await made.ended.wait()
        await made.server.stop(0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
