"""Builds polder-agent_VERSION_ARCH.deb: a private environment below /opt, units, profiles.

    python hardware/package/build.py --arch amd64 --arch arm64 --out dist

Only here the network is needed, for wheels whose hashes stand in requirements.txt; with --wheels
DIR not even here. Nothing of the other architecture is run: wheels are unpacked, not installed. The
same sources give the same bytes (SOURCE_DATE_EPOCH; default: the time of the last commit).
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PREFIX = Path("opt/polder-agent")
PYTHON = "3.11"  # of Debian 12; wheels with machine code are for one version
SITE = PREFIX / "lib" / f"python{PYTHON}" / "site-packages"
PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}
GLIBC = ("2_17", "2_28", "2_34")  # Debian 12 has 2.36
OWN = ("polder", "agent")
# Never used on a box: types, tests, sources.
LEFT_OUT = ("*.pyi", "py.typed", "*.c", "*.h", "*.pyx", "*.pxd", "*.proto")
LEFT_OUT_FOLDERS = ("tests", "test")
# Debian's interpreter and ours are one version: what it compiled need not be checked at each start.
INVALIDATION = "unchecked-hash"
VERSION_LINE = re.compile(r'^__version__ = ".*"$', re.MULTILINE)


class BuildFailed(Exception):
    """No package was made; the message says why."""


@dataclass(frozen=True, slots=True)
class Order:
    arch: str
    out: Path
    version: str
    epoch: int
    wheels: Path | None
    python: str
    compression: str = "xz"


def run(command: Sequence[str], **more: object) -> str:
    """Raises BuildFailed with what the program said."""
    done = subprocess.run(  # type: ignore[call-overload]
        list(command), capture_output=True, text=True, check=False, **more
    )
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed: {(done.stderr or done.stdout)[-2000:]}")
    return str(done.stdout)


def fetch_wheels(arch: str, into: Path) -> None:
    """The wheels of requirements.txt for another architecture as well as for this one."""
    machine = PLATFORMS[arch]
    platforms = [f"manylinux_{glibc}_{machine}" for glibc in GLIBC]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={PYTHON}", f"--abi=cp{PYTHON.replace('.', '')}"]
    command += ["--abi=abi3", "--abi=none", f"--platform=manylinux2014_{machine}"]
    command += [f"--platform={platform}" for platform in platforms]
    run([*command, "--requirement", str(HERE / "requirements.txt"), "--dest", str(into)])


def check_wheels(wheels: Iterable[Path]) -> list[Path]:
    """Those whose hash is in requirements.txt, one for each requirement. Raises BuildFailed."""
    text = (HERE / "requirements.txt").read_text()
    names = [line.partition("==")[0].lower() for line in text.splitlines() if "==" in line]
    known = []
    for wheel in sorted(wheels):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() in text:
            known.append(wheel)
    found = sorted(wheel.name.partition("-")[0].lower() for wheel in known)
    if found != sorted(names):
        raise BuildFailed(f"of {', '.join(sorted(names))} there are wheels of {', '.join(found)}")
    return known


def fitting(wheels: Iterable[Path], arch: str) -> list[Path]:
    """Those of an architecture, from a folder that may hold both."""
    return [w for w in wheels if w.stem.endswith("-any") or PLATFORMS[arch] in w.stem]


def unpack(wheel: Path, site: Path) -> None:
    """A wheel is a zip of what goes to site-packages (PEP 427); ours have no other parts."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = Path(info.filename)
            if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(".data"):
                raise BuildFailed(f"{wheel.name} has {info.filename}, which is not understood")
            if not info.is_dir() and not left_out(path):
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(info))


def left_out(path: Path) -> bool:
    return any(path.match(pattern) for pattern in LEFT_OUT) or any(
        part in LEFT_OUT_FOLDERS for part in path.parts[:-1]
    )


def own_sources(site: Path, version: str) -> None:
    """The packages that run on a box; neither the orchestrator nor edgectl. They say the package's
    version: so two builds of one tree are told apart, also by whoever upgrades a fleet."""
    for package in OWN:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT)
            if not left_out(path):
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, site / path)
    named = site / "polder" / "__init__.py"
    text, count = VERSION_LINE.subn(f'__version__ = "{version}"', named.read_text())
    if count != 1:
        raise BuildFailed("polder/__init__.py does not say its version in one line")
    named.write_text(text)


def environment(tree: Path, python: str) -> None:
    """A virtual environment as venv makes it, without pip, and compiled."""
    prefix = tree / PREFIX
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python3").symlink_to(f"/usr/bin/python{PYTHON}")
    (prefix / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
    )
    script = prefix / "bin" / "edge-agent"
    script.write_text(
        f"#!/{PREFIX}/bin/python3 -I\n"
        "import sys\n\nfrom agent.__main__ import main\n\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    for name in ("dist-info", "egg-info"):
        for record in (tree / SITE).glob(f"*.{name}/RECORD"):
            record.unlink()  # it lists what was left out
    source, shown = str(tree / SITE), f"/{SITE}"
    # One process and no random hashes: the same sources give the same bytes.
    command = [python, "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", INVALIDATION]
    command += ["-s", source, "-p", shown, source]
    run(command, env={"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]})


def files(tree: Path) -> None:
    """What goes elsewhere than into the environment."""
    profiles = tree / PREFIX / "share" / "polder" / "profiles"
    profiles.mkdir(parents=True)
    for file in sorted((ROOT / "hardware" / "profiles").glob("*.toml")):
        shutil.copyfile(file, profiles / file.name)
    prepare = tree / PREFIX / "share" / "polder" / "prepare"
    shutil.copyfile(ROOT / "hardware" / "prepare", prepare)
    prepare.chmod(0o755)
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "usr" / "bin" / "edge-agent").symlink_to(f"/{PREFIX}/bin/edge-agent")
    units = tree / "usr" / "lib" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in sorted((ROOT / "hardware" / "systemd").iterdir()):
        shutil.copyfile(unit, units / unit.name)
    (tree / "etc" / "polder").mkdir(parents=True)
    shutil.copyfile(HERE / "agent.toml", tree / "etc" / "polder" / "agent.toml")
    docs = tree / "usr" / "share" / "doc" / "polder-agent"
    docs.mkdir(parents=True)
    licence = (ROOT / "LICENSE").read_text()
    (docs / "copyright").write_text(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Comment: Below /opt there are Python packages under licences of their own: each is in\n"
        " its *.dist-info folder.\n\n"
        "Files: *\nCopyright: the authors of Polder\nLicense: Apache-2.0\n"
        + "".join(f" {line}\n" if line.strip() else " .\n" for line in licence.splitlines())
    )
    changes = (ROOT / "CHANGELOG.md").read_bytes()
    (docs / "changelog.gz").write_bytes(gzip.compress(changes, 9, mtime=0))


def control(tree: Path, order: Order) -> None:
    """DEBIAN/: who it is, what it needs, its scripts."""
    from agent.state_form import STATE_SCHEMA
    from polder.release import PACKAGE_NAME, STATE_SCHEMA_FIELD

    folder = tree / "DEBIAN"
    folder.mkdir()
    kilobytes = sum(p.lstat().st_size for p in tree.rglob("*") if p.is_file()) // 1024 + 1
    above = f"{PYTHON.split('.')[0]}.{int(PYTHON.split('.')[1]) + 1}"
    (folder / "control").write_text(
        f"Package: {PACKAGE_NAME}\n"
        f"Version: {order.version}\n"
        f"Architecture: {order.arch}\n"
        "Maintainer: Polder <polder@localhost>\n"
        f"Installed-Size: {kilobytes}\n"
        f"{STATE_SCHEMA_FIELD}: {STATE_SCHEMA}\n"
        f"Depends: python{PYTHON}, python3 (>= {PYTHON}), python3 (<< {above}~), libc6 (>= 2.34), "
        "init-system-helpers (>= 1.54)\n"
        "Recommends: containerd | cri-o, containernetworking-plugins, chrony | time-daemon\n"
        "Suggests: smartmontools, nftables\n"
        "Section: admin\n"
        "Priority: optional\n"
        "Description: agent of the Polder edge cloud\n"
        " Runs containers on this box as Polder's orchestrators say, and goes on with them when\n"
        " no orchestrator can be reached. After installing: edge-agent join --token-file FILE\n"
    )
    (folder / "conffiles").write_text("/etc/polder/agent.toml\n")
    for name in ("preinst", "postinst", "prerm", "postrm"):
        script = (HERE / name).read_text().replace("@STATE_SCHEMA@", str(STATE_SCHEMA))
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  "
        f"{path.relative_to(tree)}\n"
        for path in sorted(tree.rglob("*"))
        if path.is_file() and not path.is_symlink() and folder not in path.parents
    ]
    (folder / "md5sums").write_text("".join(sums))


def settle(tree: Path, epoch: int) -> None:
    """Modes and times that no umask and no clock of the builder's shows in."""
    for path in sorted(tree.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    tree.chmod(0o755)
    os.utime(tree, (epoch, epoch))


def build(order: Order) -> Path:
    """The package's path. Raises BuildFailed and OSError."""
    from polder.release import VERSION, VERSION_HELP

    if VERSION.fullmatch(order.version) is None:
        raise BuildFailed(f"{order.version!r} is not {VERSION_HELP}")
    order.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="polder-deb-") as folder:
        wheels = order.wheels or Path(folder) / "wheels"
        if order.wheels is None:
            fetch_wheels(order.arch, wheels)
        tree = Path(folder) / "tree"
        for wheel in check_wheels(fitting(wheels.glob("*.whl"), order.arch)):
            unpack(wheel, tree / SITE)
        own_sources(tree / SITE, order.version)
        environment(tree, order.python)
        files(tree)
        control(tree, order)
        settle(tree, order.epoch)
        package = order.out / f"polder-agent_{order.version}_{order.arch}.deb"
        command = ["dpkg-deb", "--root-owner-group", "--uniform-compression"]
        command.append(f"-Z{order.compression}")
        run(
            [*command, "--build", str(tree), str(package)],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(order.epoch)},
        )
    return package


def last_commit() -> int:
    return int(run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]) or 0)


def right_python(given: str) -> str:
    """An interpreter of the version that compiles for Debian's. Raises BuildFailed."""
    for candidate in filter(None, (given, f"python{PYTHON}", sys.executable)):
        path = shutil.which(candidate)
        if path and run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) == (
            f"{PYTHON}\n"
        ):
            return path
    raise BuildFailed(f"no Python {PYTHON} to compile with: give --python")


def main() -> int:
    """Returns the exit code."""
    sys.path.insert(0, str(ROOT))
    from polder import __version__

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", action="append", choices=tuple(PLATFORMS), required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--version", default=f"{__version__}-1", help="of the package")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="use these, and no network")
    parser.add_argument("--python", default="", metavar="FILE", help=f"a Python {PYTHON}")
    parser.add_argument("--compression", choices=("xz", "gzip"), default="xz")
    options = parser.parse_args()
    try:
        python = right_python(options.python)
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or last_commit())
        for arch in options.arch:
            order = Order(arch, options.out, options.version, epoch, options.wheels, python)
            made = build(replace(order, compression=options.compression))
            print(made)  # noqa: T201
    except (BuildFailed, OSError, ValueError) as error:
        sys.stderr.write(f"build: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
