"""A process that gives its memory back goes on without it."""

import json
import subprocess
import sys

PROGRAM = """
import asyncio, json, re
from pathlib import Path
from agent.trim import trim

def of_files_kb():
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            total += int(line.split()[1])
        if line.startswith("Anonymous:"):
            total -= int(line.split()[1])
    return total

before = of_files_kb()
trim()
after = of_files_kb()
trim()  # of what is divided already
assert re.search("b+", "abbc") and asyncio.run(asyncio.sleep(0, 7)) == 7
print(json.dumps([before, after, Path("/proc/self/maps").read_text().count("\\n")]))
"""


def test_a_program_is_smaller_and_runs_on() -> None:
    said = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    before, after, mappings = json.loads(said)
    assert after < before / 2
    assert mappings < 4_000  # of 65,530 that the kernel allows
