"""What `bench footprint` says of memory: the same whoever else runs from the same files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import memory

PROGRAM = """
import mmap, sys
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
own = bytearray(int(sys.argv[2]))
own[::4096] = b"x" * len(own[::4096])
print("ready", flush=True)
sys.stdin.read()
"""
SHARED_MB, OWN_MB = 20, 8


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    file = tmp_path / "library"
    file.write_bytes(os.urandom(SHARED_MB << 20))
    children = []

    def begin() -> int:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(file), str(OWN_MB << 20)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child.pid

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def kernels_pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_who_else_maps_the_same_files_does_not_make_it_smaller(start) -> None:
    first = start()
    before, kernels = memory.alone([first]), kernels_pss_mb(first)
    assert before.pss_mb >= kernels > SHARED_MB + OWN_MB
    assert OWN_MB < before.private_mb < before.pss_mb - SHARED_MB

    second = start()
    assert kernels_pss_mb(first) < kernels - SHARED_MB / 2 + 1
    assert memory.alone([first]).pss_mb == pytest.approx(before.pss_mb, abs=0.5)
    both = memory.alone([first, second])
    assert both.pss_mb == pytest.approx(before.pss_mb + memory.alone([second]).private_mb, abs=1.5)


def test_a_mapping_is_read_with_what_the_kernel_counts_of_it() -> None:
    text = """\
55d0c000-55d0e000 r-xp 00001000 fe:01 42                 /usr/bin/python3.11
Size:                  8 kB
Pss:                   3 kB
Pss_Dirty:             0 kB
Anonymous:             0 kB
ProtectionKey:         0
VmFlags: rd ex mr mw me
7ffe0000-7ffe2000 rw-p 00000000 00:00 0                  [stack]
Pss:                   8 kB
Anonymous:             8 kB
VmFlags: rd wr mr mw me gd ac
"""
    code, stack = memory.parse(text.splitlines())
    assert code == memory.Span(0x55D0C000, 0x55D0E000, ("fe:01", "42"), 3, 0)
    assert stack.file == memory.NO_FILE and stack.anonymous_kb == 8
