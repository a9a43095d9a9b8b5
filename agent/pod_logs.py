"""Container logs on disk, in the format of the CRI: reading, rotating, deleting.

Written by the runtime, one record a line: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`; P is a
part of a line that goes on in the next record of the same stream, F its end. Rotation renames
`x.log` to `x.log.1` and so on; the highest number is the oldest.

    read     for `edgectl logs`: the session's relay iterates it
    tail     the last lines of a run that ended, for its status
    rotate   the supervisor, every ten seconds: one stat a file when there is nothing to do
    delete   the logs of a run or of a replica that is gone
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

ROTATE_BYTES = 10 << 20
FILES_MAX = 5
BLOCK = 64 << 10
MAX_RECORD = 1 << 20  # a record without an end is cut here: CRI writes 16 KiB at most
FOLLOW_POLL_S = 0.2
STATUS_LINES = 20
STATUS_BYTES = 2048


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`tail_lines` -1: all. `since` in unix seconds, 0: from the start."""

    follow: bool = False
    tail_lines: int = -1
    since: float = 0.0
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A byte of one of the files: where reading starts."""

    path: Path
    offset: int


def files_of(path: Path) -> list[Path]:
    """The rotated files and the current one, oldest first; those that exist."""
    rotated = [path.with_name(f"{path.name}.{n}") for n in range(FILES_MAX - 1, 0, -1)]
    return [p for p in (*rotated, path) if p.exists()]


async def read(
    path: Path,
    options: LogOptions,
    *,
    running: Callable[[], bool] = lambda: False,
    poll_s: float = FOLLOW_POLL_S,
) -> AsyncGenerator[tuple[str, bytes], None]:
    """("stdout" | "stderr", bytes) in order; pieces of at most 64 KiB, give or take a line.

    With `follow` it goes on, across rotations, until `running()` is False and all was read.
    """
    files = files_of(path)
    start = _tail_position(files, options.tail_lines) if options.tail_lines >= 0 else None
    if start is not None:
        files = files[files.index(start.path) :]
    filtered = _Filter(options)
    for older in files[:-1]:
        if options.since and older.stat().st_mtime < options.since:
            continue
        offset = start.offset if start is not None and start.path == older else 0
        with contextlib.suppress(FileNotFoundError), older.open("rb") as stream:
            stream.seek(offset)
            async for piece in _pieces(stream, filtered):
                yield piece
    offset = start.offset if start is not None and start.path == path else 0
    async for piece in _current(path, offset, filtered, options.follow, running, poll_s):
        yield piece


async def _current(
    path: Path,
    offset: int,
    filtered: "_Filter",
    follow: bool,
    running: Callable[[], bool],
    poll_s: float,
) -> AsyncGenerator[tuple[str, bytes], None]:
    """The file that the runtime writes to, and those that follow it after a rotation."""
    stream: BinaryIO | None = None
    try:
        while True:
            alive = running()  # asked before reading: what was written until now is read below
            if stream is None:
                with contextlib.suppress(FileNotFoundError):
                    stream = path.open("rb")
                    stream.seek(offset)
                offset = 0
            if stream is not None:
                async for piece in _pieces(stream, filtered):
                    yield piece
                if _was_rotated(stream, path):
                    async for piece in _pieces(stream, filtered):  # written before the rename
                        yield piece
                    stream.close()
                    stream = None
                    continue
            if not follow or not alive:
                return
            await asyncio.sleep(poll_s)
    finally:
        if stream is not None:
            stream.close()


def _was_rotated(stream: BinaryIO, path: Path) -> bool:
    """Whether the name leads to another file now. A file that only vanished is read to its end."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return named.st_ino != os.fstat(stream.fileno()).st_ino


async def _pieces(stream: BinaryIO, filtered: "_Filter") -> AsyncGenerator[tuple[str, bytes], None]:
    """What can be read now, whole records only; the file stays at the last whole one."""
    while block := stream.read(BLOCK):
        end = block.rfind(b"\n") + 1
        if end == 0:
            rest = stream.readline(MAX_RECORD)
            if not rest.endswith(b"\n") and len(rest) < MAX_RECORD:
                stream.seek(-len(block) - len(rest), os.SEEK_CUR)
                return  # the runtime is in the middle of a record
            block, end = block + rest, len(block) + len(rest)
        if end < len(block):
            stream.seek(end - len(block), os.SEEK_CUR)
        for piece in filtered.pieces(block[:end]):
            yield piece
        await asyncio.sleep(0)


class _Filter:
    """Records to output: drops those before `since`, joins parts, adds times if asked."""

    def __init__(self, options: LogOptions) -> None:
        self._since = options.since
        self._timestamps = options.timestamps
        self._within: dict[bytes, bool] = {}  # streams whose last record was a part

    def pieces(self, block: bytes) -> Iterator[tuple[str, bytes]]:
        """Neighbouring records of one stream are given in one piece."""
        name, gathered = b"", bytearray()
        for record in block.splitlines(keepends=True):
            parts = record.rstrip(b"\n").split(b" ", 3)
            if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr"):
                continue  # not a record: half of one, after the disk was full
            if self._since:
                if _seconds(parts[0]) < self._since:
                    continue
                self._since = 0.0  # records are in order
            if parts[1] != name and gathered:
                yield name.decode(), bytes(gathered)
                gathered.clear()
            name = parts[1]
            self._append(gathered, parts)
        if gathered:
            yield name.decode(), bytes(gathered)

    def _append(self, gathered: bytearray, parts: list[bytes]) -> None:
        if self._timestamps and not self._within.get(parts[1]):
            gathered += parts[0] + b" "
        gathered += parts[3] if len(parts) > 3 else b""
        whole = not parts[2].startswith(b"P")
        self._within[parts[1]] = not whole
        if whole:
            gathered += b"\n"


def _seconds(text: bytes) -> float:
    """RFC 3339 as unix seconds; the far future when it cannot be read, so that nothing is lost."""
    try:
        return datetime.fromisoformat(text.decode("ascii")).timestamp()
    except ValueError:
        return float("inf")


def _tail_position(files: list[Path], lines: int) -> Position | None:
    """Where the last `lines` lines start: read backwards, over rotated files if need be."""
    if not files:
        return None
    missing = lines
    for path in reversed(files):
        with path.open("rb") as stream:
            offset, found = _backwards(stream, missing)
        missing -= found
        if missing <= 0 and (offset > 0 or found):
            return Position(path, offset)
        if lines == 0:
            return Position(path, offset)
    return Position(files[0], 0)


def _backwards(stream: BinaryIO, lines: int) -> tuple[int, int]:
    """(offset, lines from there to the end), at most `lines` of them."""
    size = stream.seek(0, os.SEEK_END)
    if lines == 0:
        return size, 0
    found, position, carry = 0, size, b""
    start = size
    while position > 0:
        step = min(BLOCK, position)
        position -= step
        stream.seek(position)
        block = stream.read(step) + carry
        records = block.splitlines(keepends=True)
        carry = records.pop(0) if position > 0 else b""
        at = position + len(carry)
        offsets = []
        for record in records:
            offsets.append((at, record))
            at += len(record)
        for offset, record in reversed(offsets):
            if _ends_line(record):
                if found == lines:
                    return start, found
                found += 1
            start = offset
        if len(carry) > MAX_RECORD:
            return start, found
    return start, found


def _ends_line(record: bytes) -> bool:
    parts = record[:64].split(b" ", 3)
    return len(parts) >= 3 and parts[2].strip() == b"F" and record.endswith(b"\n")


def tail(path: Path, lines: int = STATUS_LINES, limit: int = STATUS_BYTES) -> str:
    """The last lines of a run, bounded in lines and bytes; empty when there is no log."""
    try:
        files = files_of(path)
        start = _tail_position(files, lines)
        if start is None:
            return ""
        text = bytearray()
        filtered = _Filter(LogOptions())
        for file in files[files.index(start.path) :]:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                offset = start.offset if file == start.path else 0
                stream.seek(max(offset, size - BLOCK))
                for _, data in filtered.pieces(stream.read(BLOCK)):
                    text += data
    except OSError:
        return ""
    shown = bytes(text[-limit:])
    if len(text) > limit:
        shown = shown.partition(b"\n")[2] or shown  # do not begin in the middle of a line
    return shown.decode(errors="replace")


async def rotate(
    logs: Iterable[tuple[str, Path]],
    reopen: Callable[[str], Awaitable[None]],
    *,
    limit_bytes: int = ROTATE_BYTES,
) -> int:
    """Rotate those of (container id, path) that are too long; returns how many were.

    What is written between rename and reopen goes to the renamed file: nothing is lost. Errors of
    the runtime pass through, with the file renamed: the next turn reopens it.
    """
    rotated = 0
    for container_id, path in logs:
        try:
            if path.stat().st_size < limit_bytes:
                continue
            for n in range(FILES_MAX - 1, 0, -1):
                older = path.with_name(f"{path.name}.{n}")
                newer = path.with_name(f"{path.name}.{n - 1}") if n > 1 else path
                if newer.exists():
                    newer.replace(older)
        except FileNotFoundError:
            continue
        await reopen(container_id)
        rotated += 1
    return rotated


def delete_run(path: str) -> None:
    """The log of a run that was removed, with its rotated files."""
    if path:
        for file in files_of(Path(path)):
            with contextlib.suppress(OSError):
                file.unlink()


def delete_directory(directory: str) -> None:
    """All logs of a replica that is gone."""
    shutil.rmtree(directory, ignore_errors=True)


def prune_directories(root: Path, known: set[str], older_than: float) -> list[str]:
    """Delete log directories of replicas that nobody knows and that are old; returns their names.

    Directory names end with `_<replica uid>`. `older_than`: unix seconds.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(root):
            uid = entry.name.rpartition("_")[2]
            if uid in known or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mtime < older_than:
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(entry.name)
    return removed
