"""A whole small installation on this machine: an orchestrator, agents, each with its containerd.

The quickstart keeps one under /var/lib; benchmarks and tests make theirs in a temporary directory.
Everything goes through the programs' own command lines, as an operator would do it.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent.volumes import Volumes
from devcluster import residue
from devcluster.client import SITE_MANIFESTS, Context
from devcluster.containerd import PrivateContainerd
from devcluster.daemon import Daemon
from devcluster.image import ImageSpec, hello_image
from devcluster.ports import free_port
from polder.v1 import operator_pb2, operator_pb2_grpc

BIN = Path(sys.executable).parent
EDGECTL = str(BIN / "edgectl")
EDGE_AGENT = str(BIN / "edge-agent")
EDGE_ORCHESTRATOR = str(BIN / "edge-orchestrator")
SITE = "nl-utr-1"


class CommandError(Exception):
    """A command of ours failed; the message carries what it said."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the orchestrator listens on 127.0.0.1."""

    operator: int
    join: int
    metrics: int

    @staticmethod
    def free() -> "Ports":
        return Ports(free_port(), free_port(), free_port())


@dataclass(slots=True)
class AgentProcess:
    """One agent. `containerd` is None when its runtime is simulated."""

    name: str
    daemon: Daemon
    containerd: PrivateContainerd | None
    state_dir: Path

    @property
    def pid(self) -> int:
        return self.daemon.pid


class Installation:
    """In one directory, with fixed ports if given. `start_*` finds again what already runs."""

    def __init__(self, directory: Path, ports: Ports | None = None) -> None:
        self.directory = directory
        self._ports_file = directory / "ports.json"
        self.ports = ports or self._remembered_ports()
        self.agents: dict[str, AgentProcess] = {}
        self.orchestrator = self._orchestrator_daemon()

    def _remembered_ports(self) -> Ports:
        if self._ports_file.exists():
            return Ports(**json.loads(self._ports_file.read_text()))
        return Ports.free()

    @property
    def admin_context(self) -> Path:
        """The administrator's context file for edgectl."""
        return self.data_dir / "admin.yaml"

    @property
    def data_dir(self) -> Path:
        return self.directory / "orchestrator"

    def context(self) -> Context:
        return Context(self.admin_context)

    def environment(self) -> dict[str, str]:
        """For edgectl: which installation it talks to."""
        return {**os.environ, "EDGECTL_CONFIG": str(self.admin_context)}

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

    # --- operators -------------------------------------------------------------------------

    def edgectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Its stdout. Raises CommandError with its stderr."""
        return run([EDGECTL, *arguments], self.environment(), stdin=stdin, check=check)

    def apply_site(self) -> None:
        """The example provider and site that a first node needs."""
        text = "\n---\n".join(json.dumps(manifest) for manifest in SITE_MANIFESTS)
        self.edgectl("apply", "-f", "-", stdin=text)

    # --- agents ----------------------------------------------------------------------------

    def add_agent(
        self,
        name: str,
        *,
        site: str = SITE,
        runtime: str = "cri",
        images: Sequence[ImageSpec] = (),
        netns: str = "",
        settings: str = "",
    ) -> AgentProcess:
        """Start its containerd, join it unless it has joined, start it, wait until it is Ready.

        settings: text of its configuration file.
        """
        agent = self.agent(name, runtime=runtime, netns=netns, settings=settings)
        if agent.containerd is not None:
            agent.containerd.start()
            wanted = list(images or (hello_image(),))
            agent.containerd.import_images(wanted)
        self.join(name, site=site)
        self.start_agent(name)
        self.edgectl("wait", f"node/{name}", "--for=ready", "--timeout", "30s")
        return agent

    def agent(
        self, name: str, *, runtime: str = "cri", netns: str = "", settings: str = ""
    ) -> AgentProcess:
        """What is known of the agent, without starting anything."""
        if name in self.agents:
            return self.agents[name]
        folder = self.directory / name
        state_dir = folder / "state"
        containerd = None
        command = [EDGE_AGENT, "run", "--state-dir", str(state_dir)]
        command += ["--log-dir", str(folder / "pods"), "--log-format", "logfmt"]
        if settings:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "agent.toml").write_text(settings)
            command += ["--config", str(folder / "agent.toml")]
        if runtime == "cri":
            containerd = PrivateContainerd(folder / "containerd", netns=netns)
            command += ["--runtime-socket", containerd.socket]
        else:
            command += ["--runtime", runtime]
        daemon = Daemon(
            f"agent-{name}", self.directory, command, marker=str(state_dir), netns=netns
        )
        self.agents[name] = AgentProcess(name, daemon, containerd, state_dir)
        return self.agents[name]

    def join(self, name: str, *, site: str = SITE) -> None:
        """With a token of its own, unless its state directory already holds an identity."""
        state_dir = self.agents[name].state_dir
        if (state_dir / "identity").exists():
            return
        token = self.edgectl("token", "create", "--site", site, "--node", name).strip()
        command = [EDGE_AGENT, "join", "--token-file", "-", "--node", name]
        run([*command, "--state-dir", str(state_dir)], dict(os.environ), stdin=token)

    def start_agent(self, name: str) -> None:
        """Returns once the process runs; `edgectl wait` tells when the node is Ready."""
        agent = self.agents[name]
        agent.daemon.start(lambda: agent.pid != 0)

    # --- the end ---------------------------------------------------------------------------

    def stop(self, *, wipe: bool = True) -> None:
        """Agents, containers, containerds, orchestrator; in this order, whatever state they are in.

        wipe: images and logs of the containerds go too.
        """
        for agent in self.agents.values():
            agent.daemon.stop()
            if agent.containerd is not None:
                agent.containerd.stop(wipe=wipe)
            residue.unmount_below(agent.state_dir)  # volumes in memory
            if wipe:
                shutil.rmtree(Volumes(agent.state_dir).secrets, ignore_errors=True)
        self.stop_orchestrator()


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: str = "",
    check: bool = True,
    timeout_s: float = 120,
) -> str:
    """A command's stdout. Raises CommandError with what it said on stderr."""
    done = subprocess.run(
        list(command),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=dict(environment),
        check=False,
    )
    if check and done.returncode != 0:
        shown = " ".join(Path(command[0]).name if i == 0 else w for i, w in enumerate(command))
        raise CommandError(f"`{shown}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
