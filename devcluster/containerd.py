"""A private containerd: its own root, state, socket, CNI network and bridge, on a shared machine.

Used by the quickstart, the benchmarks and the tests. Everything it creates carries its own name
or lies in its own directory, so a Docker or containerd that is already there is left alone, and
several of these can run side by side. `start()` and `stop()` repair: both may be called in any
state.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import network, residue
from devcluster.image import PAUSE, ImageSpec, pause_image, write_archive
from devcluster.preflight import CAP_SYS_RESOURCE, cni_directory, has_capability

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), without its final NUL
RUN_DIRECTORY = Path("/run/polder-dev")


class ContainerdError(Exception):
    """The private containerd could not be started; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one instance keeps its things. `run` is short: unix socket paths are limited."""

    directory: Path
    run: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def state(self) -> Path:
        return self.run / "state"

    @property
    def socket(self) -> Path:
        return self.run / "c.sock"

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def cni(self) -> Path:
        return self.directory / "cni"

    @property
    def certs(self) -> Path:
        """A directory for each registry that is not asked as usual; see `site_registry`."""
        return self.directory / "certs.d"

    @property
    def log(self) -> Path:
        return self.directory / "containerd.log"

    @property
    def pid(self) -> Path:
        return self.directory / "containerd.pid"


class PrivateContainerd:
    """One instance, named by its directory: the same directory always means the same instance.

    netns: path of a network namespace (`/run/netns/x`) to live in; its pods' bridge is made there.
    Processes that talk to its exec streaming server must live in that namespace too.
    """

    def __init__(self, directory: Path, *, netns: str = "", subnet: str = "") -> None:
        self.directory = directory.resolve()
        self.name = "polder-" + hashlib.sha256(str(self.directory).encode()).hexdigest()[:8]
        self.bridge = self.name  # 15 characters: the most that an interface's name can have
        self.netns = netns
        self.paths = Paths(self.directory, RUN_DIRECTORY / self.name)
        self._subnet = subnet
        assert len(str(self.paths.socket)) + len(".ttrpc") <= SOCKET_PATH_BYTES_MAX

    @property
    def socket(self) -> str:
        """For the agent: `unix:///...`."""
        return f"unix://{self.paths.socket}"

    @property
    def pid(self) -> int:
        """Process id of the running daemon; 0 when it does not run."""
        return residue.live_pid(self.paths.pid, must_mention=str(self.paths.config))

    def start(self) -> None:
        """Start it, or reuse the one that runs, and wait for CRI. Raises ContainerdError."""
        if self.pid:
            self._await_ready()
            return
        for folder in (self.paths.root, self.paths.state, self.paths.cni, self.paths.certs):
            folder.mkdir(parents=True, exist_ok=True)
        self.paths.socket.unlink(missing_ok=True)
        with machine_lock():
            self._subnet = network.make_bridge(self.bridge, self.netns, self._subnet)
        self._write_config()
        command = ["containerd", "--config", str(self.paths.config)]
        if self.netns:
            command = ["nsenter", f"--net={self.netns}", *command]
        with self.paths.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it outlives the quickstart and ignores its Ctrl-C
                env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
            )
        self.paths.pid.write_text(str(process.pid))
        self._await_ready(process)
        if not self.has_image(PAUSE):
            self.import_images([pause_image()])

    def stop(self, *, wipe: bool = False) -> None:
        """Remove its pods, stop it, and take its mounts, bridge and rules away.

        wipe: also delete its directory (images, logs). No error if it does not run.
        """
        if self.pid:
            with contextlib.suppress(Exception):  # what CRI cannot remove, the rest below does
                residue.remove_all_pods(str(self.paths.socket))
        self.kill_daemon(signal.SIGTERM)
        residue.kill_shims(str(self.paths.socket))
        container_ids = residue.container_ids(self.paths.state)
        residue.unmount_below(self.paths.state)
        residue.unmount_below(self.paths.root)
        residue.remove_cgroups(container_ids)
        network.remove(self.bridge, self.netns)
        shutil.rmtree(self.paths.run, ignore_errors=True)
        self.paths.pid.unlink(missing_ok=True)
        if wipe:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill_daemon(self, signal_number: int = signal.SIGKILL) -> None:
        """End the daemon alone; its containers run on, and `start()` finds them again."""
        pid = self.pid
        if pid:
            residue.end_process(pid, signal_number, STOP_TIMEOUT_S)

    def import_images(self, specs: Sequence[ImageSpec]) -> None:
        """Build the images and load them; replaces those of the same name."""
        archive = self.directory / f"images-{os.getpid()}.tar"
        try:
            write_archive(archive, specs)
            self.ctr("images", "import", "--all-platforms", str(archive))
        finally:
            archive.unlink(missing_ok=True)

    def has_image(self, name: str) -> bool:
        return name in self.ctr("images", "ls", "-q").split()

    def ctr(self, *arguments: str) -> str:
        """Run `ctr` in the namespace that CRI uses; its stdout. Raises CalledProcessError."""
        command = ["ctr", "--address", str(self.paths.socket), "--namespace", "k8s.io"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def _write_config(self) -> None:
        plugins = cni_directory()
        if plugins is None:
            raise ContainerdError("no CNI plugins; install the package containernetworking-plugins")
        (self.paths.cni / "10-polder.conflist").write_text(
            json.dumps(
                network.conflist(self.name, self.bridge, self._subnet, self.paths.run / "ipam"),
                indent=2,
            )
        )
        self.paths.config.write_text(
            render_config(
                self.paths,
                plugins,
                restrict_oom=not has_capability(CAP_SYS_RESOURCE),
                snapshotter=suitable_snapshotter(self.paths.root),
            )
        )

    def _await_ready(self, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        why = "no answer"
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                why = f"it ended with code {process.returncode}"
                break
            why = residue.not_ready_reason(str(self.paths.socket))
            if not why:
                return
            time.sleep(0.05)
        tail = self.paths.log.read_text(errors="replace").splitlines()[-8:]
        raise ContainerdError(
            f"containerd in {self.directory} is not ready: {why}\n" + "\n".join(tail)
        )


def render_config(
    paths: Paths, cni_plugins: Path, *, restrict_oom: bool, snapshotter: str = "overlayfs"
) -> str:
    """config.toml (version 2, containerd 1.6 or later).

    restrict_oom: clamp oom_score_adj to what this process may set. Needed where the kernel denies
    CAP_SYS_RESOURCE (nested containers, some CI machines), since every sandbox would fail; a
    production box has the capability and must keep real scores.
    """
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    lines = [
        "version = 2",
        f'root = "{paths.root}"',
        f'state = "{paths.state}"',
        "oom_score = 0",
        # Snapshotters that probe for kernel modules, and a plugin that makes /opt/containerd.
        "disabled_plugins = ["
        + ", ".join(f'"io.containerd.{name}"' for name in UNUSED_PLUGINS)
        + "]",
        "[grpc]",
        f'address = "{paths.socket}"',
        f"[{cri}]",
        f'sandbox_image = "{PAUSE}"',
        f"restrict_oom_score_adj = {str(restrict_oom).lower()}",
        "netns_mounts_under_state_dir = true",
        f"[{cri}.registry]",
        f'config_path = "{paths.certs}"',
        f"[{cri}.cni]",
        f'bin_dir = "{cni_plugins}"',
        f'conf_dir = "{paths.cni}"',
        f"[{cri}.containerd]",
        f'snapshotter = "{snapshotter}"',
        'default_runtime_name = "runc"',
        f"[{cri}.containerd.runtimes.runc]",
        'runtime_type = "io.containerd.runc.v2"',
        f"[{cri}.containerd.runtimes.runc.options]",
        f'Root = "{paths.run / "runc"}"',
    ]
    return "\n".join(lines) + "\n"


UNUSED_PLUGINS = (
    "snapshotter.v1.aufs",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.zfs",
    "internal.v1.opt",
    "internal.v1.tracing",
    "tracing.processor.v1.otlp",
)


def suitable_snapshotter(root: Path) -> str:
    """overlayfs, or `native` where the root itself lies on an overlay (inside a container)."""
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(root)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return "native" if kind == "overlayfs" else "overlayfs"


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Held while a subnet is chosen and its bridge made: two instances must not pick the same."""
    RUN_DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (RUN_DIRECTORY / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
