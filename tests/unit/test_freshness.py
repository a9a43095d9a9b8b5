"""Whether an answer from the mirror is current: who asks the Store, when, and what it costs."""

import asyncio
from collections.abc import Callable

import pytest

from orchestrator import freshness
from orchestrator.freshness import Freshness
from orchestrator.store.port import StoreUnavailable


@pytest.fixture(autouse=True)
def answers_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not say how long a reader waits, it waits for its answer."""
    monkeypatch.setattr(freshness, "READ_S", 60.0)
    monkeypatch.setattr(freshness, "READ_AGAIN_S", 60.0)


class FakeStore:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.now = 10
        self.known = 0
        self.asked: list[asyncio.Future[int]] = []

    def known_revision(self) -> int:
        return self.known

    async def revision(self) -> int:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    def answer(self, number: int) -> None:
        self.asked[number].set_result(self.now)


class FakeCache:
    def __init__(self) -> None:
        self.revision = 10
        self.news = asyncio.Event()

    async def wait_for(self, revision: int) -> None:
        while self.revision < revision:
            await self.news.wait()

    def reach(self, revision: int) -> None:
        self.revision = revision
        self.news.set()


class World:
    def __init__(self) -> None:
        self.time = 100.0
        self.store = FakeStore()
        self.cache = FakeCache()
        self.freshness = Freshness(self.store, self.cache, lambda: self.time)  # type: ignore[arg-type]

    def read(self) -> "asyncio.Task[float]":
        return asyncio.create_task(self.freshness.to_read())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - the others only need their turn
                await asyncio.sleep(0)


async def test_who_comes_together_shares_one_question() -> None:
    world = World()
    readers = [world.read() for _ in range(20)]
    await world.until(lambda: bool(world.store.asked))
    world.store.answer(0)
    assert await asyncio.gather(*readers) == [0.0] * 20
    assert len(world.store.asked) == 1


async def test_a_question_that_was_sent_before_is_not_used() -> None:
    """Its answer may be older than a write that was acknowledged before the second call."""
    world = World()
    first = world.read()
    await world.until(lambda: len(world.store.asked) == 1)
    second = world.read()
    await world.until(lambda: len(world.store.asked) == 2)
    world.store.answer(0)
    assert await first == 0.0
    assert not second.done()
    world.store.answer(1)
    assert await second == 0.0


async def test_many_who_come_while_the_store_is_slow_cost_little() -> None:
    world = World()
    readers = []
    for _ in range(50):
        readers.append(world.read())
        await asyncio.sleep(0)
    assert len(world.store.asked) == 2, "the rest share the third"
    world.store.answer(0)
    world.store.answer(1)
    await world.until(lambda: len(world.store.asked) == 3)
    world.store.answer(2)
    assert await asyncio.gather(*readers) == [0.0] * 50


async def test_the_mirror_must_be_where_the_store_is() -> None:
    world = World()
    world.store.now = 12
    reader = world.read()
    await world.until(lambda: bool(world.store.asked))
    world.store.answer(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reader.done()
    world.cache.reach(12)
    assert await reader == 0.0


async def test_an_age_counts_from_the_question_and_not_from_its_answer() -> None:
    world = World()
    reader = world.read()
    await world.until(lambda: bool(world.store.asked))
    world.time += 1.5
    world.store.answer(0)
    assert await reader == 0.0
    assert world.freshness.age_s == 1.5


async def test_without_an_answer_the_age_is_told_and_the_next_wait_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freshness, "READ_S", 0.05)
    monkeypatch.setattr(freshness, "READ_AGAIN_S", 0.01)
    world = World()
    world.time += 42.0
    assert world.freshness.behind_s == 0.0, "nobody has asked yet"
    assert await world.read() == 42.0
    assert await world.read() == 42.0
    assert world.freshness.behind_s == 42.0
    first, _ = world.store.asked
    assert not first.cancelled(), "only a question that goes on finds a dead member"
    world.store.answer(0)
    world.store.answer(1)
    await asyncio.sleep(0)
    monkeypatch.setattr(freshness, "READ_S", 60.0)
    monkeypatch.setattr(freshness, "READ_AGAIN_S", 60.0)
    reader = world.read()
    await world.until(lambda: len(world.store.asked) == 3)
    world.store.answer(2)
    assert await reader == 0.0 and world.freshness.age_s == 0.0


async def test_a_writer_is_refused_soon_where_the_store_has_been_away_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freshness, "READ_S", 0.01)
    world = World()
    waited: list[float] = []
    reach = world.freshness._reach

    async def noted(limit_s: float) -> float:
        waited.append(limit_s)
        return await reach(min(limit_s, 0.01))

    monkeypatch.setattr(world.freshness, "_reach", noted)
    await world.freshness.to_write()
    for age in (2.0, 1.5, 60.0):
        world.time += age
        await world.freshness.to_write()
    assert waited == [freshness.WRITE_S, 3.0, 1.5, freshness.WRITE_AGAIN_S]


async def test_a_store_that_refuses_is_as_good_as_one_that_is_silent() -> None:
    world = World()
    world.time += 7.0
    reader = world.read()
    await world.until(lambda: bool(world.store.asked))
    world.store.asked[0].set_exception(StoreUnavailable("away"))
    assert await reader == 7.0


async def test_a_store_that_went_back_makes_no_mirror_current() -> None:
    world = World()
    world.time += 7.0
    world.store.now = 9
    reader = world.read()
    await world.until(lambda: bool(world.store.asked))
    world.store.answer(0)
    assert await reader == 7.0


async def test_who_writes_alone_asks_nothing() -> None:
    world = World()
    world.store.known = 10
    assert await world.read() == 0.0
    world.store.known = 11
    reader = world.read()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reader.done()
    world.cache.reach(11)
    assert await reader == 0.0
    assert not world.store.asked


async def test_a_mirror_that_was_late_once_is_not_behind_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Store that only this process writes, too: /readyz goes by it."""
    monkeypatch.setattr(freshness, "READ_S", 0.01)
    world = World()
    world.store.known = 11
    world.time += 3.0
    assert await world.read() == 3.0 and world.freshness.behind_s == 3.0
    world.cache.reach(11)
    assert await world.read() == 0.0
    world.time += 1.0
    assert world.freshness.behind_s == 0.0
