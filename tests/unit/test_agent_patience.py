"""Waiting for an orchestrator, on a box that may itself be late."""

import asyncio
import socket
import time

import pytest

from agent.patience import patience


async def test_silence_ends_it() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with patience(0.05):
            await asyncio.Event().wait()
    assert time.monotonic() - started >= 0.05


async def test_what_comes_in_time_is_heard() -> None:
    async with patience(30.0) as scope:
        await asyncio.sleep(0)
    assert not scope.expired()


async def test_an_answer_that_came_while_this_process_was_not_there_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.patience.GRACE_S", 30.0)  # this machine may be late once more
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        theirs.send(b"welcome")
        async with patience(0.1):
            time.sleep(0.6)  # noqa: ASYNC251 - that is the point
            assert await asyncio.shield(loop.sock_recv(ours, 10)) == b"welcome"
            answer = asyncio.create_task(_later(loop, ours))
            theirs.send(b"again")
            assert await answer == b"again"


async def _later(loop: asyncio.AbstractEventLoop, ours: socket.socket) -> bytes:
    await asyncio.sleep(0.01)
    return await loop.sock_recv(ours, 10)


async def test_who_is_late_and_then_hears_nothing_gives_up_too() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.1):
            time.sleep(0.5)  # noqa: ASYNC251 - that is the point
            await asyncio.Event().wait()
