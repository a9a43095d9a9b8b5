"""The event recorder: counting, bounds, retention, and a Store that fails for a while."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from orchestrator import events as module
from orchestrator.events import EventRecorder
from orchestrator.store.port import (
    Compare,
    Entry,
    Op,
    Put,
    RangeResult,
    StoreUnavailable,
    TxnResult,
)
from polder.v1 import common_pb2

NORMAL = common_pb2.EVENT_TYPE_NORMAL


class MemoryStore:
    """Only what the recorder uses."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.transactions = 0
        self.away = False

    async def range(self, prefix: str, *, after: str = "", limit: int = 0) -> RangeResult:
        found = sorted(item for item in self.values.items() if item[0].startswith(prefix))
        return RangeResult(tuple(Entry(k, v, 1, 1, 1) for k, v in found), 1)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if self.away:
            raise StoreUnavailable("away")
        self.transactions += 1
        for op in ops:
            if isinstance(op, Put):
                self.values[op.key] = op.value
            else:
                self.values.pop(op.key, None)
        return TxnResult(True, 1)


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
    monkeypatch.setattr(module, "_FLUSH_EVERY_S", 0.001)
    monkeypatch.setattr(module, "_RETRY_S", 0.001)
    made = EventRecorder(store, clock)  # type: ignore[arg-type]
    await made.start()
    yield made
    await made.stop()


def say(recorder: EventRecorder, name: str = "n", message: str = "m") -> None:
    recorder.record("Node", "", name, NORMAL, "Reason", message, "test/x")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
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


async def test_a_start_reads_what_was_kept(
    recorder: EventRecorder, store: MemoryStore, clock: Clock
) -> None:
    say(recorder)
    await recorder.stop()
    store.values["/events/_/broken"] = b"{"
    again = EventRecorder(store, clock)  # type: ignore[arg-type]
    await again.start()
    say(again)
    assert again.list()[0].count == 2
    await again.stop()
    assert "/events/_/broken" not in store.values


async def test_listeners_hear_every_event_until_they_leave(recorder: EventRecorder) -> None:
    heard: list[str] = []
    leave = recorder.subscribe(lambda event: heard.append(event.message))
    say(recorder)
    leave()
    say(recorder, message="unheard")
    assert heard == ["m"]
