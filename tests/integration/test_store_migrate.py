"""Moving an installation between Stores: whole, once, and taken up again where it stopped."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.installation import SCHEMA
from orchestrator.main import main
from orchestrator.store import keys, migrate
from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.migrate import CannotMigrate
from orchestrator.store.port import (
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    Op,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
)
from orchestrator.store.sqlite import SqliteStore, open_sqlite
from tests.integration.etcd_server import EtcdCluster


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(path)
    try:
        yield store
    finally:
        await store.close()


async def fill(store: Store) -> None:
    """An installation of a few hundred records, a large one and one of a lease among them."""
    chance = random.Random(3)
    await store.txn([], [Put(keys.INSTALLATION, b'{"schema":1}')])
    for n in range(300):
        value = chance.randbytes(chance.choice([0, 10, 1000, 20_000]))
        await store.txn([], [Put(keys.spec("Workload", "default", f"w{n}"), value)])
    await store.txn([], [Put(keys.spec("Config", "default", "é large"), b"v" * MAX_VALUE_BYTES)])
    lease = await store.grant_lease(600)
    await store.txn([], [Put(keys.LEADER, b"member", lease)])


async def contents(store: Store) -> dict[str, bytes]:
    """Without what is bound to a lease, and what a move adds to the installation's record."""
    found = {e.key: e.value for e in (await store.range("")).entries if not e.lease}
    if keys.INSTALLATION in found:
        body = json.loads(found[keys.INSTALLATION])
        body.pop("epochBase", None)
        found[keys.INSTALLATION] = json.dumps(body).encode()
    return found


class Flaky:
    """A target whose answers get lost: before the write was made, or after it."""

    def __init__(self, store: Store, lost: Sequence[str], dies_after: int = 10**9) -> None:
        self._store = store
        self._lost = list(lost)
        self._left = dies_after

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        self._left -= 1
        if self._left < 0:
            raise StoreUnavailable("gone")
        lost = self._lost.pop(0) if self._lost else ""
        if lost == "before":
            raise StoreUnavailable("lost")
        result = await self._store.txn(compares, ops)
        if lost == "after":
            raise StoreUnavailable("lost")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_PAUSE_S", 0)


async def test_everything_arrives_but_leases(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await fill(source)
        done = await migrate.migrate(source, target)
        assert await contents(target) == await contents(source)
        assert done.entries == 302
        assert done.left_behind == (keys.LEADER,)
        assert done.value_bytes == sum(len(e.value) for e in (await target.range("")).entries)
        assert await target.get(keys.LEADER) is None
        assert await target.revision() == done.target_revision


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("position", [0, 1, 3, -1])
async def test_lost_answers_change_nothing(tmp_path: Path, when: str, position: int) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await fill(source)
        counted = Flaky(target, [""] * 1000)
        if position < 0:
            async with opened(tmp_path / "c.db") as dry:
                counted = Flaky(dry, [""] * 1000)
                await migrate.migrate(source, counted)
                position = 1000 - len(counted._lost) - 1
        flaky = Flaky(target, [""] * position + [when] * 2)
        await migrate.migrate(source, flaky)
        assert await contents(target) == await contents(source)


async def test_a_move_that_stopped_is_taken_up(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await fill(source)
        with pytest.raises(StoreUnavailable):
            await migrate.migrate(source, Flaky(target, [], dies_after=4))
        assert await target.get(keys.INSTALLATION) is None
        assert len(await contents(target)) > 10
        # The source lived on for a while.
        gone, changed = (keys.spec("Workload", "default", name) for name in ("w0", "w1"))
        await source.txn([], [Delete(gone), Put(changed, b"new")])
        await migrate.migrate(source, target)
        assert await contents(target) == await contents(source)


class Restless:
    """A source that changes under the reader's hands, a number of times."""

    def __init__(self, store: Store, changes: int) -> None:
        self._store = store
        self._changes = changes

    async def revision(self) -> int:
        if self._changes:
            self._changes -= 1
            await self._store.txn([], [Put("/specs/changing", b"%d" % self._changes)])
        return await self._store.revision()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def test_a_source_that_changes_is_read_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await fill(source)
        with pytest.raises(CannotMigrate, match="does not stand still"):
            await migrate.migrate(Restless(source, 100), target)
        assert await target.get(keys.INSTALLATION) is None
        await migrate.migrate(Restless(source, 3), target)
        assert await contents(target) == await contents(source)


async def test_what_is_in_the_way(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        with pytest.raises(CannotMigrate, match="no installation"):
            await migrate.migrate(source, target)
        await fill(source)
        await target.txn([], [Put("/specs/x", b"")])
        with pytest.raises(CannotMigrate, match="not empty"):
            await migrate.migrate(source, target)
    async with opened(tmp_path / "c.db") as target, opened(tmp_path / "a.db") as source:
        await target.txn([], [Put(keys.MIGRATION, b"somebody")])
        with pytest.raises(CannotMigrate, match="another installation"):
            await migrate.migrate(source, target)
        assert len(await contents(target)) == 1


async def test_epochs_go_on_growing_over_every_move(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as first, opened(tmp_path / "b.db") as second:
        await fill(first)
        await migrate.migrate(first, second)
        came_to = await first.revision()
        assert await base_of(first) == 0
        assert await base_of(second) == came_to
        await second.txn([], [Put("/specs/x", b"")])
        came_to += await second.revision()
        async with opened(tmp_path / "c.db") as third:
            await migrate.migrate(second, third)
            assert await base_of(third) == came_to


async def base_of(store: Store) -> int:
    entry = await store.get(keys.INSTALLATION)
    assert entry is not None
    return migrate.epoch_base(entry.value)


async def test_an_installation_is_never_overwritten(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await fill(source)
        await migrate.migrate(source, target)
        before = await target.revision()
        with pytest.raises(CannotMigrate, match="not empty"):
            await migrate.migrate(source, target)
        assert await target.revision() == before


@pytest.mark.etcd
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def prepare() -> None:
        async with opened(tmp_path / "a.db") as source:
            mark = json.dumps({"schema": SCHEMA}).encode()
            await source.txn([], [Put(keys.INSTALLATION, mark), Put("/specs/a", b"1")])

    asyncio.run(prepare())
    cluster = EtcdCluster(tmp_path / "etcd")
    try:
        cluster.start()
        tls = cluster.client_tls
        endpoints = "etcd:" + ",".join(member.endpoint for member in cluster.members)
        command = ["migrate", "--from", f"sqlite:{tmp_path / 'a.db'}", "--to", endpoints]
        assert main(command) == 1
        assert "name the CA" in capsys.readouterr().err
        command += ["--to-ca", str(tls.ca), "--to-cert", str(tls.certificate)]
        command += ["--to-key", str(tls.key)]
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out)["entries"] == 2
        assert main(command) == 1
        assert "not empty" in capsys.readouterr().err
        # And back, from the etcd to a file.
        back = ["migrate", "--from", endpoints, "--to", f"sqlite:{tmp_path / 'b.db'}"]
        back += [word.replace("--to-", "--from-") for word in command[5:]]
        assert main(back) == 0
        assert main(["migrate", "--from", f"sqlite:{tmp_path / 'none'}", "--to", "x:y"]) == 1
        assert not (tmp_path / "none").exists()
    finally:
        cluster.stop()


@pytest.mark.etcd
async def test_from_sqlite_to_etcd(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path / "etcd")
    try:
        cluster.start()
        target = await open_etcd(cluster.settings())
        try:
            async with opened(tmp_path / "a.db") as source:
                await fill(source)
                done = await migrate.migrate(source, target)
                assert done.source_revision == await source.revision()
                assert await contents(target) == await contents(source)
                assert (await target.range("")).revision == done.target_revision
        finally:
            await target.close()
    finally:
        cluster.stop()
