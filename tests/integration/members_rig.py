"""Orchestrator members as processes over one etcd: started, frozen, killed, upgraded, called."""

import base64
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from devcluster.ports import free_port
from orchestrator import founding
from orchestrator.identity.authority import create_region, create_root
from orchestrator.identity.member import SERVER_NAME
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.etcd.pb import rpc_pb2, rpc_pb2_grpc
from polder.v1 import operator_pb2_grpc
from tests.integration.etcd_server import EtcdCluster
from tests.integration.orchestrator_rig import read_context

READY_S = 40.0
OFFLINE = "offline"  # below a CA's folder: where its root is kept


def make_ca(folder: Path, *regions: str) -> Path:
    """A root and regions' CAs, as a region's machine has them: without the root's key."""
    create_root(folder, "polder.internal", time.time())
    for region in regions or ("local", "north", "south"):
        create_region(folder, region, time.time())
    (folder / OFFLINE).mkdir()
    shutil.copyfile(folder / "root.crt", folder / OFFLINE / "root.crt")
    (folder / "root.key").rename(folder / OFFLINE / "root.key")
    return folder


def forget_installations(cluster: EtcdCluster) -> None:
    """Those before: of one CA there is one in an etcd, and tests make many. One that is not
    reached has none that could be in the way."""
    tls = cluster.client_tls
    credentials = grpc.ssl_channel_credentials(
        tls.ca.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()
    )
    start = f"{founding.REGISTER}/".encode()
    request = rpc_pb2.DeleteRangeRequest(key=start, range_end=start[:-1] + b"0")
    for member in cluster.members:
        channel = grpc.secure_channel(member.endpoint, credentials)
        with contextlib.suppress(grpc.RpcError), channel:
            rpc_pb2_grpc.KVStub(channel).DeleteRange(request, timeout=5)
            return


def etcd_settings(cluster: EtcdCluster, prefix: str) -> dict[str, Any]:
    """How a member's configuration says where etcd is. Whatever was founded before is forgotten."""
    forget_installations(cluster)
    settings = cluster.settings(prefix)
    return {
        "store": "etcd:" + ",".join(settings.endpoints),
        "etcd_ca": str(settings.tls.ca),
        "etcd_cert": str(settings.tls.certificate),
        "etcd_key": str(settings.tls.key),
        "etcd_prefix": prefix,
    }


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"never: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class MemberProcess:
    """One `edge-orchestrator serve`. `start` after `stop` or `kill` is the same member again."""

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.data = folder / name
        self.data.mkdir(parents=True, exist_ok=True)
        self.listen = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self.settings = {
            "data_dir": str(self.data),
            "member": name,
            "listen": self.listen,
            "join_listen": f"127.0.0.1:{free_port()}",
            "metrics_listen": self.http,
            "shutdown_grace": "1s",
            **settings,
        }
        self._running: subprocess.Popen[bytes] | None = None

    def configure(self) -> Path:
        """Writes its TOML file."""
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in self.settings.items()]
        self._config.write_text("".join(lines))
        return self._config

    def start(self, version: str = "-", *, settle_s: float = 1.0, wait: bool = True) -> None:
        command = [sys.executable, "-m", "tests.integration.versioned_member", version]
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                [*command, str(settle_s), "serve", "--config", str(self.configure())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.status("/readyz") != 200:
            assert self.is_running, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def status(self, path: str) -> int:
        """0: nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def send(self, number: int) -> None:
        assert self._running is not None
        self._running.send_signal(number)

    def ended(self, timeout_s: float = 30.0) -> int:
        """Its exit code, when it has ended."""
        assert self._running is not None
        return self._running.wait(timeout_s)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.ended()

    def clean_up(self) -> None:
        if self.is_running:
            self.send(signal.SIGKILL)
            self.ended()


class Group:
    """Members of one installation. End it with `close()`."""

    def __init__(self, folder: Path, cluster: EtcdCluster, prefix: str) -> None:
        self.folder = folder
        self.cluster = cluster
        self.prefix = prefix
        self.ca = make_ca(folder / "ca")
        self.members: list[MemberProcess] = []
        self._channels: list[aio.Channel] = []

    def member(self, name: str, **settings: Any) -> MemberProcess:
        """Not started yet."""
        common = {**etcd_settings(self.cluster, self.prefix), "ca_dir": str(self.ca)}
        made = MemberProcess(name, self.folder, {**common, **settings})
        self.members.append(made)
        return made

    def admin(self, member: MemberProcess) -> Any:
        """An OperatorService stub with the first admin's certificate."""
        made = (one.data / "admin.yaml" for one in self.members)
        return self.operator(member, next(path for path in made if path.exists()))

    def operator(self, member: MemberProcess, path: Path) -> Any:
        """The same with the certificate of a context file."""
        body = json.loads(path.read_text())
        roots = base64.b64decode(body["clusters"][0]["cluster"]["certificateAuthorityData"])
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        credentials: grpc.ChannelCredentials = read_context(path).channel_credentials(roots)
        channel = aio.secure_channel(member.listen, credentials, options)
        self._channels.append(channel)
        return operator_pb2_grpc.OperatorServiceStub(channel)

    def joining(self, member: MemberProcess) -> aio.Channel:
        """A channel to the join port."""
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        tls = grpc.ssl_channel_credentials((self.ca / "root.crt").read_bytes())
        channel = aio.secure_channel(member.settings["join_listen"], tls, options)
        self._channels.append(channel)
        return channel

    async def store(self) -> EtcdStore:
        """What the members see; the caller closes it."""
        return await open_etcd(self.cluster.settings(self.prefix))

    async def leader(self) -> str:
        """Its name; empty while nobody leads."""
        store = await self.store()
        try:
            entry = await store.get(keys.LEADER)
            return entry.value.decode() if entry is not None else ""
        finally:
            await store.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)
        for member in self.members:
            member.clean_up()
