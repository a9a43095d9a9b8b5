"""One interactive exec against the runtime's streaming server. Imported when the first exec comes.

`CriRuntime.exec` asks CRI for a URL and hands it to `open_session`. They speak Kubernetes's
remote command protocol v4 (`v4.channel.k8s.io`): streams for stdin, stdout, stderr, resize, and
one on which a JSON status with the exit code comes last.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from agent.runtime.cri import errors, spdy
from agent.runtime.port import ContainerFailure, RuntimeUnavailable

PROTOCOL = "v4.channel.k8s.io"
CHUNK_BYTES_MAX = 64 * 1024
STATUS_BYTES_MAX = 64 * 1024
CONTROL_BYTES_MAX = 64 * 1024
CONNECT_TIMEOUT_S = 10.0

END_OF_INPUT = b"\x04"

# What a shell answers when it cannot run a command.
EXIT_NOT_RUNNABLE = 126
EXIT_NOT_FOUND = 127
EXIT_CONNECTION_LOST = 255


async def open_session(url: str, *, stdin: bool, tty: bool) -> "StreamingExec":
    """Raises RuntimeUnavailable when the streaming server does not answer or refuses."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise RuntimeUnavailable("RuntimeUnavailable", f"cannot exec over {parts.scheme}")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 80, limit=CHUNK_BYTES_MAX
            )
            try:
                await _upgrade(reader, writer, parts.netloc, f"{parts.path}?{parts.query}")
                session = StreamingExec(reader, writer, stdin=stdin, tty=tty)
                await session.start()
            except BaseException:
                writer.close()
                raise
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise RuntimeUnavailable(
            "RuntimeUnavailable", f"exec server at {parts.netloc}: {error or 'timeout'}"
        ) from error
    return session


async def _upgrade(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str
) -> None:
    writer.write(
        f"POST {target.rstrip('?')} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
        f"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        f"X-Stream-Protocol-Version: {PROTOCOL}\r\n\r\n".encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = head.partition("\r\n")[0]
    if " 101 " not in f"{status} ":
        raise RuntimeUnavailable("RuntimeUnavailable", f"exec server answered {status!r}")


class StreamingExec:
    """The port's ExecSession. Nothing is read ahead: a slow consumer slows the process down."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        stdin: bool,
        tty: bool,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._stdin_open = stdin
        self._kinds = ["error", "stdout"]
        self._kinds += ["stdin"] if stdin else []
        self._kinds += ["resize"] if tty else ["stderr"]
        self._streams: dict[str, int] = {}
        self._status = b""
        self._exit_code = EXIT_CONNECTION_LOST

    async def start(self) -> None:
        opener = spdy.StreamOpener()
        for kind in self._kinds:
            self._streams[kind], frame = opener.open({"streamType": kind})
            self._writer.write(frame)
        await self._writer.drain()

    @property
    def exit_code(self) -> int:
        return self._exit_code

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        names = {number: kind for kind, number in self._streams.items()}
        waiting = {self._streams[k] for k in ("error", "stdout", "stderr") if k in self._streams}
        try:
            while waiting:
                frame = spdy.decode_header(await self._reader.readexactly(spdy.HEADER_BYTES))
                if frame.kind:
                    waiting.discard(await self._control(frame))
                    continue
                name = names.get(frame.stream, "")
                async for chunk in self._payload(frame.size):
                    if name in ("stdout", "stderr"):
                        yield name, chunk
                    elif name == "error":
                        self._status = (self._status + chunk)[:STATUS_BYTES_MAX]
                if frame.fin:
                    waiting.discard(frame.stream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the server closes the connection right after the status
        complaint = self._finish()
        if complaint:
            yield "stderr", complaint.encode()

    async def _payload(self, size: int) -> AsyncIterator[bytes]:
        while size:
            chunk = await self._reader.readexactly(min(size, CHUNK_BYTES_MAX))
            size -= len(chunk)
            yield chunk

    async def _control(self, frame: spdy.Frame) -> int:
        """Handle a control frame; returns the stream that it ended, or 0."""
        if frame.size > CONTROL_BYTES_MAX:
            raise ConnectionError("oversized control frame")
        payload = await self._reader.readexactly(frame.size)
        if frame.kind == spdy.PING:
            self._writer.write(spdy.ping(payload))
        elif frame.kind == spdy.RST_STREAM or (frame.kind == spdy.SYN_REPLY and frame.fin):
            return spdy.stream_of(payload)
        return 0

    def _finish(self) -> str:
        """Read the exit code from the status; returns what went wrong before the process ran."""
        try:
            status = json.loads(self._status)
        except ValueError:
            return "exec: the connection to the container runtime was lost\n"
        if status.get("status") == "Success":
            self._exit_code = 0
            return ""
        causes = (status.get("details") or {}).get("causes") or []
        for cause in causes:
            if cause.get("reason") == "ExitCode":
                self._exit_code = int(cause["message"])
                return ""
        message = errors.explain_start(errors.tidy(str(status.get("message", "failed"))))
        self._exit_code = EXIT_NOT_FOUND if "not found" in message else EXIT_NOT_RUNNABLE
        return f"exec: {message}\n"

    async def write(self, data: bytes) -> None:
        """Raises ContainerFailure when stdin was not asked for or is closed already."""
        if not self._stdin_open:
            raise ContainerFailure("ExecFailed", "stdin is closed")
        for start in range(0, len(data), CHUNK_BYTES_MAX):
            part = data[start : start + CHUNK_BYTES_MAX]
            await self._send(spdy.data(self._streams["stdin"], part))

    async def close_stdin(self) -> None:
        """With a tty it types ^D: a real end of the stream would hang the terminal up, and what the
        process still had to say would be lost."""
        if self._stdin_open:
            self._stdin_open = False
            tty = "resize" in self._streams
            last = spdy.data(self._streams["stdin"], END_OF_INPUT if tty else b"", fin=not tty)
            await self._send(last)

    async def resize(self, columns: int, rows: int) -> None:
        """No effect without a tty."""
        if "resize" in self._streams:
            size = json.dumps({"Width": columns, "Height": rows}).encode()
            await self._send(spdy.data(self._streams["resize"], size))

    async def _send(self, frame: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the process ended; output() tells how
            self._writer.write(frame)
            await self._writer.drain()

    async def close(self) -> None:
        """Hang up; the runtime ends the process's streams. Safe to call twice."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._writer.wait_closed()
