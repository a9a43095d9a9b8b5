"""What a member tells is bounded, in order, and the same for all who follow."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from orchestrator.fleet import Fleet
from orchestrator.mesh import telling as module
from orchestrator.mesh.newer import SessionName
from orchestrator.mesh.telling import StoreState, Telling
from orchestrator.refusals import Refused
from polder.v1 import agent_pb2, member_pb2


class Session:
    def __init__(self, node: str, last_heard: float) -> None:
        self.node = node
        self.last_heard = last_heard


class Home:
    """A member with a telling; `read` follows it."""

    def __init__(self) -> None:
        self.fleet = Fleet(0.0, lambda: 1_000.0)
        self.sessions: list[Session] = []
        self.telling = Telling(
            self.fleet,
            self.sessions,
            member_pb2.MemberHello(member="a", instance_id="i"),
            lambda: StoreState(True, 7, 0.5),
            lambda: 5.0,
            5.0,
        )

    def node(self, name: str, *replicas: str, heard_at: float = 1_000.0) -> None:
        seen = self.fleet.observe(name)
        seen.belong(None, SessionName("i", 1, f"s-{name}"), "a")
        seen.complete = True
        for uid in replicas:
            seen.replicas[uid] = agent_pb2.ReplicaStatus(replica_uid=uid, message="x" * 100)
        if all(session.node != name for session in self.sessions):
            self.sessions.append(Session(name, heard_at))
        self.fleet.touch(name)


class Reader:
    """One that follows; `stalled` reads nothing."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.stalled = asyncio.Event()

    async def write(self, raw: bytes) -> None:
        self.raw.append(raw)
        if self.stalled.is_set():
            await asyncio.sleep(60)

    def heard(self) -> list[member_pb2.FollowResponse]:
        return [member_pb2.FollowResponse.FromString(raw) for raw in self.raw]

    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("message") for message in self.heard()]

    def heard_more_than(self, count: int) -> bool:
        return len(self.raw) > count

    def complete(self) -> bool:
        return any(message.nodes.complete for message in self.heard())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def test_hello_pulse_everything_and_then_what_changes() -> None:
    home, reader = Home(), Reader()
    home.node("n1", "r1")
    home.node("n2", heard_at=900.0)
    running = asyncio.create_task(home.telling.run())
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(reader.complete)
    assert reader.kinds()[:2] == ["hello", "pulse"]
    hello, pulse = reader.heard()[:2]
    parts = [m.nodes for m in reader.heard() if m.HasField("nodes")]
    assert (hello.hello.member, hello.hello.now_ms) == ("a", 5000)
    assert [(s.node, s.silence_ms) for s in pulse.pulse.silent] == [("n2", 100_000)]
    assert (pulse.pulse.sessions, pulse.pulse.store_revision) == (2, 7)
    assert {said.node for part in parts for said in part.nodes} == {"n1", "n2"}
    count = len(reader.raw)
    home.node("n1", "r2")
    await until(lambda: "nodes" in reader.kinds()[count:])
    changed = next(m for m in reader.heard()[count:] if m.HasField("nodes"))
    assert [s.replica_uid for s in changed.nodes.nodes[0].replicas] == ["r2"]
    home.telling.end()
    await following
    running.cancel()


async def test_a_batch_is_built_once_for_all() -> None:
    home, readers = Home(), [Reader() for _ in range(4)]
    running = asyncio.create_task(home.telling.run())
    following = [
        asyncio.create_task(home.telling.serve(f"m{i}", r.write)) for i, r in enumerate(readers)
    ]
    await until(lambda: all(reader.complete() for reader in readers))
    for reader in readers:
        reader.raw.clear()
    home.node("n1", "r1")
    await until(lambda: all("nodes" in reader.kinds() for reader in readers))
    batches = {id(next(raw for raw in r.raw if b"n1" in raw)) for r in readers}
    assert len(batches) == 1
    for task in [running, *following]:
        task.cancel()


async def test_a_follower_that_does_not_read_loses_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 100_000)
    home, reader, other = Home(), Reader(), Reader()
    running = asyncio.create_task(home.telling.run())
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    well = asyncio.create_task(home.telling.serve("c", other.write))
    await until(lambda: reader.complete() and other.complete())
    reader.stalled.set()
    for i in range(40):
        before = len(other.raw)
        home.node("n1", *(f"r{i}-{j}" for j in range(50)))
        await until(partial(other.heard_more_than, before))
        follower = [f for f in home.telling._followers if f.member == "b"]
        assert not follower or follower[0]._bytes <= 100_000
    monkeypatch.setattr(module, "_WRITE_TIMEOUT_S", 0.01)
    reader.stalled.clear()
    assert not well.done()
    following.cancel()
    well.cancel()
    running.cancel()


async def test_a_queue_that_overflows_ends_with_the_reason() -> None:
    follower = module.Follower("b")
    follower.put(b"x" * module.WAITING_BYTES_MAX * 2)  # one alone always goes
    assert await follower.take()
    follower.put(b"x" * module.WAITING_BYTES_MAX)
    follower.put(b"y")
    with pytest.raises(module.NotRead):
        await follower.take()


async def test_too_many_followers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOWERS_MAX", 1)
    home, reader = Home(), Reader()
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(lambda: home.telling.followers == ["b"])
    with pytest.raises(Refused, match="follow this one"):
        await home.telling.serve("c", reader.write)
    following.cancel()


async def test_changes_of_the_leaders_words_come_after_the_whole() -> None:
    class Words:
        def whole(self) -> Iterable[member_pb2.LeaderSaid]:
            home.telling.say(member_pb2.LeaderSaid(term=9))  # is part of what follows
            return [member_pb2.LeaderSaid(term=3, whole=True)]

        def heard(self, member: str, said: member_pb2.LeaderSaid) -> None: ...

    home, reader = Home(), Reader()
    home.telling.use(Words())
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(lambda: "leader" in reader.kinds())
    home.telling.say(member_pb2.LeaderSaid(term=4))
    await until(lambda: reader.kinds().count("leader") >= 2)
    terms = [m.leader.term for m in reader.heard() if m.HasField("leader")]
    assert terms[-2:] == [3, 4]
    following.cancel()


async def test_a_long_whole_is_told_piece_by_piece_and_news_wait_for_its_end() -> None:
    made, others = list[int](), 0

    class Words:
        def whole(self) -> Iterable[member_pb2.LeaderSaid]:
            for number in range(1, 21):
                made.append(others)
                yield member_pb2.LeaderSaid(term=number, whole=number == 1, more=number < 20)

        def heard(self, member: str, said: member_pb2.LeaderSaid) -> None: ...

    async def others_work() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    home, reader = Home(), Reader()
    working = asyncio.create_task(others_work())
    home.telling.use(Words())
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(lambda: len(made) >= 5)
    home.telling.say(member_pb2.LeaderSaid(term=99))
    await until(lambda: reader.kinds().count("leader") > 20)
    terms = [m.leader.term for m in reader.heard() if m.HasField("leader")]
    assert terms == [*range(1, 21), 99]
    assert len(set(made)) == 20, "others had no turn in between"
    for task in (following, working):
        task.cancel()


async def test_usage_that_only_heartbeats_bring_is_told_within_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PULSE_S", 0.01)
    home, reader = Home(), Reader()
    for i in range(10):
        home.node(f"n{i}")
    running = asyncio.create_task(home.telling.run())
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(reader.complete)
    for i in range(10):
        home.fleet.observe(f"n{i}").heartbeat = agent_pb2.Heartbeat(sequence=7)
    told: set[str] = set()

    def all_told() -> bool:
        for message in reader.heard():
            told.update(s.node for s in message.nodes.nodes if s.heartbeat.sequence == 7)
        return len(told) == 10

    await until(all_told)
    following.cancel()
    running.cancel()


async def test_nobody_is_told_and_no_account_is_kept() -> None:
    home, reader = Home(), Reader()
    running = asyncio.create_task(home.telling.run())
    home.node("n1", "r1")
    await asyncio.sleep(0)
    assert not home.telling._told.count
    following = asyncio.create_task(home.telling.serve("b", reader.write))
    await until(reader.complete)
    assert home.telling._told.nodes() == ["n1"]
    following.cancel()
    await until(lambda: not home.telling.followers)
    assert not home.telling._told.count
    running.cancel()
