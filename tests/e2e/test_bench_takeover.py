"""`bench takeover` with one kill of each kind: what it asserts holds on any slow machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.containerd
@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(400)
def test_every_kill_is_taken_over_and_nothing_runs_twice() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "takeover", "--runs", "1", "--json"],
        cwd=ROOT,
        env={**os.environ, "POLDER_BENCH_INSIDE": "1"},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for mode in ("connected", "isolated"):
        found = result[mode]
        assert (found["overlaps"], found["missed"]) == (0, 0)
        assert 0 < found["p50_s"] <= found["p99_s"]
        assert found["exclusive_takeovers"] == 1
