"""What is released: one commit, apart from whatever else lies in the working tree.

Used by `__main__.py`. A release is made in a clone of its own, so that nothing gets into it that
others cannot have: no edit that is not committed, no file that git does not know.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from images.inputs import CannotBuild, run

CHANGELOG = "CHANGELOG.md"
_RELEASE = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Source:
    """A clean checkout. `epoch`: of its commit, unix seconds; the date of all that is made."""

    root: Path
    version: str
    commit: str
    epoch: int
    changes: str


def resolve(repository: Path, revision: str) -> str:
    """The commit's full name. Raises CannotBuild when it is not in the repository."""
    command = ["git", "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    try:
        return run(command, cwd=repository).strip()
    except CannotBuild as error:
        raise CannotBuild(f"there is no commit {revision} in {repository}: git fetch?") from error


def uncommitted(repository: Path) -> list[str]:
    """Paths that are not as the last commit has them, or that it does not have."""
    said = run(["git", "status", "--porcelain"], cwd=repository)
    return [line[3:] for line in said.splitlines()]


def check_out(repository: Path, commit: str, into: Path) -> Source:
    """Raises CannotBuild with everything that keeps the commit from being a release."""
    run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(repository), str(into)])
    run(["git", "checkout", "--quiet", "--detach", commit], cwd=into)
    version = str(tomllib.loads((into / "pyproject.toml").read_text())["project"]["version"])
    problems = [*_other_versions(into, version), *_released_before(into, version, commit)]
    changes = section((into / CHANGELOG).read_text(), version)
    if not changes:
        problems.append(f"{CHANGELOG} has no section '## {version}' with a text")
    if problems:
        raise CannotBuild("; ".join(problems))
    epoch = int(run(["git", "log", "-1", "--format=%ct"], cwd=into))
    return Source(into, version, commit, epoch, changes)


def _other_versions(root: Path, version: str) -> list[str]:
    """The version stands where the programs need it, too: all must say the same."""
    found = [] if _RELEASE.fullmatch(version) else [f"{version} is no release's version, as 1.2.3"]
    package = (root / "polder/__init__.py").read_text()
    chart = (root / "charts/polder/Chart.yaml").read_text()
    places = {
        "polder/__init__.py": (r'^__version__ = "([^"]*)"$', package),
        "version in Chart.yaml": (r"^version: (\S+)$", chart),
        "appVersion in Chart.yaml": (r'^appVersion: "?([^"\s]+)"?$', chart),
    }
    for place, (pattern, text) in places.items():
        said = re.search(pattern, text, re.MULTILINE)
        if said is None or said[1] != version:
            found.append(f"{place} says {said[1] if said else 'nothing'}, pyproject.toml {version}")
    return found


def _released_before(root: Path, version: str, commit: str) -> list[str]:
    tag = f"v{version}"
    if not run(["git", "tag", "--list", tag], cwd=root).strip():
        return []
    tagged = resolve(root, f"refs/tags/{tag}")
    if tagged == commit:
        return []
    return [f"{version} was released before: {tag} is {tagged[:12]}; raise the version"]


def section(changelog: str, version: str) -> str:
    """What CHANGELOG.md says of a version; empty when that is nothing."""
    parts = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for part in parts:
        heading, _, text = part.partition("\n")
        if heading.split()[:1] == [version]:
            return text.strip()
    return ""
