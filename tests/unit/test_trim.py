"""Which of its memory the agent gives back."""

from agent.trim import LARGE, WINDOW, clean_files, windows

SMAPS = """\
1000-2000 r-xp 00000000 fe:00 12   /lib/a.so.1
Rss:                   4 kB
Anonymous:             0 kB
2000-3000 r--p 00000000 fe:00 12   /lib/a.so.1
Anonymous:             0 kB
3000-4000 r-xp 00000000 fe:00 13   /lib/patched.so
Anonymous:             4 kB
4000-5000 r-xp 00000000 fe:00 14   /lib/gone.so (deleted)
Anonymous:             0 kB
5000-6000 rw-p 00000000 00:00 0
Anonymous:             4 kB
6000-7000 r-xp 00000000 00:00 0   [vdso]
Anonymous:             0 kB
7000-8000 r--p 00000000 fe:00 12   /lib/a.so.1
Anonymous:             4 kB
8000-9000 rw-p 00000000 fe:00 12   /lib/a.so.1
Anonymous:             0 kB
9000-a000 r--s 00000000 fe:00 15   /var/lib/shared
Anonymous:             0 kB
a000-b000 r-xp 00000000 fe:00 16   /usr/bin/python3.11
Anonymous:             0 kB
"""


def test_only_what_can_be_read_again_is_given_back() -> None:
    found = list(clean_files(SMAPS.splitlines()))
    assert found == [(0x1000, 0x2000), (0x2000, 0x3000), (0xA000, 0xB000)]


def test_every_other_window_of_a_large_mapping_is_set_apart() -> None:
    end = LARGE + WINDOW // 2
    found = list(windows([(0, end), (LARGE * 4, LARGE * 5 - 1)]))
    assert found[0] == (0, WINDOW) and found[1] == (2 * WINDOW, 3 * WINDOW)
    assert found[-1] == (LARGE, end)
    assert len(found) == LARGE // WINDOW // 2 + 1
