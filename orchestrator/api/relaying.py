"""Logs and Exec: from an operator's call to the agent that runs the replica, and back.

The agent's end is reached through `orchestrator/mesh/forward.py`, whichever member it is connected
to; flow control reaches through both ends, so that nothing piles up here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from orchestrator.api.catalog import Catalog
from orchestrator.authz import Caller, require
from orchestrator.events import EventRecorder
from orchestrator.gateway.relays import NodeUnreachable, Relay
from orchestrator.refusals import Refused, invalid, not_found, unavailable
from polder.roles import Level
from polder.v1 import agent_pb2, common_pb2, operator_pb2


class Relays(Protocol):
    """How nodes are reached: `orchestrator.mesh.forward.Forwarding`."""

    def open(
        self, node: str, request: agent_pb2.OpenRelay
    ) -> contextlib.AbstractAsyncContextManager[Relay]:
        """Nothing is sent until `async with`, which raises NodeUnreachable."""
        ...


_MISSING = ("NotFound", "ReplicaNotFound", "ContainerNotFound")


class Relaying:
    """Serves Logs and Exec."""

    def __init__(self, catalog: Catalog, relays: Relays, events: EventRecorder) -> None:
        self._catalog = catalog
        self._relays = relays
        self._events = events

    async def logs(
        self, caller: Caller, request: operator_pb2.LogsRequest
    ) -> AsyncIterator[operator_pb2.LogsResponse]:
        """Raises Refused: Forbidden, NotFound, NotRunning, NodeUnreachable and the agent's own."""
        namespace = request.namespace or "default"
        require(caller, Level.VIEWER, namespace, "read logs")
        node, uid = self._find(namespace, request.replica)
        options = agent_pb2.LogOptions()
        options.CopyFrom(request.options)
        options.replica_uid = uid
        opened = self._relays.open(node, agent_pb2.OpenRelay(logs=options))
        async with _reaching(node), opened as relay:
            async for message in relay:
                data = message.stdout or message.stderr
                if data:
                    yield operator_pb2.LogsResponse(data=data)
                self._check_end(message, namespace, request.replica)

    async def exec(
        self, caller: Caller, requests: AsyncIterator[operator_pb2.ExecRequest]
    ) -> AsyncIterator[operator_pb2.ExecResponse]:
        """Raises Refused, as `logs` does."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise invalid("the first message of an exec must be its start")
        start = first.start
        namespace = start.namespace or "default"
        require(caller, Level.OPERATOR, namespace, "run commands")
        if not start.options.command:
            raise invalid("an exec needs a command")
        node, uid = self._find(namespace, start.replica)
        options = agent_pb2.ExecOptions()
        options.CopyFrom(start.options)
        options.replica_uid = uid
        opened = self._relays.open(node, agent_pb2.OpenRelay(exec=options))
        async with _reaching(node), opened as relay:
            self._report(caller, namespace, start)
            pump = asyncio.create_task(_pump(requests, relay), name="exec-stdin")
            try:
                async for message in relay:
                    self._check_end(message, namespace, start.replica)
                    for response in _exec_responses(message):
                        yield response
            finally:
                pump.cancel()
                await asyncio.wait({pump})

    def _find(self, namespace: str, replica: str) -> tuple[str, str]:
        """(node, replica uid). Raises Refused."""
        shown = self._catalog.get("Replica", namespace, replica)
        if shown is None:
            raise not_found(
                f"there is no replica {replica} in namespace {namespace}",
                f"edgectl get replicas -n {namespace}",
            )
        node = str(shown.record.spec["node"])
        if not node or not shown.record.uid:
            assert shown.status is not None
            raise _not_running(f"replica {replica} has no node: {shown.status['message']}")
        return node, shown.record.uid

    def _check_end(self, message: agent_pb2.RelayRequest, namespace: str, replica: str) -> None:
        """Raises Refused when the agent could not do it."""
        if message.WhichOneof("message") != "end" or not message.end.reason:
            return
        end = message.end
        if end.reason == "ReplicaNotFound":
            # The agent only knows a uid; why there is no pod is what it reports all the time.
            shown = self._catalog.get("Replica", namespace, replica)
            status = shown.status or {} if shown is not None else {}
            why = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
            text = f"replica {replica} has no pod{f'; {why}' if why else ''}"
            hint = f"edgectl describe replica/{replica} tells more"
            raise Refused(grpc.StatusCode.NOT_FOUND, end.reason, text, hint)
        if end.reason in _MISSING:
            raise Refused(grpc.StatusCode.NOT_FOUND, end.reason, end.message)
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, end.reason, end.message)

    def _report(self, caller: Caller, namespace: str, start: operator_pb2.ExecStart) -> None:
        """Who ran what, for others to see. Arguments may be confidential: the program only."""
        self._events.record(
            "Replica",
            namespace,
            start.replica,
            common_pb2.EVENT_TYPE_NORMAL,
            "Exec",
            f"asked to run {start.options.command[0][:200]} in container "
            f"{start.options.container or '-'}",
            caller.source,
        )


async def _pump(requests: AsyncIterator[operator_pb2.ExecRequest], relay: Relay) -> None:
    async for request in requests:
        match request.WhichOneof("message"):
            case "stdin":
                await relay.send(agent_pb2.RelayResponse(stdin=request.stdin))
            case "close_stdin":
                await relay.send(agent_pb2.RelayResponse(close_stdin=True))
            case "resize":
                await relay.send(agent_pb2.RelayResponse(resize=request.resize))


def _exec_responses(message: agent_pb2.RelayRequest) -> list[operator_pb2.ExecResponse]:
    match message.WhichOneof("message"):
        case "stdout":
            return [operator_pb2.ExecResponse(stdout=message.stdout)]
        case "stderr":
            return [operator_pb2.ExecResponse(stderr=message.stderr)]
        case "end":
            return [operator_pb2.ExecResponse(exit_code=message.end.exit_code)]
    return []


@contextlib.asynccontextmanager
async def _reaching(node: str) -> AsyncIterator[None]:
    try:
        yield
    except NodeUnreachable as error:
        raise unavailable(
            "NodeUnreachable", f"{error.message} ({error.reason})", f"edgectl get node/{node}"
        ) from error


def _not_running(message: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "NotRunning", message)
