"""Carries out one probe: an HTTP request, a TCP connection or a command in the container.

`agent/supervisor.py` calls it for every RunProbe. When and how often is decided in
`agent/domain/probes.py`. HTTP is spoken by hand: one GET, one status line; a client library would
cost more memory than all probes together. No TLS.
"""

import asyncio
import contextlib
import os
import select
import socket
from urllib.parse import quote

from agent.domain.instructions import RunProbe
from agent.runtime.port import NotFound, Runtime, RuntimeUnavailable
from polder.manifest import Probe

AT_ONCE = 16
MAX_STATUS_LINE = 4096
MAX_OUTPUT = 200
SAFE_IN_PATH = "/?&=%:@!$'()*+,;~-._#[]"

Result = tuple[bool | None, str]


class Prober:
    """At most `at_once` checks run at the same time; the others wait, outside their timeout."""

    def __init__(self, runtime: Runtime, at_once: int = AT_ONCE) -> None:
        self._runtime = runtime
        self._slots = asyncio.Semaphore(at_once)

    async def check(self, operation: RunProbe) -> Result:
        """(passed, message). None: the check could not be made, which says nothing."""
        probe = operation.probe
        async with self._slots:
            try:
                if probe.exec is not None:
                    return await self._command(operation, probe.exec.command)
                async with asyncio.timeout(probe.timeout):
                    return await _connect(operation, probe)
            except TimeoutError:
                return False, f"no answer within {probe.timeout:g} s"
            except OSError as error:
                return False, error.strerror or str(error)

    async def _command(self, operation: RunProbe, command: tuple[str, ...]) -> Result:
        try:
            code, output = await self._runtime.exec_sync(
                operation.container_id, command, operation.probe.timeout
            )
        except (RuntimeUnavailable, NotFound) as error:
            return None, error.message
        if code == 0:
            return True, ""
        text = output.decode(errors="replace").strip()[:MAX_OUTPUT]
        return False, f"exit code {code}" + (f": {text}" if text else "")


async def _connect(operation: RunProbe, probe: Probe) -> Result:
    """Plain sockets on the loop: streams and transports cost three times as much per check."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in operation.pod_ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        await _open(loop, connection, (operation.pod_ip, operation.port))
        if probe.http is None:
            return True, ""
        return await _get(loop, connection, operation, probe.http.path)


async def _open(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, address: tuple[str, int]
) -> None:
    """A pod is on this box: as a rule it has answered when connect returns, and nothing has to be
    waited for."""
    with contextlib.suppress(BlockingIOError):
        connection.connect(address)
    ready = select.poll()
    ready.register(connection, select.POLLOUT)
    if not ready.poll(0):
        await loop.sock_connect(connection, address)
    elif code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


async def _get(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, operation: RunProbe, path: str
) -> Result:
    target = quote(path if path.startswith("/") else "/" + path, safe=SAFE_IN_PATH)
    host = f"[{operation.pod_ip}]" if ":" in operation.pod_ip else operation.pod_ip
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {host}:{operation.port}\r\n"
        "User-Agent: polder-agent\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    await loop.sock_sendall(connection, request.encode("ascii"))
    await asyncio.sleep(0)  # other probes ask meanwhile: who has answered then is not waited for
    answer = b""
    while b"\n" not in answer and len(answer) < MAX_STATUS_LINE:
        more = await loop.sock_recv(connection, MAX_STATUS_LINE)
        if not more:
            break
        answer += more
    line = answer.partition(b"\n")[0].decode("latin-1").split(maxsplit=2)
    if len(line) < 2 or not line[0].startswith("HTTP/1.") or not line[1].isdigit():
        return False, "the answer is no HTTP"
    status = int(line[1])
    return (True, "") if 200 <= status < 400 else (False, f"HTTP status {status}")
