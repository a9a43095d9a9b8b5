"""A test that hangs tells which await it hangs in, by `tests/hanging.py`."""

import subprocess
import sys
from pathlib import Path

HANGS = """
import asyncio

async def part():
    await asyncio.Event().wait()

async def test_hangs():
    await asyncio.gather(asyncio.create_task(part(), name="the-part"))
"""


def test_tasks_are_in_the_report_of_a_test_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    # Its own time alone: what a busy machine takes to begin it would end it before it hangs.
    options = ["addopts=", "asyncio_mode=auto", "timeout_func_only=true"]
    words = ["-p", "tests.hanging", "--timeout", "1", *(f"-o{option}" for option in options)]
    command = [sys.executable, "-m", "pytest", *words, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "the-part in part:5 > Event.wait" in done.stdout
