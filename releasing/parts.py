"""The parts of a release, made from the checkout that this very module lies in.

Run by `__main__.py` as a process of its own, so that the code that makes a release is that of the
released commit. Each part is a list of steps: a text for the progress, and what to do.

    python     wheel and sdist of the whole distribution
    packages   the agent's .deb for each architecture, and its bill of materials
    images     OCI layouts as archives, digests, bills of materials, and the chart with the digests
"""

import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path

from devcluster.preflight import Missing, missing_images
from images import build as image_build
from images import inputs
from images.chart import package_chart
from images.inputs import ARCHITECTURES, ROOT, run
from images.sbom import package_sbom, sbom_text
from releasing.archives import layout_archive, normal_sdist

PARTS = ("python", "packages", "images")
_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"

Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Order:
    """`into` gets the files; `work` keeps what was fetched, `epoch` is the date of everything."""

    version: str
    commit: str
    epoch: int
    into: Path
    work: Path

    @property
    def source(self) -> image_build.Source:
        return image_build.Source(self.version, self.commit, str(self.epoch))


def missing(parts: tuple[str, ...]) -> list[Missing]:
    """What this machine lacks for them."""
    found = missing_images() if "images" in parts else []
    if shutil.which("git") is None:
        found.append(Missing("git", "git"))
    if "packages" in parts and shutil.which("dpkg-deb") is None:
        found.append(Missing("dpkg-deb", "dpkg"))
    if "packages" in parts and not _can_compile():
        found.append(Missing(f"Python {inputs.PYTHON}", f"python{inputs.PYTHON}"))
    return found


def _can_compile() -> bool:
    """For Debian's interpreter, whose version the packages' compiled modules must have."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}" == inputs.PYTHON
    return own or shutil.which(f"python{inputs.PYTHON}") is not None


def steps(order: Order, parts: tuple[str, ...]) -> list[Step]:
    found: list[Step] = []
    if "python" in parts:
        found += [("wheel", partial(_wheel, order)), ("sdist", partial(_sdist, order))]
    if "packages" in parts:
        for arch in ARCHITECTURES:
            found.append((f"the agent's package for {arch}", partial(_package, order, arch)))
    if "images" in parts:
        for name in image_build.IMAGES:
            text = f"image {name} for {' and '.join(ARCHITECTURES)}"
            found.append((text, partial(_image, order, name)))
        found.append(("chart with the images' digests", partial(_chart, order)))
    return found


def _wheel(order: Order) -> None:
    with tempfile.TemporaryDirectory() as work:
        shutil.copy(inputs.own_wheel(Path(work), str(order.epoch)), order.into)


def _sdist(order: Order) -> None:
    name = f"polder-{order.version}.tar.gz"
    with tempfile.TemporaryDirectory() as work:
        run([sys.executable, "-c", _SDIST, work], cwd=ROOT, SOURCE_DATE_EPOCH=str(order.epoch))
        normal_sdist(Path(work) / name, order.into / name, order.epoch)


def _package(order: Order, arch: str) -> None:
    script = ROOT / "hardware/package/build.py"
    said = run(
        [sys.executable, str(script), "--arch", arch, "--out", str(order.into)],
        SOURCE_DATE_EPOCH=str(order.epoch),
    )
    package = Path(said.splitlines()[-1])
    bill = package_sbom(package, float(order.epoch))
    package.with_suffix(".cdx.json").write_text(sbom_text(bill))


def _image(order: Order, name: str) -> None:
    out = order.work / "images"
    made = image_build.build([name], ARCHITECTURES, out, order.source, order.work / "fetched")
    for path in made:
        if path.is_dir():
            layout_archive(path, order.into / f"{name}-{order.version}.oci.tar", order.epoch)
        else:
            shutil.copy(path, order.into)


def _chart(order: Order) -> None:
    digests = {
        name: (order.into / f"{name}.digest").read_text().strip() for name in image_build.IMAGES
    }
    package_chart(digests, order.into / "chart", float(order.epoch))


def build_info(order: Order, parts: tuple[str, ...]) -> str:
    """With which tools it was made: where two builds differ, these may be why."""
    tools = {
        "python": platform.python_version(),
        "setuptools": installed_version("setuptools"),
        "pip": installed_version("pip"),
    }
    for program in ("git", "dpkg-deb", "buildah", "mmdebstrap"):
        if shutil.which(program) is not None:
            tools[program] = run([program, "--version"]).partition("\n")[0].strip()
    body = {
        "version": order.version,
        "commit": order.commit,
        "sourceDateEpoch": order.epoch,
        "parts": list(parts),
        "tools": tools,
    }
    return json.dumps(body, indent=2) + "\n"
