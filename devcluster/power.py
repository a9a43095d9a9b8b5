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
since=$((0 - $(cat "$1/booted")))
exec unshare --mount --time --boottime "$since" --monotonic "$since" sh -c '
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
if [ -e "$1/wall" ]; then
    export FAKETIME_TIMESTAMP_FILE="$1/wall" FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
    export LD_PRELOAD="$2"
fi
shift 2 && exec "$@"' sh "$@"
"""
FAKETIME = "libfaketimeMT.so.1"


def launcher(folder: Path) -> list[str]:
    """Words before a command: it starts as on a box that booted when `boot(folder)` was called."""
    return ["sh", "-ec", _SCRIPT, "sh", str(folder), faketime()]


def faketime() -> str:
    """Where Debian's libfaketime is; empty if it is not installed."""
    return next((str(path) for path in sorted(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"))), "")


def boot(folder: Path) -> None:
    """The box has been switched on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
    machine_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    (folder / "booted").write_text(str(max(0, machine_s - UPTIME_S)))


def set_wall_clock(folder: Path, offset_s: int) -> None:
    """So far from the true time. An agent that started after the first call follows at once."""
    fresh = folder / "wall.new"
    fresh.write_text(f"{offset_s:+d}\n")
    fresh.rename(folder / "wall")


def pass_time(folder: Path, seconds: int) -> None:
    """The box, which was not switched off, has been up for so much longer at its agent's next
    start. Its wall clock is another matter."""
    booted = folder / "booted"
    booted.write_text(str(int(booted.read_text()) - seconds))
