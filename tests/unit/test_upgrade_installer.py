"""The box's installer against a box in memory: it ends well or goes back, wherever power fails."""

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent import durable
from agent.upgrade import installer
from agent.upgrade.command import archive
from agent.upgrade.files import FLOOR, INSTALLER, ORDER, OUTCOME, TAKEN, UpgradeFiles
from agent.upgrade.installer import AGAIN, DONE, STARTS_MAX, Installer, Seen, Trouble

OLD, NEW = "0.1.0-1", "0.2.0-1"
RAISED = {"signed_ms": 7, "since_ms": 0}
PATIENCE_S = 60
# How a version behaves on this box.
WELL, DEAF, ENDS, FLAPS, SAYS_OTHER, BREAKS, REFUSED, PANICS = (
    "well", "deaf", "ends", "flaps", "says-other", "breaks", "refused", "panics",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This box's power fails between steps, and not this machine's."""
    monkeypatch.setattr(durable.os, "fsync", lambda _descriptor: None)


class PowerCut(BaseException):
    """Nothing catches it."""


class Box:
    """dpkg, systemd and the clock. `cut_at`: the power fails at that step, counted from 0."""

    def __init__(self, new: str = WELL, old: str = WELL, cut_at: int = -1) -> None:
        self.ways = {NEW: new, OLD: old}
        self.installed_now = (OLD, True)
        self.now = 0.0
        self.cut_at = cut_at
        self.steps = itertools.count()
        self.installs: list[str] = []
        self.busy = False
        self.boots = 0

    def step(self) -> None:
        if next(self.steps) == self.cut_at:
            raise PowerCut

    # --- as `installer.System` has it

    def alone(self) -> bool:
        return not self.busy

    def installed(self) -> tuple[str, bool]:
        return self.installed_now

    def mend(self) -> None:
        self.step()

    def install(self, package: Path) -> None:
        version = package.read_bytes().decode()
        self.installs.append(version)
        self.step()
        if self.ways[version] == REFUSED:
            raise Trouble("dpkg failed (1): preinst says no")
        self.installed_now = (version, False)
        self.step()
        if self.ways[version] == BREAKS:
            raise Trouble("dpkg failed (1): postinst broke")
        self.installed_now = (version, True)
        self.step()

    def seen(self) -> Seen:
        self.step()
        version, whole = self.installed_now
        way = self.ways[version]
        if way == PANICS:
            raise PowerCut
        if not whole or way in (ENDS, BREAKS):
            return Seen()
        if way == FLAPS:
            return Seen(pid=int(self.now) // 5 + 100, version=version, connected=True)
        said = "0.0.1-1" if way == SAYS_OTHER else version
        return Seen(pid=50, version=said, connected=way != DEAF)

    def wait(self, seconds: float) -> None:
        self.now += seconds


class CutFiles(UpgradeFiles):
    """The power may fail around every write."""

    def __init__(self, state_dir: Path, box: Box) -> None:
        super().__init__(state_dir)
        self._box = box

    def write(self, name: str, body: Mapping[str, Any]) -> None:
        self._box.step()
        super().write(name, body)
        self._box.step()

    def remove(self, *names: str) -> None:
        for name in names:
            self._box.step()
            super().remove(name)


def ordered(state_dir: Path, box: Box) -> UpgradeFiles:
    files = CutFiles(state_dir, box)
    files.prepare()
    order: dict[str, Any] = {"id": "u1", "attempt": 1, "patience_s": PATIENCE_S, "floor": RAISED}
    for name, version in (("wanted", NEW), ("present", OLD)):
        sha256 = hashlib.sha256(version.encode()).hexdigest()
        files.package(sha256).write_text(version)
        order[name] = {"version": version, "sha256": sha256}
    UpgradeFiles(state_dir).write(ORDER, order)
    return files


def run(files: UpgradeFiles, box: Box, tries: int = 12) -> int:
    """As systemd does: again until there is an outcome, and at each boot."""
    code = AGAIN
    for _ in range(tries):
        try:
            code = Installer(
                files, box, clock=lambda: box.now, wait=box.wait, wall=lambda: box.now
            ).run()
        except PowerCut:
            box.boots += 1
            continue
        if code == DONE and not files.exists(TAKEN) and not files.exists(ORDER):
            break
    return code


def outcome(files: UpgradeFiles) -> dict[str, Any]:
    found = files.read(OUTCOME)
    assert found is not None
    return found


def left(files: UpgradeFiles) -> set[str]:
    """Versions whose packages are still there."""
    return {path.read_text() for path in files.folder.glob("*.deb")}


def test_a_version_that_is_well_stays(tmp_path: Path) -> None:
    box = Box()
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    assert outcome(files) == {
        "id": "u1", "attempt": 1, "version": NEW, "phase": "Done", "reason": "", "message": "",
        "at_ms": int(box.now * 1000),
    }  # fmt: skip
    assert box.installed_now == (NEW, True) and box.installs == [NEW]
    assert not any(files.exists(name) for name in (ORDER, TAKEN, INSTALLER))
    assert left(files) == {NEW}, "the next upgrade's way back"
    assert files.read(FLOOR) == RAISED


@pytest.mark.parametrize(
    ("way", "reason", "said"),
    [
        (DEAF, "NotWell", "no session"),
        (ENDS, "NotWell", "did not keep running"),
        (FLAPS, "NotWell", "again and again"),
        (SAYS_OTHER, "NotWell", "0.0.1-1 runs"),
        (BREAKS, "InstallFailed", "postinst broke"),
    ],
)
def test_a_version_that_is_not_well_goes_back(
    tmp_path: Path, way: str, reason: str, said: str
) -> None:
    box = Box(new=way)
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    found = outcome(files)
    assert (found["phase"], found["reason"], found["version"]) == ("RolledBack", reason, NEW)
    assert said in found["message"]
    assert box.installed_now == (OLD, True) and box.installs == [NEW, OLD]
    assert left(files) == {OLD} and files.read(FLOOR) is None


def test_a_package_that_dpkg_refuses_touches_nothing(tmp_path: Path) -> None:
    box = Box(new=REFUSED)
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    assert (outcome(files)["phase"], outcome(files)["reason"]) == ("Refused", "InstallFailed")
    assert box.installs == [NEW] and box.installed_now == (OLD, True)


def test_a_lost_uplink_is_not_blamed_on_the_version(tmp_path: Path) -> None:
    box = Box(new=DEAF, old=DEAF)
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    assert (outcome(files)["phase"], outcome(files)["reason"]) == ("RolledBack", "Unreachable")


def test_a_version_that_brings_the_box_down_goes_back(tmp_path: Path) -> None:
    box = Box(new=PANICS)
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    assert (outcome(files)["phase"], outcome(files)["reason"]) == ("RolledBack", "NotWell")
    assert box.boots == STARTS_MAX and box.installed_now == (OLD, True)


def test_while_others_change_packages_nothing_begins(tmp_path: Path) -> None:
    box = Box()
    box.busy = True
    files = ordered(tmp_path, box)
    assert run(files, box) == DONE
    assert (outcome(files)["phase"], outcome(files)["reason"]) == ("Refused", "Busy")
    assert not box.installs


def test_a_package_that_is_damaged_on_the_disk_is_not_installed(tmp_path: Path) -> None:
    box = Box()
    files = ordered(tmp_path, box)
    files.package(hashlib.sha256(NEW.encode()).hexdigest()).write_text("rot")
    assert run(files, box) == DONE
    assert (outcome(files)["phase"], outcome(files)["reason"]) == ("Refused", "InstallFailed")
    assert not box.installs


def test_without_a_way_back_it_tries_again_and_says_why(tmp_path: Path) -> None:
    box = Box(new=ENDS, old=BREAKS)
    files = ordered(tmp_path, box)
    assert run(files, box, tries=3) == AGAIN
    taken = files.read(TAKEN)
    assert taken is not None and taken["step"] == "back"
    assert "postinst broke" in taken["back_trouble"]
    box.ways[OLD] = WELL  # the disk has room again, say
    assert run(files, box) == DONE
    assert outcome(files)["phase"] == "RolledBack" and box.installed_now == (OLD, True)


@pytest.mark.parametrize("way", [WELL, DEAF, ENDS, BREAKS, REFUSED])
def test_the_power_may_fail_at_any_step(tmp_path: Path, way: str) -> None:
    """Each step of an undisturbed run once: it ends as without the cut, or goes back; dpkg's work
    is whole, and what is installed is what the outcome says."""
    undisturbed = Box(new=way)
    run(ordered(tmp_path / "undisturbed", undisturbed), undisturbed)
    steps = next(undisturbed.steps)
    expected = outcome(UpgradeFiles(tmp_path / "undisturbed"))
    assert steps > 5
    for cut_at in range(steps):
        box = Box(new=way, cut_at=cut_at)
        files = ordered(tmp_path / str(cut_at), box)
        assert run(files, box) == DONE, f"cut at {cut_at}"
        found = outcome(files)
        assert found["phase"] == expected["phase"] or found["phase"] == "RolledBack", cut_at
        version = NEW if found["phase"] == "Done" else OLD
        assert box.installed_now == (version, True), f"cut at {cut_at}"
        assert left(files) == {version}
        assert files.read(FLOOR) == (RAISED if version == NEW else None), f"cut at {cut_at}"
        assert not any(files.exists(name) for name in (ORDER, TAKEN, INSTALLER))


def test_an_order_that_was_taken_back_is_nobodys(tmp_path: Path) -> None:
    box = Box()
    files = ordered(tmp_path, box)
    assert files.take_back() and not files.take_back()
    assert run(files, box) == DONE
    assert files.read(OUTCOME) is None and not box.installs


def test_the_copy_runs_with_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """Below /opt there may be anything while it runs."""
    UpgradeFiles(tmp_path).prepare()
    made = archive(tmp_path)
    assert archive(tmp_path) == made
    (tmp_path / "copy.pyz").write_bytes(made)
    command = [sys.executable, "-I", "-S", str(tmp_path / "copy.pyz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (DONE, "")


def test_it_waits_for_whoever_else_changes_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the lock that apt takes, too; and nobody else has it afterwards."""
    lock = tmp_path / "lock-frontend"
    monkeypatch.setattr(installer, "FRONTEND_LOCK", lock)
    take = (
        "import fcntl, sys; file = open(sys.argv[1], 'a')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('mine', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", take, str(lock)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"mine\n"
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        other.communicate()

    assert installer.DebianSystem(UpgradeFiles(tmp_path), wait).alone()
    assert waited == [installer.POLL_S]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert b"BlockingIOError" in done.stderr
