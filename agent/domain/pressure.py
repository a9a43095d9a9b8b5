"""Whether a disk is so full that the node must say so. Called by the supervisor every few seconds.

Pressure begins below a tenth of the disk or 5 GiB, whichever is less (a tenth of a large disk is
plenty), and ends only a fifth above that, so that it does not flap while logs are rotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.1
ENOUGH_BYTES = 5 << 30
HYSTERESIS = 1.2


@dataclass(frozen=True, slots=True)
class DiskUse:
    """One file system; `free_bytes` is what an unprivileged process could still write."""

    name: str
    total_bytes: int
    free_bytes: int


def disk_pressure(was: bool, disks: Sequence[DiskUse]) -> tuple[bool, str]:
    """Whether there is pressure now, given whether there was, and which disk says so."""
    for disk in disks:
        limit = min(disk.total_bytes * SHARE, ENOUGH_BYTES) * (HYSTERESIS if was else 1.0)
        if disk.total_bytes > 0 and disk.free_bytes < limit:
            free, total = disk.free_bytes >> 20, disk.total_bytes >> 20
            return True, f"{disk.name}: {free} MiB of {total} MiB are free"
    return False, ""
