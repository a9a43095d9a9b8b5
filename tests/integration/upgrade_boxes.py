"""Packages of the agent and simulated boxes that exchange theirs, for the tests of upgrades.

The packages have the real form (deb(5)) and nothing in them. A box joins, holds a session, fetches
with the agent's own code, and in the place of dpkg changes the version that it says.
"""

import asyncio
import contextlib
import gzip
import io
import random
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from grpc import aio

from agent.upgrade.fetch import FetchFailed, FetchRefused, fetch
from agent.upgrade.files import UpgradeFiles
from orchestrator.cancellation import is_cancelled
from orchestrator.identity.releases import issue, read_package
from polder.release import Release, SignedRelease
from polder.release_proofs import verify_release
from polder.v1 import agent_pb2, agent_pb2_grpc, operator_pb2
from tests.integration.gateway_harness import good_inventory
from tests.integration.members_rig import OFFLINE
from tests.integration.orchestrator_rig import Rig

HEARTBEAT_S = 0.5
PART = 100_000


def package(
    folder: Path, version: str, arch: str = "amd64", size: int = 700_001, **fields: str
) -> Path:
    """As `hardware/package/build.py` makes them, without what they are for."""
    folder.mkdir(parents=True, exist_ok=True)
    control = {
        "Package": "polder-agent",
        "Version": version,
        "Architecture": arch,
        "Polder-State-Schema": "1",
        **fields,
    }
    text = "".join(f"{name}: {value}\n" for name, value in control.items() if value)
    data = random.Random(f"{version} {arch}").randbytes(size)
    path = folder / f"polder-agent_{version}_{arch}.deb"
    path.write_bytes(
        b"!<arch>\n"
        + _member("debian-binary", b"2.0\n")
        + _member("control.tar.gz", _tar(text.encode()))
        + _member("data.tar.xz", data)
    )
    return path


def _member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return head + data + b"\n" * (len(data) % 2)


def _tar(control: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        about = tarfile.TarInfo("./control")
        about.size = len(control)
        archive.addfile(about, io.BytesIO(control))
    return gzip.compress(out.getvalue(), mtime=0)


def signed(
    rig: Rig, paths: Sequence[Path], *, downgrade: bool = False, ahead_s: float = 0.0
) -> tuple[Release, SignedRelease]:
    """By the root, where its key is kept, and a clock that may be ahead."""
    elsewhere = rig.config.ca_path / OFFLINE
    home = elsewhere if elsewhere.exists() else rig.config.ca_path
    packages = [read_package(path) for path in paths]
    return issue(home, packages, time.time() + ahead_s, downgrade=downgrade)


def message(found: SignedRelease) -> agent_pb2.SignedRelease:
    return agent_pb2.SignedRelease(release=found.release, signature=found.signature)


async def upload_requests(
    found: SignedRelease, sha256: str = "", data: bytes = b""
) -> AsyncIterator[operator_pb2.PutReleaseRequest]:
    yield operator_pb2.PutReleaseRequest(release=message(found))
    for offset in range(0, len(data), PART):
        part = operator_pb2.PackagePart(
            sha256=sha256, offset=offset, data=data[offset : offset + PART]
        )
        yield operator_pb2.PutReleaseRequest(part=part)


async def upload(
    rig: Rig, folder: Path, version: str, size: int = 700_001, *, downgrade: bool = False
) -> Release:
    """A release with its packages, as `edgectl agent upload` brings it."""
    path = package(folder, version, size=size)
    release, found = signed(rig, [path], downgrade=downgrade)
    requests = upload_requests(found, release.packages[0].sha256, path.read_bytes())
    await rig.admin().PutRelease(requests)
    return release


class Box:
    """One box. `bad`: versions with which it does not come up. `work_s`: how long it installs."""

    def __init__(self, rig: Rig, folder: Path, name: str, site: str, version: str) -> None:
        self._rig = rig
        self.name = name
        self.site = site
        self.version = version
        self.bad: set[str] = set()
        self.work_s = 0.05
        self.installing = False
        self.fetched: list[bytes] = []
        self.told: list[agent_pb2.AgentUpgrade] = []
        self._files = UpgradeFiles(folder / name)
        self._files.prepare()
        self._status: agent_pb2.UpgradeStatus | None = None
        self._number = 0
        self._call: Any = None
        self._channel: aio.Channel | None = None
        self._work: asyncio.Task[None] | None = None
        self._credentials: Any = None

    async def join(self) -> None:
        self._credentials = await self._rig.node(self.name, self.site)

    async def run(self) -> None:
        """Session after session, until cancelled."""
        try:
            while True:
                try:
                    await self._session()
                except (aio.AioRpcError, asyncio.InvalidStateError):
                    pass
                except asyncio.CancelledError:
                    if is_cancelled():  # and not its call alone
                        raise
                await asyncio.sleep(0.05)
        finally:
            if self._work is not None:
                self._work.cancel()

    async def _session(self) -> None:
        self._channel = self._rig.channel(self._credentials)
        stub: Any = agent_pb2_grpc.AgentServiceStub(self._channel)
        self._call = stub.Session()
        self._number += 1
        inventory = good_inventory()
        inventory.arch = "amd64"
        await self._say(
            hello=agent_pb2.Hello(
                agent_version=self.version,
                instance_id=f"{self.name}-{uuid.uuid4().hex}",
                session_number=self._number,
                boot_id="boot",
                inventory=inventory,
            )
        )
        beating = asyncio.create_task(self._beat())
        try:
            while (said := await self._call.read()) is not aio.EOF:
                if said.HasField("welcome") and self._status is not None:
                    await self._say(upgrade=self._status)
                if said.HasField("upgrade"):
                    self._told(said.upgrade)
        finally:
            beating.cancel()
            self._call.cancel()
            await self._channel.close()

    async def _beat(self) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._say(heartbeat=agent_pb2.Heartbeat())
                await asyncio.sleep(HEARTBEAT_S)

    async def _say(self, **said: Any) -> None:
        await self._call.write(agent_pb2.SessionRequest(**said))

    # --- an upgrade ------------------------------------------------------------------------------

    def _told(self, said: agent_pb2.AgentUpgrade) -> None:
        self.told.append(said)
        if said.withdrawn:
            if self._work is not None and not self.installing:
                self._work.cancel()
                self._work = self._status = None
            return
        known = self._status
        if known is not None and (known.id, known.attempt) == (said.id, said.attempt):
            return
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._become(said))

    async def _become(self, said: agent_pb2.AgentUpgrade) -> None:
        releases = [self._verified(said.wanted), self._verified(said.present)]
        wanted = releases[0].version
        await self._report(said, wanted, "Downloading")
        for release in releases:
            found = release.package_for("amd64")
            assert found is not None
            while True:
                try:
                    assert self._channel is not None
                    await fetch(self._channel, self._files, found)
                    break
                except FetchRefused:
                    raise
                except FetchFailed:
                    await asyncio.sleep(0.1)
            self.fetched.append(self._files.package(found.sha256).read_bytes())
        self.installing = True
        await self._report(said, wanted, "Installing")
        await asyncio.sleep(self.work_s)
        if wanted in self.bad:
            outcome, reason = "RolledBack", "NotWell"
        else:
            outcome, reason = "Done", ""
            self.version = wanted
        self._status = agent_pb2.UpgradeStatus(
            id=said.id,
            version=wanted,
            phase=outcome,
            reason=reason,
            message="the agent exits at once" if reason else "",
            attempt=said.attempt,
            at_ms=int(time.time() * 1000),
        )
        self.installing = False
        self._call.cancel()  # the new agent's session is another one

    async def _report(self, said: agent_pb2.AgentUpgrade, version: str, phase: str) -> None:
        self._status = agent_pb2.UpgradeStatus(
            id=said.id, version=version, phase=phase, attempt=said.attempt
        )
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._say(upgrade=self._status)

    def _verified(self, found: agent_pb2.SignedRelease) -> Release:
        release = SignedRelease(found.release, found.signature)
        authority = self._rig.authority
        return verify_release(release, authority.roots_der, authority.trust_domain)


@contextlib.asynccontextmanager
async def boxes(
    rig: Rig, folder: Path, sites: int, each: int, version: str
) -> AsyncIterator[list[Box]]:
    """`each` boxes at every site, joined and in session."""
    found = []
    for site in range(sites):
        await rig.site(f"site-{site}")
        for number in range(each):
            found.append(Box(rig, folder, f"s{site}-n{number}", f"site-{site}", version))
    await asyncio.gather(*(box.join() for box in found))
    tasks = [asyncio.create_task(box.run()) for box in found]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
