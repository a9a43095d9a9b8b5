"""A system to install packages into, as a copy of this one that costs nothing and leaves nothing.

An overlay over / in a mount namespace of its own, with all that is written in memory: dpkg, the
package's scripts and the installed programs are the real ones. `systemctl` and `deb-systemd-invoke`
are replaced where a test asks what would have been started and stopped; or a real systemd boots in
it (`boot`), in a process namespace of its own and on this machine's network.
"""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SIZE = "500m"
BOOT_S = 120.0
_MAKE = """
mount -t tmpfs -o size={size} none {base} && mkdir {base}/up {base}/work {base}/root &&
mount -t overlay none -o lowerdir={lower},upperdir={base}/up,workdir={base}/work {base}/root &&
mount --rbind /dev {base}/root/dev && mount -t proc none {base}/root/proc &&
mount -t tmpfs none {base}/root/run && echo ready && cat
"""
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


class DebianRoot:
    """Use as a context manager. Paths are as seen inside."""

    def __init__(self, lower: str = "/") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="polder-root-")
        self._system: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._lower = lower

    def __enter__(self) -> "DebianRoot":
        base = self._folder.name
        script = _MAKE.format(base=base, size=SIZE, lower=self._lower)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._pid = self._holder.pid
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._system is not None:
            self._system.kill()  # and with it all that runs in its process namespace
            self._system.wait()
        self._holder.communicate()  # the mounts go with the last process in their namespace
        self._folder.cleanup()

    def run(
        self, *command: str, code: int | None = 0, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """What it said, of both streams; fails when the exit code is another."""
        inside = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "chroot"]
        done = subprocess.run(
            [*inside, f"{self._folder.name}/root", *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "DEBIAN_FRONTEND": "noninteractive",
                "LANG": "C.UTF-8",
            },
            check=False,
        )
        text = done.stdout.decode(errors="replace")
        assert code is None or done.returncode == code, f"{command}: {done.returncode}: {text}"
        return subprocess.CompletedProcess(command, done.returncode, text)

    def put(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        raw = text.encode() if isinstance(text, str) else text
        script = f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode:o} {path}"
        self.run("sh", "-c", script, stdin=raw)

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, code=None).returncode == 0

    def written(self, *below: str) -> list[str]:
        """Files that were made or changed since the start."""
        command = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "find"]
        up = f"{self._folder.name}/up"
        folders = [f"{up}/{folder}" for folder in below]
        found = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
        return [line.removeprefix(up) for line in found.stdout.splitlines()]

    def boot(self) -> None:
        """Start a real systemd; `systemctl` speaks with it as soon as it answers."""
        folder = "/etc/systemd/system"
        masks = "; ".join(f"ln -sf /dev/null {folder}/{unit}" for unit in _MASKED)
        self.run("sh", "-c", masks)
        script = _BOOT.format(root=f"{self._folder.name}/root")
        inside = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        own = ["unshare", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", script]
        self._system = subprocess.Popen([*inside, *own], stdin=subprocess.DEVNULL)
        children = Path(f"/proc/{self._system.pid}/task/{self._system.pid}/children")
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            found = children.read_text().split()
            if found:
                self._pid = int(found[0])
                state = self.run("systemctl", "is-system-running", code=None).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise AssertionError("systemd did not come up")

    def pretend_systemd(self) -> None:
        """As if systemd ran; what it is asked is in `calls`."""
        self.run("mkdir", "-p", "/run/systemd/system")
        for name in ("systemctl", "deb-systemd-invoke", "sysctl"):
            self.put(f"/usr/local/bin/{name}", _NOTE, 0o755)

    def calls(self) -> Sequence[str]:
        """What systemd was asked since the last time."""
        text = self.run("sh", "-c", "cat /calls 2>/dev/null; rm -f /calls", code=None).stdout
        return text.splitlines()


def install(root: DebianRoot, package: Path, *options: str, code: int = 0) -> str:
    """`dpkg -i`, and what it said."""
    root.put("/package.deb", package.read_bytes())
    return root.run("dpkg", *options, "-i", "/package.deb", code=code).stdout
