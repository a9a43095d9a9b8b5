"""The power of a box that is only a namespace: each time it goes on, the box has booted anew.

Used by `site`. The agent there has a boot id of its own, and clocks since boot that begin again, as
after a real boot, while the machine runs on: a mount namespace and a time namespace do it. So what
an agent wrongly keeps across a boot, or compares between two boxes, is found out.
"""

import time
import uuid
from pathlib import Path

UPTIME_S = 20
"""What a box has been up for when its agent starts. A machine has to be up for longer."""

# The process becomes the agent: pid, signals and namespaces are its own.
_SCRIPT = """
before=$(cat "$1/booted")
exec unshare --mount --time --boottime "-$before" --monotonic "-$before" sh -c '
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id && shift && exec "$@"' sh "$@"
"""


def launcher(folder: Path) -> list[str]:
    """Words before a command: it starts as on a box that booted when `boot(folder)` was called."""
    return ["sh", "-ec", _SCRIPT, "sh", str(folder)]


def boot(folder: Path) -> None:
    """The box has been switched on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
    machine_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    (folder / "booted").write_text(str(max(0, machine_s - UPTIME_S)))
