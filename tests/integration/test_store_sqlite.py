"""The SQLite Store: the conformance suite, and what only an embedded database promises."""

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.store import sqlite_checkpoint
from orchestrator.store.port import (
    Compacted,
    Compare,
    LeaseNotFound,
    Put,
    Store,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
    TxnResult,
)
from orchestrator.store.sqlite import SqliteSettings, SqliteStore, open_sqlite
from orchestrator.store.sqlite_watch import PROGRESS_REVISIONS
from tests.integration.store_conformance import (
    StoreConformance,
    StoreFactory,
    check_whole_revisions,
    keys,
    put,
    watching,
)

DEADLINE_S = 30.0


@pytest.fixture
def store_factory(tmp_path: Path) -> StoreFactory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            store = await open_sqlite(Path(directory) / "store.db")
            try:
                yield store
            finally:
                await store.close()

    return factory


class TestSqliteConforms(StoreConformance):
    """Every test is inherited."""


@asynccontextmanager
async def opened(
    path: Path, settings: SqliteSettings | None = None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(path, settings=settings, clock=clock)
    try:
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what it asks about is in the database
            await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


# -- the file ----------------------------------------------------------------------------------


async def test_everything_is_there_after_reopening(path: Path) -> None:
    async with opened(path) as store:
        start = await put(store, "/a", b"1")
        await put(store, "/b", b"2")
        before = await store.range("")
    async with opened(path) as store:
        assert await store.range("") == before
        assert await put(store, "/c") == before.revision + 1
        async with watching(store, "/", start) as seen:
            await seen.until_count(3)
            assert [event.entry.key for event in seen.events] == ["/a", "/b", "/c"]


async def test_files_are_private(path: Path) -> None:
    old_umask = os.umask(0)
    try:
        async with opened(path.parent / "made" / "store.db") as store:
            await put(store, "/a")
            directory = path.parent / "made"
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            names = {file.name for file in directory.iterdir()}
            assert names == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"}
            for file in directory.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    finally:
        os.umask(old_umask)


async def test_permissions_are_tightened(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "/a")
    path.chmod(0o644)
    async with opened(path) as store:
        await put(store, "/b")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_newer_schema_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreUnusable, match=r"schema version 99, this program knows 1: .*newer"):
        await open_sqlite(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
        db.execute("PRAGMA user_version = 1")
    db.close()
    async with opened(path) as store:  # the refusal left no lock behind
        assert await store.revision() == 0


async def test_a_foreign_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    with pytest.raises(StoreUnusable, match="not one of Polder's"):
        await open_sqlite(path)


async def test_garbage_is_refused(path: Path) -> None:
    path.write_bytes(b"these are not the bytes you are looking for" * 200)
    with pytest.raises(StoreUnusable, match="not a SQLite database"):
        await open_sqlite(path)


async def test_a_directory_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="cannot open the store"):
        await open_sqlite(tmp_path)


async def test_two_stores_on_one_file_in_one_process(path: Path) -> None:
    async with opened(path) as store:
        with pytest.raises(StoreUnusable, match="this process already has it open"):
            await open_sqlite(path)
        await put(store, "/a")
    async with opened(path) as store:
        assert await keys(store, "") == ["/a"]


async def test_a_file_in_use_by_another_process(path: Path) -> None:
    with _child(_HOLD, path) as child:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == b"open\n"
        with pytest.raises(StoreUnusable, match=f"pid {child.pid} has it open"):
            await open_sqlite(path)
        child.kill()
        child.wait()
    async with opened(path) as store:  # a lock dies with its process
        assert await store.revision() == 0


async def test_a_cancelled_open_leaves_no_lock(path: Path) -> None:
    task = asyncio.create_task(open_sqlite(path))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                store = await open_sqlite(path)
                break
            except StoreUnusable:
                await asyncio.sleep(0.01)
    await store.close()


# -- kill -9 -----------------------------------------------------------------------------------

_HOLD = """
import asyncio, sys
from orchestrator.store.sqlite import open_sqlite
async def main():
    store = await open_sqlite(sys.argv[1])
    print("open", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""

_WRITE = """
import asyncio, os, sys
from orchestrator.store.port import Compare, Put
from orchestrator.store.sqlite import SqliteSettings, open_sqlite
async def main():
    # Short retention, so that the log is being trimmed when the end comes.
    store = await open_sqlite(sys.argv[1], settings=SqliteSettings(retain_revisions=300))
    run = sys.argv[2]
    async def client(name):
        for n in range(1_000_000):
            key = f"/k/{run}/{name}/{n}"
            result = await store.txn(
                [Compare.absent(key)], [Put(key, b"v" * 300), Put(f"/last/{name}", key.encode())]
            )
            os.write(1, f"{result.revision} {key}\\n".encode())
    await asyncio.gather(*(client(n) for n in range(16)))
asyncio.run(main())
"""


class _child:
    """A python process that ends with the block."""

    def __init__(self, program: str, *arguments: object) -> None:
        self._command = [sys.executable, "-c", program, *map(str, arguments)]

    def __enter__(self) -> "subprocess.Popen[bytes]":
        root = Path(__file__).parents[2]
        self._child = subprocess.Popen(self._command, stdout=subprocess.PIPE, cwd=root)
        return self._child

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()


async def test_kill_9_loses_no_acknowledged_write(path: Path) -> None:
    chance = random.Random(20)
    acknowledged: dict[str, int] = {}
    highest = 0
    for run in range(6):
        output = await asyncio.to_thread(_write_and_kill, path, run, chance.uniform(0.02, 0.4))
        for line in output:
            revision, key = line.split()
            assert int(revision) > highest, "a revision was given out twice"
            acknowledged[key] = int(revision)
        async with opened(path) as store:
            found = await store.range("/k/")
            revisions = {entry.key: entry.mod_revision for entry in found.entries}
            assert acknowledged.items() <= revisions.items()
            assert found.revision >= max(revisions.values())
            highest = found.revision
            # Half a transaction is never there.
            for entry in (await store.range("/last/")).entries:
                assert revisions[entry.value.decode()] == entry.mod_revision
    assert len(acknowledged) > 100


def _write_and_kill(path: Path, run: int, after_s: float) -> list[str]:
    with _child(_WRITE, path, run) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        killer = threading.Timer(after_s, lambda: os.kill(child.pid, signal.SIGKILL))
        killer.start()
        rest = child.stdout.read()
        killer.join()
    lines = (first + rest).decode().split("\n")
    return lines[:-1]  # what follows the last newline was cut off


# -- a full disk -------------------------------------------------------------------------------


async def _fill(store: Store) -> int:
    """Write until the store is full; how many keys there are then."""
    for n in range(100_000):
        try:
            await put(store, f"/fill/{n:06}", b"v" * 20_000)
        except StoreFull as error:
            assert "make room" in str(error)
            assert "reads still work" in str(error)
            return n
    raise AssertionError("never full")


async def test_size_limit_and_recovery_by_compaction(path: Path) -> None:
    async with opened(path, SqliteSettings(max_bytes=4 << 20)) as store:
        start = await put(store, "/first", b"1")
        async with watching(store, "/", start) as seen:
            count = await _fill(store)
            assert count > 10
            assert len(await keys(store, "/fill/")) == count
            revision = await store.revision()
            assert revision == start + count
            with pytest.raises(StoreFull):
                await put(store, "/big", b"v" * 200_000)
            # A small neighbour of a large transaction is not hurt, as far as it fits.
            await store.compact(revision + 1)
            big, small = await asyncio.gather(
                store.txn([], [Put("/big", b"v" * 1_500_000), Put("/big2", b"v" * 40_000)]),
                store.txn([], [Put("/small", b"1")]),
                return_exceptions=True,
            )
            assert isinstance(small, TxnResult)
            assert isinstance(big, TxnResult | StoreFull)
            await asyncio.wait_for(_put_when_there_is_room(store, "/again", 20_000), DEADLINE_S)
            await seen.until(lambda w: bool(w.events) and w.events[-1].entry.key == "/again")
            check_whole_revisions(seen.batches)
            assert [e.entry.mod_revision for e in seen.events] == list(
                range(start, await store.revision() + 1)
            )


async def _put_when_there_is_room(store: Store, key: str, size: int) -> None:
    while True:
        try:
            await put(store, key, b"v" * size)
            return
        except StoreFull:
            await asyncio.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root, to mount a small file system")
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


LEASED_S = 3.0


async def test_disk_full_and_recovery_when_there_is_room(small_disk: Path) -> None:
    path = small_disk / "store.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (4 << 20))
    async with opened(path) as store:
        lease = await store.grant_lease(LEASED_S)
        over_at = time.monotonic() + LEASED_S
        await put(store, "/leased", b"", lease)
        async with watching(store, "/", 1) as seen:
            count = await _fill(store)
            assert len(await keys(store, "/fill/")) == count
            refused = await asyncio.gather(
                *(put(store, f"/x/{n}", b"v" * 50_000) for n in range(5)), return_exceptions=True
            )
            assert all(isinstance(result, StoreFull) for result in refused)
            assert await keys(store, "/x/") == []
            await asyncio.sleep(over_at - time.monotonic())  # it runs out while there is no room
            ballast.unlink()
            await asyncio.wait_for(_put_when_there_is_room(store, "/again", 20_000), DEADLINE_S)
            # What the full disk kept from happening happens now.
            await seen.until(
                lambda w: (
                    {"/leased", "/again"} <= {e.entry.key for e in w.events}
                    and any(e.type.value == "delete" for e in w.events)
                )
            )
            check_whole_revisions(seen.batches)
            assert len(seen.events) == len({e.entry.mod_revision for e in seen.events})
        total = await store.revision()
    async with opened(path) as store:
        assert await store.revision() == total
        assert len(await keys(store, "/fill/")) == count


async def test_a_full_disk_at_opening(small_disk: Path) -> None:
    path = small_disk / "store.db"
    async with opened(path) as store:
        await put(store, "/a", b"1")
    with (
        (small_disk / "ballast").open("wb", buffering=0) as ballast,
        pytest.raises(OSError, match="No space"),
    ):
        while True:
            ballast.write(b"\0" * 4096)
    with pytest.raises(StoreFull, match="make room"):
        async with opened(path) as store:
            await put(store, "/b", b"2")
    (small_disk / "ballast").unlink()
    async with opened(path) as store:
        assert "/a" in await keys(store, "")
        await put(store, "/c")


async def test_a_failing_disk(path: Path) -> None:
    """A shell that holds SQLite's write lock stands for any error that is not a full disk."""
    async with opened(path) as store:
        start = await put(store, "/a", b"1")
        async with watching(store, "/", start) as seen:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                await put(store, "/b", b"2")
            assert await keys(store, "") == ["/a"]
            other.execute("ROLLBACK")
            other.close()
            await put(store, "/c", b"3")
            await seen.until_count(2)
            assert [event.entry.key for event in seen.events] == ["/a", "/c"]


async def test_a_commit_of_unknown_outcome_reaches_the_watchers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync that fails after the fact: the caller hears of an error, the write is there."""
    async with opened(path) as store:
        start = await put(store, "/a", b"1")
        assert store._writer._db is not None
        real: sqlite3.Connection = store._writer._db

        class FailsAfterCommit:
            def execute(self, sql: str, *parameters: object) -> object:
                cursor = real.execute(sql, *parameters)  # type: ignore[arg-type]
                if sql == "COMMIT":
                    raise sqlite3.OperationalError("disk I/O error")
                return cursor

            def close(self) -> None:
                real.close()

        async with watching(store, "/", start) as seen:
            await seen.until_count(1)
            monkeypatch.setattr(store._writer, "_db", FailsAfterCommit())
            with pytest.raises(StoreUnavailable, match="disk I/O error"):
                await put(store, "/b", b"2")
            await put(store, "/c", b"3")
            await seen.until_count(3)
            assert [event.entry.key for event in seen.events] == ["/a", "/b", "/c"]
            check_whole_revisions(seen.batches)


# -- queues ------------------------------------------------------------------------------------


async def test_a_full_write_queue_says_so(path: Path) -> None:
    async with opened(path, SqliteSettings(pending_txns_max=10)) as store:
        results = await asyncio.gather(
            *(put(store, f"/q/{n}") for n in range(50)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, StoreUnavailable)]
        assert len(refused) == 40
        assert "nothing was written; retry with backoff" in str(refused[0])
        assert len(await keys(store, "/q/")) == 10
        await put(store, "/q/later")


async def test_a_write_queue_is_bounded_in_bytes(path: Path) -> None:
    async with opened(path, SqliteSettings(pending_bytes_max=100_000)) as store:
        results = await asyncio.gather(
            *(put(store, f"/q/{n}", b"v" * 30_000) for n in range(10)), return_exceptions=True
        )
        assert sum(isinstance(result, int) for result in results) == 3


async def test_cancelled_callers_give_their_place_back(path: Path) -> None:
    async with opened(path, SqliteSettings(pending_txns_max=10)) as store:
        for _ in range(5):
            tasks = [asyncio.create_task(put(store, f"/q/{n}")) for n in range(10)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: store._pending == 0)
        await put(store, "/q/later")


async def test_a_refused_neighbour_hurts_nobody(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "/taken")
        results = await asyncio.gather(
            *(
                store.txn([Compare.absent("/taken")] if n % 3 == 0 else [], [Put(f"/n/{n}", b"")])
                if n % 3 != 1
                else store.txn([], [Put(f"/n/{n}", b"", lease=77)])
                for n in range(90)
            ),
            return_exceptions=True,
        )
        for n, result in enumerate(results):
            if n % 3 == 1:
                assert isinstance(result, LeaseNotFound)
            else:
                assert isinstance(result, TxnResult)
                assert result.committed == (n % 3 == 2)
        assert len(await keys(store, "/n/")) == 30


async def test_reads_do_not_wait_for_a_stuck_writer(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "/a", b"1")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(put(store, "/b", b"2"))
        for _ in range(100):
            entry = await store.get("/a")
            assert entry is not None
        assert not writing.done()
        other.execute("ROLLBACK")
        other.close()
        await writing


async def test_a_saturated_event_loop_does_not_starve_the_store(path: Path) -> None:
    """Without `sqlite_handover` this takes seconds per commit; see there."""
    async with opened(path) as store:
        done = asyncio.Event()

        async def burn() -> None:
            while not done.is_set():
                end = time.perf_counter() + 0.001
                while time.perf_counter() < end:
                    pass
                await asyncio.sleep(0)

        burning = asyncio.create_task(burn())
        async with asyncio.timeout(DEADLINE_S):
            for n in range(20):
                await put(store, f"/s/{n}")
                assert await store.get(f"/s/{n}") is not None
        done.set()
        await burning


# -- the log -----------------------------------------------------------------------------------


def _log_rows(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT count(*) FROM changes").fetchone()[0])
    finally:
        db.close()


async def _write_many(store: Store, count: int, size: int = 10) -> None:
    for first in range(0, count, 500):
        await asyncio.gather(
            *(put(store, f"/k/{n % 50}", b"v" * size) for n in range(first, first + 500))
        )


async def test_retention_by_revisions(path: Path) -> None:
    async with opened(path, SqliteSettings(retain_revisions=1000)) as store:
        await _write_many(store, 10_000)
        await until(lambda: _log_rows(path) <= 1300)
        revision = await store.revision()
        async with watching(store, "/", 1) as seen:
            error = await seen.error()
        assert isinstance(error, Compacted)
        assert revision - 1300 <= error.oldest_revision <= revision - 1000 + 1
        async with watching(store, "/", error.oldest_revision) as seen:
            await seen.until_count(1000)
        assert len(await keys(store, "/k/")) == 50


async def test_retention_by_bytes(path: Path) -> None:
    async with opened(path, SqliteSettings(retain_log_bytes=1_000_000)) as store:
        await _write_many(store, 5000, size=1000)
        # A little over at most; the last rows are of about 1,005 bytes each.
        assert 900 <= _log_rows(path) <= 1600
        assert len(await keys(store, "/k/")) == 50


async def test_compaction_frees_the_log_in_the_background(path: Path) -> None:
    async with opened(path) as store:
        await _write_many(store, 5000)
        await store.compact(4990)
        await until(lambda: _log_rows(path) == 11)
    async with opened(path) as store:
        async with watching(store, "/", 4989) as seen:
            error = await seen.error()
        assert isinstance(error, Compacted)
        assert error.oldest_revision == 4990


async def test_a_watcher_of_a_quiet_prefix_learns_of_progress(path: Path) -> None:
    async with opened(path, SqliteSettings(retain_revisions=1000)) as store:
        await put(store, "/quiet/a")
        async with watching(store, "/quiet/", 1) as seen:
            await seen.until_count(1)
            await _write_many(store, 3 * PROGRESS_REVISIONS)
            await seen.until(lambda w: w.batches[-1].revision >= 3 * PROGRESS_REVISIONS)
            await put(store, "/quiet/b")
            await seen.until_count(2)
            check_whole_revisions(seen.batches)


async def test_many_watchers_are_cheap(path: Path) -> None:
    """A thousand watchers of other prefixes are not even woken."""
    async with opened(path) as store:
        watches = [store.watch(f"/nodes/{n}/", from_revision=1) for n in range(1000)]
        waiting = [asyncio.create_task(anext(watch)) for watch in watches]
        await asyncio.sleep(0)
        await put(store, "/nodes/7/a")
        batch = await waiting[7]
        assert [event.entry.key for event in batch.events] == ["/nodes/7/a"]
        assert sum(task.done() for task in waiting) == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert store._hub._by_prefix.keys() <= {b"/nodes/7/"}
        await watches[7].aclose()
        assert not store._hub._by_prefix


async def test_a_slow_watcher_holds_little(path: Path) -> None:
    async with opened(path) as store:
        watch = store.watch("/k/", from_revision=1)
        await put(store, "/k/0")
        await anext(watch)
        await _write_many(store, 5000, size=100)
        ((watcher,),) = store._hub._by_prefix.values()
        assert len(watcher.queue) <= 1024
        count = 0
        while count < 5000:
            batch = await anext(watch)
            assert len(batch.events) <= 512
            count += len(batch.events)
        assert not watcher.lagging
        await watch.aclose()


# -- leases ------------------------------------------------------------------------------------


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_leases_follow_the_injected_clock(path: Path) -> None:
    clock = FakeClock()
    async with opened(path, SqliteSettings(lease_poll_s=0.01), clock) as store:
        lease = await store.grant_lease(10)
        start = await put(store, "/l", b"", lease)
        clock.now += 9.9
        assert await store.keep_alive(lease) == 10
        clock.now += 9.9
        await put(store, "/l", b"", lease)
        clock.now += 0.2
        # Late is never alive again, whether or not the keys are gone by now.
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease)
        async with watching(store, "/l", start) as seen:
            await seen.until_count(3)
            assert seen.events[-1].type.value == "delete"


async def test_leases_start_anew_after_a_restart(path: Path) -> None:
    clock = FakeClock()
    settings = SqliteSettings(lease_poll_s=0.01)
    async with opened(path, settings, clock) as store:
        lease = await store.grant_lease(10)
        await put(store, "/l", b"", lease)
        clock.now += 9
    clock.now = 5.0  # another boot: a monotonic clock means nothing across it
    async with opened(path, settings, clock) as store:
        clock.now += 9.9
        assert await store.keep_alive(lease) == 10
        clock.now += 9.9
        assert await keys(store, "/l") == ["/l"]
        clock.now += 0.2
        async with watching(store, "/l", 2) as seen:
            await seen.until_count(1)
        assert await store.grant_lease(10) > lease


async def test_a_lease_of_very_many_keys(path: Path) -> None:
    async with opened(path) as store:
        lease = await store.grant_lease(600)
        for first in range(0, 2500, 100):
            await store.txn([], [Put(f"/l/{n}", b"", lease) for n in range(first, first + 100)])
        start = await store.revision() + 1
        await store.revoke_lease(lease)
        async with watching(store, "/l/", start) as seen:
            await seen.until_count(2500)
            check_whole_revisions(seen.batches)


# -- the write-ahead log -----------------------------------------------------------------------


async def test_constant_reads_do_not_let_the_write_ahead_log_grow(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_checkpoint, "_CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(sqlite_checkpoint, "_LONG_PAGES", 200)
    async with opened(path) as store:
        done = asyncio.Event()

        async def read() -> None:
            while not done.is_set():
                await store.range("/k/")

        reading = [asyncio.create_task(read()) for _ in range(8)]
        await _write_many(store, 6000, size=2000)
        done.set()
        await asyncio.gather(*reading)
        # 24 MB went through it; without the pauses it keeps 5 to 8 MB of them, with them about 1.3.
        assert path.with_name("store.db-wal").stat().st_size < 3 << 20
