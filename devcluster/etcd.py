"""One etcd in a network namespace, TLS on both of its ports, and what an admin does to a group.

Used by `continent`: one for each region. `replace` is what docs/operating.md tells an operator to
do when the disk of a member is gone; etcd's own JSON gateway serves for it, so that no etcdctl is
needed.
"""

import base64
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devcluster.daemon import Daemon
from devcluster.etcd_api import EtcdApi, EtcdRefused, command
from orchestrator.store.etcd.settings import EtcdTls

CLIENT_PORT = 2379
PEER_PORT = 2380
START_S = 60.0
CHANGE_S = 30.0


class EtcdMember:
    """Log and pid file are in `directory`, data below. Started again, it takes up what it had."""

    def __init__(
        self, name: str, directory: Path, address: str, tls: EtcdTls, *, netns: str = ""
    ) -> None:
        self.name = name
        self.address = address
        self.tls = tls
        self.api = EtcdApi(address, CLIENT_PORT, tls)
        self.data_dir = directory / name / "etcd"
        self._directory = directory
        self._netns = netns
        self.daemon = self._daemon("", "new")

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{CLIENT_PORT}"

    @property
    def peer_url(self) -> str:
        return f"https://{self.address}:{PEER_PORT}"

    def start(self, group: Mapping[str, str], *, state: str = "new", wait: bool = True) -> None:
        """`group`: peer URLs by name, its own among them; read at the very first start only.

        `wait`: until it has a leader, which takes a majority of the group. Raises DaemonError.
        """
        if not self.daemon.pid:
            initial = ",".join(f"{name}={url}" for name, url in group.items())
            self.daemon = self._daemon(initial, state)
        daemon = self.daemon
        daemon.start(lambda: self.is_healthy() if wait else daemon.pid != 0, START_S)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self.daemon.stop(signal_number)

    def wipe(self) -> None:
        """The disk is gone."""
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def is_healthy(self) -> bool:
        """It answers, and has a leader with which it agrees."""
        return self.api.is_healthy()

    def members(self) -> dict[str, str]:
        """Ids of the group's members by peer URL."""
        listed = self.api.ask("cluster/member/list", {}).get("members", [])
        return {url: one["ID"] for one in listed for url in one["peerURLs"]}

    def keys_below(self, prefix: str) -> list[str]:
        """Every key that starts with the prefix."""
        start = prefix.encode()
        end = start[:-1] + bytes([start[-1] + 1])
        body = {"key": _base64(start), "range_end": _base64(end), "keys_only": True}
        return [
            base64.b64decode(kv["key"]).decode() for kv in self.api.ask("kv/range", body)["kvs"]
        ]

    def _daemon(self, initial_cluster: str, state: str) -> Daemon:
        arguments = command(
            self.name,
            self.data_dir,
            self.endpoint,
            self.peer_url,
            self.tls,
            initial_cluster,
            state=state,
            log_level="error",
        )
        return Daemon(
            f"etcd-{self.name}",
            self._directory,
            arguments,
            marker=f"--data-dir={self.data_dir}",
            netns=self._netns,
            environment={"GOMAXPROCS": "1"},
        )


def replace(lost: EtcdMember, through: EtcdMember, group: Mapping[str, str]) -> None:
    """Take a member whose data is gone out of the group and start it anew, through one that lives.

    Raises EtcdRefused, DaemonError.
    """
    known = through.members()
    if lost.peer_url in known:
        _patiently(through, "cluster/member/remove", {"ID": known[lost.peer_url]})
    lost.wipe()
    _patiently(through, "cluster/member/add", {"peerURLs": [lost.peer_url]})
    lost.start(group, state="existing")


def _patiently(through: EtcdMember, path: str, body: Mapping[str, Any]) -> None:
    """A group whose members have not been connected for five seconds refuses to be changed."""
    deadline = time.monotonic() + CHANGE_S
    while True:
        try:
            through.api.ask(path, body)
            return
        except EtcdRefused as error:
            if "unhealthy cluster" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
