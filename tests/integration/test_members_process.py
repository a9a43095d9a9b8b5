"""Members as processes over etcd: waiting at the start, names, and upgrades one after the other."""

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from devcluster.ports import free_port
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import EtcdStore
from polder.metadata import MEMBER_KEY
from polder.v1 import operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import Group, MemberProcess, wait_until
from tests.integration.orchestrator_rig import apply_request, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.long]
REGIONS = ("local", "north", "south")
_prefixes = (f"/process{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def group(cluster: EtcdCluster, tmp_path: Path) -> AsyncIterator[Group]:
    made = Group(tmp_path, cluster, next(_prefixes))
    yield made
    await made.close()


# --- the start ------------------------------------------------------------------------------------


async def test_it_waits_for_etcd_and_serves_when_it_is_there(tmp_path: Path) -> None:
    late = EtcdCluster(tmp_path / "etcd")
    group = Group(tmp_path, late, "/late")
    member = group.member("a")
    try:
        member.start(wait=False)
        wait_until(lambda: "waiting for the store" in member.said, "it says what it waits for")
        await asyncio.sleep(4)
        assert member.is_running
        assert 2 <= member.said.count("waiting for the store") <= 5
        late.start()
        member.wait_until_ready()
    finally:
        await group.close()
        late.stop()


async def test_sigterm_ends_the_wait(tmp_path: Path) -> None:
    group = Group(tmp_path, EtcdCluster(tmp_path / "etcd"), "/never")
    member = group.member("a")
    try:
        member.start(wait=False)
        wait_until(lambda: "waiting for the store" in member.said, "it says what it waits for")
        started = time.monotonic()
        assert member.stop() == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in member.said
    finally:
        await group.close()


async def test_a_certificate_that_etcd_refuses_is_not_waited_for(
    group: Group, tmp_path: Path
) -> None:
    stranger = EtcdCluster(tmp_path / "other").client_tls
    member = group.member("a", etcd_cert=str(stranger.certificate), etcd_key=str(stranger.key))
    member.start(wait=False)
    assert member.ended() == 1
    assert "certificate" in member.said
    assert "Traceback" not in member.said


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


async def test_the_offline_commands_work_with_etcd(group: Group, tmp_path: Path) -> None:
    member = group.member("a")
    config = ("--config", str(member.configure()))
    done = await asyncio.to_thread(command, "serve", "--init", *config)
    assert done.returncode == 0, done.stderr
    assert (member.data / "admin.yaml").exists()
    member.start()
    out = tmp_path / "bob.yaml"
    words = ("operator", "create", "bob", "--role", "viewer:default", "--out", str(out))
    done = await asyncio.to_thread(command, *words, *config)
    assert done.returncode == 0, done.stderr
    answer = await group.operator(member, out).WhoAmI(operator_pb2.WhoAmIRequest())
    assert "bob" in str(answer)
    # As on a machine that never got its region's CA.
    nowhere = ("--ca-dir", str(tmp_path / "none"))
    done = await asyncio.to_thread(command, "serve", *config, *nowhere)
    assert done.returncode == 1
    assert "one root" in done.stderr
    assert "ca init" in done.stderr


# --- names ----------------------------------------------------------------------------------------


async def test_two_processes_with_one_name(group: Group) -> None:
    first, second = group.member("a"), group.member("b", member="a")
    first.start()
    second.start(wait=False)
    assert second.ended() == 1
    assert "a member named a runs already" in second.said
    assert "name of its own" in second.said
    assert first.status("/readyz") == 200


async def test_a_killed_member_is_back_at_once(group: Group) -> None:
    member = group.member("a")
    member.start()
    member.kill()
    started = time.monotonic()
    member.start()
    assert time.monotonic() - started < 8  # and not the lease's ten seconds on top


# --- one port for several -------------------------------------------------------------------------


async def test_processes_of_one_machine_share_its_port(group: Group) -> None:
    first = group.member("a")
    shared = {"share_port": True, "listen": first.listen, "advertise": [first.listen]}
    shared["join_listen"] = first.settings["join_listen"]
    first.settings |= {**shared, "peer_listen": f"127.0.0.1:{free_port()}"}
    second = group.member("b", **shared, peer_listen=f"127.0.0.1:{free_port()}")
    second.listen = first.listen
    first.start()
    second.start()
    answered: set[str] = set()
    deadline = time.monotonic() + 30
    while answered != {"a", "b"}:  # the kernel chooses for each connection
        call = group.admin(first).WhoAmI(operator_pb2.WhoAmIRequest())
        await call
        answered.add(str(dict(await call.trailing_metadata())[MEMBER_KEY]))
        assert time.monotonic() < deadline
    # Each is known to the other by an address of its own.
    await _until(lambda: _said(first, "follows member b"))
    await _until(lambda: _said(second, "follows member a"))
    unasked = group.member("c", listen=first.listen)
    unasked.start(wait=False)
    assert unasked.ended() == 1
    assert f"cannot listen on {first.listen}" in unasked.said


# --- pauses ---------------------------------------------------------------------------------------


async def test_a_paused_leader_that_continues_is_a_member_like_others(group: Group) -> None:
    first, second = group.member("a"), group.member("b", region="north")
    first.start()
    await _until_leads(group, "a")
    second.start()
    first.send(signal.SIGSTOP)
    try:
        await _until_leads(group, "b")
        await group.admin(second).Apply(apply_request(manifest("Namespace", "meanwhile")))
        # Presence, too, has run out.
        store = await group.store()
        await _until(lambda: _is_absent(store, keys.present("a")))
        term = await store.get(keys.LEADER)
    finally:
        first.send(signal.SIGCONT)
    await _until(lambda: _said(first, "does not lead any more"))
    await _until(lambda: _is_there(store, keys.present("a")))
    assert await _read(group, 0) >= {"meanwhile"}
    await group.admin(first).Apply(apply_request(manifest("Namespace", "after")))
    assert await store.get(keys.LEADER) == term
    assert await _read(group, 1) >= {"meanwhile", "after"}
    assert first.is_running
    await store.close()


async def _until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def _until_leads(group: Group, name: str) -> None:
    async def leads() -> bool:
        return await group.leader() == name

    await _until(leads)


async def _is_absent(store: EtcdStore, key: str) -> bool:
    return await store.get(key) is None


async def _is_there(store: EtcdStore, key: str) -> bool:
    return await store.get(key) is not None


async def _said(member: MemberProcess, words: str) -> bool:
    return words in member.said


async def test_a_paused_process_yields_its_name(group: Group) -> None:
    """To one that was started in its place: of the two, the newer stays."""
    paused = group.member("a")
    paused.start()
    # On another machine, in another space of process ids: only the lease tells.
    instead = group.member("b", member="a")
    paused.send(signal.SIGSTOP)
    instead.start()
    paused.send(signal.SIGCONT)
    assert paused.ended() == 1
    assert "another process took the name a" in paused.said
    assert instead.status("/readyz") == 200


# --- upgrades -------------------------------------------------------------------------------------


async def test_a_rolling_upgrade_loses_nothing_and_then_keeps_the_old_out(group: Group) -> None:
    members = [
        group.member(name, region=region) for name, region in zip("abc", REGIONS, strict=True)
    ]
    for member in members:
        member.start("0.1.0")
    written = []
    for number, member in enumerate(members):
        other = members[(number + 1) % len(members)]
        assert member.stop() == 0
        stub = group.admin(other)
        await stub.Apply(apply_request(manifest("Namespace", f"during-{number}")))
        written.append(f"during-{number}")
        member.start("0.2.0")
    assert await _read(group, 0) >= set(written)
    await _floor_is(group, "0.2")
    refused = group.member("d")
    refused.start("0.1.5", wait=False)
    assert refused.ended() == 1
    assert "this is version 0.1.5" in refused.said
    assert "at 0.2 or later" in refused.said
    assert "Upgrade this member to 0.2.0." in refused.said
    skipping = group.member("e")
    skipping.start("0.4.0", wait=False)
    assert skipping.ended() == 1
    assert "bring every member to 0.3 first" in skipping.said


async def _read(group: Group, index: int) -> set[str]:
    stub = group.admin(group.members[index])
    response = await stub.List(operator_pb2.ListRequest(kind="Namespace"))
    return {one.metadata.name for one in response.resources}


async def _floor_is(group: Group, wanted: str) -> None:
    store = await group.store()
    deadline = time.monotonic() + 30
    while (entry := await store.get(keys.FLOOR)) is None or entry.value.decode() != wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await store.close()
