"""A whole small installation on this machine: an orchestrator, agents, each with its containerd.

The quickstart keeps one under /var/lib; benchmarks and tests make theirs in a temporary directory.
Everything goes through the programs' own command lines, as an operator would do it.
"""

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc

from devcluster.boxes import BIN, EDGE_AGENT, EDGECTL, SITE, AgentProcess, Boxes, CommandError, run
from devcluster.daemon import Daemon
from devcluster.ports import free_port
from polder.v1 import operator_pb2, operator_pb2_grpc

__all__ = [
    "EDGECTL",
    "EDGE_AGENT",
    "EDGE_ORCHESTRATOR",
    "SITE",
    "AgentProcess",
    "CommandError",
    "Installation",
    "Ports",
    "run",
]

EDGE_ORCHESTRATOR = str(BIN / "edge-orchestrator")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the orchestrator listens on 127.0.0.1."""

    operator: int
    join: int
    metrics: int

    @staticmethod
    def free() -> "Ports":
        return Ports(free_port(), free_port(), free_port())


class Installation(Boxes):
    """In one directory, with fixed ports if given. `start_*` finds again what already runs."""

    def __init__(self, directory: Path, ports: Ports | None = None) -> None:
        super().__init__(directory, directory / "orchestrator" / "admin.yaml")
        self._ports_file = directory / "ports.json"
        self.ports = ports or self._remembered_ports()
        self.orchestrator = self._orchestrator_daemon()

    def _remembered_ports(self) -> Ports:
        if self._ports_file.exists():
            return Ports(**json.loads(self._ports_file.read_text()))
        return Ports.free()

    @property
    def data_dir(self) -> Path:
        return self.directory / "orchestrator"

    # --- orchestrator ----------------------------------------------------------------------

    def _orchestrator_daemon(self) -> Daemon:
        address = "127.0.0.1"
        return Daemon(
            "orchestrator",
            self.directory,
            [
                EDGE_ORCHESTRATOR,
                "serve",
                "--data-dir",
                str(self.data_dir),
                "--listen",
                f"{address}:{self.ports.operator}",
                "--join-listen",
                f"{address}:{self.ports.join}",
                "--metrics-listen",
                f"{address}:{self.ports.metrics}",
            ],
            marker=str(self.data_dir),
        )

    def start_orchestrator(self) -> None:
        """Raises DaemonError. Returns when operators and agents are served."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ports_file.write_text(
            json.dumps({name: getattr(self.ports, name) for name in Ports.__slots__})
        )
        self.orchestrator.start(self._orchestrator_ready)

    def _orchestrator_ready(self) -> bool:
        """Asked of the operator port: only ours can prove itself to our own admin."""
        url = f"http://127.0.0.1:{self.ports.metrics}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                if response.status != 200:
                    return False
            with self.context().channel() as channel:
                stub = operator_pb2_grpc.OperatorServiceStub(channel)
                stub.WhoAmI(operator_pb2.WhoAmIRequest(), timeout=2)
        except (OSError, grpc.RpcError):
            return False
        return True

    def stop_orchestrator(self) -> None:
        self.orchestrator.stop()

    # --- the end ---------------------------------------------------------------------------

    def stop(self, *, wipe: bool = True) -> None:
        """Agents, containers, containerds, orchestrator; in this order, whatever state they are in.

        wipe: images and logs of the containerds go too.
        """
        self.stop_boxes(wipe=wipe)
        self.stop_orchestrator()
