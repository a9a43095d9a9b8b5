"""Releases of Polder: `python -m releasing build|check`. `make release` runs `build`.

build    everything that is released of a commit, into OUT/polder-VERSION/
check    builds a released commit anew, and says which files have other bytes

See docs/releasing.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from devcluster.preflight import reason
from images.inputs import ROOT, CannotBuild
from quickstart.steps import Steps
from releasing import parts as making
from releasing.source import CHANGELOG, Source, check_out, resolve, uncommitted
from releasing.sums import (
    BUILD_INFO,
    differing,
    read_sums,
    sums_of,
    why_differing,
    write_sums,
)


def main() -> int:
    """Exit codes: 0 ok, 1 failed or not the same, 2 wrong usage."""
    options = _parser().parse_args()
    os.umask(0o022)  # of the checkout: modes get into wheels
    try:
        return int(options.run(options))
    except (CannotBuild, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m releasing")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make a release of the last commit")
    build.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    build.add_argument("--part", action="append", choices=making.PARTS, help="default: all")
    build.set_defaults(run=_build)
    check = actions.add_parser("check", help="see whether a release can be made again")
    check.add_argument("folder", type=Path, metavar="FOLDER", help="with its SHA256SUMS")
    check.set_defaults(run=_check)
    for action in (build, check):
        action.add_argument("--work", type=Path, metavar="DIR", help="keep what is fetched here")
    inner = actions.add_parser("parts")  # in the checkout, by _make
    inner.add_argument("--order", required=True, type=json.loads)
    inner.set_defaults(run=_parts)
    return parser


# --- the commands ---------------------------------------------------------------------------------


def _build(options: argparse.Namespace) -> int:
    parts = tuple(options.part or making.PARTS)
    commit = resolve(ROOT, "HEAD")
    left_out = uncommitted(ROOT)
    if left_out:
        text = f"warning: not committed, so not in the release: {', '.join(left_out)}"
        print(text, file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    # Beside its place, and put there whole: half a release never looks like one.
    with tempfile.TemporaryDirectory(prefix=".release-", dir=options.out) as folder:
        made = Path(folder) / "made"
        source = _make(commit, parts, made, options.work)
        target = options.out / f"polder-{source.version}"
        if target.exists():
            target.rename(Path(folder) / "former")
        made.rename(target)
    for name in sums_of(target):
        print(f"  {target / name}")
    print(f"Polder {source.version} of commit {commit[:12]}.")
    print(f"Can others make the same? python -m releasing check {target}")
    return 0


def _check(options: argparse.Namespace) -> int:
    published = read_sums(options.folder)
    info = json.loads((options.folder / BUILD_INFO).read_text())
    commit = resolve(ROOT, info["commit"])
    with tempfile.TemporaryDirectory(prefix="polder-check-") as folder:
        made = Path(folder) / "made"
        _make(commit, tuple(info["parts"]), made, options.work)
        wrong = differing(published, sums_of(made))
        for name in sorted(published.keys() - {BUILD_INFO}):
            print(f"{'differs' if name in wrong else 'same':<8} {name}")
        for name in sorted(set(wrong) - published.keys()):
            print(f"{'new':<8} {name}")
        for text in why_differing(options.folder, made) if wrong else []:
            print(f"  {text}")
    if wrong:
        print(f"release: {len(wrong)} files are not the same", file=sys.stderr)
        return 1
    print(f"All {len(published) - 1} files have the same bytes.")
    return 0


def _make(commit: str, parts: tuple[str, ...], into: Path, work: Path | None) -> Source:
    """A commit's release. Raises CannotBuild, before anything takes long where it can."""
    lacking = making.missing(parts)
    if lacking:
        raise CannotBuild(reason(lacking))
    with tempfile.TemporaryDirectory(prefix="polder-release-") as folder:
        source = check_out(ROOT, commit, Path(folder) / "source")
        into.mkdir()
        keep = work.resolve() if work is not None else Path(folder) / "work"
        order = {
            "version": source.version,
            "commit": commit,
            "epoch": source.epoch,
            "into": str(into.resolve()),
            "work": str(keep),
            "parts": parts,
        }
        command = [sys.executable, "-m", "releasing", "parts", "--order", json.dumps(order)]
        done = subprocess.run(command, cwd=source.root, env=_environment(), check=False)
        if done.returncode != 0:
            raise CannotBuild("a part could not be made")
        (into / CHANGELOG).write_text(f"# Polder {source.version}\n\n{source.changes}\n")
        write_sums(into)
    return source


def _environment() -> dict[str, str]:
    """Of the process that makes it: as little of this machine as can be."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def _parts(options: argparse.Namespace) -> int:
    given = options.order
    order = making.Order(
        given["version"],
        given["commit"],
        given["epoch"],
        Path(given["into"]),
        Path(given["work"]),
    )
    parts = tuple(given["parts"])
    order.work.mkdir(parents=True, exist_ok=True)
    todo = making.steps(order, parts)
    progress = Steps(total=len(todo))
    for text, action in todo:
        progress.run(text, action)
    (order.into / BUILD_INFO).write_text(making.build_info(order, parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
