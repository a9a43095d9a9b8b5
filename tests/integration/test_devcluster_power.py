"""A box that is only a namespace boots: it has another boot id then, and younger clocks."""

import subprocess
import time
from pathlib import Path

import pytest

from devcluster import power

pytestmark = [pytest.mark.netns]

_SHOW = "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f1 /proc/uptime; echo $1"


def shown(folder: Path) -> list[str]:
    command = [*power.launcher(folder), "sh", "-c", _SHOW, "sh", "two words"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_each_boot_is_another(tmp_path: Path) -> None:
    machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert time.clock_gettime(time.CLOCK_BOOTTIME) > 2 * power.UPTIME_S
    power.boot(tmp_path)
    first, again = shown(tmp_path), shown(tmp_path)
    assert first[0] == again[0] != machine
    assert first[2] == "two words"
    assert power.UPTIME_S <= float(first[1]) <= float(again[1]) < power.UPTIME_S + 10
    power.boot(tmp_path)
    assert shown(tmp_path)[0] != first[0]
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == machine
