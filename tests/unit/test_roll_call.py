"""Members' comings and goings as events: told once, by whoever leads, whoever led before."""

from collections.abc import Sequence
from typing import Any

from orchestrator.event_records import EventRecord
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.roll_call import GONE_AFTER_S, RollCall


class World:
    """What a mirror and an event recorder are asked."""

    def __init__(self, *members: str) -> None:
        self.healthy = True
        self.names = list(members)
        self.there = set(members)
        self.told: list[EventRecord] = []

    def members(self) -> list[MemberRecord]:
        return [MemberRecord(name, "eu", "1.0", (), (), "x:1") for name in self.names]

    def present(self, name: str) -> PresenceRecord | None:
        return PresenceRecord(name, "eu", "1.0", "i", 0) if name in self.there else None

    def record(self, kind: str, _: str, name: str, *rest: Any) -> None:
        severity, reason, message, source = rest
        record = EventRecord(kind, "", name, severity, reason, message, source, 0, 0)
        self.told.append(record)

    def list(self, *, kind: str = "", name: str = "", **_: Any) -> list[EventRecord]:
        return [event for event in self.told if (event.kind, event.name) == (kind, name)]

    def call(self, member: str, term: int) -> RollCall:
        mirror: Any = self
        return RollCall(member, mirror, mirror, lambda: term)

    def reasons(self) -> Sequence[tuple[str, str]]:
        return [(event.name, event.reason) for event in self.told if event.reason != "Leads"]


def test_a_member_that_goes_and_comes_back_is_told_once_each() -> None:
    world = World("a", "b", "c")
    call = world.call("a", 7)
    call.look(0.0)
    assert [(e.name, e.reason, e.message) for e in world.told] == [
        ("a", "Leads", "leads now (term 7)")
    ]
    world.there.discard("b")
    for at in (1.0, 1.0 + GONE_AFTER_S / 2):
        call.look(at)
    assert world.reasons() == []  # it may be back in a moment
    for at in (1.0 + GONE_AFTER_S, 100.0):
        call.look(at)
    assert world.reasons() == [("b", "MemberGone")]
    world.there.add("b")
    for at in (101.0, 102.0):
        call.look(at)
    assert world.reasons() == [("b", "MemberGone"), ("b", "MemberBack")]
    assert [event.source for event in world.told] == ["leader/a"] * 3


def test_the_next_leader_tells_of_the_former_and_repeats_nothing() -> None:
    world = World("a", "b", "c")
    world.there.discard("c")
    first = world.call("a", 1)
    first.look(0.0)
    first.look(10.0)
    world.there.discard("a")
    second = world.call("b", 2)
    for at in (20.0, 20.0 + GONE_AFTER_S):
        second.look(at)
    assert world.reasons() == [("c", "MemberGone"), ("a", "MemberGone")]


def test_who_does_not_lead_or_cannot_read_or_is_alone_tells_nothing() -> None:
    world = World("a", "b")
    world.there.clear()
    for at in (0.0, 10.0):
        world.call("a", 0).look(at)
    world.healthy = False
    blind = world.call("a", 1)
    blind.look(0.0)
    blind.look(10.0)
    alone = World("a")
    alone.call("a", 1).look(0.0)
    assert world.told == alone.told == []


def test_a_blink_while_the_store_cannot_be_read_counts_from_then_on() -> None:
    world = World("a", "b")
    call = world.call("a", 1)
    world.there.discard("b")
    call.look(0.0)
    world.healthy = False
    call.look(5.0)
    world.healthy = True
    call.look(10.0)
    assert world.reasons() == []
