"""Runs in the build stage of an image: from packages and wheels to two trees, the image's layers.

    OUT/system     Debian packages, unpacked; their records in var/lib/dpkg/status.d, for scanners
    OUT/program    wheels, compiled, and the commands

Standard library, dpkg-deb and tar. No program of the target is run, so it may be of another
architecture; no maintainer script either: what they would do is done here.
"""

import argparse
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

USER = "polder:x:65532:65532:polder:/nonexistent:/usr/sbin/nologin\n"
GROUP = "polder:x:65532:\n"
SITE = Path("usr/lib/python3/dist-packages")
COMMANDS = {"edge-orchestrator": "orchestrator.__main__"}
NOT_NEEDED = (
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/lib/python3.11/test",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/idlelib",
    "etc/init.d",
    "etc/default",
    "lib/systemd",
    "etc/update-motd.d",
    "etc/profile.d",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--debs", required=True, type=Path)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    system, program = options.out / "system", options.out / "program"
    unpack(sorted(options.debs.glob("*.deb")), system)
    if options.wheels is not None:
        install(sorted(options.wheels.glob("*.whl")), program)
        compile_all(system / "usr/lib/python3.11", "/usr/lib/python3.11")
        compile_all(program / SITE, f"/{SITE}")


def unpack(debs: list[Path], system: Path) -> None:
    # Debian's merged /usr: packages of that release still have files in /lib and /bin.
    for name in ("bin", "sbin", "lib", "lib64"):
        (system / "usr" / name).mkdir(parents=True)
        (system / name).symlink_to(f"usr/{name}")
    records = system / "var/lib/dpkg/status.d"
    records.mkdir(parents=True)
    for deb in debs:
        tree = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
        command = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner"]
        subprocess.run([*command, f"--directory={system}"], stdin=tree.stdout, check=True)
        if tree.wait() != 0:
            sys.exit(f"{deb.name} cannot be unpacked")
        control = subprocess.run(["dpkg-deb", "--field", str(deb)], capture_output=True, check=True)
        (records / deb.name.partition("_")[0]).write_bytes(control.stdout)
    for path in NOT_NEEDED:
        shutil.rmtree(system / path, ignore_errors=True)
    shells = (*(system / "usr/bin").glob("*sh"), *(system / "usr/bin").glob("*.sh"))
    assert not shells, shells
    (system / "etc/passwd").write_text("root:x:0:0:root:/:/usr/sbin/nologin\n" + USER)
    (system / "etc/group").write_text("root:x:0:\n" + GROUP)
    (system / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for directory in ("tmp", "var/lib/polder", "var/lib/etcd", "etc/polder", "etc/etcd"):
        (system / directory).mkdir(parents=True, exist_ok=True)
    (system / "tmp").chmod(0o1777)
    (system / "var/local").chmod(0o755)  # Debian's gives its group to what is made in it


def install(wheels: list[Path], program: Path) -> None:
    """Without looking for anything else: what is there is what was locked."""
    for wheel in wheels:
        unzip(wheel, program / SITE)
    bin_dir = program / "usr/bin"
    bin_dir.mkdir(parents=True)
    for name, module in COMMANDS.items():
        command = bin_dir / name
        command.write_text(
            f"#!/usr/bin/python3.11 -sP\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        command.chmod(0o755)


def unzip(wheel: Path, where: Path) -> None:
    """PEP 427, as far as these wheels use it: purelib and platlib in one place, no scripts."""
    shutil.unpack_archive(wheel, where, "zip")
    for data in where.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (data / part).exists():
                shutil.copytree(data / part, where, dirs_exist_ok=True)
        shutil.rmtree(data)


def compile_all(folder: Path, as_path: str) -> None:
    """Without a date in it, so that the same sources give the same bytes. The root is read-only:
    without this every start would compile everything again."""
    for path in folder.rglob("__pycache__"):
        shutil.rmtree(path)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    ok = compileall.compile_dir(
        folder, quiet=1, ddir=as_path, invalidation_mode=mode, workers=1, legacy=False
    )
    if not ok:
        print("some files cannot be compiled; they are left as they are", file=sys.stderr)


if __name__ == "__main__":
    os.umask(0o022)
    main()
