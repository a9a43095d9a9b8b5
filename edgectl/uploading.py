"""A signed release and its packages, from files to the orchestrator.

Called by `edgectl agent upload`. The packages are compared with what was signed before anything is
sent. Each goes by a call of its own, so that what came whole need not come again when the
connection is lost.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgectl.client import Client
from edgectl.errors import CliError
from edgectl.progress import Progress
from polder.release import (
    MAX_TEXT,
    InvalidRelease,
    Package,
    Release,
    SignedRelease,
    read_release,
    read_signed,
)
from polder.v1 import agent_pb2, operator_pb2

_PART_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Files:
    """A release, and those of its packages that were given."""

    release: Release
    signed: SignedRelease
    given: tuple[tuple[Package, Path], ...]

    def not_given(self, answer: operator_pb2.ReleasesResponse) -> list[str]:
        """Architectures of packages that are not whole there."""
        here = _complete(answer)
        return [p.arch for p in self.release.packages if p.sha256 not in here]


def read_files(release: str, packages: Sequence[str]) -> Files:
    """Raises CliError for files that do not belong together."""
    try:
        with Path(release).open("rb") as file:
            text = file.read(MAX_TEXT + 1).decode("ascii", "replace")
        signed = read_signed(text)
        found = read_release(signed.release)
    except OSError as error:
        raise CliError(f"{release}: {error.strerror or error}") from error
    except InvalidRelease as error:
        raise CliError(f"{release}: {error}") from error
    known = {package.sha256: package for package in found.packages}
    given = []
    for name in packages:
        digest = _digest(name)
        if digest not in known:
            raise CliError(
                f"{name} is none of the packages that {release} was signed for",
                "edge-orchestrator ca sign-release --deb FILE signs it",
            )
        given.append((known[digest], Path(name)))
    return Files(found, signed, tuple(given))


def upload_missing(client: Client, files: Files, progress: Progress) -> bool:
    """Whether the release is new. Raises CallError."""
    here = _complete(client.releases())
    created = client.put_release(lambda: iter([_head(files)])).created
    for package, path in files.given:
        if package.sha256 in here:
            progress.note(f"{path.name}: is here")
            continue
        client.put_release(partial(_requests, files, package, path, progress))
        progress.note(f"{path.name}: uploaded, {package.size} bytes")
    return created


def _requests(
    files: Files, package: Package, path: Path, progress: Progress
) -> Iterator[operator_pb2.PutReleaseRequest]:
    yield _head(files)
    offset = 0
    with path.open("rb") as file:
        while data := file.read(_PART_BYTES):
            part = operator_pb2.PackagePart(sha256=package.sha256, offset=offset, data=data)
            yield operator_pb2.PutReleaseRequest(part=part)
            offset += len(data)
            share = 100 * offset // package.size
            progress.show(f"{path.name}: {share}% of {package.size} bytes", key=share // 10)


def _head(files: Files) -> operator_pb2.PutReleaseRequest:
    signed = files.signed
    return operator_pb2.PutReleaseRequest(
        release=agent_pb2.SignedRelease(release=signed.release, signature=signed.signature)
    )


def _complete(answer: operator_pb2.ReleasesResponse) -> set[str]:
    return {p.sha256 for release in answer.releases for p in release.packages if p.complete}


def _digest(name: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CliError(f"{name}: {error.strerror or error}") from error
    return digest.hexdigest()
