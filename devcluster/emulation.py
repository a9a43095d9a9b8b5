"""Programs of arm64 on this machine, by qemu-user, and a Debian of arm64 to run them in.

Used by `python -m tests.arm`, `bench footprint --arch arm64` and the tests that install the agent's
package on another architecture. Needs what `preflight.missing_emulation` names.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EMULATOR = "/usr/bin/qemu-aarch64-static"
INCLUDE = "python3,systemd,init-system-helpers,ca-certificates"
KEPT = "POLDER_DEBIAN_ROOTS"
"""Environment variable: a folder of roots that were made before, and where new ones go."""
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
# The ELF header of aarch64 and its mask, as in qemu's scripts/qemu-binfmt-conf.sh.
_MAGIC = r"\x7f\x45\x4c\x46\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"


@contextmanager
def arm64_programs() -> Iterator[None]:
    """They run until it ends; others that emulate at the same time are not disturbed.

    `F`: the emulator is opened now, so it needs not be in any root. Raises OSError.
    """
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", str(_BINFMT)], check=True)
    ours = _BINFMT / f"polder-aarch64-{os.getpid()}"
    if not ours.exists():
        (_BINFMT / "register").write_text(f":{ours.name}:M::{_MAGIC}:{_MASK}:{EMULATOR}:FOC")
    try:
        yield
    finally:
        ours.write_text("-1")


def debian(arch: str, folder: Path) -> Path:
    """A Debian 12 of the architecture; made in `folder` by debootstrap, unless KEPT has it.

    Who comes while another makes it waits. Raises OSError and CalledProcessError.
    """
    root = Path(os.environ.get(KEPT) or folder) / arch
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".made").open("a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        made.seek(0)
        if not made.read():  # nobody did, or only half
            command = ["debootstrap", f"--arch={arch}", "--variant=minbase", f"--include={INCLUDE}"]
            subprocess.run([*command, "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
            made.write("bookworm\n")
    return root


def agent_package(out: Path) -> Path:
    """The agent's package for arm64, built anew. Raises CalledProcessError; why is on stderr."""
    script = Path(__file__).resolve().parents[1] / "hardware" / "package" / "build.py"
    command = [sys.executable, str(script), "--arch", "arm64", "--out", str(out)]
    subprocess.run([*command, "--compression=gzip"], check=True, stdout=subprocess.DEVNULL)
    (package,) = out.glob("*_arm64.deb")
    return package
