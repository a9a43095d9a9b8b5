"""The box's own installer: exchanges the agent's package, and goes back when that does not work.

`edge-agent upgrade apply` verifies an order, copies this module and its few neighbours into one
file (`command.py`), and becomes it: from then on nothing below /opt is used, which dpkg replaces
meanwhile, and which may be neither the one version nor the other after a power cut. systemd
(edge-upgrade.service) starts the copy again until there is an outcome. Standard library only.

    install   dpkg may have begun with the wanted package
    try       it is installed: is the new agent well?
    back      it is not: dpkg may have begun with the package that was there
    settle    that is installed: is the old agent well again?

Each step may be begun again after any power cut. A box that starts again and again within the first
two has been brought down by the new agent, and goes back.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.upgrade.files import FLOOR, INSTALLER, LOG, OUTCOME, TAKEN, UpgradeFiles, sha256_of

PACKAGE = "polder-agent"
UNIT = "edge-agent.service"
FRONTEND_LOCK = Path("/var/lib/dpkg/lock-frontend")
LOCK_WAIT_S = 600.0
DPKG_S = 1800.0  # a hung script of the package must not hold the box for ever
SETTLED_S = 10.0  # an agent that lives so long with its session has started
PATIENCE_MIN_S, PATIENCE_MAX_S = 10.0, 3600.0
POLL_S = 1.0
STARTS_MAX = 3
MAX_MESSAGE = 500
DONE, AGAIN = 0, 1


class Trouble(Exception):
    """What dpkg or the box refused; the message says why."""


class Stopped(Exception):
    """systemd ends the installer; the next start goes on."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The agent at a moment: `pid` as systemd has it, 0: it does not run. The rest as that process
    says itself."""

    pid: int = 0
    version: str = ""
    connected: bool = False


class System(Protocol):
    """The box. `DebianSystem`, or a test's."""

    def installed(self) -> tuple[str, bool]:
        """Version of the package, and whether it is wholly installed. Raises Trouble."""
        ...

    def install(self, package: Path) -> None:
        """Raises Trouble."""
        ...

    def mend(self) -> None:
        """Finish what a power cut left half configured, as far as that works."""
        ...

    def seen(self) -> Seen: ...

    def alone(self) -> bool:
        """Nobody else changes packages, from now until this process ends; False: not in time."""
        ...


class Installer:
    """`run` returns the exit code: DONE, or AGAIN when there is no outcome yet."""

    def __init__(
        self,
        files: UpgradeFiles,
        system: System,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._system = system
        self._clock = clock
        self._wait = wait
        self._wall = wall
        self._order: dict[str, Any] = {}

    def run(self) -> int:
        """Raises OSError when the disk refuses; the next start goes on then."""
        order = self._files.take()
        if order is None:
            self._files.remove(TAKEN, INSTALLER)
            return DONE
        self._order = order
        if self._has_outcome():
            return self._clean_up()
        starts = int(order.get("starts", 0)) + 1
        self._note(starts=starts, step=order.get("step", "install"))
        if not self._system.alone():
            if starts == 1 and self._order["step"] == "install":
                return self._end("Refused", "Busy", "other packages are being installed")
            return AGAIN
        if starts > 1:
            self._system.mend()
        if self._order["step"] in ("install", "try") and starts > STARTS_MAX:
            self._go_back("NotWell", f"the box started {starts - 1} times with the new agent")
        return self._forward() if self._order["step"] in ("install", "try") else self._back()

    # --- there ------------------------------------------------------------------------------------

    def _forward(self) -> int:
        wanted, present = self._order["wanted"], self._order["present"]
        if self._order["step"] == "install":
            try:
                self._system.install(self._checked(wanted))
            except Trouble as error:
                if self._system.installed() == (present["version"], True):
                    return self._end("Refused", "InstallFailed", str(error))
                self._go_back("InstallFailed", str(error))
                return self._back()
            self._note(step="try")
        verdict = self._until_well(wanted["version"])
        if verdict is None:
            self._files.write(FLOOR, self._order["floor"])
            return self._end("Done", "", "")
        self._go_back("NotWell", verdict.message, ran=verdict.runs)
        return self._back()

    def _until_well(self, version: str) -> "NotWell | None":
        """None once the agent has run for a while with its session."""
        patience_s = min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, float(self._order["patience_s"])))
        deadline = self._clock() + patience_s
        well_since, well_pid, pids = 0.0, 0, set[int]()
        while True:
            seen, now = self._system.seen(), self._clock()
            pids |= {seen.pid} - {0}
            if not (seen.pid and seen.connected and seen.version == version):
                well_pid = 0
            elif seen.pid != well_pid:
                well_since, well_pid = now, seen.pid
            elif now - well_since >= SETTLED_S:
                return None
            if now >= deadline:
                return _not_well(seen, version, len(pids), patience_s)
            self._wait(POLL_S)

    # --- and back ---------------------------------------------------------------------------------

    def _go_back(self, reason: str, message: str, *, ran: bool = False) -> None:
        """`ran`: the new agent did, and only had no session."""
        self._note(step="back", reason=reason, message=message[:MAX_MESSAGE], ran=ran)

    def _back(self) -> int:
        present = self._order["present"]
        if self._order["step"] == "back":
            try:
                self._system.install(self._checked(present))
            except Trouble as error:
                _say(f"cannot go back yet: {error}")
                self._note(back_trouble=str(error)[:MAX_MESSAGE])
                return AGAIN
            self._note(step="settle")
        verdict = self._until_well(present["version"])
        reason, message = self._order["reason"], self._order["message"]
        if verdict is not None:
            message = f"{message}; after going back: {verdict.message}"
            if self._order["ran"] and verdict.runs:  # the new one is not to blame for that
                reason = "Unreachable"
        return self._end("RolledBack", reason, message)

    # --- the files --------------------------------------------------------------------------------

    def _checked(self, package: Mapping[str, Any]) -> Path:
        """Its file, if it still is what was signed. Raises Trouble."""
        path = self._files.package(package["sha256"])
        try:
            if sha256_of(path) == package["sha256"]:
                return path
        except OSError as error:
            raise Trouble(f"{path.name}: {error.strerror}") from error
        raise Trouble(f"{path.name} is not what was signed: is the disk well?")

    def _note(self, **facts: Any) -> None:
        if "step" in facts and facts["step"] != self._order.get("step"):
            said = f"{self._order['wanted']['version']}: {facts['step']}"
            _say(": ".join(filter(None, (said, str(facts.get("message", ""))))))
        self._order |= facts
        self._files.write(TAKEN, self._order)

    def _has_outcome(self) -> bool:
        found = self._files.read(OUTCOME) or {}
        return all(found.get(name) == self._order.get(name) for name in ("id", "attempt"))

    def _end(self, phase: str, reason: str, message: str) -> int:
        outcome = {
            "id": self._order["id"],
            "attempt": self._order["attempt"],
            "version": self._order["wanted"]["version"],
            "phase": phase,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "at_ms": int(self._wall() * 1000),
        }
        self._files.write(OUTCOME, outcome)
        _say(" ".join(filter(None, (outcome["version"], phase, reason, message))))
        return self._clean_up()

    def _clean_up(self) -> int:
        """The package of what runs stays: it is the next upgrade's way back."""
        found = self._files.read(OUTCOME) or {}
        kept = "wanted" if found.get("phase") == "Done" else "present"
        self._files.keep_packages([self._order[kept]["sha256"]])
        self._files.remove(INSTALLER, TAKEN)
        return DONE


def _say(message: str) -> None:
    """In the journal."""
    sys.stderr.write(f"edge-upgrade: {message}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class NotWell:
    """`runs`: the version that should, and it has no session."""

    message: str
    runs: bool = False


def _not_well(seen: Seen, version: str, processes: int, patience_s: float) -> NotWell:
    within = f"within {patience_s:g} s"
    if processes > 2:
        return NotWell(f"{UNIT} ended again and again: {processes} processes {within}")
    if not seen.pid:
        return NotWell(f"{UNIT} did not keep running {within}")
    if seen.version != version:
        return NotWell(f"{version} was installed, and {seen.version or 'nothing'} runs")
    if not seen.connected:
        text = f"{version} runs, and had no session with an orchestrator {within}"
        return NotWell(text, runs=True)
    text = f"{version} did not stay connected for {SETTLED_S:g} s {within}"
    return NotWell(text, runs=True)


class DebianSystem:
    """dpkg and systemd of this box."""

    def __init__(self, files: UpgradeFiles, wait: Callable[[float], None]) -> None:
        self._wait = wait
        self._log = files.folder / LOG
        self._status = files.folder.parent / "status.json"
        self._lock = -1

    def alone(self) -> bool:
        """As apt does it: who holds this lock may run dpkg several times."""
        self._lock = os.open(FRONTEND_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() >= deadline:
                    return False
                self._wait(POLL_S)

    def installed(self) -> tuple[str, bool]:
        command = ["dpkg-query", "--show", "--showformat=${Version} ${db:Status-Abbrev}", PACKAGE]
        version, _, status = self._run(command, 60.0).partition(" ")
        return version, status.strip() == "ii"

    def install(self, package: Path) -> None:
        keep = ["--force-confold", "--force-confdef"]
        self._run(["dpkg", *keep, "--install", str(package)], DPKG_S)

    def mend(self) -> None:
        try:
            self._run(["dpkg", "--configure", "--pending", "--force-confold"], DPKG_S)
        except Trouble as error:  # what it is about is installed anew anyway
            _say(str(error))

    def seen(self) -> Seen:
        """What an agent says that has ended meanwhile does not count."""
        command = ["systemctl", "show", "--property=ActiveState,MainPID", UNIT]
        try:
            found = dict(line.split("=", 1) for line in self._run(command, 30.0).split())
        except (Trouble, ValueError):
            return Seen()
        pid = int(found.get("MainPID") or 0) if found.get("ActiveState") == "active" else 0
        try:
            said = json.loads(self._status.read_text())
        except (OSError, ValueError):
            said = {}
        if not pid or not isinstance(said, dict) or said.get("pid") != pid:
            return Seen(pid)
        return Seen(pid, str(said.get("version", "")), said.get("connected") is True)

    def _run(self, command: list[str], timeout_s: float) -> str:
        """Its output, which also goes to the log. Raises Trouble."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "DPKG_FRONTEND_LOCKED": "true",
        }
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Trouble(f"{command[0]}: {error}") from error
        text = done.stdout.decode(errors="replace")
        if command[0] == "dpkg":
            with self._log.open("a") as log:
                log.write(f"{' '.join(command)}: {done.returncode}\n{text}")
        if done.returncode:
            last = " ".join(text.split("\n")[-4:]).strip()
            raise Trouble(f"{command[0]} failed ({done.returncode}): {last[-MAX_MESSAGE:]}")
        return text


@contextmanager
def only_one(files: UpgradeFiles) -> Iterator[bool]:
    """False: another one works already. systemd starts one; a person may start another."""
    lock = os.open(files.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def main(state_dir: Path) -> int:
    """Of the copy. Returns the exit code."""
    files = UpgradeFiles(state_dir)
    stopping = threading.Event()
    # The box goes down: dpkg ends what it does, and the next start goes on from there.
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())

    def wait(seconds: float) -> None:
        if stopping.wait(seconds):
            raise Stopped

    with only_one(files) as mine:
        if not mine:
            _say("another one is at it")
            return AGAIN
        try:
            return Installer(files, DebianSystem(files, wait), wait=wait).run()
        except Stopped:
            return AGAIN
        except (OSError, Trouble) as error:
            _say(str(error))
            return AGAIN
