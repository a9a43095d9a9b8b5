"""One stream between two nodes of a site, from both hellos to its end. `links.py` opens them.

The same code on both sides: a call of grpc.aio and the context of one both read and write. A
conversation never reconnects; it ends with a word that says why, and whoever waits decides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from agent.domain.site.messages import Said
from agent.site.codec import TOGETHER_MAX, BadMessage, decode, encode, goes_with
from polder.v1 import site_pb2

log = logging.getLogger(__name__)

QUEUE_MAX = 2_000
READS_PER_S, READS_AT_ONCE = 1_000, 2_000
"""A peer that says more is read no faster: what it asks for may cost a write to the disk each."""
LATE_S = 0.25
"""A loop that is later than this has not been reading."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Tests use smaller ones. `silent_s`: nothing was read for so long: the stream is
    dead, whatever the network says of it (peers speak each second)."""

    dial_s: float = 1.5
    hello_s: float = 3.0
    silent_s: float = 6.0
    eager_s: float = 10.0  # for so long after a loss a peer is dialled again without much waiting
    eager_pause_s: tuple[float, float] = (0.2, 1.0)
    pause_s: tuple[float, float] = (1.0, 5.0)
    listen_retry_s: float = 5.0


class Stream(Protocol):
    """Of grpc.aio, on either side."""

    async def read(self) -> Any: ...

    async def write(self, message: Any) -> None: ...


class TalkEnded(Exception):
    """Nothing more comes of this stream; the message says why."""


class Conversation:
    """Use: `await open(hello)`, then `await serve(said)`; `send` and `end` from anywhere."""

    def __init__(self, node: str, stream: Stream, timing: Timing) -> None:
        self.node = node
        self._stream = stream
        self._timing = timing
        self._queue: deque[Said] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heard_at = asyncio.get_running_loop().time()
        self._sequence = 0

    async def open(self, hello: site_pb2.PeerHello) -> site_pb2.PeerHello:
        """Both introduce themselves. Raises TalkEnded, also when another node answers."""
        try:
            async with asyncio.timeout(self._timing.hello_s):
                await self._stream.write(site_pb2.PeerMessage(hello=hello))
                first = await self._stream.read()
        except TimeoutError:
            raise TalkEnded(f"{self.node} says nothing") from None
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise TalkEnded(_why(error)) from error
        if not isinstance(first, site_pb2.PeerMessage) or not first.HasField("hello"):
            raise TalkEnded(f"the first message of {self.node} was no hello")
        if (first.hello.node, first.hello.site) != (self.node, hello.site):
            said = f"{first.hello.site}/{first.hello.node}"[:300]
            raise TalkEnded(f"{self.node} calls itself {said}")
        return first.hello

    async def serve(self, said: Callable[[Said], None]) -> str:
        """Read and write until either side ends it; says why. Only cancellation is raised."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        tasks: list[asyncio.Task[str]] = [
            asyncio.create_task(self._read(said)),
            asyncio.create_task(self._write()),
            asyncio.create_task(self._watch()),
        ]
        try:
            await asyncio.wait({self._over, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():
                return self._over.result()
            return next(task for task in tasks if task.done()).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._queue.clear()

    def send(self, said: Said) -> None:
        """Queued. A peer that reads nothing loses the stream rather than parts of what is said:
        with the next one everything is said anew."""
        if len(self._queue) >= QUEUE_MAX:
            self.end(f"{self.node} reads nothing")
            return
        self._queue.append(said)
        self._idle.clear()
        self._wake.set()

    def end(self, why: str) -> None:
        if not self._over.done():
            self._over.set_result(why)

    async def flushed(self) -> None:
        """Until what was queued is on its way, or the stream is over."""
        idle = asyncio.create_task(self._idle.wait())
        ends: set[asyncio.Future[Any]] = {self._over, idle}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()

    async def _read(self, said: Callable[[Said], None]) -> str:
        loop = asyncio.get_running_loop()
        spare, since = float(READS_AT_ONCE), loop.time()
        while True:
            spare = min(READS_AT_ONCE, spare + (loop.time() - since) * READS_PER_S) - 1
            since = loop.time()
            if spare < 0:
                await asyncio.sleep(-spare / READS_PER_S)
            try:
                message = await self._stream.read()
                if not isinstance(message, site_pb2.PeerMessage):
                    return f"{self.node} closed it"
                self._heard_at = loop.time()
                words = decode(message)
            except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                return _why(error)
            except BadMessage as error:
                log.warning("peer sent nonsense", extra={"peer": self.node, "detail": str(error)})
                return f"{self.node} {error}"
            spare -= max(0, len(words) - 1)
            for word in words:
                said(word)

    async def _write(self) -> str:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                try:
                    await self._stream.write(self._next())
                except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                    return _why(error)
            self._idle.set()

    def _next(self) -> site_pb2.PeerMessage:
        """What waits longest, taken from the queue, and what may go with it: a message costs a
        hundred times what is in it."""
        words = [self._queue.popleft()]
        while self._queue and len(words) < TOGETHER_MAX and goes_with(self._queue[0], words[-1]):
            words.append(self._queue.popleft())
        message = encode(*words)
        if message.HasField("beat"):
            self._sequence += 1
            message.beat.sequence = self._sequence
        return message

    async def _watch(self) -> str:
        """A box that was frozen itself wakes up with words that wait in its socket."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._timing.silent_s
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            now = loop.time()
            if now - due > LATE_S:
                due = now + 2 * LATE_S
                continue
            due = self._heard_at + self._timing.silent_s
            if due <= now:
                return f"{self.node} says nothing"


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return (error.details() or error.code().name)[:300]
    return str(error)[:300] or type(error).__name__
