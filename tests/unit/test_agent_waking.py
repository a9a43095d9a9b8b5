"""How an agent with nothing to do sleeps: at whole seconds, and with threads that may sleep on."""

import asyncio
import math
import sys
import threading
from pathlib import Path

import pytest

from agent import lean, steady_clock
from agent.steady_clock import SystemClock, boottime, to_the_second


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 2.0, 5.0, 60.0])
def test_a_pause_ends_at_a_whole_second(pause_s: float) -> None:
    earliest = boottime()
    found = to_the_second(pause_s)
    latest = boottime()
    assert found >= 0.0 and abs(found - pause_s) <= 0.51
    assert found == 0.0 or holds_a_whole_second(earliest + found, latest + found)


async def test_who_sleeps_wakes_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long after that the machine lets it run is the machine's load."""
    asked: list[float] = []
    real = asyncio.sleep

    async def sleep(pause_s: float) -> None:
        asked.append(pause_s)
        await real(pause_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    earliest = boottime()
    pausing = asyncio.create_task(steady_clock.sleep(1.0))
    while not asked:
        await real(0)
    latest = boottime()
    await pausing
    assert holds_a_whole_second(earliest + asked[0], latest + asked[0])
    assert boottime() >= earliest + asked[0] and len(asked) == 1


def test_whole_seconds_of_the_supervisors_clock_are_those() -> None:
    clock = SystemClock()
    earliest = boottime()
    steady = clock.steady()
    assert holds_a_whole_second(steady - boottime(), steady - earliest)
    clocks = [SystemClock() for _ in range(5)]
    assert min(abs(clock.steady() - clock.wall()) for clock in clocks) <= 0.6


def holds_a_whole_second(earliest: float, latest: float) -> bool:
    """Somewhere between the two, between which this process may have had to wait."""
    return math.floor(latest + 1e-3) >= math.ceil(earliest - 1e-3)


def _slack_ns() -> int:
    return int(Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text())


def test_only_threads_that_are_started_patiently_may_sleep_on() -> None:
    found = []
    before = _slack_ns()
    with lean.patient_threads():
        thread = threading.Thread(target=lambda: found.append(_slack_ns()))
        thread.start()
        thread.join()
    assert found == [lean.TIMER_SLACK_NS] and _slack_ns() == before


SHOW = """
import asyncio, os
from pathlib import Path
from agent import lean
from agent.runtime.cri.adapter import CriRuntime

async def main():
    with lean.patient_threads():
        runtime = CriRuntime("/nowhere/socket")
    for task in os.listdir("/proc/self/task"):
        name = Path(f"/proc/{task}/comm").read_text().strip()
        slack = Path(f"/proc/{task}/timerslack_ns").read_text().strip()
        print(name if task != str(os.getpid()) else "main", slack)
    await runtime.close()

asyncio.run(main())
"""


async def test_grpc_starts_its_threads_patiently() -> None:
    """With the first channel, as `agent/service.py` makes it."""
    command = [sys.executable, "-c", SHOW]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    rows = [line.rsplit(maxsplit=1) for line in told.decode().splitlines()]
    # Not by gRPC's names for them: a thread bears its process's name until it has begun.
    slacks = [slack for name, slack in rows if name != "main"]
    assert process.returncode == 0 and len(slacks) >= 2, told
    assert set(slacks) == {str(lean.TIMER_SLACK_NS)}, told
    assert dict(map(tuple, rows))["main"] != str(lean.TIMER_SLACK_NS), told
