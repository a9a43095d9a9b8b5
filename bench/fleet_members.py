"""The orchestrators of `bench fleet` and their Store: real processes on addresses of the loopback.

Each region has an address of its own in 127.0.0.0/8, an etcd and one member; a single member may
have SQLite instead. `kill` is the loss of a region: its processes end without a word.
"""

import asyncio
import base64
import json
import os
import random
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.fleet_measure import Use, open_files, use_of
from devcluster import etcd
from devcluster.boxes import run
from devcluster.client import Context
from devcluster.daemon import Daemon
from devcluster.etcd import EtcdMember
from devcluster.region import EDGE_ORCHESTRATOR, Member
from orchestrator.store.etcd.settings import EtcdTls
from polder.v1 import operator_pb2, operator_pb2_grpc

PREFIX = "/polder"
CLIENT = "orchestrators"
PORT = 7443
_ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A region: its name and where it is."""

    name: str
    latitude: float
    longitude: float


PLACES = (
    Place("eu-central", 50.11, 8.68),
    Place("eu-west", 48.86, 2.35),
    Place("eu-north", 59.33, 18.06),
    Place("eu-south", 41.90, 12.50),
    Place("eu-east", 52.23, 21.01),
)


@dataclass(slots=True)
class Region:
    """One member, and the etcd beside it, if the Store is one."""

    place: Place
    address: str
    member: Member
    etcd: EtcdMember | None

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def pid(self) -> int:
        """Of the orchestrator; 0 when it does not run."""
        return self.member.daemon.pid

    def use(self) -> Use:
        return use_of(self.pid)

    def etcd_use(self) -> Use:
        return use_of(self.etcd.daemon.pid) if self.etcd is not None else Use(0.0, 0.0)

    def files(self) -> int:
        """Open at the orchestrator."""
        return open_files(self.pid)

    @property
    def daemons(self) -> list[Daemon]:
        return [self.member.daemon, *([self.etcd.daemon] if self.etcd is not None else [])]

    def kill(self) -> None:
        """Both processes at once, before either can tell anybody."""
        for daemon in self.daemons:
            if daemon.pid:
                os.kill(daemon.pid, signal.SIGKILL)
        for daemon in self.daemons:
            daemon.stop(signal.SIGKILL)


class Members:
    """All regions. `store` is `etcd` or `sqlite`; `settings` are flags of every orchestrator."""

    def __init__(
        self, folder: Path, count: int, store: str, settings: dict[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._store = store
        net = f"127.{random.randint(64, 254)}.{random.randint(0, 255)}"
        places = PLACES[:count]
        addresses = [f"{net}.{number}" for number in range(1, count + 1)]
        self.regions = [
            self._region(place, address, addresses, settings or {})
            for place, address in zip(places, addresses, strict=True)
        ]

    def _region(
        self, place: Place, address: str, addresses: Sequence[str], settings: dict[str, str]
    ) -> Region:
        home = self._folder / place.name
        home.mkdir(parents=True)
        flags = {"location": f"{place.latitude},{place.longitude}", **settings}
        beside = None
        if self._store == "etcd":
            tls = self._tls(CLIENT)
            beside = EtcdMember(place.name, home, address, self._tls(place.name))
            flags |= {
                "ca-dir": str(home / "ca"),
                "store": "etcd:" + ",".join(f"{a}:{etcd.CLIENT_PORT}" for a in addresses),
                "etcd-ca": str(tls.ca),
                "etcd-cert": str(tls.certificate),
                "etcd-key": str(tls.key),
                "etcd-prefix": PREFIX,
            }
        name = f"{place.name}-1"
        member = Member(name, place.name, address, home, flags, netns="")
        return Region(place, address, member, beside)

    # --- up and down -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when all serve. Raises DaemonError and CommandError."""
        if self._store == "etcd":
            await asyncio.to_thread(self._make_authorities)
            etcds = [region.etcd for region in self.regions if region.etcd is not None]
            group = {one.name: one.peer_url for one in etcds}
            await asyncio.gather(*(asyncio.to_thread(one.start, group) for one in etcds))
        first, *others = self.regions
        await asyncio.to_thread(first.member.start)  # it initialises the Store
        await asyncio.gather(*(asyncio.to_thread(region.member.start) for region in others))

    def _make_authorities(self) -> None:
        """One root; each region has its own CA and no other's."""
        self._ca("etcd", "--name", CLIENT, "--client")
        for region in self.regions:
            place, home = region.place.name, self._folder / region.place.name / "ca"
            self._ca("init", "--region", place)
            (home / "regions").mkdir(parents=True)
            shutil.copy(self._safe / "root.crt", home / "root.crt")
            shutil.copytree(self._safe / "regions" / place, home / "regions" / place)
            self._ca("etcd", "--name", place, "--host", region.address)

    @property
    def _safe(self) -> Path:
        return self._folder / "ca"

    def _ca(self, *words: str) -> None:
        run([EDGE_ORCHESTRATOR, "ca", *words, "--dir", str(self._safe)], os.environ)

    def _tls(self, name: str) -> EtcdTls:
        home = self._safe / "etcd" / name
        return EtcdTls(home / "ca.crt", home / "etcd.crt", home / "etcd.key")

    def stop(self) -> None:
        """Whatever state they are in. What they wrote is of no use to anybody."""
        for region in self.regions:
            for daemon in region.daemons:
                daemon.stop(signal.SIGKILL)

    # --- asked -----------------------------------------------------------------------------------

    @property
    def living(self) -> list[Region]:
        return [region for region in self.regions if region.pid]

    def context(self) -> Context:
        """The first admin's: the member that initialised the Store has written it."""
        made = (region.member.data_dir / "admin.yaml" for region in self.regions)
        return Context(next(path for path in made if path.exists()))

    def leader(self) -> Region:
        """Whose name is in etcd; the first, if the Store is not etcd or nobody leads."""
        for region in self.living:
            if region.etcd is None:
                continue
            key = base64.b64encode(f"{PREFIX}//leader".encode()).decode()
            found = region.etcd.api.ask("kv/range", {"key": key}).get("kvs", [])
            name = base64.b64decode(found[0]["value"]).decode() if found else ""
            for one in self.living:
                if one.name == name:
                    return one
        return self.living[0]


class Operator:
    """The operator API of one member."""

    def __init__(self, context: Context, region: Region) -> None:
        options = context.options(own_connection=True)
        options.append(("grpc.max_receive_message_length", 512 << 20))
        self._channel = grpc.aio.secure_channel(
            f"{region.address}:{PORT}", context.credentials(), options
        )
        self.region = region
        self.stub = operator_pb2_grpc.OperatorServiceStub(self._channel)

    async def status(self, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
        """Raises grpc.RpcError."""
        request = operator_pb2.GetRequest()
        request.ref.kind, request.ref.name, request.ref.namespace = kind, name, namespace
        answer = await self.stub.Get(request, timeout=_ASK_S)
        found: dict[str, Any] = json.loads(answer.resource.status_json)
        return found

    async def close(self) -> None:
        await self._channel.close(None)
