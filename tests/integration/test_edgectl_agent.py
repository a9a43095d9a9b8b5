"""`edgectl agent` and `edge-orchestrator ca sign-release` as operators type them."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.identity.authority import create_root
from orchestrator.identity.pem import UnusableFile
from orchestrator.identity.releases import issue, read_package
from polder.release import InvalidRelease, read_release, read_signed
from tests.integration.orchestrator_rig import Rig, running, until
from tests.integration.upgrade_boxes import boxes, package, upload

OLD, NEW = "0.1.0-1", "0.2.0-1"


@dataclass
class Said:
    code: int
    out: str
    err: str


async def run(*command: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Said(process.returncode or 0, out.decode(), err.decode())


async def edgectl(rig: Rig, *words: str) -> Said:
    context = rig.config.data_path / "admin.yaml"
    return await run("edgectl", "--config", str(context), "agent", *words)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


async def sign(rig: Rig, out: Path, *packages: Path, options: tuple[str, ...] = ()) -> Said:
    words = [*options, *(word for path in packages for word in ("--deb", str(path)))]
    ca = str(rig.config.ca_path)
    return await run("orchestrator", "ca", "sign-release", "--dir", ca, *words, "--out", str(out))


async def test_from_the_packages_to_a_fleet_that_runs_them(rig: Rig, tmp_path: Path) -> None:
    packages = [package(tmp_path, NEW, arch) for arch in ("amd64", "arm64")]
    release = tmp_path / "v.release"
    said = await sign(rig, release, *packages)
    assert said.code == 0, said.err
    assert "version 0.2.0-1" in said.out and "edgectl agent upload" in said.out
    signed = read_release(read_signed(release.read_text()).release)
    assert signed.packages == tuple(read_package(path).package for path in packages)

    said = await edgectl(rig, "upload", str(release), "--deb", str(packages[0]))
    assert said.code == 0 and said.out == "release 0.2.0-1 created\n"
    assert "the package for arm64 is not here" in said.err
    words = [word for path in packages for word in ("--deb", str(path))]
    said = await edgectl(rig, "upload", str(release), *words)
    assert said.code == 0 and "amd64.deb: is here" in said.err
    assert "arm64.deb: uploaded" in said.err and "is not here" not in said.err

    async with boxes(rig, tmp_path / "boxes", 2, 1, OLD) as fleet:
        cache = rig.orchestrator.parts.cache
        names = [box.name for box in fleet]
        await until(lambda: all(cache.node_status(name) for name in names), "all have reported")
        said = await edgectl(rig, "releases")
        assert "amd64, arm64" in said.out and "its way back" in said.err
        refused = await edgectl(rig, "upgrade", "--version", NEW)
        assert refused.code == 1 and "no package of 0.1.0-1 for amd64" in refused.err
        assert "edgectl agent upload" in refused.err
        await upload(rig, tmp_path / "old", OLD)

        said = await edgectl(rig, "upgrade", "--version", NEW, "--dry-run")
        assert said.code == 0 and said.out.startswith("would upgrade 2 of 2 nodes to 0.2.0-1")
        asked = ["--waves", "50%,100%", "--soak", "1s", "--at-once", "50%"]
        said = await edgectl(rig, "upgrade", "--version", NEW, *asked)
        assert said.code == 0 and "begins: 2 of 2 nodes to 0.2.0-1, in 2 waves" in said.out
        assert "edgectl agent status -w" in said.err
        watched = await edgectl(rig, "status", "-w")
        assert watched.code == 0, watched.out + watched.err
        assert "Phase:    Done" in watched.out and "2 of 2 done" in watched.out
        assert {box.version for box in fleet} == {NEW}
        said = await edgectl(rig, "upgrade", "--version", OLD)
        assert said.code == 1 and "0.1.0-1 is lower than 0.2.0-1" in said.err
        assert "ca sign-release --downgrade" in said.err
        old, down = package(tmp_path / "old", OLD), tmp_path / "down.release"
        said = await sign(rig, down, old, options=("--downgrade",))
        assert said.code == 0 and "signed by the root, as a downgrade, too" in said.out
        said = await edgectl(rig, "upload", str(down), "--deb", str(old))
        assert said.code == 0 and said.out == "release 0.1.0-1 is here\n"
        said = await edgectl(rig, "releases")
        assert [line.split()[:4] for line in said.out.splitlines()] == [
            ["VERSION", "PACKAGES", "DOWNGRADE", "NODES"],
            ["0.2.0-1", "amd64,", "arm64", "no"],
            ["0.1.0-1", "amd64", "yes", "0"],
        ]
        said = await edgectl(rig, "upgrade", "--version", OLD, "--dry-run")
        assert said.code == 0 and "2 nodes run a later version and go back" in said.err
        said = await edgectl(rig, "delete", OLD)
        assert said.code == 0 and said.out == "agent 0.1.0-1: deleted\n"


async def test_a_bad_version_is_told_with_what_to_do(rig: Rig, tmp_path: Path) -> None:
    for version in (OLD, NEW):
        await upload(rig, tmp_path, version)
    async with boxes(rig, tmp_path / "boxes", 1, 1, OLD) as fleet:
        fleet[0].bad.add(NEW)
        cache = rig.orchestrator.parts.cache
        await until(lambda: cache.node_status("s0-n0") is not None, "it has reported")
        said = await edgectl(rig, "upgrade", "--version", NEW, "--soak", "1s")
        assert said.code == 0, said.err
        watched = await edgectl(rig, "status", "-w")
        assert watched.code == 1
        assert "Paused (TooManyFailed)" in watched.out and "NotWell" in watched.out
        assert "Next: edgectl agent resume" in watched.out
        identifier = watched.out.split()[1]
        said = await edgectl(rig, "abort", identifier)
        assert said.code == 0 and "aborted" in said.out
        said = await edgectl(rig, "status", "-o", "json")
        assert '"phase": "Aborted"' in said.out
        refused = await edgectl(rig, "resume", identifier)
        assert refused.code == 1 and "has ended" in refused.err


async def test_what_is_no_package_is_not_signed(rig: Rig, tmp_path: Path) -> None:
    good, out = package(tmp_path, NEW), tmp_path / "v.release"
    cases = [
        (tmp_path / "none.deb", "No such file"),
        (package(tmp_path / "a", NEW, Package="other"), "not polder-agent"),
        (package(tmp_path / "b", NEW, **{"Polder-State-Schema": ""}), "the form of its state"),
        (package(tmp_path / "c", "0.2.1-1", "arm64"), "a release is of one"),
        (package(tmp_path / "d", NEW, "riscv64"), "'riscv64' is none of"),
        (package(tmp_path / "e", NEW), "two packages for amd64"),
    ]
    for path, words in cases:
        said = await sign(rig, out, good, path)
        assert said.code == 1 and words in said.err, said
        assert "Traceback" not in said.err and not out.exists()


def test_a_clock_from_before_the_root_signs_nothing(tmp_path: Path) -> None:
    """Boxes compare when releases were signed; where the root's key is there may be no network."""
    create_root(tmp_path / "ca", "polder.internal", time.time())
    found = read_package(package(tmp_path, NEW))
    with pytest.raises(UnusableFile, match="1970-01-01 00:00:05Z, before the root was made"):
        issue(tmp_path / "ca", [found], 5.0)


@pytest.mark.parametrize("cut", [0, 4, 8, 40, 70, 100, 300])
def test_a_package_that_was_cut_off_is_none(tmp_path: Path, cut: int) -> None:
    path = package(tmp_path, NEW)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidRelease):
        read_package(path)
