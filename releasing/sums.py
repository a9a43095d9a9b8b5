"""SHA256SUMS of a release: written, read, and compared with those of another build of it.

Used by `__main__.py` and by tests. The form is that of `sha256sum`, so that nothing of Polder is
needed to check what was downloaded: `sha256sum --check SHA256SUMS`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from images.inputs import CannotBuild

SUMS = "SHA256SUMS"
BUILD_INFO = "BUILDINFO.json"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

Sums = Mapping[str, str]


def sums_of(folder: Path) -> dict[str, str]:
    """Of all files but SHA256SUMS itself, by path."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_sums(folder: Path) -> None:
    lines = [f"{digest}  {name}\n" for name, digest in sums_of(folder).items()]
    (folder / SUMS).write_text("".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """As it was published. Raises CannotBuild when a file is another than it says."""
    path = folder / SUMS
    if not path.exists():
        raise CannotBuild(f"there is no {path}: is this a release's folder?")
    lines = [_LINE.fullmatch(line) for line in path.read_text().splitlines()]
    said = {line[2]: line[1] for line in lines if line is not None}
    if not said or len(said) < len(lines):
        raise CannotBuild(f"{path} is damaged")
    here = sums_of(folder)
    wrong = sorted(name for name in said.keys() | here.keys() if said.get(name) != here.get(name))
    if wrong:
        raise CannotBuild(f"not as {SUMS} says: {', '.join(wrong)}")
    return said


def differing(published: Sums, made: Sums) -> list[str]:
    """Files that are not in both with the same bytes. What says with which tools it was built may
    differ: it is there for when something else does."""
    names = sorted((published.keys() | made.keys()) - {BUILD_INFO})
    return [name for name in names if published.get(name) != made.get(name)]


def why_differing(published: Path, made: Path) -> list[str]:
    """What else is not the same in the two builds, and may be why: tools, and what was fetched."""
    found = []
    ours, theirs = (_tools(folder) for folder in (made, published))
    for tool in sorted(ours.keys() | theirs.keys()):
        if ours.get(tool) != theirs.get(tool):
            found.append(f"{tool}: {theirs.get(tool, 'none')} then, {ours.get(tool, 'none')} here")
    for bill in sorted(published.glob("*.cdx.json")):
        before, now = _components(bill), _components(made / bill.name)
        if before != now:
            gone, come = sorted(before - now), sorted(now - before)
            found.append(f"{bill.name}: {', '.join(gone) or 'nothing'} became {', '.join(come)}")
    return found


def _tools(folder: Path) -> dict[str, str]:
    path = folder / BUILD_INFO
    tools: dict[str, str] = json.loads(path.read_text())["tools"] if path.exists() else {}
    return tools


def _components(bill: Path) -> set[str]:
    if not bill.exists():
        return set()
    return {str(component["purl"]) for component in json.loads(bill.read_text())["components"]}
