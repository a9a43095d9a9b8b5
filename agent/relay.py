"""Logs and exec for operators: one Relay stream for each OpenRelay that came over the session.

`agent/session_stream.py` hands requests in. A relay runs on the same connection with flow control
of its own: a slow reader stops the one who writes to it here, and nothing else. What is carried is
the same for operators at the site itself (`agent/local/reach.py`): `carry`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from agent.runtime.port import ExecSession, RuntimeFailure
from polder.v1 import agent_pb2, agent_pb2_grpc

log = logging.getLogger(__name__)

MAX_RELAYS = 16
CHUNK_BYTES = 64 << 10
STALL_S = 600.0  # how long a reader may read nothing before its place is given to others
EXEC_IDLE_S = 4 * 3600.0  # as kubelets do: a forgotten shell is closed
END_S = 10.0
TOO_MANY = agent_pb2.RelayEnd(
    reason="TooManyRelays",
    message="this node serves as many logs and execs as it may; try again later",
)

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[agent_pb2.RelayRequest, agent_pb2.RelayResponse]


class RelaySources(Protocol):
    """Where the bytes come from. Both raise RuntimeFailure."""

    def logs(self, options: agent_pb2.LogOptions) -> AsyncGenerator[tuple[str, bytes], None]:
        """("stdout" | "stderr", data) in order; ends when nothing follows."""
        ...

    async def exec(self, options: agent_pb2.ExecOptions) -> ExecSession: ...


class Wire(Protocol):
    """Whom it is carried to and from. Both may raise grpc.RpcError and InvalidStateError."""

    async def read(self) -> Any:
        """The next RelayResponse; anything else: nobody is there any more."""
        ...

    async def write(self, request: agent_pb2.RelayRequest, /) -> None: ...


class RelayHub:
    """Starts relays, at most `limit` at once over all connections."""

    def __init__(self, sources: RelaySources, *, limit: int = MAX_RELAYS) -> None:
        self._sources = sources
        self._limit = limit
        self._running: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, channel: grpc.aio.Channel, request: agent_pb2.OpenRelay) -> None:
        """Answer one OpenRelay on `channel`, in a task of its own."""
        if len(self._running) >= 2 * self._limit:
            return  # not even refusals without bound: the server's own deadline answers
        full = len(self._running) >= self._limit
        task = asyncio.create_task(_relay(channel, request, self._sources, full))
        self._running[task] = channel
        task.add_done_callback(self._running.pop)

    async def drained(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        """Wait for the relays of a connection that is to be closed, then end what is left."""
        tasks = [task for task, used in self._running.items() if used is channel]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
            await _cancel(tasks)

    async def close(self) -> None:
        """End all relays: exec sessions are closed, log readers let go."""
        await _cancel(list(self._running))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _relay(
    channel: grpc.aio.Channel, request: agent_pb2.OpenRelay, sources: RelaySources, full: bool
) -> None:
    """From RelayOpen to RelayEnd. What goes wrong is told to the server if it still listens."""
    call: _Call = agent_pb2_grpc.AgentServiceStub(channel).Relay(None)
    # Cancelling a pending read cancels the whole call, so readers live until the end is written.
    readers: list[asyncio.Task[None]] = []
    try:
        opened = agent_pb2.RelayOpen(relay_id=request.relay_id)
        await _write(call, agent_pb2.RelayRequest(open=opened))
        if full:
            end = TOO_MANY
        else:
            end = await carry(call, request, sources, readers)
        await _write(call, agent_pb2.RelayRequest(end=end))
        await call.done_writing()
        async with asyncio.timeout(END_S):
            await call.code()
    except TimeoutError:
        log.warning("relay stalled", extra={"relay": request.relay_id})
    except (grpc.RpcError, asyncio.InvalidStateError) as error:
        log.debug("relay lost", extra={"relay": request.relay_id, "error": str(error)[:300]})
    finally:
        call.cancel()
        await _cancel_any(*readers)


async def carry(
    call: Wire,
    request: agent_pb2.OpenRelay,
    sources: RelaySources,
    readers: list[asyncio.Task[None]],
) -> agent_pb2.RelayEnd:
    """What was asked for, and how it ended. `readers` get the tasks that read from the wire, to be
    cancelled once the end is written. Raises TimeoutError when nobody reads for too long, and what
    the wire raises."""
    try:
        match request.WhichOneof("request"):
            case "logs":
                return await _carry_logs(call, request.logs, sources, readers)
            case "exec":
                return await _carry_exec(call, request.exec, sources, readers)
            case _:
                return agent_pb2.RelayEnd(
                    reason="Unsupported", message="this agent does not know that kind of relay"
                )
    except RuntimeFailure as error:
        return agent_pb2.RelayEnd(reason=error.reason, message=error.message[:1000])
    except (grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
        raise
    except Exception as error:  # the operator must not wait for ever because of our mistake
        log.exception("relay failed", extra={"relay": request.relay_id})
        return agent_pb2.RelayEnd(reason="Internal", message=f"{type(error).__name__}: {error}")


async def _carry_logs(
    call: Wire,
    options: agent_pb2.LogOptions,
    sources: RelaySources,
    readers: list[asyncio.Task[None]],
) -> agent_pb2.RelayEnd:
    lines = sources.logs(options)

    async def pump() -> None:
        async for stream, data in lines:
            await _send(call, stream, data)

    pumping = asyncio.create_task(pump())
    hearing = asyncio.create_task(_until_gone(call))
    readers.append(hearing)
    try:
        await asyncio.wait({pumping, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not pumping.done():  # the reader has gone away
            return agent_pb2.RelayEnd(reason="Cancelled")
        pumping.result()
        return agent_pb2.RelayEnd()
    finally:
        await _cancel_any(pumping)
        await lines.aclose()


async def _carry_exec(
    call: Wire,
    options: agent_pb2.ExecOptions,
    sources: RelaySources,
    readers: list[asyncio.Task[None]],
) -> agent_pb2.RelayEnd:
    session = await sources.exec(options)
    try:
        if options.tty and options.size.columns:
            await session.resize(options.size.columns, options.size.rows)
        activity = asyncio.Event()

        async def pump() -> None:
            async for stream, data in session.output():
                activity.set()
                await _send(call, stream, data)

        pumping = asyncio.create_task(pump())
        hearing = asyncio.create_task(_hear(call, session, activity))
        readers.append(hearing)
        idling = asyncio.create_task(_idle(activity))
        tasks = {pumping, hearing, idling}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pumping.done():
                pumping.result()
                return agent_pb2.RelayEnd(exit_code=session.exit_code)
            if idling.done():
                message = f"nothing was typed or printed for {EXEC_IDLE_S / 3600:g} hours"
                return agent_pb2.RelayEnd(reason="Idle", message=message)
            hearing.result()
            return agent_pb2.RelayEnd(reason="Cancelled")
        finally:
            await _cancel_any(pumping, idling)
    finally:
        await session.close()


async def _hear(call: Wire, session: ExecSession, activity: asyncio.Event) -> None:
    """What the operator types, until the stream ends. Reading waits for the container to accept."""
    while True:
        message = await call.read()
        if not isinstance(message, agent_pb2.RelayResponse):
            return
        activity.set()
        try:
            match message.WhichOneof("message"):
                case "stdin":
                    await session.write(message.stdin)
                case "close_stdin":
                    await session.close_stdin()
                case "resize":
                    await session.resize(message.resize.columns, message.resize.rows)
        except RuntimeFailure:  # the command has ended meanwhile: its exit code says how
            continue


async def _until_gone(call: Wire) -> None:
    while isinstance(await call.read(), agent_pb2.RelayResponse):
        pass


async def _idle(activity: asyncio.Event) -> None:
    """Returns when nothing has happened for too long."""
    while True:
        activity.clear()
        try:
            async with asyncio.timeout(EXEC_IDLE_S):
                await activity.wait()
        except TimeoutError:
            return
        await asyncio.sleep(1.0)  # a busy stream need not restart a timer for every chunk


async def _cancel_any(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _send(call: Wire, stream: str, data: bytes) -> None:
    for start in range(0, len(data), CHUNK_BYTES):
        part = data[start : start + CHUNK_BYTES]
        request = (
            agent_pb2.RelayRequest(stderr=part)
            if stream == "stderr"
            else agent_pb2.RelayRequest(stdout=part)
        )
        await _write(call, request)


async def _write(call: Wire, request: agent_pb2.RelayRequest) -> None:
    async with asyncio.timeout(STALL_S):
        await call.write(request)
