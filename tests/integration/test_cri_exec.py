"""Interactive exec against a real containerd's streaming server."""

import asyncio

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ContainerFailure, ExecSession, NotFound
from tests.cri_support import Pods

pytestmark = pytest.mark.containerd


@pytest.fixture
async def container(pods: Pods) -> str:
    container_id, _ = await pods.shell("sleep 1000")
    return container_id


async def collect(session: ExecSession) -> tuple[int, bytes, bytes]:
    gathered = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(20):
        async for stream, data in session.output():
            gathered[stream] += data
    await session.close()
    return session.exit_code, gathered["stdout"], gathered["stderr"]


async def test_output_and_exit_code(cri: CriRuntime, container: str) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    session = await cri.exec(container, command, stdin=False, tty=False)
    assert await collect(session) == (3, b"out\n", b"err\n")


async def test_end_of_stdin_reaches_the_process(cri: CriRuntime, container: str) -> None:
    session = await cri.exec(container, ["wc", "-c"], stdin=True, tty=False)
    await session.write(b"x" * 300_000)
    await session.close_stdin()
    assert await collect(session) == (0, b"300000\n", b"")
    with pytest.raises(ContainerFailure, match="stdin is closed"):
        await session.write(b"more")


async def test_megabytes_go_both_ways_at_once(cri: CriRuntime, container: str) -> None:
    session = await cri.exec(container, ["cat"], stdin=True, tty=False)
    data = bytes(range(256)) * 16_384

    async def feed() -> None:
        await session.write(data)
        await session.close_stdin()

    feeder = asyncio.create_task(feed())
    code, out, _ = await collect(session)
    await feeder
    assert code == 0 and out == data


async def test_terminal_has_the_size_and_one_stream(cri: CriRuntime, container: str) -> None:
    wait = 'until [ "$(stty size)" = "45 123" ]; do sleep 0.02; done'
    command = ["sh", "-c", f"{wait}; stty size; tty; echo err >&2; exit 5"]
    session = await cri.exec(container, command, stdin=True, tty=True)
    await session.resize(123, 45)
    code, out, err = await collect(session)
    assert (code, err) == (5, b"")
    assert b"45 123\r\n" in out and b"/dev/pts/" in out and b"err\r\n" in out


async def test_closing_a_terminals_stdin_types_end_of_input(
    cri: CriRuntime, container: str
) -> None:
    session = await cri.exec(container, ["cat"], stdin=True, tty=True)
    await session.write(b"hi\n")
    await session.close_stdin()
    code, out, _ = await collect(session)
    assert code == 0 and out.count(b"hi\r\n") == 2  # the echo and cat


async def test_unknown_command_tells_so(cri: CriRuntime, container: str) -> None:
    session = await cri.exec(container, ["nope"], stdin=False, tty=False)
    code, out, err = await collect(session)
    assert (code, out) == (127, b"") and b"command 'nope' not found in the image" in err


async def test_slow_reader_holds_the_process_back(cri: CriRuntime, container: str) -> None:
    """What is not read stays in the pipe: dd cannot finish before it is."""
    session = await cri.exec(
        container,
        ["sh", "-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null"],
        stdin=False,
        tty=False,
    )
    total = 0
    async for _, data in session.output():
        assert len(data) <= 64 * 1024
        total += len(data)
        if total == len(data):
            code, out = await cri.exec_sync(container, ["pidof", "dd"], 5)
            assert code == 0 and out.strip()
    assert total == 64 << 20 and session.exit_code == 0
    await session.close()


async def test_hanging_up_is_safe(cri: CriRuntime, container: str) -> None:
    session = await cri.exec(container, ["cat"], stdin=True, tty=False)
    await session.close()
    await session.close()
    await session.write(b"into the void")


async def test_container_that_is_gone_or_ended(cri: CriRuntime, container: str) -> None:
    with pytest.raises(NotFound):
        await cri.exec("gone", ["true"], stdin=False, tty=False)
    await cri.stop_container(container, 0)
    with pytest.raises(ContainerFailure, match="EXITED"):
        await cri.exec(container, ["true"], stdin=False, tty=False)
