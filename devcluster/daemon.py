"""One background process of a small installation: started, found again, asked to end.

It outlives the program that started it, so that `make quickstart` can return; a pid file that names
no live process of ours is repaired, not believed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devcluster import residue

STOP_TIMEOUT_S = 15.0


class DaemonError(Exception):
    """It did not start or ended early; the message carries the end of its log."""


class Daemon:
    """`name` gives the files NAME.pid and NAME.log. `marker` is an argument of its command line."""

    def __init__(
        self,
        name: str,
        directory: Path,
        command: Sequence[str],
        *,
        marker: str,
        netns: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        assert any(marker in word for word in command)
        self.name = name
        self.log = directory / f"{name}.log"
        self._pid_file = directory / f"{name}.pid"
        self._command = [*(["nsenter", f"--net={netns}"] if netns else []), *command]
        self._marker = marker
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        if self._process is not None:
            # Our own child: its command line may not be there yet, but it cannot be another's.
            return self._process.pid if self._process.poll() is None else 0
        return residue.live_pid(self._pid_file, must_mention=self._marker)

    def start(self, ready: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Start it unless it runs, and wait until `ready()`. Raises DaemonError."""
        if not self.pid:
            self._pid_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, **self._environment},
                )
            self._pid_file.write_text(str(self._process.pid))
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.pid:
                raise DaemonError(f"{self.name} ended early:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise DaemonError(f"{self.name} was not ready in {timeout_s:.0f} s:\n{self.tail()}")
            time.sleep(0.05)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask it to end, insist after a while. No error if it does not run."""
        pid = self.pid
        if pid:
            residue.end_process(pid, signal_number, STOP_TIMEOUT_S)
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._pid_file.unlink(missing_ok=True)

    def tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
