"""Probes against real sockets on the loopback."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.domain.instructions import RunProbe
from agent.domain.probes import ProbeKind
from agent.probes import Prober
from agent.runtime.port import NotFound, RuntimeUnavailable
from agent.runtime.simulated import SimulatedRuntime
from polder.manifest import Probe, decode

SOON = {"timeout": "300ms"}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def operation(probe: dict[str, Any], port: int = 0) -> RunProbe:
    return RunProbe(
        "u", "c", ProbeKind.LIVENESS, decode(Probe, {"timeout": "60s"} | probe), "127.0.0.1", port
    )


async def ask(answer: bytes | None, path: str = "/healthz") -> tuple[bool | None, str, bytes]:
    """The probe's result against a server that gives this answer; None: none at all."""
    heard, gone = b"", asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await gone.wait()
        else:
            writer.write(answer)
            await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        timeout = SOON if answer is None else {}
        probe = operation({"http": {"path": "/", "port": port}} | timeout, port)
        assert probe.probe.http is not None  # the path as if no schema had checked it
        unchecked = replace(probe.probe, http=replace(probe.probe.http, path=path))
        probe = replace(probe, probe=unchecked)
        passed, message = await Prober(SimulatedRuntime()).check(probe)
        gone.set()
        return passed, message, heard


@pytest.mark.parametrize(
    ("answer", "passed", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, ""),
        (b"HTTP/1.0 302 Found\r\n\r\n", True, ""),
        (b"HTTP/1.1 503\r\n\r\n", False, "HTTP status 503"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "HTTP status 404"),
        (b"SSH-2.0-nope\r\n", False, "the answer is no HTTP"),
        (b"", False, "the answer is no HTTP"),
        (b"x" * 100_000, False, "the answer is no HTTP"),
        (None, False, "no answer within 0.3 s"),
    ],
)
async def test_http(answer: bytes | None, passed: bool, message: str) -> None:
    assert (await ask(answer))[:2] == (passed, message)


async def test_a_path_cannot_smuggle_a_header() -> None:
    _, _, heard = await ask(b"HTTP/1.1 200 OK\r\n\r\n", "/a b\r\nEvil: 1?q=%20")
    assert heard.startswith(b"GET /a%20b%0D%0AEvil:%201?q=%20 HTTP/1.1\r\n")
    assert b"\r\nEvil" not in heard


async def test_a_connection_that_takes_its_time() -> None:
    """Nobody takes the connections that wait already: the kernel leaves ours unanswered."""
    loop, prober = asyncio.get_running_loop(), Prober(SimulatedRuntime())
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            probe = {"tcp": {"port": port}}
            passed, message = await prober.check(operation(probe | SOON, port))
            assert (passed, message) == (False, "no answer within 0.3 s")
            patient = asyncio.create_task(prober.check(operation(probe, port)))
            await asyncio.sleep(0)
            server.setblocking(False)
            (await loop.sock_accept(server))[0].close()
            assert await patient == (True, "")


async def test_tcp_and_a_port_that_nobody_listens_on() -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    prober = Prober(SimulatedRuntime())
    async with server:
        assert (await prober.check(operation({"tcp": {"port": port}}, port)))[0] is True
    passed, message = await prober.check(operation({"tcp": {"port": port}}, port))
    assert passed is False and message


@pytest.mark.parametrize(
    ("outcome", "passed"),
    [
        ((0, b"fine"), True),
        ((1, b"broken\n"), False),
        (TimeoutError(), False),
        (RuntimeUnavailable("RuntimeUnavailable", "away"), None),
        (NotFound("NotFound", "no such container"), None),
    ],
)
async def test_exec(outcome: Any, passed: bool | None) -> None:
    runtime = SimulatedRuntime()

    async def exec_sync(*_: object) -> tuple[int, bytes]:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    runtime.exec_sync = exec_sync  # type: ignore[method-assign]
    found, message = await Prober(runtime).check(operation({"exec": {"command": ["check"]}}))
    assert found is passed
    assert ("broken" in message) == (outcome == (1, b"broken\n"))
