"""Archives of which the same content gives the same bytes. Used by `parts.py`.

Neither who packs nor when nor in which order shows: owners are nobody, names are sorted, all is of
one date, and a file is either executable or not.
"""

import gzip
import shutil
import tarfile
from pathlib import Path


def normal_sdist(made: Path, into: Path, epoch: int) -> None:
    """setuptools' archive, without what it has of this machine."""
    plain = into.with_suffix(".tar")
    with tarfile.open(made) as old, tarfile.open(plain, "w", format=tarfile.USTAR_FORMAT) as new:
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            if not entry.isfile():
                continue
            executable = bool(entry.mode & 0o100)
            data = old.extractfile(entry)
            assert data is not None
            new.addfile(_entry(entry.name, entry.size, epoch, executable=executable), data)
    # Without a name in its header: that would be the one of the first file that was written.
    with (
        plain.open("rb") as raw,
        into.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, epoch) as packed,
    ):
        shutil.copyfileobj(raw, packed)
    plain.unlink()


def layout_archive(layout: Path, into: Path, epoch: int) -> None:
    """An OCI layout as one file: what skopeo and podman call `oci-archive:`."""
    with tarfile.open(into, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            name = path.relative_to(layout).as_posix()
            with path.open("rb") as data:
                tar.addfile(_entry(name, path.stat().st_size, epoch), data)


def _entry(name: str, size: int, epoch: int, *, executable: bool = False) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = size, epoch
    entry.mode = 0o755 if executable else 0o644
    return entry
