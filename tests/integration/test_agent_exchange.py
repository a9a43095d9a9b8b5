"""An agent that is told to become another version: real sessions, real signatures, real downloads,
and an installer that is the test."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.domain.upgrade import Here
from agent.identity_store import IdentityStore
from agent.relay import RelayHub
from agent.session import SessionClient
from agent.upgrade import fetch
from agent.upgrade.desk import Desk
from agent.upgrade.files import ORDER, OUTCOME, TAKEN, UpgradeFiles
from agent.upgrade.order import half_of
from agent.upgrade.upgrades import Upgrades
from polder.release import Package, Release
from polder.release_floor import Floor
from polder.release_proofs import sign_release
from polder.v1 import agent_pb2
from tests.integration.agent_fakes import DOMAIN, Ca, Orchestrator, eventually, write_identity
from tests.integration.test_agent_session_client import QUICK, FakeNode, NoSources

OLD, NEW = "0.1.0-1", "0.2.0-1"
PACKAGES = {version: version.encode() * 200_000 for version in (OLD, NEW)}
SHA256 = {version: hashlib.sha256(data).hexdigest() for version, data in PACKAGES.items()}


class Store(Orchestrator):
    """With packages, as a member serves them. `cut_after`: a call ends after so many bytes."""

    def __init__(self, ca: Ca) -> None:
        super().__init__(ca)
        self.packages = {SHA256[version]: data for version, data in PACKAGES.items()}
        self.offsets: dict[str, list[int]] = {}
        self.cut_after = 0
        self.held = asyncio.Event()  # set: packages are served
        self.held.set()

    async def Package(self, request, context):  # type: ignore[no-untyped-def]
        self.offsets.setdefault(request.sha256, []).append(request.offset)
        await self.held.wait()
        data = self.packages[request.sha256][request.offset :]
        sent = 0
        for start in range(0, len(data), 1 << 18):
            if self.cut_after and sent >= self.cut_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the member stops")
            part = data[start : start + (1 << 18)]
            yield agent_pb2.PackageResponse(data=part)
            sent += len(part)


@pytest.fixture
def ca() -> Ca:
    return Ca()


@pytest.fixture
async def store(ca: Ca) -> AsyncIterator[Store]:
    served = Store(ca)
    await served.start()
    yield served
    await served.stop()


def signed(ca: Ca, version: str, schema: int = 1, arch: str = "amd64") -> agent_pb2.SignedRelease:
    package = Package(arch, SHA256[version], len(PACKAGES[version]))
    made = sign_release(Release(DOMAIN, version, schema, (package,), 1), ca.key)
    return agent_pb2.SignedRelease(release=made.release, signature=made.signature)


def telling(ca: Ca, **changes: Any) -> agent_pb2.AgentUpgrade:
    facts = {"id": "u1", "attempt": 1, "patience_s": 60}
    facts |= {"wanted": signed(ca, NEW), "present": signed(ca, OLD)}
    return agent_pb2.AgentUpgrade(**(facts | changes))


class Box:
    """One agent process: everything of it that has to do with upgrades."""

    def __init__(self, state_dir: Path, here: Here | None = None, **options: Any) -> None:
        options = {"poll_s": 0.02, "retry_s": 0.05, **options}
        self.files = UpgradeFiles(state_dir)
        identity = IdentityStore(state_dir)
        self.upgrades = Upgrades(
            self.files,
            lambda: Desk(self.files, identity, lambda: here or Here(OLD, "amd64", 1), **options),
        )
        self.client = SessionClient(
            identity, FakeNode(), RelayHub(NoSources()), timing=QUICK, upgrades=self.upgrades
        )
        self.upgrades.publish = self.client.publish_upgrade

    async def __aenter__(self) -> "Box":
        self.tasks = [
            asyncio.create_task(self.upgrades.run()),
            asyncio.create_task(self.client.run()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.stop(flush_s=0.2)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def said(store: Store) -> list[agent_pb2.UpgradeStatus]:
    """Of all sessions."""
    return [status for visit in store.visits for status in visit.of("upgrade")]  # type: ignore[misc]


def phases(store: Store) -> list[str]:
    found = [status.phase for status in said(store)]
    return [phase for at, phase in enumerate(found) if not at or found[at - 1] != phase]


async def tell(store: Store, message: agent_pb2.AgentUpgrade, visit: int = 0) -> None:
    await eventually(lambda: len(store.visits) > visit)
    store.visits[visit].say(upgrade=message)


def install(files: UpgradeFiles, phase: str = "Done", reason: str = "") -> None:
    """What the box's installer leaves behind."""
    order = files.take()
    assert order is not None
    outcome = {
        "id": order["id"], "attempt": order["attempt"], "version": order["wanted"]["version"],
        "phase": phase, "reason": reason, "message": "", "at_ms": 1,
    }  # fmt: skip
    files.write(OUTCOME, outcome)
    files.remove(TAKEN)


async def test_it_fetches_both_packages_orders_and_tells_what_became_of_it(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: box.files.exists(ORDER), 20)
        order = box.files.read(ORDER)
        assert order is not None
        assert half_of(order, "wanted", "amd64").release.version == NEW
        for version, data in PACKAGES.items():
            assert box.files.package(SHA256[version]).read_bytes() == data
        box.files.take()
        await eventually(lambda: phases(store) == ["Downloading", "Installing"])
    (tmp_path / "schema").unlink()  # as if the old one had written none
    # dpkg ends the agent; the new one takes up where it was.
    async with Box(tmp_path, Here(NEW, "amd64", 1)) as box:
        await eventually(lambda: len(store.visits) == 2 and store.visits[1].of("upgrade"))
        assert said(store)[-1].phase == "Installing"
        assert not (tmp_path / "schema").exists(), "on trial: the old one must be able to read it"
        install(box.files)
        await eventually(lambda: phases(store)[-1] == "Done")
        assert (tmp_path / "schema").read_text() == "1\n"
        last = said(store)[-1]
        assert (last.id, last.attempt, last.version) == ("u1", 1, NEW)
    # And again after each Welcome.
    async with Box(tmp_path, Here(NEW, "amd64", 1)):
        await eventually(lambda: len(store.visits) == 3 and store.visits[2].of("upgrade"))
        assert said(store)[-1].phase == "Done"


async def test_an_outcome_is_final_until_it_is_told_anew(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: box.files.exists(ORDER), 20)
        install(box.files, "RolledBack", "NotWell")
        await eventually(lambda: phases(store)[-1:] == ["RolledBack"])
        await tell(store, telling(ca))  # after another Welcome, say
        await tell(store, telling(ca, attempt=2))
        await eventually(lambda: box.files.exists(ORDER), 20)
        order = box.files.read(ORDER)
        assert order is not None and order["attempt"] == 2
        fetched = store.offsets[SHA256[NEW]]
        assert fetched == [0], "what is here is not fetched again"


async def test_what_was_fetched_before_a_break_is_not_fetched_again(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    store.cut_after = 1 << 19
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: box.files.exists(ORDER), 20)
    offsets = store.offsets[SHA256[NEW]]
    assert len(offsets) == 3 and offsets == [0, 1 << 19, 1 << 20]
    troubles = [status.message for status in said(store) if status.phase == "Downloading"]
    assert any("UNAVAILABLE" in message for message in troubles)


async def test_a_session_that_ends_ends_no_download(tmp_path: Path, ca: Ca, store: Store) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    store.held.clear()
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: store.offsets)
        store.visits[0].say(goodbye=agent_pb2.Goodbye(reason="Restarting"))
        await tell(store, telling(ca), visit=1)
        store.held.set()
        await eventually(lambda: box.files.exists(ORDER), 20)


@pytest.mark.parametrize(
    ("changes", "here", "reason"),
    [
        ({"foreign": True}, Here(OLD, "amd64", 1), "BadSignature"),
        ({"tampered": True}, Here(OLD, "amd64", 1), "BadSignature"),
        ({}, Here(OLD, "amd64", 2), "OlderState"),
        ({}, Here(OLD, "arm64", 1), "OtherArchitecture"),
        ({}, Here("0.0.9-1", "amd64", 1), "OtherPresent"),
        ({}, Here(OLD, "amd64", 1, "no package"), "NotPackaged"),
        ({"replayed": True}, Here(NEW, "amd64", 1), "OlderRelease"),
        ({}, Here(OLD, "amd64", 1, floor=Floor(2, 2)), "OlderRelease"),
    ],
)
async def test_what_must_not_be_is_refused_and_nothing_is_fetched(
    tmp_path: Path, ca: Ca, store: Store, changes: dict[str, bool], here: Here, reason: str
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    message = telling(ca)
    if "foreign" in changes:
        message.wanted.CopyFrom(signed(Ca("another"), NEW))
    if "replayed" in changes:  # a member that was broken into knows the hole of the old one
        message.wanted.CopyFrom(signed(ca, OLD))
        message.present.CopyFrom(signed(ca, NEW))
    if "tampered" in changes:
        message.wanted.release = message.wanted.release.replace(b"0.2.0", b"0.2.1")
    async with Box(tmp_path, here) as box:
        await tell(store, message)
        await eventually(lambda: said(store), 20)
        assert (said(store)[-1].phase, said(store)[-1].reason) == ("Refused", reason)
        assert not store.offsets
        await eventually(lambda: box.files.exists(OUTCOME))
    async with Box(tmp_path, here):
        await eventually(lambda: len(store.visits) == 2 and store.visits[1].of("upgrade"))
        assert said(store)[-1].reason == reason


async def test_a_package_that_is_not_what_was_signed_is_refused(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    store.packages[SHA256[NEW]] = b"x" * len(PACKAGES[NEW])
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: phases(store)[-1:] == ["Refused"], 20)
        assert said(store)[-1].reason == "BadPackage"
        assert not box.files.part(SHA256[NEW]).exists() and not box.files.exists(ORDER)


async def test_a_package_that_does_not_end_is_refused(tmp_path: Path, ca: Ca, store: Store) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    store.packages[SHA256[NEW]] = PACKAGES[NEW] * 2
    async with Box(tmp_path):
        await tell(store, telling(ca))
        await eventually(lambda: phases(store)[-1:] == ["Refused"], 20)
        assert said(store)[-1].reason == "BadPackage"


async def test_without_room_nothing_is_fetched(
    tmp_path: Path, ca: Ca, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    monkeypatch.setattr(fetch, "ROOM_LEFT_BYTES", 1 << 60)
    async with Box(tmp_path):
        await tell(store, telling(ca))
        await eventually(lambda: phases(store)[-1:] == ["Refused"], 20)
        assert said(store)[-1].reason == "NoRoom" and not store.offsets


async def test_it_is_withdrawn_while_packages_come(tmp_path: Path, ca: Ca, store: Store) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    store.held.clear()
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: store.offsets)
        await tell(store, agent_pb2.AgentUpgrade(id="u1", withdrawn=True))
        await eventually(lambda: box.upgrades.status() is None)
        store.held.set()
        await tell(store, telling(ca, id="u2"))
        await eventually(lambda: box.files.exists(ORDER), 20)
        order = box.files.read(ORDER)
        assert order is not None and order["id"] == "u2"


async def test_what_is_told_meanwhile_waits_for_the_installer(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: box.files.exists(ORDER), 20)
        await tell(store, telling(ca, id="u2"))
        await tell(store, telling(ca, id="u3"))
        box.files.take()
        await eventually(lambda: len(store.visits[0].of("heartbeat")) > 2)
        install(box.files, "RolledBack", "NotWell")
        await eventually(lambda: box.files.exists(ORDER), 20)
        order = box.files.read(ORDER)
        assert order is not None and order["id"] == "u3"


async def test_a_way_back_that_does_not_work_is_told(tmp_path: Path, ca: Ca, store: Store) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    async with Box(tmp_path) as box:
        await tell(store, telling(ca))
        await eventually(lambda: box.files.exists(ORDER), 20)
        order = box.files.take()
        assert order is not None
        box.files.write(TAKEN, {**order, "step": "back", "back_trouble": "no room"})
        await eventually(lambda: said(store)[-1].message == "cannot go back: no room")
        assert said(store)[-1].phase == "Installing"


async def test_an_order_that_nobody_takes_is_taken_back(
    tmp_path: Path, ca: Ca, store: Store
) -> None:
    write_identity(tmp_path, ca, [store.endpoint])
    async with Box(tmp_path, untaken_s=0.1) as box:
        await tell(store, telling(ca))
        await eventually(lambda: phases(store)[-1:] == ["Refused"], 20)
        assert said(store)[-1].reason == "NoInstaller" and not box.files.exists(ORDER)
