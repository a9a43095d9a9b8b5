"""Gives back the memory that only the start needed. `agent/service.py` calls it now and then.

Loading Python and gRPC touches 18 MB of their code; a running agent uses a third of it. The rest
stays resident until the kernel runs short, memory that containers could have had. On clean, private
mappings of files madvise(MADV_DONTNEED) drops those pages; what is used after all comes back from
the page cache, or from the file, by itself (madvise(2)).

Only executable mappings without a single anonymous page are touched: pages of any other kind may
hold what the dynamic linker wrote into them.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

MADV_DONTNEED = 4


def clean_code(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(start, end) of the mappings in the text of /proc/PID/smaps that can be read again."""
    span: tuple[int, int] | None = None
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):  # a mapping's first line: range, permissions, ..., path
            is_code = len(words) > 5 and words[1] == "r-xp" and ".so" in words[5]
            start, _, end = words[0].partition("-")
            span = (int(start, 16), int(end, 16)) if is_code and words[-1] != "(deleted)" else None
        elif words[0] == "Anonymous:" and span is not None:
            if words[1] == "0":
                yield span
            span = None


def trim() -> None:
    """Never raises: a kernel that refuses costs nothing but the memory."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        spans = list(clean_code(Path("/proc/self/smaps").read_text().splitlines()))
        for start, end in spans:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
    except (OSError, ImportError, AttributeError, ValueError) as error:
        log.debug("memory not given back", extra={"error": str(error)})
