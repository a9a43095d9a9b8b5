"""What images are made of: Debian's packages, wheels, and the builder in which they are assembled.

Used by `build.py`. Everything is fetched here, before a build, and is vouched for: packages by the
signatures of Debian's archive (apt checks them), wheels by the hashes in requirements.txt, Polder's
own by being made from this checkout. The build itself has no network.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("amd64", "arm64")
RELEASE = "bookworm"
PYTHON = "3.11"  # of that release
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITES = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_LIBC = ("manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
_LOCK_HEAD = (
    "# Wheels of the orchestrator's image, for amd64 and arm64. Made by `python -m images lock`."
)
_SOURCES = ("polder", "agent", "orchestrator", "edgectl", "hardware/profiles")


class CannotBuild(Exception):
    """What is missing, or which step failed and what it said."""


def run(command: Sequence[str], *, cwd: Path | None = None, **environment: str) -> str:
    """Its output. Raises CannotBuild."""
    if shutil.which(command[0]) is None:
        raise CannotBuild(f"{command[0]} is not installed")
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode != 0:
        raise CannotBuild(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def epoch() -> str:
    """The date of everything in an image: that of the commit, in unix seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return given or run(["git", "log", "-1", "--format=%ct"], cwd=ROOT).strip()


def revision() -> str:
    """The commit; `-dirty` when the tree is another. No tag: it may come when it is built."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    return run(command, cwd=ROOT).strip()


def own_architecture() -> str:
    """Of this machine, in Debian's word for it."""
    return run(["dpkg", "--print-architecture"]).strip()


def packages_of(image: str) -> list[str]:
    return (HERE / image / "packages.txt").read_text().split()


def sources(configured: str) -> list[str]:
    """Lines for apt: this machine's own places for the release. `configured` is what apt says of
    them, an address, a suite and a component in each line. Raises CannotBuild."""
    rows = [line.split() for line in configured.splitlines()]
    known = {(suite, component): url for url, suite, component in rows}
    found = [
        f"deb [signed-by={_KEYRING}] {known[suite, 'main']} {suite} main"
        for suite in _SUITES
        if (suite, "main") in known
    ]
    lacking = [suite for suite in (RELEASE, f"{RELEASE}-security") if (suite, "main") not in known]
    if lacking:
        raise CannotBuild(f"apt has no source of Debian's {' and '.join(lacking)} here: add it")
    return found


def _configured() -> str:
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    return run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])


def fetch_debs(architecture: str, packages: Sequence[str], into: Path, work: Path) -> None:
    """With an apt of its own, so that the machine's is not touched. Raises CannotBuild."""
    home = work / f"apt-{architecture}"
    for folder in ("lists/partial", "archives/partial", "etc"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    lines = sources(_configured())
    (home / "etc/sources.list").write_text("".join(f"{line}\n" for line in lines))
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Languages": "none",
        "Dir::Etc::SourceList": str(home / "etc/sources.list"),
        "Dir::Etc::SourceParts": "-",
        "Dir::Etc::Preferences": "-",
        "Dir::Etc::PreferencesParts": "-",
        "Dir::State::Lists": str(home / "lists"),
        "Dir::State::Status": str(home / "status"),
        "Dir::Cache": str(home),
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    run(["apt-get", *flags, "-qq", "update"])
    into.mkdir(parents=True, exist_ok=True)
    run(["apt-get", *flags, "-qq", "download", *packages], cwd=into)


def fetch_wheels(architecture: str, into: Path, python: str = sys.executable) -> None:
    """Those that requirements.txt locks. Raises CannotBuild."""
    locked = HERE / "orchestrator/requirements.txt"
    command = [*_download(architecture, python), "--no-deps", "--require-hashes"]
    run([*command, f"--dest={into}", f"--requirement={locked}"])


def _download(architecture: str, python: str) -> list[str]:
    machine = _MACHINES[architecture]
    platforms = [word for libc in _LIBC for word in ("--platform", f"{libc}_{machine}")]
    return [
        python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--only-binary=:all:", *platforms, f"--python-version={PYTHON}", "--implementation=cp",
    ]  # fmt: skip


def own_wheel(work: Path, when: str, python: str = sys.executable) -> Path:
    """From a copy of the sources: a build writes beside them. Raises CannotBuild."""
    copy = work / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in _SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for path in copy.rglob("*"):  # modes get into the wheel, and are those of a checkout
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    run(
        [
            python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-build-isolation", f"--wheel-dir={work}", str(copy),
        ],
        SOURCE_DATE_EPOCH=when,
    )  # fmt: skip
    (wheel,) = work.glob("polder-*.whl")
    return wheel


def make_builder(tar: Path, when: str) -> None:
    """A Debian with Python, from its archive: there is no image of somebody else below ours."""
    run(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--include=python3",
            RELEASE, str(tar), *sources(_configured()),
        ],
        SOURCE_DATE_EPOCH=when,
    )  # fmt: skip


def lock(work: Path, python: str = sys.executable) -> str:
    """requirements.txt anew: the newest wheels that there are for both architectures, by hash."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["orchestrator"]]
    found: dict[str, set[str]] = {}
    for architecture in ARCHITECTURES:
        folder = work / architecture
        run([*_download(architecture, python), f"--dest={folder}", *wanted])
        for wheel in folder.glob("*.whl"):
            name, version = wheel.name.split("-")[:2]
            line = f"{name.lower().replace('_', '-')}=={version}"
            found.setdefault(line, set()).add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = [_LOCK_HEAD]
    for name in sorted(found):
        lines.append(" \\\n    ".join([name, *(f"--hash=sha256:{h}" for h in sorted(found[name]))]))
    return "\n".join(lines) + "\n"


def context(image: str, into: Path, work: Path, architectures: Sequence[str], when: str) -> None:
    """A folder for the image's Dockerfile. What was fetched into it before is taken as it is; what
    comes from this checkout never. Raises CannotBuild."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "assemble.py", into / "assemble.py")
    has_wheels = (HERE / image / "requirements.txt").exists()
    for architecture in architectures:
        debs, wheels = into / "debs" / architecture, into / "wheels" / architecture
        if not debs.exists():
            fetch_debs(architecture, packages_of(image), debs, work)
        if has_wheels and not wheels.exists():
            fetch_wheels(architecture, wheels)
        for old in wheels.glob("polder-*.whl"):
            old.unlink()
    if has_wheels:
        with tempfile.TemporaryDirectory() as folder:
            wheel = own_wheel(Path(folder), when)
            for architecture in architectures:
                shutil.copy(wheel, into / "wheels" / architecture)
