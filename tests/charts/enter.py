"""Becomes a container's process: run by `kubelet.py`, as root, with this machine's Python.

    run ROOT MOUNTS UID GID COMMAND...   in a mount namespace of its own, with ROOT as its read-only
                                         root and MOUNTS (lines of `what at mode`) in it
    exec PID UID GID COMMAND...          beside the process PID, in its namespaces and root

Both then have no capabilities and cannot get any, as the chart's security contexts want it.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_CAPBSET_DROP, _SET_NO_NEW_PRIVS = 24, 38  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def called(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def build_root(root: str, mounts: Path) -> None:
    called(_libc.unshare(_NEW_MOUNTS), "unshare")
    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    for line in mounts.read_text().splitlines():
        what, at, mode = line.split()
        place = Path(root) / at
        if Path(what).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        mount("--rbind", what, str(place))
        if mode == "ro":
            mount("-o", "remount,bind,ro", str(place))
    mount("-o", "remount,bind,ro", root)


def join(pid: str) -> str:
    for kind in ("net", "mnt"):
        with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
            called(_libc.setns(namespace.fileno(), 0), f"setns {kind}")
    return f"/proc/{pid}/root"


def give_up_rights(root: str, uid: int, gid: int) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    os.chroot(root)
    os.chdir("/")
    for capability in range(last + 1):
        called(_libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    called(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def main() -> None:
    action, *rest = sys.argv[1:]
    if action == "run":
        root, mounts, uid, gid, *command = rest
        build_root(root, Path(mounts))
    else:
        pid, uid, gid, *command = rest
        root = join(pid)
    give_up_rights(root, int(uid), int(gid))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
