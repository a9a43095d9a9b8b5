"""Boxes of a small installation on this machine: agents, each with a containerd of its own.

What `installation`, `continent` and `site` share. Everything goes through the programs' own command
lines, as an operator would do it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.runtime.cri.pb import api_pb2
from agent.volumes import Volumes
from devcluster import residue
from devcluster.client import SITE_MANIFESTS, Context
from devcluster.containerd import PrivateContainerd
from devcluster.daemon import Daemon
from devcluster.image import ImageSpec, hello_image

BIN = Path(sys.executable).parent
EDGECTL = str(BIN / "edgectl")
EDGE_AGENT = str(BIN / "edge-agent")
SITE = "nl-utr-1"


class CommandError(Exception):
    """A command of ours failed; the message carries what it said."""


@dataclass(slots=True)
class AgentProcess:
    """One agent. `containerd` is None when its runtime is simulated. `run_by` gives what runs it by
    another program."""

    name: str
    daemon: Daemon
    containerd: PrivateContainerd | None
    state_dir: Path
    run_by: Callable[[Sequence[str]], Daemon]
    netns: str = ""

    @property
    def pid(self) -> int:
        return self.daemon.pid


class Boxes:
    """Below one directory. `admin_context` is the administrator's context file for edgectl."""

    def __init__(self, directory: Path, admin_context: Path) -> None:
        self.directory = directory
        self.admin_context = admin_context
        self.agents: dict[str, AgentProcess] = {}

    def context(self) -> Context:
        return Context(self.admin_context)

    def environment(self) -> dict[str, str]:
        """For edgectl: which installation it talks to."""
        return {**os.environ, "EDGECTL_CONFIG": str(self.admin_context)}

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
        launcher: Sequence[str] = (),
    ) -> AgentProcess:
        """Start its containerd, join it unless it has joined, start it, wait until it is Ready.

        settings: text of its configuration file. launcher: words before the agent's command, that
        become the agent.
        """
        agent = self.agent(name, runtime=runtime, netns=netns, settings=settings, launcher=launcher)
        if agent.containerd is not None:
            agent.containerd.start()
            wanted = list(images or (hello_image(),))
            agent.containerd.import_images(wanted)
        self.join(name, site=site)
        self.start_agent(name)
        self.edgectl("wait", f"node/{name}", "--for=ready", "--timeout", "30s")
        return agent

    def agent(
        self,
        name: str,
        *,
        runtime: str = "cri",
        netns: str = "",
        settings: str = "",
        launcher: Sequence[str] = (),
    ) -> AgentProcess:
        """What is known of the agent, without starting anything."""
        if name in self.agents:
            return self.agents[name]
        folder = self.directory / name
        state_dir = folder / "state"
        containerd = None
        command = ["run", "--state-dir", str(state_dir)]
        command += ["--log-dir", str(folder / "pods"), "--log-format", "logfmt"]
        if not netns and "local_listen" not in settings:  # such boxes share the machine's ports
            settings = f'local_listen = ""\n{settings}'
        if settings:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "agent.toml").write_text(settings)
            command += ["--config", str(folder / "agent.toml")]
        if runtime == "cri":
            containerd = PrivateContainerd(folder / "containerd", netns=netns)
            command += ["--runtime-socket", containerd.socket]
        else:
            command += ["--runtime", runtime]

        def run_by(program: Sequence[str]) -> Daemon:
            words = [*launcher, *program, *command]
            marker = str(state_dir)
            return Daemon(f"agent-{name}", self.directory, words, marker=marker, netns=netns)

        daemon = run_by((EDGE_AGENT,))
        self.agents[name] = AgentProcess(name, daemon, containerd, state_dir, run_by, netns)
        return self.agents[name]

    def join(self, name: str, *, site: str = SITE) -> None:
        """With a token of its own, unless its state directory already holds an identity."""
        state_dir, netns = self.agents[name].state_dir, self.agents[name].netns
        if (state_dir / "identity").exists():
            return
        token = self.edgectl("token", "create", "--site", site, "--node", name).strip()
        command = [*(["nsenter", f"--net={netns}"] if netns else []), EDGE_AGENT, "join"]
        command += ["--token-file", "-", "--node", name]
        run([*command, "--state-dir", str(state_dir)], dict(os.environ), stdin=token)

    def start_agent(self, name: str, *, program: Sequence[str] = (EDGE_AGENT,)) -> None:
        """Returns once the process runs; `edgectl wait` tells when the node is Ready.

        program: what runs the agent, until the next start.
        """
        agent = self.agents[name]
        if not agent.pid:
            agent.daemon = agent.run_by(program)
        agent.daemon.start(lambda: agent.pid != 0)

    def containers_of(self, box: str) -> dict[str, int]:
        """Id of each container that runs there -> when it started, in unix ns."""
        containerd = self.agents[box].containerd
        assert containerd is not None
        found = {}
        with residue.cri(str(containerd.paths.socket)) as stub:
            for one in stub.ListContainers(api_pb2.ListContainersRequest(), timeout=10).containers:
                request = api_pb2.ContainerStatusRequest(container_id=one.id)
                status = stub.ContainerStatus(request, timeout=10).status
                if status.state == api_pb2.CONTAINER_RUNNING:
                    found[one.id] = status.started_at
        return found

    def stop_boxes(self, *, wipe: bool = True) -> None:
        """Agents, containers, containerds, in whatever state they are.

        wipe: images and logs of the containerds go too.
        """
        for agent in self.agents.values():
            agent.daemon.stop()
            if agent.containerd is not None:
                agent.containerd.stop(wipe=wipe)
            residue.unmount_below(agent.state_dir)  # volumes in memory
            if wipe:
                shutil.rmtree(Volumes(agent.state_dir).secrets, ignore_errors=True)


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
