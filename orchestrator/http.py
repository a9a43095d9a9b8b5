"""Metrics and health over plain HTTP, on the loopback address unless told otherwise.

Three paths for Prometheus, Kubernetes and scripts: /metrics, /healthz (the process answers) and
/readyz (it serves). GET only, small requests only, one answer per connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

log = logging.getLogger(__name__)

_HEAD_BYTES_MAX = 8192
_TIMEOUT_S = 10.0
_CONNECTIONS_MAX = 32
_TEXT = "text/plain; charset=utf-8"
_WORDS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class HttpServer:
    """`ready` says whether to answer 200 on /readyz, with a word for why not."""

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], str]) -> None:
        """`ready` returns an empty text when all is well."""
        self._registry = registry
        self._ready = ready
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str, port: int) -> int:
        """The port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_BYTES_MAX)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _CONNECTIONS_MAX:
                async with asyncio.timeout(_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    status, kind, body = await self._answer(head)
                    writer.write(_response(status, kind, body))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a plain HTTP request was not completed")
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[int, str, bytes]:
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3:
            return 400, _TEXT, b"bad request\n"
        method, target, _ = parts
        if method != b"GET":
            return 405, _TEXT, b"GET only\n"
        match target.partition(b"?")[0]:
            case b"/metrics":
                # Thousands of series take a while; heartbeats are served meanwhile.
                return (
                    200,
                    CONTENT_TYPE_LATEST,
                    await asyncio.to_thread(generate_latest, self._registry),
                )
            case b"/healthz":
                return 200, _TEXT, b"ok\n"
            case b"/readyz":
                trouble = self._ready()
                return (503 if trouble else 200), _TEXT, f"{trouble or 'ok'}\n".encode()
        return 404, _TEXT, b"/metrics, /healthz and /readyz are here\n"


def _response(status: int, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
