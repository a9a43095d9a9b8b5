"""The whole way of what operators decide at a site: edgectl, agents as processes, an orchestrator.

The agents have a simulated runtime; all else is real.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.ports import free_port
from tests.integration.agent_fakes import eventually
from tests.integration.orchestrator_rig import Rig, manifest, running, workload

pytestmark = pytest.mark.slow

NODES = ("a", "b", "c")
SITE = "ams-1"
SLOW_S = 60.0  # on a machine with much else to do


Process = subprocess.Popen[bytes]


class Site:
    """Three nodes, and somebody with the admin's context."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.folder = folder
        self.rig = rig
        self.context = rig.config.data_path / "admin.yaml"
        self.local = {name: free_port() for name in NODES}
        self.processes: list[Process] = []

    async def start(self) -> None:
        await self.rig.site(SITE)
        for name in NODES:
            state = self.folder / name
            environment = {
                **os.environ,
                "POLDER_SITE_LISTEN": f"127.0.0.1:{free_port()}",
                "POLDER_SITE_ADVERTISE": "127.0.0.1",
                "POLDER_LOCAL_LISTEN": f"127.0.0.1:{self.local[name]}",
                "POLDER_LOCAL_ADVERTISE": "127.0.0.1",
            }
            token = (await self.edgectl("token", "create", "--site", SITE)).strip()
            agent = [sys.executable, "-m", "agent"]
            where = ["--state-dir", str(state)]
            join = [*agent, "join", *where, "--token", token, "--node", name]
            await asyncio.to_thread(subprocess.run, join, check=True, capture_output=True)
            run = [
                *agent,
                "run",
                *where,
                "--runtime",
                "simulated",
                "--log-dir",
                str(state / "pods"),
            ]
            self.processes.append(self._run(name, run, environment))

    def _run(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stderr=log, env=environment)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(20)

    # --- what operators do -----------------------------------------------------------------------

    async def edgectl(self, *words: str) -> str:
        return await asyncio.to_thread(self._edgectl, words)

    async def at_site(self, *words: str, node: str = "a") -> str:
        """Without an orchestrator."""
        return await self.edgectl("--site-endpoint", f"127.0.0.1:{self.local[node]}", *words)

    def _edgectl(self, words: tuple[str, ...]) -> str:
        environment = {**os.environ, "EDGECTL_CONFIG": str(self.context)}
        command = [sys.executable, "-m", "edgectl", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    # --- what is to be seen ----------------------------------------------------------------------

    def status(self, kind: str, name: str) -> dict[str, Any]:
        shown = self.rig.orchestrator.parts.catalog.get(kind, "default", name)
        return dict(shown.status or {}) if shown is not None else {}

    def conditions(self, kind: str, name: str) -> dict[str, dict[str, Any]]:
        return {c["type"]: c for c in self.status(kind, name).get("conditions", ())}

    def node(self) -> str:
        """Where web-0 runs, ready."""
        status = self.status("Replica", "web-0")
        return str(status["node"]) if status.get("ready") else ""

    def reasons(self, name: str = "web-0") -> list[str]:
        events = self.rig.orchestrator.parts.events.list(namespace="default", name=name)
        return [event.reason for event in events]

    async def overrides(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            await self.edgectl("override", "list", "-o", "json")
        )
        return found

    async def runs(self) -> str:
        """Its node, once all could take it over."""

        def able() -> list[str]:
            return [s["state"] for s in self.status("Replica", "web-0").get("standbys", ())]

        await eventually(lambda: self.node() and able() == ["Able", "Able"], SLOW_S)
        return self.node()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path / "orchestrator", heartbeat_interval=1.0) as rig:
        made = Site(tmp_path, rig)
        try:
            await made.start()
            await rig.apply(manifest("Namespace", "default"))
            await rig.apply(workload("web", replicas=1, failover={"standbys": 2}))
            yield made
        finally:
            made.end()


async def down(site: Site) -> None:
    """No orchestrator anywhere."""
    await site.rig.orchestrator.stop()


async def up(site: Site) -> None:
    await site.rig.restart()


async def test_a_stop_without_an_orchestrator_is_known_and_obeyed_when_there_is_one(
    site: Site,
) -> None:
    home = await site.runs()
    await down(site)
    said = await site.at_site("stop", "web-0", "--reason", "smoke", node=home)
    assert "web-0" in said
    assert "StoppedLocally" in await site.at_site("get", "replicas")
    await up(site)
    await eventually(lambda: "LocalOverride" in site.conditions("Workload", "web"), SLOW_S)
    told = site.conditions("Replica", "web-0")["LocalOverride"]["message"]
    assert told.startswith("stopped by operator/admin at ") and told.endswith(": smoke")
    await eventually(lambda: site.status("Workload", "web")["reason"] == "StoppedLocally", SLOW_S)
    assert site.status("Workload", "web")["phase"] == "Degraded"
    await eventually(lambda: "LocalStop" in site.reasons(), SLOW_S)
    assert site.reasons().count("LocalStop") == 1
    (found,) = await site.overrides()
    assert (found["field"], found["by"], found["conflict"]) == ("stopped", "operator/admin", "")
    assert site.status("Replica", "web-0")["node"] == home, "nobody replaced it"
    # Taken back here, its site starts it.
    await site.edgectl("override", "drop", "web-0", "--reason", "no fire")
    await eventually(site.node, SLOW_S)
    assert await site.overrides() == []
    assert "not stopped" in await site.at_site("overrides", "-A")


async def test_a_move_at_the_site_becomes_the_placement(site: Site) -> None:
    home = await site.runs()
    there = next(name for name in NODES if name != home)
    await site.at_site("move", "web-0", "--to", there)
    await eventually(lambda: site.node() == there, SLOW_S)
    await eventually(lambda: "LocalOverrideDone" in site.reasons(), SLOW_S)
    assert site.status("Replica", "web-0")["tookOver"]["from"] == home
    assert await site.overrides() == []
    assert await site.runs() == there, "and it stays"


async def test_a_conflict_is_shown_to_both_sides_until_somebody_decides(site: Site) -> None:
    home = await site.runs()
    await down(site)
    await site.at_site("stop", "web-0", "--reason", "smoke", node=home)
    await up(site)
    await site.edgectl("scale", "workload/web", "--replicas", "0")
    await eventually(lambda: "OverrideConflict" in site.reasons(), SLOW_S)
    (found,) = await site.overrides()
    assert "replicas: 0" in found["conflict"]

    async def at_site() -> str:
        return str(json.loads(await site.at_site("overrides", "-o", "json"))[0].get("conflict", ""))

    for _ in range(60):
        if "replicas: 0" in await at_site():
            break
        await asyncio.sleep(0.5)
    assert "replicas: 0" in await at_site(), "the site shows it, too"
    await site.edgectl("override", "accept", "web-0")
    (found,) = await site.overrides()
    assert found["conflict"] == "" and "replicas: 0" in found["accepted"]


async def test_a_frozen_site_is_left_alone(site: Site) -> None:
    await site.runs()
    await site.at_site("freeze", "--reason", "audit")
    await eventually(lambda: "LocalOverride" in site.conditions("Replica", "web-0"), SLOW_S)
    await site.edgectl("scale", "workload/web", "--replicas", "0")

    def told() -> list[str]:
        said = site.rig.orchestrator.leader.explanations.get(("default", "web"), ())
        return [explanation.code for explanation in said]

    await eventually(lambda: "SiteFrozen" in told(), SLOW_S)
    assert site.node()
    await site.at_site("unfreeze")
    await eventually(lambda: not site.status("Replica", "web-0"), SLOW_S)
