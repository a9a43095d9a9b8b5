"""Ends of processes, as the agent hears of them from the kernel."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.runtime.cri import ends
from agent.runtime.cri.ends import EndWatch

Start = Callable[[str], "subprocess.Popen[bytes]"]
DEADLINE_S = 20


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A process in the cgroup of that container."""
    monkeypatch.setattr(ends, "PROC", tmp_path)
    children = []

    def begin(container_id: str) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        children.append(child)
        (tmp_path / str(child.pid)).mkdir()
        (tmp_path / str(child.pid) / "cgroup").write_text(f"0::/polder/{container_id}\n")
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
async def told() -> asyncio.Event:
    return asyncio.Event()


async def test_an_end_is_told_once_and_the_others_are_watched_on(start, told) -> None:
    watch = EndWatch(told.set)
    one, other = start("one"), start("other")
    watch.begin("one", one.pid)
    watch.begin("one", one.pid)  # again, with the next look
    watch.begin("other", other.pid)
    assert watch.keep({"one", "other"})
    one.kill()
    async with asyncio.timeout(DEADLINE_S):
        await told.wait()
    assert not watch.keep({"one", "other"})  # as a runtime says that has not noticed
    assert watch.keep({"other"})
    told.clear()
    other.kill()
    async with asyncio.timeout(DEADLINE_S):
        await told.wait()
    watch.close()


async def test_a_process_of_somebody_else_is_not_taken_for_it(start, told) -> None:
    watch = EndWatch(told.set)
    child = start("another")
    watch.begin("one", child.pid)
    watch.begin("one", 0)  # the runtime does not tell
    assert not watch.keep({"one"})
    child.kill()
    child.wait()
    watch.begin("another", child.pid)
    assert not watch.keep({"another"}) and watch.keep(())


async def test_what_is_not_watched_any_more_is_not_told(start, told) -> None:
    watch = EndWatch(told.set)
    before = len(list(Path("/proc/self/fd").iterdir()))
    gone, sign = start("gone"), start("sign")
    watch.begin("gone", gone.pid)
    assert watch.keep(())
    gone.kill()
    watch.begin("sign", sign.pid)
    assert not told.is_set()
    watch.close()
    sign.kill()
    for child in (gone, sign):
        child.communicate()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    await asyncio.sleep(0)
    assert not told.is_set()
