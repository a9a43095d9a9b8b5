"""What the site's state machine must not forget, on the disk before anything follows from it.

`agent/site/loop.py` saves what the machine asks for and hands everything back at the next start.
Many small things change at once when a node dies, and a fsync is what costs: whatever waits while
one is under way goes with the next one, together.

    STATE/site/memory     a line for each: CRC-32 of the rest in hex, a blank, {"n": name,
                          "b": body}; the last one of a name counts, an empty body forgets it

A line that was cut short by a crash was never answered for: reading ends there. The file is written
anew, beside the old one, by the first write after a start, when it has grown, and after a write
that failed, since what then stands in it is not known.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from agent.durable import sync_directory, write_synced

log = logging.getLogger(__name__)

NAME = "memory"
BOOT = "_boot"
GROWN_BYTES = 256 << 10
GROWN_TIMES = 4


def begin(directory: Path, bodies: Mapping[str, Mapping[str, Any]]) -> None:
    """What a node that has just joined remembers. If it has a memory, that stays: it may have voted
    under the name that it had. Raises OSError."""
    path = directory / NAME
    if path.exists():
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_synced(path, b"".join(_line(name, body) for name, body in bodies.items()))
    sync_directory(directory)


@dataclass(frozen=True, slots=True)
class Kept:
    """`damaged`: why not all of it could be read; empty when it could."""

    bodies: Mapping[str, Any] = field(default_factory=dict)
    same_boot: bool = False
    damaged: str = ""


class Memory:
    """Use `load` once, then `save`. `directory` is the agent's STATE/site."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._path = directory / NAME
        self._boot_id = boot_id
        self._bodies: dict[str, Mapping[str, Any]] = {}
        self._waiting: list[tuple[str, Mapping[str, Any], asyncio.Future[str]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._size = self._size_max = 0
        self._sound = False  # the file holds what `_bodies` does, and nothing else

    def load(self) -> Kept:
        """Blocks. Never fails: a disk that cannot be read is an empty memory, and is said."""
        damaged = ""
        lines: list[bytes] = []
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            pass
        except OSError as error:
            damaged = f"{self._path}: {error.strerror}"
        for number, line in enumerate(lines[:-1], 1):
            read = _read(line)
            if read is None:
                last = number == len(lines) - 1
                damaged = "" if last else f"{self._path}: line {number} is damaged"
                break
            self._put(*read)
        boot = self._bodies.pop(BOOT, {})
        bodies = dict(self._bodies)
        self._bodies[BOOT] = {"id": self._boot_id}
        return Kept(bodies, bool(bodies or boot) and boot == {"id": self._boot_id}, damaged)

    async def save(self, name: str, body: Mapping[str, Any]) -> str:
        """Empty once it stands on the disk, and all that was saved before it; else why it does
        not. The caller must not change `body` afterwards."""
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, body, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await done

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                trouble = ""
                try:
                    await asyncio.to_thread(self._write_batch, [(n, b) for n, b, _ in batch])
                except OSError as error:
                    trouble = error.strerror or str(error)
                    log.warning("not saved", extra={"path": str(self._path), "error": trouble})
                for _, _, done in batch:
                    if not done.done():
                        done.set_result(trouble)
        finally:
            self._writer = None

    def _write_batch(self, batch: list[tuple[str, Mapping[str, Any]]]) -> None:
        """In a thread; only ever one of them. Raises OSError."""
        before = dict(self._bodies)
        for name, body in batch:
            self._put(name, body)
        data = b"".join(_line(name, body) for name, body in batch)
        try:
            if not self._sound or self._size + len(data) > self._size_max:
                self._write_anew()
            else:
                self._append(data)
        except OSError:
            self._sound = False
            self._bodies = before
            raise

    def _write_anew(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = b"".join(_line(name, body) for name, body in self._bodies.items())
        fresh = self._path.with_suffix(".new")
        write_synced(fresh, data)
        fresh.replace(self._path)
        sync_directory(self._path.parent)
        self._size, self._sound = len(data), True
        self._size_max = max(GROWN_BYTES, GROWN_TIMES * len(data))

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fdatasync(stream.fileno())
        self._size += len(data)

    def _put(self, name: str, body: Mapping[str, Any]) -> None:
        if body:
            self._bodies[name] = body
        else:
            self._bodies.pop(name, None)


def _line(name: str, body: Mapping[str, Any]) -> bytes:
    text = json.dumps({"n": name, "b": body}, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _read(line: bytes) -> tuple[str, Mapping[str, Any]] | None:
    """None for one that is damaged."""
    try:
        if int(line[:8], 16) != crc32(line[9:]):
            return None
        found = json.loads(line[9:])
        return found["n"], found["b"]
    except (ValueError, KeyError, TypeError):
        return None
