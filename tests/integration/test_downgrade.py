"""An orchestrator that is older than its Store: it refuses, says why, and changes nothing."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devcluster.ports import free_port
from orchestrator.installation import SCHEMA
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.port import Entry, Put, Store
from orchestrator.store.sqlite import open_sqlite
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import etcd_settings, make_ca

Open = Callable[[], Awaitable[Store]]


class Machine:
    """One with an installation on it, and its Store opened by hand while no orchestrator runs."""

    def __init__(self, folder: Path, open_store: Open, **settings: Any) -> None:
        self.folder, self._open = folder, open_store
        ports = {
            name: f"127.0.0.1:{free_port()}" for name in ("listen", "join_listen", "metrics_listen")
        }
        values = {"data_dir": str(folder / "data"), **ports, **settings}
        self.config = folder / "orchestrator.toml"
        self.config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def init(self) -> subprocess.CompletedProcess[str]:
        return self.run("serve", "--init", "--config", str(self.config))

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        opened = await self._open()
        try:
            yield opened
        finally:
            await opened.close()

    async def mark(self, schema: int) -> None:
        """As a version that knows this schema would."""
        async with self.store() as store:
            entry = await store.get(keys.INSTALLATION)
            assert entry is not None
            value = json.dumps(
                {**json.loads(entry.value), "schema": schema}, sort_keys=True
            ).encode()
            await store.txn([], [Put(keys.INSTALLATION, value)])

    async def contents(self) -> tuple[Entry, ...]:
        async with self.store() as store:
            return tuple((await store.range("")).entries)


def refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1
    assert f"the store has schema {SCHEMA + 1}, and version 0.1.0 knows {SCHEMA}" in done.stderr
    assert "Run the version that wrote it, or a later one" in done.stderr
    assert "Traceback" not in done.stderr


async def goes_through_a_downgrade(machine: Machine) -> None:
    assert machine.init().returncode == 0
    await machine.mark(SCHEMA + 1)
    before = await machine.contents()
    out = machine.folder / "bob.yaml"
    create = ("operator", "create", "bob", "--role", "admin", "--out", str(out))
    refused(machine.run("serve", "--config", str(machine.config)))
    refused(machine.init())
    refused(machine.run(*create, "--config", str(machine.config)))
    assert not out.exists()
    assert await machine.contents() == before, "also no presence, no floor and no operator"
    await machine.mark(SCHEMA)  # as after a restore
    assert machine.init().returncode == 0
    assert machine.run(*create, "--config", str(machine.config)).returncode == 0


async def test_with_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "data/polder.db"
    await goes_through_a_downgrade(Machine(tmp_path, lambda: open_sqlite(path)))


@pytest.mark.etcd
async def test_with_etcd(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path / "etcd")
    cluster.start()
    try:
        settings = {**etcd_settings(cluster, "/down"), "ca_dir": str(make_ca(tmp_path / "ca"))}
        machine = Machine(tmp_path, lambda: open_etcd(cluster.settings("/down")), **settings)
        await goes_through_a_downgrade(machine)
    finally:
        cluster.stop()


async def test_an_older_version_moves_no_installation(tmp_path: Path) -> None:
    source, target = tmp_path / "data/polder.db", tmp_path / "new.db"
    machine = Machine(tmp_path, lambda: open_sqlite(source))
    assert machine.init().returncode == 0
    await machine.mark(SCHEMA + 1)
    refused(machine.run("migrate", "--from", f"sqlite:{source}", "--to", f"sqlite:{target}"))
    assert not target.exists()
    await machine.mark(SCHEMA)
    done = machine.run("migrate", "--from", f"sqlite:{source}", "--to", f"sqlite:{target}")
    assert done.returncode == 0, done.stderr
