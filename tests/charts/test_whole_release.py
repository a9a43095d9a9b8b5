"""`python -m releasing`: a whole release of this checkout's last commit, made twice."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from images.build import IMAGES
from images.inputs import ARCHITECTURES, ROOT
from images.layout import Layout
from polder import __version__
from tests.charts.conftest import Built

HAS_HISTORY = (ROOT / ".git").exists()
pytestmark = [
    pytest.mark.images,
    pytest.mark.machine,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not HAS_HISTORY, reason="needs the history of the source (git clone)"),
]


def releasing(*words: str) -> str:
    command = [sys.executable, "-m", "releasing", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what was fetched for the images before: Debian's packages may change meanwhile."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "fetched").symlink_to(built.work)
    return folder


@pytest.fixture(scope="module")
def made(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    releasing("build", "--out", str(out), "--work", str(work))
    (folder,) = out.iterdir()
    return folder


def test_it_has_everything(made: Path) -> None:
    version = __version__
    wanted = {
        f"polder-{version}-py3-none-any.whl", f"polder-{version}.tar.gz",
        f"chart/polder-{version}.tgz", "CHANGELOG.md", "BUILDINFO.json", "SHA256SUMS",
    }  # fmt: skip
    for arch in ARCHITECTURES:
        wanted |= {f"polder-agent_{version}-1_{arch}.{end}" for end in ("deb", "cdx.json")}
        wanted |= {f"{name}-{arch}.cdx.json" for name in IMAGES}
    for name in IMAGES:
        wanted |= {f"{name}-{version}.oci.tar", f"{name}.digest"}
    assert {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} == wanted


def test_its_chart_names_its_images(made: Path, tmp_path: Path) -> None:
    with tarfile.open(made / f"chart/polder-{__version__}.tgz") as chart:
        data = chart.extractfile("polder/values.yaml")
        assert data is not None
        values = data.read().decode()
    for name in IMAGES:
        unpacked = tmp_path / name
        with tarfile.open(made / f"{name}-{__version__}.oci.tar") as tar:
            tar.extractall(unpacked, filter="data")
        layout = Layout(unpacked)
        assert set(layout.images()) == set(ARCHITECTURES)
        assert layout.digest == (made / f"{name}.digest").read_text().strip()
        assert layout.digest in values


def test_a_packages_bill_of_materials_names_what_it_brings(made: Path) -> None:
    locked = (ROOT / "hardware/package/requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0].replace("_", "-") for line in locked if "==" in line}
    for arch in ARCHITECTURES:
        path = made / f"polder-agent_{__version__}-1_{arch}.cdx.json"
        bill = json.loads(path.read_text())
        assert {component["name"] for component in bill["components"]} == names
        assert bill["metadata"]["component"]["purl"].endswith(f"?arch={arch}")


def test_made_again_it_has_the_same_bytes(made: Path, work: Path) -> None:
    said = releasing("check", str(made), "--work", str(work))
    assert "differs" not in said and "have the same bytes" in said
