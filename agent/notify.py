"""systemd's notification protocol (sd_notify(3)) and the lock on a state directory."""

import fcntl
import os
import socket
from pathlib import Path


def notify(message: str) -> None:
    """Tell systemd, if it listens: `READY=1`, `STOPPING=1`, `WATCHDOG=1`, `STATUS=...`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto(message.encode(), address)
    except OSError:
        return  # systemd will notice by itself; there is nobody to tell


def watchdog_interval_s() -> float:
    """How often systemd wants a sign of life, halved as it advises; 0: never."""
    try:
        asked = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    except ValueError:
        return 0.0
    return asked / 2 if mine else 0.0


class Locked(Exception):
    """Another process uses the state directory."""


class StateLock:
    """Held for as long as the process lives; the kernel lets go of it, however it ends."""

    def __init__(self, state_dir: Path) -> None:
        """Raises Locked and OSError."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = state_dir / "agent.lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            raise Locked(f"{state_dir} is in use by the agent with pid {holder or '?'}") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._file)


def holder_of(state_dir: Path) -> int:
    """The pid of the agent that uses the directory; 0: none."""
    try:
        file = os.open(state_dir / "agent.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return 0
    except BlockingIOError:
        text = os.read(file, 32).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(file)
