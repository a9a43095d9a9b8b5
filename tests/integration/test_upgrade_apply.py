"""`edge-agent upgrade apply`: an order is verified once more before the installer begins."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent import state_form
from agent.config import AgentConfig
from agent.domain.upgrade import Fetched, Here, State, Telling, Told, Verified, step
from agent.inventory import Box, architecture
from agent.upgrade import box, command
from agent.upgrade.files import FLOOR, INSTALLER, ORDER, OUTCOME, TAKEN, UpgradeFiles, sha256_of
from agent.upgrade.installer import AGAIN, only_one
from agent.upgrade.order import order_of
from polder.release import Package, Release, SignedRelease
from polder.release_floor import Floor
from polder.release_proofs import sign_release
from tests.integration.agent_fakes import DOMAIN, Ca, write_identity

pytestmark = pytest.mark.dpkg

OLD, NEW = "0.1.0-1", "0.2.0-1"
SIGNED_MS = 1_000
ARCH = architecture(Box())
CONTROL = """Package: {name}
Version: {version}
Architecture: {arch}
Maintainer: test <test@localhost>
Installed-Size: {kilobytes}
Description: test
"""


def deb(folder: Path, version: str, name: str = "polder-agent", kilobytes: int = 1) -> Path:
    tree, made = folder / f"tree-{version}", folder / f"{version}.deb"
    (tree / "DEBIAN").mkdir(parents=True)
    text = CONTROL.format(name=name, version=version, arch=ARCH, kilobytes=kilobytes)
    (tree / "DEBIAN" / "control").write_text(text)
    build = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(made)]
    subprocess.run(build, check=True, capture_output=True)
    return made


@dataclass
class Ordered:
    """A box whose agent has ordered NEW. `begun`: what `apply` became."""

    config: AgentConfig
    files: UpgradeFiles
    ca: Ca
    begun: list[list[str]]

    def release(self, version: str, path: Path) -> tuple[Release, SignedRelease]:
        package = Package(ARCH, sha256_of(path), path.stat().st_size)
        release = Release(DOMAIN, version, 1, (package,), SIGNED_MS)
        return release, sign_release(release, self.ca.key)

    def order(self, folder: Path, **of_new: Any) -> dict[str, Any]:
        """Its packages are here. `of_new` changes what NEW's says of itself."""
        self.files.prepare()
        signed, releases = [], []
        for version, more in ((NEW, of_new), (OLD, {})):
            path = deb(folder, more.pop("version", version), **more)
            release, one = self.release(version, path)
            path.rename(self.files.package(release.packages[0].sha256))
            releases.append(release)
            signed.append(one)
        here = Here(OLD, ARCH, 1)
        events = Told(Telling("u1", 1, *signed, 60)), Verified(*releases), Fetched()
        state = State()
        for event in events:
            state = step(state, event, here, 0)
        return order_of(state)

    def apply(self, order: dict[str, Any]) -> int:
        self.files.write(ORDER, order)
        return command.apply(self.config)

    def refused(self, reason: str) -> str:
        """The message."""
        found = self.files.read(OUTCOME)
        assert found is not None and not self.begun
        assert (found["phase"], found["reason"], found["version"]) == ("Refused", reason, NEW)
        assert not any(self.files.exists(name) for name in (ORDER, TAKEN, INSTALLER))
        return str(found["message"])


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ordered:
    state_dir, begun = tmp_path / "state", []
    ca = Ca()
    write_identity(state_dir, ca, ["127.0.0.1:1"])
    monkeypatch.setattr(box, "unfit", lambda _state_dir: "")
    monkeypatch.setattr(box, "PREFIX", tmp_path)
    monkeypatch.setattr(os, "execv", lambda _program, words: begun.append(words))
    return Ordered(AgentConfig(state_dir=state_dir), UpgradeFiles(state_dir), ca, begun)


def test_a_good_order_begins_the_installer(ordered: Ordered, tmp_path: Path) -> None:
    ordered.apply(ordered.order(tmp_path))
    pyz = ordered.files.folder / INSTALLER
    assert ordered.begun == [["/usr/bin/python3", "-I", str(pyz)]]
    assert not ordered.files.exists(ORDER)
    assert (ordered.files.read(TAKEN) or {})["floor"] == {"signed_ms": SIGNED_MS, "since_ms": 0}
    # What it became ends at once where there is an outcome: dpkg is not asked on this machine.
    ordered.files.write(OUTCOME, {"id": "u1", "attempt": 1, "phase": "Done"})
    command_line = [sys.executable, "-I", "-S", str(pyz)]
    done = subprocess.run(command_line, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not ordered.files.exists(TAKEN) and not pyz.exists()


def test_a_box_that_goes_down_lets_the_installer_end_and_go_on_later(
    ordered: Ordered, tmp_path: Path
) -> None:
    ordered.apply(ordered.order(tmp_path))
    taken = ordered.files.read(TAKEN)
    assert taken is not None
    ordered.files.write(TAKEN, {**taken, "step": "try"})  # dpkg of this machine has nothing to do
    pyz = ordered.files.folder / INSTALLER
    installer = subprocess.Popen([sys.executable, "-I", "-S", str(pyz)], cwd="/")
    deadline = time.monotonic() + 30
    while (ordered.files.read(TAKEN) or {}).get("starts") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    installer.terminate()
    assert installer.wait(30) == AGAIN
    assert (ordered.files.read(TAKEN) or {})["step"] == "try" and pyz.exists()


@pytest.mark.parametrize("half", ["wanted", "present"])
def test_one_that_nobody_of_ours_signed_is_refused(
    ordered: Ordered, tmp_path: Path, half: str
) -> None:
    order = ordered.order(tmp_path)
    ordered.ca = Ca("another")
    order[half]["signature"] = ordered.order(tmp_path / "another")[half]["signature"]
    ordered.apply(order)
    ordered.refused("BadSignature")


@pytest.mark.parametrize(
    ("of_new", "said"),
    [({"name": "evil"}, "evil"), ({"version": "0.0.1-1"}, "0.0.1-1")],
)
def test_a_package_that_is_not_what_the_release_says_is_refused(
    ordered: Ordered, tmp_path: Path, of_new: dict[str, Any], said: str
) -> None:
    ordered.apply(ordered.order(tmp_path, **of_new))
    assert said in ordered.refused("BadPackage")


def test_a_package_that_changed_on_the_disk_is_refused(ordered: Ordered, tmp_path: Path) -> None:
    order = ordered.order(tmp_path)
    with ordered.files.package(order["present"]["sha256"]).open("ab") as out:
        out.write(b"x")
    ordered.apply(order)
    ordered.refused("BadPackage")


def test_one_that_does_not_fit_the_disk_is_refused(ordered: Ordered, tmp_path: Path) -> None:
    ordered.apply(ordered.order(tmp_path, kilobytes=1 << 40))
    assert "MiB are free" in ordered.refused("NoRoom")


def test_one_that_cannot_read_the_state_is_refused(
    ordered: Ordered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ordered.order(tmp_path)
    monkeypatch.setattr(state_form, "STATE_SCHEMA", 2)
    state_form.raise_form(ordered.config.state_dir)
    ordered.apply(order)
    assert "form 1" in ordered.refused("OlderState")


def test_what_was_signed_before_the_last_downgrade_is_refused(
    ordered: Ordered, tmp_path: Path
) -> None:
    """The agent looks at that, too; but it is this process that stands before dpkg."""
    order = ordered.order(tmp_path)
    ordered.files.write(FLOOR, {"signed_ms": SIGNED_MS + 1, "since_ms": SIGNED_MS + 1})
    ordered.apply(order)
    assert "before the last downgrade" in ordered.refused("OlderRelease")


def test_what_is_remembered_is_what_the_agent_goes_by_and_is_shown(
    ordered: Ordered, capsys: pytest.CaptureFixture[str]
) -> None:
    command.status(ordered.config)
    assert "signed after" not in capsys.readouterr().out
    ordered.files.prepare()
    ordered.files.write(FLOOR, {"signed_ms": 1_700_000_000_000, "since_ms": 1_600_000_000_000})
    found = box.here(ordered.config, ARCH)
    assert found.floor == Floor(1_700_000_000_000, 1_600_000_000_000)
    command.status(ordered.config)
    said = capsys.readouterr().out
    assert "downgrades   only if signed after 2023-11-14 22:13:20Z\n" in said
    assert "all else     only if signed after 2020-09-13 12:26:40Z\n" in said


def test_the_floor_is_that_of_before_when_it_goes_on_after_a_power_cut(
    ordered: Ordered, tmp_path: Path
) -> None:
    order = ordered.order(tmp_path)
    noted = {"signed_ms": 7, "since_ms": 7}
    ordered.files.write(TAKEN, {**order, "floor": noted})
    command.apply(ordered.config)
    assert (ordered.files.read(TAKEN) or {})["floor"] == noted and ordered.begun


def test_a_box_that_is_no_package_refuses(
    ordered: Ordered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "unfit", lambda _state_dir: "no package")
    ordered.apply(ordered.order(tmp_path))
    ordered.refused("NotPackaged")


def test_an_order_for_other_packages_than_were_signed_is_refused(
    ordered: Ordered, tmp_path: Path
) -> None:
    order = ordered.order(tmp_path)
    order["wanted"]["sha256"] = "0" * 64
    ordered.apply(order)
    ordered.refused("BadOrder")


def test_an_order_that_cannot_be_read_goes(ordered: Ordered, tmp_path: Path) -> None:
    order = ordered.order(tmp_path)
    order["wanted"]["release"] = "e30="
    ordered.apply(order)
    assert ordered.files.read(OUTCOME) is None and not ordered.begun
    assert not ordered.files.exists(TAKEN)


def test_two_at_once_wait_for_each_other(ordered: Ordered, tmp_path: Path) -> None:
    order = ordered.order(tmp_path)
    with only_one(ordered.files) as mine:
        assert mine
        assert ordered.apply(order) == AGAIN
    assert ordered.files.exists(ORDER)
