"""The event recorder: counting, bounds, retention, and a Store that fails for a while."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import pytest

from orchestrator import event_log
from orchestrator import events as module
from orchestrator.events import EventRecorder
from orchestrator.store.port import (
    Compacted,
    Compare,
    Entry,
    EventType,
    Op,
    Put,
    RangeResult,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
    WatchEvent,
)
from polder.v1 import common_pb2

NORMAL = common_pb2.EVENT_TYPE_NORMAL


class MemoryStore:
    """Only what the recorder uses."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.history: list[WatchEvent] = []
        self.revision = 1
        self.transactions = 0
        self.deletions = 0
        self.away = False
        self.forgets_answers = False  # writes, and then fails
        self.compacted = 0  # what came up to here cannot be followed any more
        self._news = asyncio.Condition()

    @property
    def values(self) -> dict[str, bytes]:
        return {key: entry.value for key, entry in self.entries.items()}

    async def put(self, key: str, value: bytes) -> None:
        await self.txn([], [Put(key, value)])

    async def get(self, key: str) -> Entry | None:
        self._check()
        return self.entries.get(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        self._check()
        keys = sorted(k for k in self.entries if k.startswith(prefix) and k > after)
        more = bool(limit) and len(keys) > limit
        found = tuple(self.entries[key] for key in (keys[:limit] if limit else keys))
        return RangeResult(found, self.revision, more)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        self._check()
        failed = tuple(c for c in compares if self._revision_of(c.key) != c.expected)
        if failed:
            return TxnResult(False, self.revision, failed)
        self.transactions += 1
        self.revision += 1
        for op in ops:
            gone = Entry(op.key, b"", 0, self.revision, 0)
            if isinstance(op, Put):
                entry = self.entries[op.key] = Entry(op.key, op.value, 1, self.revision, 1)
                self.history.append(WatchEvent(EventType.PUT, entry))
            elif self.entries.pop(op.key, None) is not None:
                self.deletions += 1
                self.history.append(WatchEvent(EventType.DELETE, gone))
        async with self._news:
            self._news.notify_all()
        if self.forgets_answers:
            raise StoreUnavailable("it may have been written")
        return TxnResult(True, self.revision)

    async def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        while True:
            self._check()
            if from_revision <= self.compacted:
                raise Compacted(self.compacted + 1)
            found = [e for e in self.history if e.entry.mod_revision >= from_revision]
            if found:
                from_revision = self.revision + 1
                yield WatchBatch(self.revision, tuple(found))
            else:
                async with self._news:
                    await self._news.wait()

    def _revision_of(self, key: str) -> int:
        entry = self.entries.get(key)
        return entry.mod_revision if entry is not None else 0

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("away")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def recorder(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EventRecorder]:
    monkeypatch.setattr(event_log, "FLUSH_EVERY_S", 0.001)
    monkeypatch.setattr(event_log, "RETRY_S", 0.001)
    monkeypatch.setattr(event_log, "_LOOK_EVERY_S", 0.01)
    made = EventRecorder(store, clock)  # type: ignore[arg-type]
    await made.start()
    yield made
    await made.stop()


def say(recorder: EventRecorder, name: str = "n", message: str = "m") -> None:
    recorder.record("Node", "", name, NORMAL, "Reason", message, "test/x")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on but the effect
            await asyncio.sleep(0.001)


async def test_repeats_count_up(recorder: EventRecorder, clock: Clock) -> None:
    say(recorder)
    clock.now += 5
    say(recorder)
    (event,) = recorder.list(kind="Node", name="n")
    assert (event.count, event.last_at_ms - event.first_at_ms) == (2, 5000)
    say(recorder, message="other")
    assert [e.message for e in recorder.list()] == ["m", "other"]


async def test_an_object_keeps_its_newest_hundred(
    recorder: EventRecorder, store: MemoryStore
) -> None:
    for number in range(150):
        say(recorder, message=str(number))
    kept = recorder.list(kind="Node", name="n")
    assert [e.message for e in kept] == [str(n) for n in range(50, 150)]
    await until(lambda: len(store.values) == 100)


async def test_the_whole_is_bounded(recorder: EventRecorder) -> None:
    for number in range(module.TOTAL_MAX + 100):
        say(recorder, name=f"n{number}")
    assert len(recorder.list()) == module.TOTAL_MAX
    assert len(recorder.list(limit=7)) == 7


async def test_events_are_forgotten_after_a_day(
    recorder: EventRecorder, store: MemoryStore, clock: Clock
) -> None:
    say(recorder, name="old")
    await until(lambda: len(store.values) == 1)
    clock.now += module.KEEP_S + 1
    say(recorder, name="new")
    assert [e.name for e in recorder.list()] == ["new"]
    await until(lambda: len(store.values) == 1)


async def test_many_events_are_few_transactions(
    recorder: EventRecorder, store: MemoryStore
) -> None:
    for number in range(1000):
        say(recorder, name=f"n{number % 10}", message=str(number % 20))
    await until(lambda: len(store.values) == 20)
    assert store.transactions <= 3


async def test_a_store_that_is_away_delays_and_loses_nothing(
    recorder: EventRecorder, store: MemoryStore
) -> None:
    store.away = True
    say(recorder)
    await asyncio.sleep(0.01)
    store.away = False
    await until(lambda: len(store.values) == 1)


async def test_a_defect_ends_no_telling(
    recorder: EventRecorder, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        patch.undo()
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(store, "txn", broken)
        say(recorder)
        await until(lambda: len(store.values) == 1)


async def test_a_start_reads_what_was_kept(
    recorder: EventRecorder, store: MemoryStore, clock: Clock
) -> None:
    say(recorder)
    await recorder.stop()
    await store.put("/events/_/broken", b"{")
    again = EventRecorder(store, clock)  # type: ignore[arg-type]
    await again.start()
    say(again)
    assert again.list()[0].count == 2
    await again.stop()
    assert "/events/_/broken" not in store.values


async def test_a_store_that_does_not_answer_holds_up_no_stop(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told last is lost, as its member would be otherwise."""
    monkeypatch.setattr(event_log, "_CLOSING_S", 0.05)
    made = EventRecorder(store, clock)  # type: ignore[arg-type]
    await made.start()
    monkeypatch.setattr(store, "txn", lambda *_: asyncio.Event().wait())
    say(made)
    async with asyncio.timeout(30):
        await made.stop()


async def test_listeners_hear_every_event_until_they_leave(recorder: EventRecorder) -> None:
    heard: list[str] = []
    leave = recorder.subscribe(lambda event: heard.append(event.message))
    say(recorder)
    leave()
    say(recorder, message="unheard")
    assert heard == ["m"]


# --- several members --------------------------------------------------------------------------


@pytest.fixture
async def other(
    recorder: EventRecorder, store: MemoryStore, clock: Clock
) -> AsyncIterator[EventRecorder]:
    """Of a member that does not lead; `recorder` is the leader's."""
    made = EventRecorder(store, clock)  # type: ignore[arg-type]
    made.deletes = lambda: False
    await made.start()
    yield made
    await made.stop()


def counts(recorder: EventRecorder) -> dict[str, int]:
    return {event.message: event.count for event in recorder.list()}


async def test_every_member_shows_what_any_recorded_and_tells_its_listeners_once(
    recorder: EventRecorder, other: EventRecorder
) -> None:
    heard: list[str] = []
    other.subscribe(lambda event: heard.append(event.message))
    say(recorder, message="there")
    say(other, message="here")
    await until(lambda: counts(other) == counts(recorder) == {"there": 1, "here": 1})
    assert sorted(heard) == ["here", "there"]


async def test_members_that_count_at_once_lose_nothing(
    recorder: EventRecorder, other: EventRecorder, store: MemoryStore
) -> None:
    for round_ in range(200):
        for number in range(5):
            say(recorder, message=str(number))
            say(other, message=str(number))
        if round_ % 7 == 0:
            await asyncio.sleep(0.001)
    expected = {str(number): 400 for number in range(5)}
    await until(lambda: counts(other) == expected and counts(recorder) == expected)
    await other.stop()
    await recorder.stop()
    again = EventRecorder(store, Clock())  # type: ignore[arg-type]
    await again.start()
    assert counts(again) == expected
    await again.stop()


async def test_only_the_leader_deletes_and_what_it_deleted_is_gone_everywhere(
    recorder: EventRecorder, other: EventRecorder, store: MemoryStore
) -> None:
    for number in range(150):
        say(other, message=str(number))
    await until(lambda: len(store.values) == 100 and len(other.list()) == 100)
    assert store.deletions <= 50, "each of them once at most"
    assert [e.message for e in recorder.list()] == [str(n) for n in range(50, 150)]


async def test_who_begins_to_lead_deletes_what_nobody_deleted(
    recorder: EventRecorder, other: EventRecorder, store: MemoryStore
) -> None:
    recorder.deletes = lambda: False
    for number in range(100):
        say(other, message=str(number))
    await until(lambda: len(store.values) == 100)
    for number in range(100, 150):
        say(other, message=str(number))
    await until(lambda: len(store.values) == 150)
    other.deletes = lambda: True
    await until(lambda: len(store.values) == 100)


async def test_what_is_told_again_is_not_deleted(
    recorder: EventRecorder, other: EventRecorder, store: MemoryStore, clock: Clock
) -> None:
    say(other, message="old")
    await until(lambda: counts(recorder) == {"old": 1})
    clock.now += module.KEEP_S + 1
    say(other, message="old")
    say(recorder, message="new")  # and the leader drops what is old
    await until(lambda: "old" in counts(recorder) and "old" in counts(other))
    await until(lambda: len(store.values) == 2)


async def test_an_answer_that_was_lost_is_not_counted_twice(
    recorder: EventRecorder, store: MemoryStore
) -> None:
    store.forgets_answers = True
    say(recorder)
    await until(lambda: bool(store.values))
    say(recorder)
    store.forgets_answers = False
    await until(lambda: b'"count":2' in next(iter(store.values.values())))
    await asyncio.sleep(0.05)
    assert counts(recorder) == {"m": 2}
    assert b'"count":2' in next(iter(store.values.values()))


async def test_a_watch_that_fell_behind_reads_everything_again(
    recorder: EventRecorder, store: MemoryStore, clock: Clock
) -> None:
    say(recorder, message="first")
    await until(lambda: bool(store.values))
    follower = EventRecorder(store, clock)  # type: ignore[arg-type]
    follower.deletes = lambda: False
    await follower.start()
    follower._log._revision = 0  # what it last heard was long ago
    store.compacted = store.revision
    say(recorder, message="second")
    await until(lambda: counts(follower) == {"first": 1, "second": 1})
    await follower.stop()
