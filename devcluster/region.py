"""A region of a small installation: its place, its CA, its etcd and its orchestrator members.

Made by `continent`; the processes are the real programs, in the region's network namespace.
"""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.boxes import BIN
from devcluster.daemon import Daemon
from devcluster.etcd import EtcdMember

EDGE_ORCHESTRATOR = str(BIN / "edge-orchestrator")
START_S = 60.0


@dataclass(frozen=True, slots=True)
class RegionPlace:
    """What is chosen for a region. `location` is LATITUDE,LONGITUDE."""

    name: str
    location: str


class Member:
    """One `edge-orchestrator serve`. Its data directory survives its ends."""

    def __init__(
        self,
        name: str,
        region: str,
        address: str,
        directory: Path,
        flags: Mapping[str, str],
        *,
        netns: str,
        number: int = 1,
    ) -> None:
        self.name = name
        self.region = region
        self.data_dir = directory / name / "data"
        self._directory = directory
        self._netns = netns
        metrics = 7480 + number - 1
        self._ready_url = f"http://{address}:{metrics}/readyz"
        self.endpoint = f"{address}:7443"
        self.flags = {
            "data-dir": str(self.data_dir),
            "region": region,
            "member": name,
            "listen": self.endpoint,
            "join-listen": f"{address}:7444",
            "metrics-listen": f"{address}:{metrics}",
            "peer-listen": f"{address}:{7450 + number}",
            **flags,
        }
        self.daemon = self._daemon([EDGE_ORCHESTRATOR], {})

    def _daemon(self, program: Sequence[str], more: Mapping[str, str]) -> Daemon:
        words = [
            word
            for key, value in {**self.flags, **more}.items()
            for word in (f"--{key}", value)
            if word
        ]
        return Daemon(
            f"orchestrator-{self.name}",
            self._directory,
            [*program, "serve", *words],
            marker=str(self.data_dir),
            netns=self._netns,
        )

    def start(
        self,
        *,
        wait: bool = True,
        program: Sequence[str] = (EDGE_ORCHESTRATOR,),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`program` and `settings` (flags without dashes, "" for none) hold until the next start.

        Raises DaemonError.
        """
        if not self.daemon.pid:
            self.daemon = self._daemon(program, settings or {})
        daemon = self.daemon
        daemon.start(lambda: self.is_ready() if wait else daemon.pid != 0, START_S)

    def is_ready(self) -> bool:
        """As a load balancer would ask it."""
        try:
            with urllib.request.urlopen(self._ready_url, timeout=1) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self.daemon.stop(signal_number)

    def pause(self) -> None:
        """As a machine that swaps, or a hypervisor that moves it, does."""
        os.kill(self.daemon.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.daemon.pid, signal.SIGCONT)


@dataclass(slots=True)
class Region:
    """`ca_dir` holds the root's certificate and this region's CA, and no other's."""

    name: str
    address: str
    netns: str
    ca_dir: Path
    etcd: EtcdMember
    members: list[Member]

    @property
    def is_running(self) -> bool:
        """With all of its processes."""
        return all(part.pid for part in (self.etcd.daemon, *(m.daemon for m in self.members)))

    def kill(self) -> None:
        """All of its processes at once, as when the power goes."""
        for daemon in (*(member.daemon for member in self.members), self.etcd.daemon):
            daemon.stop(signal.SIGKILL)
