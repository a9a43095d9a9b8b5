"""What stands on the disk of an upgrade: the order, how far it has come, its outcome, packages.

Shared by the agent (`desk.py`), by `edge-agent upgrade` (`command.py`) and by the installer, which
runs from a copy with nothing but the standard library: so nothing else may be imported here.

    STATE/upgrade/<sha256>.deb     packages, whole; <sha256>.part while they are fetched
                  order.json       the agent's order; systemd starts the installer when it is there
                  taken.json       the order once it is the installer's, with how far that has come
                  installer.pyz    the installer's copy of itself, while anything may be touched
                  outcome.json     what became of the last one
                  floor.json       when what ran was signed (polder/release_floor.py)
                  log              what dpkg said

An order is taken by rename(2), so that either the agent takes it back or the installer has it. The
outcome is on the disk before the order goes, and the floor before an outcome that raises it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.durable import sync_directory, write_synced

FOLDER = "upgrade"
ORDER = "order.json"
TAKEN = "taken.json"
OUTCOME = "outcome.json"
FLOOR = "floor.json"
INSTALLER = "installer.pyz"
LOG = "log"
MAX_BYTES = 256 << 10
CHUNK_BYTES = 1 << 20


class UpgradeFiles:
    """Blocking. Errors are OSError."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER

    def prepare(self) -> None:
        """The folder, for us alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """None: there is none, or it cannot be read. Writes are whole or not at all: what cannot be
        read is a disk's fault, and as good as nothing."""
        try:
            with (self.folder / name).open("rb") as stream:
                found = json.loads(stream.read(MAX_BYTES))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def write(self, name: str, body: Mapping[str, Any]) -> None:
        """Whole or not at all, and durably."""
        self.write_bytes(name, json.dumps(body).encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """As `write`."""
        fresh = self.folder / f"{name}.new"
        try:
            write_synced(fresh, data)
            fresh.replace(self.folder / name)
        finally:
            fresh.unlink(missing_ok=True)
        sync_directory(self.folder)

    def remove(self, *names: str) -> None:
        """In this order. What is not there is gone already."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            sync_directory(self.folder)

    def take(self) -> dict[str, Any] | None:
        """The order, now the installer's; one that was taken before comes first. None: none."""
        if not self.exists(TAKEN):
            try:
                (self.folder / ORDER).rename(self.folder / TAKEN)
            except FileNotFoundError:
                return None
            sync_directory(self.folder)
        return self.read(TAKEN)

    def take_back(self) -> bool:
        """The agent's side of `take`: whether the order was still there."""
        try:
            (self.folder / ORDER).unlink()
        except FileNotFoundError:
            return False
        sync_directory(self.folder)
        return True

    def package(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.deb"

    def part(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.part"

    def keep_packages(self, wanted: Iterable[str]) -> None:
        """All other packages go, and parts of them: they take room that containers could have."""
        kept = set(wanted)
        for pattern in ("*.deb", "*.part"):
            for path in self.folder.glob(pattern):
                if path.stem not in kept:
                    with contextlib.suppress(OSError):
                        path.unlink()


def sha256_of(path: Path) -> str:
    """In hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
