"""Container images: `python -m images build`, as root, and `lock`, which takes newer wheels."""

import argparse
import sys
import tempfile
import tomllib
from pathlib import Path

from images.build import IMAGES, build
from images.inputs import ARCHITECTURES, HERE, ROOT, CannotBuild, lock


def main() -> int:
    """Exit codes: 0 ok, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    actions = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
    command = actions.add_parser("build", help="build OCI layouts, digests and bills of materials")
    command.add_argument("--image", action="append", choices=IMAGES, help="default: all")
    command.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    command.add_argument("--out", type=Path, default=ROOT / "build/images")
    command.add_argument("--work", type=Path, help="keep what is fetched here, for the next time")
    actions.add_parser("lock", help="write requirements.txt anew")
    options = parser.parse_args()
    try:
        if options.action == "lock":
            with tempfile.TemporaryDirectory() as work:
                (HERE / "orchestrator/requirements.txt").write_text(lock(Path(work)))
            return 0
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        names, architectures = options.image or list(IMAGES), options.arch or ARCHITECTURES
        for path in build(names, architectures, options.out, version, options.work):
            print(path)
    except CannotBuild as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
