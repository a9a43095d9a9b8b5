"""What an operation finds out that the state machine is then told."""

import asyncio
from pathlib import Path

from agent.domain.instructions import ExitRead, ReadExit
from agent.operations import LAST_WORDS_EVERY_S, LAST_WORDS_TRIES, Operations
from agent.probes import Prober
from agent.runtime.simulated import SimulatedRuntime
from agent.volumes import Volumes


def read_exit(log: Path) -> ReadExit:
    return ReadExit("uid", "container", "app", str(log))


async def test_last_words_that_come_after_the_exit_are_waited_for(tmp_path: Path) -> None:
    runtime = SimulatedRuntime()
    operations = Operations(runtime, Prober(runtime), "amd64", Volumes(tmp_path))
    log = tmp_path / "app_0.log"
    log.touch()
    reading = asyncio.create_task(operations.perform(read_exit(log)))
    await asyncio.sleep(0.06)
    log.write_text("2026-01-01T00:00:00.000000000Z stdout F out of cheese\n")
    answer = await asyncio.wait_for(reading, 60)
    assert isinstance(answer, ExitRead) and answer.last_log.strip() == "out of cheese"


async def test_silence_is_not_waited_for_long(tmp_path: Path) -> None:
    runtime = SimulatedRuntime()
    operations = Operations(runtime, Prober(runtime), "amd64", Volumes(tmp_path))
    log = tmp_path / "app_0.log"
    log.touch()
    answer = await asyncio.wait_for(operations.perform(read_exit(log)), 60)
    assert isinstance(answer, ExitRead) and answer.last_log == ""
    assert LAST_WORDS_TRIES * LAST_WORDS_EVERY_S < 2
