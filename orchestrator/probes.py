"""Health for the platform that runs this process: `grpc.health.v1` without TLS (`health_listen`).

Made by `server.py`. A kubelet's gRPC probe speaks no TLS, so the ports for boxes and operators
cannot answer it. Nothing else is served here. It answers before the Store is there: a member that
waits for etcd is alive, and restarting it would help nobody.

    liveness     the process answers
    readiness    boxes and operators are let in (also the empty name). It stays so while the Store
                 is away: the member serves what it knows, and nobody is better off without it
"""

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from orchestrator.listeners import CannotListen

LIVENESS, READINESS = "liveness", "readiness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_REQUEST_BYTES_MAX = 4096
_STREAMS_MAX = 16


class Probes:
    """`start`, then `say` whenever it changes, then `stop`."""

    def __init__(self, address: str) -> None:
        """Raises CannotListen."""
        self._health = HealthServicer()
        self._server = aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _REQUEST_BYTES_MAX),
                ("grpc.max_concurrent_streams", _STREAMS_MAX),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on {address}: is another process using it?"
            ) from error

    async def start(self) -> None:
        await self._health.set(LIVENESS, _SERVING)
        await self.say(ready=False)
        await self._server.start()

    async def say(self, *, ready: bool) -> None:
        for service in ("", READINESS):
            await self._health.set(service, _SERVING if ready else _NOT_SERVING)

    async def stop(self) -> None:
        await self._server.stop(0.0)
