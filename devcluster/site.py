"""A site of a few nodes on one machine, its orchestrator elsewhere: real programs, to be broken.

Each node has a network namespace with an agent and a containerd, and boots by itself (`power`); the
orchestrator has another behind the uplink. Who observes sits on the machine and is never cut off.
tests/e2e, `bench takeover` and examples/isolation use it; it needs root. `start` and `stop` may be
called in any state, by another process than the one that called first, and after a crash.
"""

import hashlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.volumes import Volumes
from devcluster import power, residue
from devcluster.backbone import HOST, Backbone
from devcluster.boxes import Boxes
from devcluster.image import ImageSpec, hello_image, writer_image
from devcluster.region import Member

NODES = ("node-a", "node-b", "node-c")
CONTROL = "control"
REGION = "eu-west"


class LocalSite(Boxes):
    """`settings`: more flags of the orchestrator, without dashes: {"lost-after": "10s"}."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: Sequence[str] = NODES,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        directory = directory.resolve()
        super().__init__(directory, directory / CONTROL / "data" / "admin.yaml")
        self.name = "ps" + hashlib.sha256(str(directory).encode()).hexdigest()[:8]
        self.nodes = tuple(nodes)
        self.network = Backbone(self.name, directory / "network.json", [CONTROL, *nodes])
        self._settings = dict(settings or {})
        self._orchestrator: Member | None = None
        if self.network.subnet:
            self._know()

    def _know(self) -> None:
        """What follows from the directory and the network, without starting anything."""
        self._orchestrator = Member(
            CONTROL,
            REGION,
            self.network.address(CONTROL),
            self.directory,
            self._settings,
            netns=self.network.netns(CONTROL),
        )
        for node in self.nodes:
            self.agent(
                node,
                netns=self.network.netns(node),
                settings=f'cgroup_parent = "/{self._cgroup(node)}"\n',
                launcher=power.launcher(self.directory / node),
            )

    def _cgroup(self, node: str) -> str:
        """What contains the node's pods, since it has no machine of its own that forgets them."""
        return f"{self.name}/{node}"

    @property
    def orchestrator(self) -> Member:
        """Only once `start` has been called."""
        assert self._orchestrator is not None
        return self._orchestrator

    @property
    def is_up(self) -> bool:
        """It has been started, here or by another process."""
        return self._orchestrator is not None and self._orchestrator.daemon.pid != 0

    def address(self, node: str) -> str:
        return self.network.address(node)

    @property
    def observer(self) -> str:
        """Where a register for the containers of the site may listen."""
        return self.network.address(HOST)

    # --- up --------------------------------------------------------------------------------------

    def start(
        self, *, images: Sequence[ImageSpec] = (), told: Callable[[str], None] = lambda _: None
    ) -> None:
        """Returns when all nodes are Ready. Raises what its parts raise."""
        told("network")
        self.network.start()
        self._know()
        told("orchestrator")
        self.orchestrator.start()
        self.apply_site()
        told("nodes")
        wanted = tuple(images) or (hello_image(), writer_image())

        def add(node: str) -> None:
            if not self.agents[node].pid:
                power.boot(self.directory / node)
            self.add_agent(node, images=wanted)

        with ThreadPoolExecutor(max_workers=len(self.nodes)) as pool:
            list(pool.map(add, self.nodes))

    # --- what is broken --------------------------------------------------------------------------

    def cut_uplink(self) -> None:
        """No node hears the orchestrator; they hear each other."""
        self.network.block((CONTROL, node) for node in self.nodes)

    def cut_link(self, one: str, other: str) -> None:
        self.network.block([(one, other)])

    def deafen(self, node: str, to: str) -> None:
        """It hears nothing of the other, which still hears it."""
        self.network.deafen(node, to)

    def cut_off(self, node: str) -> None:
        """No other node hears of it, and no orchestrator; it runs on."""
        self.network.block((node, other) for other in (CONTROL, *self.nodes) if other != node)

    def cut_everything(self) -> None:
        """Every node is alone."""
        self.cut_uplink()
        self.network.block(itertools.combinations(self.nodes, 2))

    def kill_agent(self, node: str) -> None:
        """Its agent ends without a word; nothing else does, and nothing starts it again."""
        self.agents[node].daemon.stop(signal.SIGKILL)

    def freeze_agent(self, node: str) -> None:
        os.kill(self.agents[node].pid, signal.SIGSTOP)

    def thaw_agent(self, node: str) -> None:
        os.kill(self.agents[node].pid, signal.SIGCONT)

    def kill_node(self, node: str) -> None:
        """Its power goes, and with it all that runs there; nobody is told."""
        self.network.switch(node, on=False)
        residue.kill_namespace(Path(self.network.netns(node)).name)

    # --- and mended ------------------------------------------------------------------------------

    def power_on(self, node: str) -> None:
        """It boots: its disks are as they were, what was in memory is gone. The agent runs."""
        agent = self.agents[node]
        assert agent.containerd is not None
        agent.daemon.stop(signal.SIGKILL)
        agent.containerd.stop()
        residue.remove_cgroup(self._cgroup(node))
        residue.unmount_below(agent.state_dir)
        shutil.rmtree(Volumes(agent.state_dir).secrets, ignore_errors=True)
        power.boot(self.directory / node)
        self.network.switch(node, on=True)
        agent.containerd.start()
        self.start_agent(node)

    def power_cycle(self, nodes: Sequence[str] = ()) -> None:
        """All of them go off before the first is on again. All nodes if none is named."""
        chosen = nodes or self.nodes
        with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
            list(pool.map(self.kill_node, chosen))
            list(pool.map(self.power_on, chosen))

    def heal(self, *places: str) -> None:
        """Every line, or every line of these places. What is off stays off."""
        self.network.heal(*places)

    # --- down ------------------------------------------------------------------------------------

    def stop(self, *, wipe: bool = True, keep_logs: bool = False) -> None:
        """Everything that runs, the namespaces and links; with `wipe` the directory, too, but with
        `keep_logs` for what its processes logged."""
        for node in self.nodes:
            residue.kill_namespace(Path(self.network.netns(node)).name)
        self.stop_boxes(wipe=wipe)
        if self._orchestrator is not None:
            self._orchestrator.stop(signal.SIGKILL)
        residue.remove_cgroup(self.name)
        self.network.stop()
        if wipe and not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)
        elif wipe:
            for path in self.directory.glob("*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.suffix != ".log":
                    path.unlink()
