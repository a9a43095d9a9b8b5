"""A TCP proxy before an etcd, whose connections a test cuts, silences or delays."""

import asyncio
import contextlib
from typing import Self


class Proxy:
    """Use as a context manager; clients connect to `endpoint`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._own_port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._muted = False
        self.delay_s = 0.0
        """How late every answer is. What is on its way keeps its order while this stays so."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._own_port}"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._own_port)
        self._own_port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    def mute(self) -> None:
        """From now on nothing comes back; what clients send still arrives."""
        self._muted = True

    async def restore(self) -> None:
        """As it was, for new connections; those that were silenced end."""
        self._muted = False
        for writer in list(self._writers):
            writer.transport.abort()
        if self._server is None:
            await self._listen()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(upstream)
        for source, sink, back in (
            (reader, upstream, False),
            (upstream_reader, writer, True),
        ):
            task = asyncio.create_task(self._pump(source, sink, back))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if back and self._muted:
                    continue
                if back and self.delay_s:
                    asyncio.get_running_loop().call_later(self.delay_s, sink.write, data)
                    continue
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)
