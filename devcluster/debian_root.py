"""A Debian to run and change things in, as a copy of one that costs nothing and leaves nothing.

An overlay over another root, perhaps one of another architecture (`emulation.py`), in a mount
namespace of its own, with all that is written in memory. `tests/debian_root.py` boots a systemd in
one; `python -m tests.arm` and `bench footprint --arch arm64` run an emulated agent there.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = "500m"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}
_MAKE = """
mount -t tmpfs -o size={size} none {base} && mkdir {base}/up {base}/work {base}/root &&
mount -t overlay none -o lowerdir={lower},upperdir={base}/up,workdir={base}/work {base}/root &&
mount --rbind /dev {base}/root/dev && mount -t proc none {base}/root/proc &&
mount -t tmpfs none {base}/root/run && {shared}echo ready && cat
"""
_SHARE = "mkdir -p {base}/root{path} && mount --rbind {path} {base}/root{path} && "


class Root:
    """Use as a context manager. Paths are as seen inside.

    `lower`: of what it is a copy. `shared`: folders of this machine that it sees under their names.
    """

    def __init__(self, lower: str = "/", shared: Sequence[Path] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="polder-root-")
        self._lower = lower
        self._shared = shared

    @property
    def base(self) -> str:
        """Where it is mounted, for those in its mount namespace: `up` and `root` are there."""
        return self._folder.name

    def __enter__(self) -> Self:
        shared = "".join(_SHARE.format(base=self.base, path=path) for path in self._shared)
        script = _MAKE.format(base=self.base, size=SIZE, lower=self._lower, shared=shared)
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

    def entering(self) -> list[str]:
        """The words before a command that is to see its mounts, and this machine's files."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def inside(self, *command: str) -> list[str]:
        """The command as this machine starts it: the process becomes it."""
        return [*self.entering(), "chroot", f"{self.base}/root", *command]

    def run(
        self, *command: str, code: int | None = 0, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """What it said, of both streams; fails when the exit code is another."""
        done = subprocess.run(
            self.inside(*command),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            check=False,
        )
        text = done.stdout.decode(errors="replace")
        assert code is None or done.returncode == code, f"{command}: {done.returncode}: {text}"
        return subprocess.CompletedProcess(command, done.returncode, text)

    def follow(self, *command: str, environment: Mapping[str, str]) -> int:
        """Its exit code. What it says goes where this process's output goes, while it runs."""
        own = {**_ENVIRONMENT, **environment}
        return subprocess.run(
            self.inside(*command), stdin=subprocess.DEVNULL, env=own, check=False
        ).returncode

    def put(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        raw = text.encode() if isinstance(text, str) else text
        script = f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode:o} {path}"
        self.run("sh", "-c", script, stdin=raw)

    def install(self, package: Path, *options: str, code: int = 0) -> str:
        """`dpkg -i`, and what it said."""
        self.put("/package.deb", package.read_bytes())
        return self.run("dpkg", *options, "-i", "/package.deb", code=code).stdout

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, code=None).returncode == 0

    def written(self, *below: str) -> list[str]:
        """Files that were made or changed since the start."""
        up = f"{self.base}/up"
        folders = [f"{up}/{folder}" for folder in below]
        found = subprocess.run(
            [*self.entering(), "find", *folders], capture_output=True, text=True, check=False
        )
        return [line.removeprefix(up) for line in found.stdout.splitlines()]
