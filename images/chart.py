"""Packages the Helm chart with the digests of images that were built. Used by `__main__.py`.

In a checkout the chart names no image. A release names its own: the packaged chart carries their
digests, so that whoever installs it says only where they are. The archive is what `helm package`
would make, but for the dates: the same checkout gives the same bytes.
"""

import gzip
import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from images.inputs import ROOT, CannotBuild

CHART = ROOT / "charts" / "polder"
# Where in values.yaml the digest of an image stands: the keys above it.
PLACES = {"polder-orchestrator": ("image",), "polder-etcd": ("etcd", "image")}


def package_chart(digests: Mapping[str, str], out: Path, when: float) -> Path:
    """The archive's path. Raises CannotBuild when values.yaml has no place for a digest."""
    version = re.search(r"^version: (\S+)$", (CHART / "Chart.yaml").read_text(), re.MULTILINE)
    if version is None:
        raise CannotBuild(f"{CHART / 'Chart.yaml'} has no version")
    values = (CHART / "values.yaml").read_text()
    for name, digest in digests.items():
        values = with_digest(values, PLACES[name], digest)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
            data = values.encode() if path.name == "values.yaml" else path.read_bytes()
            entry = tarfile.TarInfo(f"polder/{path.relative_to(CHART)}")
            entry.size, entry.mtime, entry.mode = len(data), int(when), 0o644
            tar.addfile(entry, io.BytesIO(data))
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"polder-{version[1]}.tgz"
    target.write_bytes(gzip.compress(raw.getvalue(), mtime=int(when)))
    return target


def with_digest(values: str, keys: tuple[str, ...], digest: str) -> str:
    """The file with this digest at `keys`, and its comments as they were."""
    lines = values.splitlines(keepends=True)
    at = 0
    for depth, key in enumerate(keys):
        at = _find(lines, at, f"{'  ' * depth}{key}:")
    at = _find(lines, at, f"{'  ' * len(keys)}digest:")
    lines[at] = f"{'  ' * len(keys)}digest: {digest}\n"
    return "".join(lines)


def _find(lines: list[str], start: int, begin: str) -> int:
    for number in range(start, len(lines)):
        if lines[number].startswith(begin):
            return number
    raise CannotBuild(f"values.yaml has no line {begin!r}")
