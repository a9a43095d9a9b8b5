"""What processes take of a box's memory when nothing else there runs from the same files.

Used by `bench footprint`. The kernel's proportional set size (PSS) divides a page by all that map
it: beside other Pythons (this benchmark, an orchestrator, the agents of two more nodes) an agent
seems smaller than it is on a box of its own. Here a page of a file that only Python processes map
counts in full, and once for all the processes that are asked for. Everything else counts as the
kernel says: in the C library each process of a box has its share in any case.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
_ENTRY_BYTES = 8
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
PROC = Path("/proc")

File = tuple[str, str]
"""Device and inode, as /proc/PID/maps has them."""
NO_FILE: File = ("00:00", "0")


class NotAllowed(Exception):
    """The kernel tells page frames to root only."""


@dataclass(frozen=True, slots=True)
class Span:
    """A mapping: addresses, whose pages it shows, and what of it the kernel counts."""

    start: int
    end: int
    file: File
    pss_kb: int
    anonymous_kb: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """In MiB. `private_mb`: heap, stacks and what else nobody can share."""

    pss_mb: float
    private_mb: float


def parse(smaps: Iterable[str]) -> Iterator[Span]:
    """From the lines of /proc/PID/smaps."""
    first: list[str] = []
    sizes = {"Pss:": 0, "Anonymous:": 0}
    for line in smaps:
        words = line.split()
        if words[0] == "VmFlags:":  # the last line of each mapping
            start, _, end = first[0].partition("-")
            file = (first[3], first[4])
            yield Span(int(start, 16), int(end, 16), file, sizes["Pss:"], sizes["Anonymous:"])
        elif words[0] in sizes:
            sizes[words[0]] = int(words[1])
        elif not words[0].endswith(":"):
            first = words


def alone(pids: Iterable[int]) -> Footprint:
    """Of these processes together. Raises NotAllowed, and OSError when one is gone."""
    others = _mapped_by_others()
    frames: set[int] = set()
    counted_kb = private_kb = 0
    for pid in pids:
        spans = list(parse((PROC / str(pid) / "smaps").read_text().splitlines()))
        own = [span for span in spans if span.file != NO_FILE and span.file not in others]
        for span in own:
            frames.update(_frames(pid, span))
        rest = set(spans) - set(own)
        counted_kb += sum(span.pss_kb for span in rest)
        private_kb += sum(span.anonymous_kb for span in spans)
    return Footprint((counted_kb * 1024 + len(frames) * PAGE) / 2**20, private_kb / 1024)


def _mapped_by_others() -> set[File]:
    """Files that something else than Python maps: they are the box's in any case."""
    found: set[File] = set()
    for folder in PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if "python" in (folder / "exe").readlink().name:
                continue
            lines = (folder / "maps").read_text().splitlines()
        except OSError:  # it is gone, or a thread of the kernel
            continue
        found.update((words[3], words[4]) for words in map(str.split, lines) if len(words) > 5)
    return found


def _frames(pid: int, span: Span) -> Iterator[int]:
    """The page frames of the span that are in memory (proc_pid_pagemap(5))."""
    entries = array("Q")
    with (PROC / str(pid) / "pagemap").open("rb") as file:
        file.seek(span.start // PAGE * _ENTRY_BYTES)
        entries.frombytes(file.read((span.end - span.start) // PAGE * _ENTRY_BYTES))
    for entry in entries:
        if entry & _PRESENT:
            frame = entry & _FRAME
            if not frame:
                raise NotAllowed("only root may see which pages processes share")
            yield frame
