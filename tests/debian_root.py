"""A system to install packages into, as a copy of this one (`devcluster/debian_root.py`).

dpkg, the package's scripts and the installed programs are the real ones. `systemctl` and
`deb-systemd-invoke` are replaced where a test asks what would have been started and stopped; or a
real systemd boots in it (`boot`), in a process namespace of its own and on this machine's network.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from devcluster.debian_root import Root

BOOT_S = 120.0
# What would reach beyond the copy, or waits for devices that it does not have.
_MASKED = (
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
)
_BOOT = """
mount -t proc none {root}/proc && mount -t sysfs none {root}/sys &&
mount -t cgroup2 none {root}/sys/fs/cgroup &&
exec env container=test chroot {root} /lib/systemd/systemd --system --log-target=null
"""
_NOTE = """#!/bin/sh
case "$*" in *--preset-mode*) exec /usr/bin/systemctl "$@" ;; esac
echo "$(basename "$0") $*" >>/calls
case "$*" in cat*|is-*) exit 1 ;; esac
"""


class DebianRoot(Root):
    """Use as a context manager. Paths are as seen inside."""

    def __init__(self, lower: str = "/", shared: Sequence[Path] = ()) -> None:
        super().__init__(lower, shared)
        self._system: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._system is not None:
            self._system.kill()  # and with it all that runs in its process namespace
            self._system.wait()
        super().__exit__(kind, error, trace)

    def entering(self) -> list[str]:
        """Once it is booted, its processes are seen, too."""
        pids = [f"--pid=/proc/{self._init}/ns/pid"] if self._init else []
        return [*super().entering(), *pids]

    def boot(self) -> None:
        """Start a real systemd; `systemctl` speaks with it as soon as it answers."""
        folder = "/etc/systemd/system"
        masks = "; ".join(f"ln -sf /dev/null {folder}/{unit}" for unit in _MASKED)
        self.run("sh", "-c", masks)
        script = _BOOT.format(root=f"{self.base}/root")
        own = ["unshare", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", script]
        self._system = subprocess.Popen([*self.entering(), *own], stdin=subprocess.DEVNULL)
        children = Path(f"/proc/{self._system.pid}/task/{self._system.pid}/children")
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            found = children.read_text().split()
            if found:
                self._init = int(found[0])
                state = self.run("systemctl", "is-system-running", code=None).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise AssertionError("systemd did not come up")

    def cut_power(self) -> None:
        """All that runs ends at once, and what was below /run is gone. `boot` comes after it."""
        assert self._system is not None
        self._system.kill()
        self._system.wait()
        self._system, self._init = None, 0
        run, sys = f"{self.base}/root/run", f"{self.base}/root/sys"
        script = f"umount -lR {run} && umount -lR {sys} && mount -t tmpfs none {run}"
        subprocess.run([*self.entering(), "sh", "-c", script], check=True)

    def pretend_systemd(self) -> None:
        """As if systemd ran; what it is asked is in `calls`."""
        self.run("mkdir", "-p", "/run/systemd/system")
        for name in ("systemctl", "deb-systemd-invoke"):
            self.put(f"/usr/local/bin/{name}", _NOTE, 0o755)
        self.put("/usr/lib/systemd/systemd-sysctl", _NOTE, 0o755)

    def calls(self) -> Sequence[str]:
        """What systemd was asked since the last time."""
        text = self.run("sh", "-c", "cat /calls 2>/dev/null; rm -f /calls", code=None).stdout
        return text.splitlines()


def install(root: Root, package: Path, *options: str, code: int = 0) -> str:
    """`dpkg -i`, and what it said."""
    return root.install(package, *options, code=code)
