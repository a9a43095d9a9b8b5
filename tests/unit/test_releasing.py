"""What may be released, what a release's sums say, and archives that show nothing of a machine."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from images.inputs import CannotBuild
from releasing import sums
from releasing.archives import layout_archive, normal_sdist
from releasing.source import check_out, resolve, section, uncommitted

CHANGES = """# Changelog

Not of any version.

## 1.3.0

- Not released yet.

## 1.2.3

- First line.

### Details

- ## is no heading here

## 1.2
"""


# --- the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("1.3.0", "- Not released yet."),
        ("1.2.3", "- First line.\n\n### Details\n\n- ## is no heading here"),
        ("1.2", ""),
        ("1.2.4", ""),
        ("1.3", ""),
    ],
)
def test_the_section_of_a_version(version: str, text: str) -> None:
    assert section(CHANGES, version) == text


class Repository:
    """A tree with what a release reads, in git."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet")
        self.say("1.2.3")
        (root / "CHANGELOG.md").write_text(CHANGES)
        self.commit()

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "tag.gpgsign=false")
        command = ["git", *who, *words]
        env = {**os.environ, "GIT_COMMITTER_DATE": "@1790000000 +0100"}
        return subprocess.run(
            command, cwd=self.root, check=True, capture_output=True, text=True, env=env
        ).stdout

    def say(self, version: str, *, package: str = "", chart: str = "", app: str = "") -> None:
        for folder in ("polder", "charts/polder"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        text = f'"""Polder."""\n\n__version__ = "{package or version}"\n'
        (self.root / "polder/__init__.py").write_text(text)
        text = f'name: polder\nversion: {chart or version}\nappVersion: "{app or version}"\n'
        (self.root / "charts/polder/Chart.yaml").write_text(text)

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=x", "--no-gpg-sign")
        return resolve(self.root, "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def refusal(repository: Repository) -> str:
    commit = repository.commit()
    with pytest.raises(CannotBuild) as refused:
        check_out(repository.root, commit, repository.root.parent / "clone")
    return str(refused.value)


def test_a_release_is_of_a_commit_and_of_nothing_else(
    repository: Repository, tmp_path: Path
) -> None:
    commit = resolve(repository.root, "HEAD")
    assert uncommitted(repository.root) == []
    (repository.root / "polder/__init__.py").write_text("raise SystemExit")
    (repository.root / "polder/new.py").write_text("")
    assert uncommitted(repository.root) == ["polder/__init__.py", "polder/new.py"]
    source = check_out(repository.root, commit, tmp_path / "clone")
    assert (source.version, source.commit, source.epoch) == ("1.2.3", commit, 1_790_000_000)
    assert source.changes.startswith("- First line.")
    assert not (source.root / "polder/new.py").exists()
    assert "__version__" in (source.root / "polder/__init__.py").read_text()


def test_all_places_say_the_same_version(repository: Repository) -> None:
    repository.say("1.2.3", package="1.2.2", chart="1.2.4", app="1.2.5")
    said = refusal(repository)
    assert "polder/__init__.py says 1.2.2, pyproject.toml 1.2.3" in said
    assert "version in Chart.yaml says 1.2.4" in said
    assert "appVersion in Chart.yaml says 1.2.5" in said


@pytest.mark.parametrize("version", ["1.2", "1.2.4rc1"])
def test_only_a_releases_version_is_released(repository: Repository, version: str) -> None:
    repository.say(version)
    assert f"{version} is no release's version" in refusal(repository)


def test_a_version_without_changes_is_not_released(repository: Repository) -> None:
    repository.say("1.2.4")
    assert "CHANGELOG.md has no section '## 1.2.4'" in refusal(repository)


@pytest.mark.parametrize("kind", [["--annotate", "--message=x"], []])
def test_a_version_is_released_once(
    repository: Repository, tmp_path: Path, kind: list[str]
) -> None:
    repository.git("tag", *kind, "v1.2.3")
    check_out(repository.root, resolve(repository.root, "HEAD"), tmp_path / "again")
    (repository.root / "more").write_text("")
    assert "1.2.3 was released before: v1.2.3 is" in refusal(repository)


def test_a_commit_that_is_not_here(repository: Repository) -> None:
    with pytest.raises(CannotBuild, match="there is no commit v9"):
        resolve(repository.root, "v9")


# --- sums -----------------------------------------------------------------------------------------


def release(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sums.write_sums(folder)
    return folder


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    made = release(tmp_path / "made", {"a.whl": "1", "chart/b.tgz": "2"})
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=True)
    assert done.stdout == "a.whl: OK\nchart/b.tgz: OK\n"
    assert sums.read_sums(made) == sums.sums_of(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda at: (at / "a").write_text("2"), "not as SHA256SUMS says: a"),
        (lambda at: (at / "a").unlink(), "not as SHA256SUMS says: a"),
        (lambda at: (at / "new").write_text(""), "not as SHA256SUMS says: new"),
        (lambda at: (at / "SHA256SUMS").write_text("x  a\n"), "is damaged"),
        (lambda at: (at / "SHA256SUMS").write_text(""), "is damaged"),
        (lambda at: (at / "SHA256SUMS").unlink(), "is this a release's folder"),
    ],
)
def test_a_damaged_release_is_not_compared(tmp_path: Path, change: object, said: str) -> None:
    made = release(tmp_path / "made", {"a": "1"})
    change(made)  # type: ignore[operator]
    with pytest.raises(CannotBuild, match=said):
        sums.read_sums(made)


def test_what_differs_and_why(tmp_path: Path) -> None:
    def build(name: str, *, tool: str, library: str, image: str) -> Path:
        bill = {"components": [{"purl": "pkg:deb/debian/tzdata@1"}, {"purl": library}]}
        files = {
            "a.whl": "the same",
            "image.oci.tar": image,
            "image-amd64.cdx.json": json.dumps(bill),
            "BUILDINFO.json": json.dumps({"tools": {"git": "2", "setuptools": tool}}),
        }
        return release(tmp_path / name, files)

    one = build("one", tool="80", library="pkg:deb/debian/libc6@1", image="1")
    same = build("same", tool="81", library="pkg:deb/debian/libc6@1", image="1")
    other = build("other", tool="81", library="pkg:deb/debian/libc6@2", image="2")
    assert sums.differing(sums.sums_of(one), sums.sums_of(same)) == []
    assert sums.differing(sums.sums_of(one), sums.sums_of(other)) == [
        "image-amd64.cdx.json",
        "image.oci.tar",
    ]
    assert sums.why_differing(one, other) == [
        "setuptools: 80 then, 81 here",
        "image-amd64.cdx.json: pkg:deb/debian/libc6@1 became pkg:deb/debian/libc6@2",
    ]
    (other / "more").write_text("")
    assert "more" in sums.differing(sums.sums_of(one), sums.sums_of(other))


# --- archives -------------------------------------------------------------------------------------


def sdist(path: Path, names: list[str], *, owner: str, mtime: int) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(f"polder-1/{name}")
            entry.uname, entry.uid, entry.mtime = owner, len(owner), mtime
            entry.mode = 0o775 if name == "run.sh" else 0o664
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path


def test_a_source_archive_shows_nothing_of_who_made_it(tmp_path: Path) -> None:
    one = sdist(tmp_path / "one.tar.gz", ["a.py", "run.sh"], owner="ada", mtime=1)
    two = sdist(tmp_path / "two.tar.gz", ["run.sh", "a.py"], owner="grace", mtime=2)
    for made, name in ((one, "out-1.tar.gz"), (two, "out-2.tar.gz")):
        normal_sdist(made, tmp_path / name, 1_790_000_000)
    first, second = ((tmp_path / f"out-{n}.tar.gz").read_bytes() for n in (1, 2))
    assert first == second
    with tarfile.open(tmp_path / "out-1.tar.gz") as tar:
        found = {entry.name: (entry.mode, entry.mtime, entry.uname) for entry in tar}
        data = tar.extractfile("polder-1/a.py")
        assert data is not None and data.read() == b"a.py"
    assert found == {
        "polder-1/a.py": (0o644, 1_790_000_000, ""),
        "polder-1/run.sh": (0o755, 1_790_000_000, ""),
    }
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-1.tar.gz", "out-2.tar.gz"]


def test_a_layout_becomes_one_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        blobs = tmp_path / name / "blobs/sha256"
        blobs.mkdir(parents=True)
        (blobs / ("a" * 64)).write_text("blob")
        (tmp_path / name / "index.json").write_text("{}")
        os.utime(blobs / ("a" * 64), (len(name), 7 if name == "two" else 8))
        layout_archive(tmp_path / name, tmp_path / f"{name}.tar", 1_790_000_000)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames() == [f"blobs/sha256/{'a' * 64}", "index.json"]
