"""The files that make a box what its profile recommends: watchdog, journal, writes. Pure.

`tune_command.py` writes and removes them. All are drop-ins of their own: nothing that belongs to
Debian or to an operator is edited, and removing them brings back what was.
"""

from collections.abc import Mapping

from agent.hardware.profile import Profile

MARK = "# Written by `edge-agent tune`"
# Every path that any profile may use: what is not wanted any more is removed.
WATCHDOG = "etc/systemd/system.conf.d/60-polder.conf"
JOURNAL = "etc/systemd/journald.conf.d/60-polder.conf"
SYSCTL = "etc/sysctl.d/60-polder.conf"
TMP_MOUNT = "etc/systemd/system/tmp.mount"  # whole: Debian 12 keeps its own out of systemd's way
TMP_WANTED = "etc/systemd/system/local-fs.target.d/60-polder.conf"
PATHS = (WATCHDOG, JOURNAL, SYSCTL, TMP_MOUNT, TMP_WANTED)
REBOOT_WATCHDOG_S_MAX = 600


def files(profile: Profile) -> Mapping[str, str]:
    """Text by path, relative to the root of the file system."""
    tuning, watchdog = profile.tuning, profile.watchdog
    found: dict[str, list[str]] = {}
    if watchdog.timeout_s:
        found[WATCHDOG] = [
            "# The hardware resets the box when systemd itself hangs.",
            "[Manager]",
            f"WatchdogDevice={watchdog.device}",
            f"RuntimeWatchdogSec={watchdog.timeout_s}",
            f"RebootWatchdogSec={min(watchdog.longest_s, REBOOT_WATCHDOG_S_MAX)}",
        ]
    if tuning.journal:
        # What only memory holds is lost with the supply; it is the price of flash that lasts.
        size = "RuntimeMaxUse" if tuning.journal == "volatile" else "SystemMaxUse"
        limit = [f"{size}={tuning.journal_max}"] if tuning.journal_max else []
        found[JOURNAL] = ["[Journal]", f"Storage={tuning.journal}", *limit]
    if tuning.write_back_s:
        found[SYSCTL] = [
            "# Gathered writes wear flash less. What is synced (fsync) is not delayed.",
            f"vm.dirty_writeback_centisecs = {tuning.write_back_s * 100}",
            f"vm.dirty_expire_centisecs = {tuning.write_back_s * 100}",
        ]
    if tuning.tmp_in_memory:
        found[TMP_MOUNT] = [
            "[Unit]",
            "DefaultDependencies=no",
            "ConditionPathIsSymbolicLink=!/tmp",
            "Conflicts=umount.target",
            "Before=local-fs.target umount.target",
            "After=swap.target",
            "[Mount]",
            "What=tmpfs",
            "Where=/tmp",
            "Type=tmpfs",
            "Options=mode=1777,strictatime,nosuid,nodev,size=10%%",
        ]
        found[TMP_WANTED] = ["[Unit]", "Wants=tmp.mount"]
    head = (
        f"{MARK} for the profile {profile.name}; it writes it again.",
        "# To keep your own settings, delete these two lines: then it is left alone.",
    )
    return {path: "\n".join((*head, *lines)) + "\n" for path, lines in found.items()}
