"""Logs of a replica here, and commands in it, for an operator at the site: one stream each.

`server.py` hands them in. What is carried is what relays carry (`agent/relay.py`); what is added is
who may, the journal, and that a stream ends with the credential that opened it.
"""

import asyncio
import contextlib
from typing import Any, NoReturn

from agent.local.callers import READ, Caller
from agent.local.directory import Directory
from agent.local.door import Door
from agent.local.journal import Journal, named
from agent.local.refusals import Refused, invalid, unauthenticated, unavailable
from agent.local.replicas import Replicas
from agent.relay import TOO_MANY, RelaySources, carry
from polder.v1 import agent_pb2, local_pb2

STREAMS_MAX = 8
OPEN_S = 10.0
LOOK_EVERY_S = 15.0  # whether the caller would still be let in
EXEC, LOGS = "exec", "logs"


class _Wire:
    """A ReachRequest stream as relays want it. A caller that sends nothing more still listens: the
    command's input ends, and gRPC cancels the call when the caller goes away."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._ended = False

    async def read(self) -> agent_pb2.RelayResponse:
        while not self._ended:
            request = await self._context.read()
            if not isinstance(request, local_pb2.ReachRequest):
                self._ended = True
                return agent_pb2.RelayResponse(close_stdin=True)
            if request.HasField("input"):
                return request.input
        return await asyncio.Future()

    async def write(self, request: agent_pb2.RelayRequest) -> None:
        await self._context.write(request)


class Reach:
    """Some streams at once."""

    def __init__(
        self,
        sources: RelaySources,
        replicas: Replicas,
        door: Door,
        directory: Directory,
        journal: Journal,
    ) -> None:
        self._sources = sources
        self._replicas = replicas
        self._door = door
        self._directory = directory
        self._journal = journal
        self._running = 0

    async def serve(self, caller: Caller, context: Any) -> None:
        """Until it ends by itself, or the caller's credential does. Raises Refused, NotWritten."""
        opened = await self._opened(context)
        request = await self._request(caller, opened)
        if self._running >= STREAMS_MAX:
            await context.write(agent_pb2.RelayRequest(end=TOO_MANY))
            return
        self._running += 1
        try:
            await self._carry(caller, request, context)
        finally:
            self._running -= 1

    async def _opened(self, context: Any) -> local_pb2.ReachOpen:
        try:
            async with asyncio.timeout(OPEN_S):
                first = await context.read()
        except TimeoutError:
            first = None
        if not isinstance(first, local_pb2.ReachRequest) or not first.HasField("open"):
            raise invalid("the first message says what is wanted")
        return first.open

    async def _request(self, caller: Caller, opened: local_pb2.ReachOpen) -> agent_pb2.OpenRelay:
        """For a stay that is really of the replica that was judged: a uid alone says nothing. What
        is done with a break-glass token is journaled even if it only reads."""
        match opened.WhichOneof("what"):
            case "logs":
                options: agent_pb2.LogOptions | agent_pb2.ExecOptions = opened.logs
                action, verb = READ, LOGS
            case "exec":
                options, action, verb = opened.exec, EXEC, EXEC
            case _:
                raise invalid("neither logs nor a command is asked for")
        detail = "" if isinstance(options, agent_pb2.LogOptions) else " ".join(options.command)
        try:
            target = self._replicas.target(caller, action, opened.namespace, opened.replica)
            options.replica_uid = self._replicas.view(target, options.replica_uid).uid
        except Refused as refused:
            meant = named(opened.namespace, opened.replica)
            await self._journal.refuse(caller, verb, refused.message, target=meant, detail=detail)
            raise
        if action == EXEC or caller.grant is not None:
            await self._journal.write(caller, verb, target=target, detail=detail)
        if isinstance(options, agent_pb2.LogOptions):
            return agent_pb2.OpenRelay(logs=options)
        return agent_pb2.OpenRelay(exec=options)

    async def _carry(self, caller: Caller, request: agent_pb2.OpenRelay, context: Any) -> None:
        readers: list[asyncio.Task[None]] = []
        wire = _Wire(context)
        carrying = asyncio.create_task(carry(wire, request, self._sources, readers))
        leaving = asyncio.create_task(self._out(caller))
        try:
            await asyncio.wait({carrying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                leaving.result()  # raises
            await context.write(agent_pb2.RelayRequest(end=carrying.result()))
        except TimeoutError as error:
            raise unavailable("Stalled", "the caller reads nothing") from error
        finally:
            tasks = (carrying, leaving, *readers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _out(self, caller: Caller) -> NoReturn:
        """Raises Refused once the credential is worth nothing any more."""
        try:
            async with asyncio.timeout(self._door.left_s(caller)):
                while True:
                    self._door.check(caller)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await self._directory.news()
        except TimeoutError:
            raise unauthenticated("Expired", f"{caller.by} has expired meanwhile") from None
