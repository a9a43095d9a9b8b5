"""A system to install packages into, as a copy of this one that costs nothing and leaves nothing.

An overlay over / in a mount namespace of its own, with all that is written in memory: dpkg, the
package's scripts and the installed programs are the real ones. `systemctl` and `deb-systemd-invoke`
are replaced where a test asks what would have been started and stopped.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SIZE = "500m"
_MAKE = """
mount -t tmpfs -o size={size} none {base} && mkdir {base}/up {base}/work {base}/root &&
mount -t overlay none -o lowerdir={lower},upperdir={base}/up,workdir={base}/work {base}/root &&
mount --rbind /dev {base}/root/dev && mount -t proc none {base}/root/proc &&
mount -t tmpfs none {base}/root/run && echo ready && cat
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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.communicate()  # the mounts go with the last process in their namespace
        self._folder.cleanup()

    def run(
        self, *command: str, code: int | None = 0, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """What it said, of both streams; fails when the exit code is another."""
        inside = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot"]
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
