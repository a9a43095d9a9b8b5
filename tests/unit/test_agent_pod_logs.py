"""Reading, rotating and deleting container logs."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import pod_logs
from agent.pod_logs import LogOptions


def record(text: str, second: int = 0, stream: str = "stdout", tag: str = "F") -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.123456789Z {stream} {tag} {text}\n"


def lines(first: int, last: int) -> str:
    return "".join(record(f"line {n}", n) for n in range(first, last))


async def text_of(path: Path, options: LogOptions = LogOptions()) -> str:  # noqa: B008
    return b"".join([data async for _, data in pod_logs.read(path, options)]).decode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three files: lines 0 to 9, 10 to 19, 20 to 29."""
    path = tmp_path / "app_0.log"
    for number, name in enumerate(("app_0.log.2", "app_0.log.1", "app_0.log")):
        (tmp_path / name).write_text(lines(number * 10, number * 10 + 10))
    return path


async def test_all_rotated_files_are_read_in_order(log: Path) -> None:
    assert (await text_of(log)).splitlines() == [f"line {n}" for n in range(30)]


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 20, 25, 30, 1000])
async def test_tail_reaches_back_over_rotated_files(log: Path, count: int) -> None:
    shown = (await text_of(log, LogOptions(tail_lines=count))).splitlines()
    assert shown == [f"line {n}" for n in range(30)][max(0, 30 - count) :]


async def test_since_and_timestamps(log: Path) -> None:
    since = datetime(2026, 1, 1, 0, 0, 25, tzinfo=UTC).timestamp()
    shown = await text_of(log, LogOptions(since=since, timestamps=True))
    assert shown.splitlines() == [
        f"2026-01-01T00:00:{n}.123456789Z line {n}" for n in range(25, 30)
    ]


async def test_parts_are_joined_and_streams_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "app_0.log"
    path.write_text(
        record("long ", tag="P") + record("line", tag="F") + record("oops", stream="stderr")
        + "garbage\n" + record("", tag="F") + record("after", tag="F")
    )  # fmt: skip
    got = [piece async for piece in pod_logs.read(path, LogOptions())]
    assert got == [("stdout", b"long line\n"), ("stderr", b"oops\n"), ("stdout", b"\nafter\n")]
    assert (await text_of(path, LogOptions(tail_lines=4))).startswith("long line\n")


async def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert await text_of(tmp_path / "none.log") == ""
    assert await text_of(tmp_path / "none.log", LogOptions(tail_lines=5)) == ""
    assert pod_logs.tail(tmp_path / "none.log") == ""


async def test_follow_survives_rotation_and_ends_with_the_container(tmp_path: Path) -> None:
    path = tmp_path / "app_0.log"
    path.write_text(lines(0, 3))
    alive = True
    got: list[str] = []

    async def reader() -> None:
        options = LogOptions(follow=True, tail_lines=2)
        async for _, data in pod_logs.read(path, options, running=lambda: alive, poll_s=0.005):
            got.extend(data.decode().splitlines())

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(got) < count:  # noqa: ASYNC110 - the reader has no event to wait for
                await asyncio.sleep(0.002)

    task = asyncio.create_task(reader())
    await until(2)
    with path.open("a") as stream:
        stream.write(lines(3, 5) + record("half", tag="F")[:20])
        stream.flush()
        await until(4)
        stream.write(record("half", tag="F")[20:])
        await asyncio.sleep(0.02)
        assert await pod_logs.rotate([("c", path)], reopen, limit_bytes=1) == 1
        stream.write(record("to the renamed file", tag="F"))
    path.write_text(lines(7, 9))
    await until(8)
    alive = False
    async with asyncio.timeout(30):
        await task
    assert got == [
        "line 1", "line 2", "line 3", "line 4", "half", "to the renamed file", "line 7", "line 8",
    ]  # fmt: skip


async def reopen(_container_id: str) -> None:
    """The runtime would make a new file."""


async def test_rotation_keeps_a_bounded_number_of_files(tmp_path: Path) -> None:
    path = tmp_path / "app_0.log"
    reopened: list[str] = []

    async def note(container_id: str) -> None:
        reopened.append(container_id)

    for turn in range(8):
        path.write_text(lines(turn, turn + 1))
        assert await pod_logs.rotate([("c", path)], note, limit_bytes=10) == 1
    assert not path.exists() and len(list(tmp_path.iterdir())) == pod_logs.FILES_MAX - 1
    path.write_text(lines(8, 9))
    assert await pod_logs.rotate([("c", path)], note, limit_bytes=10_000) == 0
    assert len(reopened) == 8
    assert (await text_of(path)).splitlines() == [f"line {n}" for n in range(4, 9)]
    pod_logs.delete_run(str(path))
    assert not list(tmp_path.iterdir())


def test_status_tail_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "app_0.log"
    path.write_text(lines(0, 100))
    assert pod_logs.tail(path).splitlines() == [f"line {n}" for n in range(80, 100)]
    path.write_text("".join(record("x" * 500, n) for n in range(100)))
    assert len(pod_logs.tail(path)) <= pod_logs.STATUS_BYTES
    path.write_text("".join(record("y" * 16_000, tag="P") for _ in range(50)))
    assert 0 < len(pod_logs.tail(path)) <= pod_logs.STATUS_BYTES


def test_only_old_directories_of_unknown_replicas_are_pruned(tmp_path: Path) -> None:
    for name in ("ns_a-0_u1", "ns_b-0_u2"):
        (tmp_path / name).mkdir()
    future = (tmp_path / "ns_a-0_u1").stat().st_mtime + 10
    assert pod_logs.prune_directories(tmp_path, {"u1"}, future - 20) == []
    assert pod_logs.prune_directories(tmp_path, {"u1"}, future) == ["ns_b-0_u2"]
    assert [p.name for p in tmp_path.iterdir()] == ["ns_a-0_u1"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=200_000 // 10), max_size=30), st.integers(0, 35))
def test_tail_is_the_end_of_everything(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], count: int
) -> None:
    path = tmp_path_factory.mktemp("logs") / "app_0.log"
    path.write_text("".join(record(text) for text in written))
    everything = asyncio.run(text_of(path))
    assert everything == "".join(f"{text}\n" for text in written)
    shown = asyncio.run(text_of(path, LogOptions(tail_lines=count)))
    assert shown == "".join(f"{t}\n" for t in (written[-count:] if count else []))
