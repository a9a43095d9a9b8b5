"""Memory file systems, and what the kernel says of mounts. Used by `agent/volumes.py`.

Format of mountinfo: proc_pid_mountinfo(5).
"""

import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOUNTINFO = Path("/proc/self/mountinfo")
IN_MEMORY = ("tmpfs", "ramfs")
MS_NOSUID, MS_NODEV = 2, 4
MNT_DETACH = 2
SOCKET_S = 2.0


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of mountinfo."""

    path: str
    kind: str  # tmpfs, ext4, ...


def parse(text: str) -> list[MountPoint]:
    """In the order in which they were mounted: of two on one path the last one counts."""
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        words = before.split(" ")
        if separator and len(words) > 4:
            found.append(MountPoint(_plain(words[4]), after.split(" ")[0]))
    return found


def _plain(text: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def is_in_memory(path: Path) -> bool:
    """Whether what is written there is never written to a disk (but for swap)."""
    if not path.is_dir():
        return False
    real = str(path.resolve())
    holder = MountPoint("", "")
    for point in parse(MOUNTINFO.read_text()):
        if _is_within(real, point.path) and len(point.path) >= len(holder.path):
            holder = point
    return holder.kind in IN_MEMORY


def below(path: str) -> list[str]:
    """Mount points strictly below a directory."""
    points = {point.path for point in parse(MOUNTINFO.read_text())}
    return sorted(p for p in points if p != path and _is_within(p, path))


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def is_shared_with(listener: Path) -> bool:
    """Whether what this process mounts is seen by the one that listens on a Unix socket.

    A service with PrivateTmp=, ProtectSystem= or the like has a mount namespace of its own.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(SOCKET_S)
            probe.connect(str(listener))
            raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        (pid, _, _) = struct.unpack("3i", raw)
        return Path("/proc/self/ns/mnt").readlink() == Path(f"/proc/{pid}/ns/mnt").readlink()
    except OSError:
        return False


def mount_memory(directory: Path, size_bytes: int) -> None:
    """An empty file system that everybody may write to and that never grows over the size.

    Raises OSError.
    """
    options = f"size={size_bytes},mode=1777".encode()
    target = os.fsencode(directory)
    _check(_libc().mount(b"tmpfs", target, b"tmpfs", MS_NOSUID | MS_NODEV, options), directory)


def unmount(directory: Path) -> None:
    """Its content goes, once nobody has it open. Raises OSError."""
    _check(_libc().umount2(os.fsencode(directory), MNT_DETACH), directory)


def _libc() -> Any:
    import ctypes  # late: few pods have such volumes

    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, directory: Path) -> None:
    if result:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
