"""Releases of the agent: signed offline, from the files of a CA and the packages themselves.

Called by `edge-orchestrator ca sign-release`. What is signed is read out of the packages, so that
nobody can mistype a version. Debian's format is deb(5): an `ar` archive with a compressed tar of
control files in it; it is read here, since a CA's machine need not be a Debian.
"""

import hashlib
import io
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.identity.authority import load_root, trust_domain_of
from orchestrator.identity.pem import UnusableFile
from polder.release import (
    PACKAGE_BYTES_MAX,
    PACKAGE_NAME,
    STATE_SCHEMA_FIELD,
    InvalidRelease,
    Package,
    Release,
    SignedRelease,
)
from polder.release_proofs import sign_release

_MAGIC = b"!<arch>\n"
_HEADER = 60
_CONTROL_MAX = 4 << 20
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """What a package says of itself, and what it is."""

    path: Path
    version: str
    state_schema: int
    package: Package


def read_package(path: Path) -> DebianPackage:
    """Raises InvalidRelease for what is no package of the agent, and OSError."""
    size = path.stat().st_size
    if size > PACKAGE_BYTES_MAX:
        raise InvalidRelease(f"{path} is larger than {PACKAGE_BYTES_MAX >> 20} MiB")
    with path.open("rb") as file:
        fields = _control_fields(path, file)
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(_READ):
            digest.update(chunk)
    name = fields.get("Package", "")
    if name != PACKAGE_NAME:
        raise InvalidRelease(f"{path} is the package {name[:80]!r}, not {PACKAGE_NAME}")
    schema = fields.get(STATE_SCHEMA_FIELD, "")
    if not schema.isdecimal():
        raise InvalidRelease(
            f"{path} does not say the form of its state ({STATE_SCHEMA_FIELD}): it was built "
            "before agents could be upgraded by the orchestrator"
        )
    package = Package(fields.get("Architecture", ""), digest.hexdigest(), size)
    return DebianPackage(path, fields.get("Version", ""), int(schema), package)


def release_of(
    packages: Iterable[DebianPackage], trust_domain: str, now: float, *, downgrade: bool = False
) -> Release:
    """What is to be signed. Raises InvalidRelease unless the packages are of one version."""
    found = sorted(packages, key=lambda item: item.package.arch)
    first = found[0]
    for other in found:
        ours, theirs = (first.version, first.state_schema), (other.version, other.state_schema)
        if ours != theirs:
            raise InvalidRelease(
                f"{first.path} is version {first.version} with state schema {first.state_schema}, "
                f"{other.path} {other.version} with {other.state_schema}: a release is of one"
            )
    return Release(
        trust_domain=trust_domain,
        version=first.version,
        state_schema=first.state_schema,
        packages=tuple(item.package for item in found),
        issued_at_ms=int(now * 1000),
        downgrade=downgrade,
    )


def issue(
    directory: Path, packages: Iterable[DebianPackage], now: float, *, downgrade: bool = False
) -> tuple[Release, SignedRelease]:
    """Signed by the root. Raises UnusableFile when its key is not here, and InvalidRelease.

    Boxes compare when releases were signed (`polder/release_floor.py`), by this machine's clock,
    which may be one without a network: what it says is held against the root's own date.
    """
    if not (directory / "root.key").exists():
        raise UnusableFile(
            f"{directory} has no root.key, and boxes take software from nobody else: "
            "sign where the root is kept; it needs the packages and no network"
        )
    root, key = load_root(directory)
    if now < root.not_valid_before_utc.timestamp():
        today = time.strftime("%F %T", time.gmtime(now))
        raise UnusableFile(
            f"by this machine's clock it is {today}Z, before the root was made: boxes go by when "
            "a release was signed, so set the clock first"
        )
    release = release_of(packages, trust_domain_of(root), now, downgrade=downgrade)
    return release, sign_release(release, key)


def _control_fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """Of a package that is whole: each member is as long as it says, and the files are there."""
    found: dict[str, str] = {}
    names = []
    for name, size in _members(path, file):
        names.append(name.partition(".")[0])
        start = file.tell()
        if name.startswith("control.tar") and size <= _CONTROL_MAX:
            found = _fields(_control(path, name, file.read(size)))
        file.seek(start + size + size % 2)
    if names != ["debian-binary", "control", "data"]:
        raise InvalidRelease(f"{path} is no Debian package, or not a whole one")
    if file.tell() > path.stat().st_size:
        raise InvalidRelease(f"{path} was cut off")
    return found


def _control(path: Path, name: str, data: bytes) -> str:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            control = archive.extractfile("./control")
            return control.read().decode() if control is not None else ""
    except (tarfile.TarError, KeyError, UnicodeDecodeError, EOFError) as error:
        raise InvalidRelease(f"{path}: its {name} cannot be read: {error}") from error


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int]]:
    """(name, size) of each; the caller reads or skips its bytes before the next."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise InvalidRelease(f"{path} is no Debian package")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = (
            header[:16].decode("ascii", "replace"),
            header[48:58].decode("ascii", "replace"),
        )
        if not size.strip().isdecimal():
            raise InvalidRelease(f"{path} is damaged")
        yield name.strip().rstrip("/"), int(size)


def _fields(text: str) -> dict[str, str]:
    """Of the first paragraph (deb822(5)); continued lines are of no interest here."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            found[name] = value.strip()
    return found
