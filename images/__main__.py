"""Container images, and the chart that names them: `python -m images build|chart|lock`.

build    OCI layouts, digests and bills of materials; as root
chart    the Helm chart as an archive, with the digests of the images that were built
lock     take newer wheels
"""

import argparse
import sys
import tempfile
import tomllib
from pathlib import Path

from images.build import IMAGES, Source, build
from images.chart import package_chart
from images.inputs import ARCHITECTURES, HERE, ROOT, CannotBuild, epoch, lock, revision


def main() -> int:
    """Exit codes: 0 ok, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m images")
    actions = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
    command = actions.add_parser("build", help="build OCI layouts, digests and bills of materials")
    command.add_argument("--image", action="append", choices=IMAGES, help="default: all")
    command.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    command.add_argument("--out", type=Path, default=ROOT / "build/images")
    command.add_argument("--work", type=Path, help="keep what is fetched here, for the next time")
    chart = actions.add_parser("chart", help="package the Helm chart with their digests")
    chart.add_argument("--images", type=Path, default=ROOT / "build/images", help="of `build`")
    chart.add_argument("--out", type=Path, default=ROOT / "build/chart")
    actions.add_parser("lock", help="write requirements.txt anew")
    options = parser.parse_args()
    try:
        if options.action == "lock":
            with tempfile.TemporaryDirectory() as work:
                (HERE / "orchestrator/requirements.txt").write_text(lock(Path(work)))
            return 0
        if options.action == "chart":
            print(package_chart(_digests(options.images), options.out, float(epoch())))
            return 0
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        names, architectures = options.image or list(IMAGES), options.arch or ARCHITECTURES
        source = Source(version, revision(), epoch())
        for path in build(names, architectures, options.out, source, options.work):
            print(path)
    except CannotBuild as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def _digests(folder: Path) -> dict[str, str]:
    """Of the images that `build` made there. Raises CannotBuild."""
    found = {}
    for name in IMAGES:
        path = folder / f"{name}.digest"
        if not path.exists():
            raise CannotBuild(f"there is no {path}: run `python -m images build` first")
        found[name] = path.read_text().strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
