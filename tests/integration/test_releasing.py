"""`python -m releasing`: what needs neither root nor minutes of a release, and making it again.

A whole release is made by `tests/charts/test_whole_release.py`.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from images.inputs import ROOT
from polder import __version__

HAS_HISTORY = (ROOT / ".git").exists()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_HISTORY, reason="needs the history of the source (git clone)"),
]


def releasing(*words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "releasing", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def built(out: Path, *words: str, timeout_s: float = 300.0) -> Path:
    done = releasing("build", "--out", str(out), *words, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = out.iterdir()
    assert folder.name == f"polder-{__version__}"
    return folder


def test_the_distribution_is_made_again_and_from_its_source_archive(tmp_path: Path) -> None:
    made = built(tmp_path / "dist", "--part", "python")
    wheel = made / f"polder-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = f"polder-{__version__}.dist-info/RECORD"  # setuptools gives it a mode itself
        files = [info for info in archive.infolist() if info.filename != record]
        modes = {info.external_attr >> 16 & 0o777 for info in files}
    assert {"agent/__main__.py", "orchestrator/__main__.py", "edgectl/__main__.py"} <= names
    assert any(name.endswith("profiles/raspberry-pi-5.toml") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "bench/", "releasing/"))]
    assert modes <= {0o644, 0o755}, "of no umask"
    assert (made / "CHANGELOG.md").read_text().startswith(f"# Polder {__version__}\n")

    # Whoever has the source archive alone gets the same wheel.
    source = tmp_path / "source"
    with tarfile.open(made / f"polder-{__version__}.tar.gz") as tar:
        tar.extractall(source, filter="data")
    (tree,) = source.iterdir()
    for name in ("proto/polder/v1/agent.proto", "Makefile", "charts/polder/Chart.yaml", "docs/adr"):
        assert (tree / name).exists(), name
    again = [sys.executable, "-c", "import sys; from pathlib import Path; from images import inputs"
             "; inputs.own_wheel(Path(sys.argv[1]), sys.argv[2])"]  # fmt: skip
    epoch = json.loads((made / "BUILDINFO.json").read_text())["sourceDateEpoch"]
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run([*again, str(work), str(epoch)], cwd=tree, check=True, timeout=120)
    assert (work / wheel.name).read_bytes() == wheel.read_bytes()

    done = releasing("check", str(made))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same     polder-" in done.stdout and "have the same bytes" in done.stdout


def test_a_file_that_was_exchanged_is_found(tmp_path: Path) -> None:
    made = built(tmp_path / "dist", "--part", "python")
    wheel = made / f"polder-{__version__}-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\n")
    done = releasing("check", str(made))
    assert done.returncode == 1
    assert f"not as SHA256SUMS says: {wheel.name}" in done.stderr
    with (made / "SHA256SUMS").open("w") as file:  # by somebody who is good at it
        names = (wheel.name, f"polder-{__version__}.tar.gz", "BUILDINFO.json", "CHANGELOG.md")
        sums = subprocess.run(
            ["sha256sum", *names], cwd=made, capture_output=True, text=True, check=True
        )
        file.write(sums.stdout)
    done = releasing("check", str(made))
    assert done.returncode == 1
    assert f"differs  {wheel.name}" in done.stdout
    assert f"same     polder-{__version__}.tar.gz" in done.stdout


def test_what_is_missing_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "dpkg-deb"):
        (programs / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(programs))
    done = releasing("build", "--out", str(tmp_path / "dist"))
    assert done.returncode == 1
    assert "buildah" in done.stderr and "apt-get install" in done.stderr
    assert list((tmp_path / "dist").iterdir()) == []
