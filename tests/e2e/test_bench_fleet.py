"""`bench fleet` at a small size: what it asserts holds on any machine, however slow.

How fast it was is for docs/benchmarks.md to say, and for an idle machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENTS = 500
COMMAND = (
    f"-m bench fleet --agents {AGENTS} --members 3 --replicas 2500 "
    "--steady-seconds 3 --soak-minutes 0.15 --json"
).split()
KEYS = (
    "connect_all_s",
    "cpu_cores",
    "kb_per_agent",
    "heartbeat_p99_ms",
    "idle_kbit_s_per_agent",
    "apply_acked_s",
    "failover_p50_s",
    "failover_p99_s",
    "failover_last_s",
    "rss_slope_mb_per_min",
    "dead_node_detected_s",
)


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_hundred_agents_lose_a_region_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, *COMMAND],
        cwd=ROOT,
        env={**os.environ, "POLDER_BENCH_INSIDE": "1"},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["missed"] == [], done.stderr[-3000:]
    assert found["joined"] == found["connected"] == AGENTS
    assert found["apply_replicas"] == 2500
    assert found["failover_agents"] > 0
    assert found["failover_connected"] == AGENTS
    assert found["plan_changes"] == 0
    assert found["soak"]["cut"] > 0
    assert found["soak"]["connected"] == AGENTS
    assert [key for key in KEYS if not isinstance(found[key], int | float)] == []
