"""A name for one run of a process, and whether that run is over. Used by `members.py`.

The name tells machine, process and start, so that a member that was killed and started again on its
machine need not wait until the lease of its former life runs out. Elsewhere the name means nothing,
and only the lease tells.
"""

import hashlib
import os
import secrets
from pathlib import Path


def new_instance_id() -> str:
    """Different at every call."""
    pid = os.getpid()
    return f"{_machine()}.{pid}.{_started(pid)}.{secrets.token_hex(4)}"


def has_ended(instance_id: str) -> bool:
    """Whether it ran on this machine, and runs no more. False: it may run."""
    parts = instance_id.split(".")
    if len(parts) != 4 or not parts[0] or parts[0] != _machine() or not parts[1].isdecimal():
        return False
    return _started(int(parts[1])) != parts[2]


def _machine() -> str:
    """Of this boot and this space of process ids; empty when it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """When it started, in ticks since the boot; empty: there is no such process, or it has died."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # proc(5): state is field 3, starttime field 22
