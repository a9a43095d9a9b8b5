"""Where relays get their bytes: logs from files, exec from the runtime.

Implements `agent.relay.RelaySources` on top of the supervisor, which knows what runs.
"""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from agent import pod_logs
from agent.runtime.port import ContainerFailure, ExecSession, NotFound, Runtime
from agent.supervisor import Located, Supervisor
from polder.v1 import agent_pb2

LOG_PATH_POLL_S = 0.05
LOG_PATH_POLLS = 60


class ReplicaSources:
    def __init__(self, supervisor: Supervisor, runtime: Runtime) -> None:
        self._supervisor = supervisor
        self._runtime = runtime

    async def logs(self, options: agent_pb2.LogOptions) -> AsyncGenerator[tuple[str, bytes], None]:
        """Raises NotFound. With `follow` it ends when that run of the container ends."""
        found = await self._log_of(options)

        def running() -> bool:
            try:
                now = self._supervisor.find(options.replica_uid, options.container)
            except NotFound:
                return False
            return now.running and now.container_id == found.container_id

        wanted = pod_logs.LogOptions(
            follow=options.follow and not options.previous,
            tail_lines=options.tail_lines,
            since=options.since_ms / 1000,
            timestamps=options.timestamps,
        )
        async for piece in pod_logs.read(Path(found.log_path), wanted, running=running):
            yield piece

    async def _log_of(self, options: agent_pb2.LogOptions) -> Located:
        """Of a run that started this moment the next listing tells where its log is."""
        for _ in range(LOG_PATH_POLLS):
            found = self._supervisor.find(
                options.replica_uid, options.container, previous=options.previous
            )
            if found.log_path:
                return found
            await asyncio.sleep(LOG_PATH_POLL_S)
        raise NotFound("LogNotFound", "the runtime does not say where the log is")

    async def exec(self, options: agent_pb2.ExecOptions) -> ExecSession:
        """Raises NotFound, and ContainerFailure when the container does not run."""
        found = self._supervisor.find(options.replica_uid, options.container)
        if not found.running:
            raise ContainerFailure("NotRunning", "the container does not run now")
        return await self._runtime.exec(
            found.container_id, list(options.command), stdin=options.stdin, tty=options.tty
        )
