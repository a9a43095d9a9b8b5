"""Writes that stand after a power cut.

Used by whatever keeps state: identity, plans, the site's memory. Blocking; errors are OSError.
"""

import os
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """A file for us alone (mode 0600), its content on the disk. Its name is only once
    `sync_directory` was called."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """The names in it are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
