"""An emulated arm64 box with the agent's package, and what tests need besides, put there by wheels.

The agent is the package's, under the package's own Python: of the sources only tests and their
helpers come along.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

from devcluster.debian_root import Root

PYTHON = "/opt/polder-agent/bin/python3"
SOURCES = "/src"
WHEELS = "/opt/polder-tests"
CARRIED = ("tests", "devcluster", "bench", "hardware", "docs", "proto", "pyproject.toml")
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-rerunfailures", "hypothesis")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")


def fetch_tools(into: Path) -> list[Path]:
    """Wheels for arm64 of what runs tests, in the versions of this environment.

    Raises CalledProcessError; why is on stderr.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    wanted = [f"{name}=={metadata.version(name)}" for name in TOOLS]
    subprocess.run([*command, "--dest", str(into), *wanted], check=True)
    return sorted(into.glob("*.whl"))


def furnish(root: Root, sources: Path, package: Path, wheels: list[Path]) -> None:
    """Installs the package by dpkg, and puts tests and tools beside it."""
    root.install(package)
    root.run("mkdir", "-p", SOURCES, WHEELS)
    root.run("tar", "-x", "-C", SOURCES, stdin=_carried(sources))
    root.run("tar", "-x", "-C", WHEELS, stdin=_unpacked(wheels))


def _carried(sources: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in CARRIED:
            tar.add(sources / name, name, filter=_without_caches)
    return out.getvalue()


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("__pycache__") else entry


def _unpacked(wheels: list[Path]) -> bytes:
    """A wheel is a zip of what goes to site-packages (PEP 427)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        entry = tarfile.TarInfo(info.filename)
                        entry.size, entry.mode = info.file_size, 0o755
                        tar.addfile(entry, io.BytesIO(archive.read(info)))
    return out.getvalue()
