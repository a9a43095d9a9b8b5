"""A fleet of one box is upgraded: real packages, dpkg and systemd, a live orchestrator, edgectl.

Takes minutes, some of them for debootstrap: with POLDER_DEBIAN_ROOTS=DIR it uses what is there.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.emulation import debian
from polder.release import PACKAGE_NAME
from polder.v1 import operator_pb2
from tests.debian_root import DebianRoot, install
from tests.integration.orchestrator_rig import Rig, running
from tests.integration.test_package import build, builder
from tests.integration.test_package_boots import (
    DEADLINE_S,
    eventually,
    is_connected,
    main_pid,
    token_for,
)

pytestmark = [pytest.mark.long, pytest.mark.emulation, pytest.mark.timeout(1800)]

FIRST, GOOD, BAD, WORSE = "0.1.0-1", "0.2.0-1", "0.3.0-1", "0.4.0-1"
STATE = "/var/lib/polder-agent"
# A node that could start nothing is not upgraded, and there is no containerd in this root.
SIMULATED = "[Service]\nExecStart=\nExecStart=/usr/bin/edge-agent run --runtime simulated\n"
AT_IT = f"""
while dpkg-query -W -f '${{db:Status-Abbrev}}' {PACKAGE_NAME} | grep -q ^ii; do sleep 0.02; done
"""


def versions(arch: str, folder: Path) -> dict[str, Path]:
    """Of BAD the agent ends at once; WORSE cannot even be configured."""
    wheels, out = folder / "wheels", folder / "packages"
    for made_in in (wheels, out):
        made_in.mkdir()
    builder.fetch_wheels(arch, wheels)
    made = {version: build(wheels, out, arch, version) for version in (FIRST, GOOD)}
    start = "def main() -> int:\n"
    made[BAD] = changed(made[GOOD], out, BAD, "agent/lean.py", start, "    return 3\n")
    made[WORSE] = changed(made[GOOD], out, WORSE, "", "set -u\n", "exit 9\n")
    return made


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return versions("amd64", tmp_path_factory.mktemp("amd64"))


def changed(package: Path, out: Path, version: str, module: str, at: str, insert: str) -> Path:
    """The package again, as another version, with a line after `at`; no module: in its postinst."""
    arch = package.stem.rpartition("_")[2]
    tree, made = out / f"tree-{version}", out / f"{PACKAGE_NAME}_{version}_{arch}.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", control.read_text()))
    site = tree / "opt/polder-agent/lib/python3.11/site-packages"
    path = site / module if module else tree / "DEBIAN" / "postinst"
    text = path.read_text()
    assert text.count(at) == 1
    path.write_text(text.replace(at, at + insert))
    if module:  # what is compiled is never checked against its source
        (path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc").unlink()
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, made]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    return made


@dataclass
class Hands:
    """An operator's: edge-orchestrator for the CA, edgectl for the rest."""

    rig: Rig
    packages: dict[str, Path]
    patience: str = "45s"
    """For an agent to come up well."""

    def upload(self, version: str, *options: str) -> None:
        package = self.packages[version]
        release = package.with_suffix(".release")
        ca = ["--dir", str(self.rig.config.data_path / "ca"), "--deb", str(package), *options]
        self._run("orchestrator", "ca", "sign-release", *ca, "--out", str(release))
        self.edgectl("agent", "upload", str(release), "--deb", str(package))

    def edgectl(self, *words: str, code: int = 0) -> str:
        return self._run("edgectl", *words, code=code)

    def begin(self, version: str) -> str:
        """Its id."""
        said = self.try_to_begin(version)
        found = re.search(r"upgrade (\S+) begins", said)
        assert found is not None, said
        return found[1]

    def try_to_begin(self, version: str, code: int = 0) -> str:
        how = ["--waves", "100%", "--soak", "2s", "--patience", self.patience]
        return self.edgectl("agent", "upgrade", "--version", version, *how, code=code)

    def state(self) -> dict[str, Any]:
        """Of the newest upgrade."""
        said = json.loads(self.edgectl("agent", "status", "-o", "json"))
        found: dict[str, Any] = said["upgrades"][0]
        return found

    def _run(self, module: str, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "EDGECTL_CONFIG": str(self.rig.config.data_path / "admin.yaml")},
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}: {done.stdout}"
        return done.stdout


@pytest.fixture
def box(tmp_path: Path) -> Iterator[DebianRoot]:
    with DebianRoot(str(debian("amd64", tmp_path))) as root:
        yield root


def joined(root: DebianRoot, packages: dict[str, Path], token: str) -> None:
    root.put("/etc/systemd/system/edge-agent.service.d/simulated.conf", SIMULATED)
    install(root, packages[FIRST])
    root.put("/etc/polder/agent.toml", 'log_level = "debug"\n')
    root.put(f"{STATE}/volumes/ns/r/v/data", "precious")
    root.put("/etc/polder/join-token", token, 0o600)
    root.boot()
    eventually(lambda: is_connected(root), "the box joins")


def version_of(root: DebianRoot) -> str:
    shown = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", PACKAGE_NAME]
    return root.run(*shown, code=None).stdout


def runs(root: DebianRoot, version: str) -> bool:
    """Installed whole, and the agent of it has a session."""
    return version_of(root) == f"ii {version}" and is_connected(root)


def ended(hands: Hands, upgrade: str) -> dict[str, Any]:
    eventually(lambda: hands.state()["phase"] != "Running", "the upgrade ends or pauses")
    state = hands.state()
    assert state["id"] == upgrade
    return state


def unharmed(root: DebianRoot) -> None:
    """What is not the package's business; and nothing of the upgrade is left but the way back."""
    assert root.run("cat", "/etc/polder/agent.toml").stdout == 'log_level = "debug"\n'
    assert root.run("cat", f"{STATE}/volumes/ns/r/v/data").stdout == "precious"
    left = root.run("ls", f"{STATE}/upgrade").stdout.split()
    assert [name for name in left if name.endswith((".deb", ".part", ".pyz", ".json"))] == [
        next(name for name in left if name.endswith(".deb")),
        "floor.json",
        "outcome.json",
    ]


async def test_a_good_version_comes_through_and_bad_ones_go_back_by_themselves(
    packages: dict[str, Path], box: DebianRoot, tmp_path: Path
) -> None:
    async with running(tmp_path / "orchestrator") as rig:
        await rig.site()
        token = await token_for(rig, "box-1")
        await asyncio.to_thread(_four_upgrades, box, Hands(rig, packages), token)
        request = operator_pb2.AgentUpgradesRequest()
        upgrades = (await rig.admin().AgentUpgrades(request)).upgrades
        assert [upgrade.version for upgrade in upgrades] == [GOOD, FIRST, WORSE, BAD, GOOD]


def _four_upgrades(root: DebianRoot, hands: Hands, token: str) -> None:
    joined(root, hands.packages, token)
    comes_through(root, hands)
    goes_back(root, hands, BAD, "NotWell")
    goes_back(root, hands, WORSE, "InstallFailed")
    report = root.run("edge-agent", "doctor", "-o", "json", code=None).stdout
    found = [f["what"] for f in json.loads(report)["findings"] if f["check"] == "upgrades"]
    assert "carried out here" in found[0] and "InstallFailed" in found[1]
    _back_to_the_first(root, hands)


def comes_through(root: DebianRoot, hands: Hands) -> None:
    """From FIRST to GOOD."""
    assert root.run("systemctl", "is-active", "edge-upgrade.path").stdout == "active\n"
    hands.upload(GOOD)
    said = hands.try_to_begin(GOOD, code=1)
    assert FIRST in said, "without a way back there is no way there"
    hands.upload(FIRST)
    switch = main_pid(root, "edge-switch")
    state = ended(hands, hands.begin(GOOD))
    assert (state["phase"], state["done"]) == ("Done", 1)
    eventually(lambda: runs(root, GOOD), "the new version runs")
    eventually(lambda: not root.exists(f"{STATE}/upgrade/taken.json"), "the installer has ended")
    unharmed(root)
    assert main_pid(root, "edge-switch") not in (0, switch)
    said = root.run("edge-agent", "upgrade", "status").stdout
    assert f"version      {GOOD}" in said and f"{GOOD}: Done" in said and "from afar    yes" in said


def goes_back(root: DebianRoot, hands: Hands, version: str, reason: str) -> None:
    """From GOOD, by itself."""
    hands.upload(version)
    upgrade = hands.begin(version)
    state = ended(hands, upgrade)
    assert (state["phase"], state["failed"]) == ("Paused", 1)
    shown = hands.edgectl("agent", "status")
    assert reason in shown and "box-1" in shown
    assert runs(root, GOOD)
    unharmed(root)
    events = hands.edgectl("events")
    assert "UpgradeRolledBack" in events and version in events
    hands.edgectl("agent", "abort", upgrade)


def _back_to_the_first(root: DebianRoot, hands: Hands) -> None:
    """It was signed once, as a way back; that is not enough."""
    said = hands.try_to_begin(FIRST, code=1)
    assert "not signed as a downgrade" in said
    hands.upload(FIRST, "--downgrade")
    state = ended(hands, hands.begin(FIRST))
    assert (state["phase"], state["done"]) == ("Done", 1)
    eventually(lambda: runs(root, FIRST), "the first version runs again")
    eventually(lambda: not root.exists(f"{STATE}/upgrade/taken.json"), "the installer has ended")
    unharmed(root)
    assert "all else     only if signed after" in root.run("edge-agent", "upgrade", "status").stdout
    # What was left is past: members do not know what the box remembers, and it refuses.
    upgrade = hands.begin(GOOD)
    state = ended(hands, upgrade)
    assert (state["phase"], state["shown"][0]["reason"]) == ("Paused", "OlderRelease")
    assert runs(root, FIRST)
    hands.edgectl("agent", "abort", upgrade)


@pytest.mark.parametrize("step", ["install", "unpack", "try"])
async def test_power_that_fails_in_the_middle_is_made_up_for_at_boot(
    packages: dict[str, Path], box: DebianRoot, tmp_path: Path, step: str
) -> None:
    """Of the installer's steps; `unpack`: below /opt is some of either version."""
    async with running(tmp_path / "orchestrator") as rig:
        await rig.site()
        token = await token_for(rig, "box-1")
        await asyncio.to_thread(_power_fails, box, Hands(rig, packages), token, step)


def _power_fails(root: DebianRoot, hands: Hands, token: str, step: str) -> None:
    joined(root, hands.packages, token)
    for version in (FIRST, GOOD):
        hands.upload(version)
    upgrade = hands.begin(GOOD)

    def has_come_to() -> bool:
        taken = root.run("cat", f"{STATE}/upgrade/taken.json", code=None).stdout
        return f'"step": "{step}"' in taken

    if step == "unpack":  # it takes two seconds
        root.run("timeout", f"{DEADLINE_S:g}", "sh", "-c", AT_IT)
    else:
        eventually(has_come_to, f"the installer comes to {step}")
    root.cut_power()
    assert step != "unpack" or not version_of(root).startswith("ii")
    root.boot()
    eventually(lambda: runs(root, GOOD), "the box comes through after all")
    assert ended(hands, upgrade)["phase"] == "Done"
    eventually(lambda: not root.exists(f"{STATE}/upgrade/taken.json"), "the installer has ended")
    unharmed(root)
