"""The half-open rule: an agent's silence counts; time in which this member was late does not."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.fleet import Fleet
from orchestrator.gateway.monitor import Monitor
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.settings import GatewaySettings
from polder.identity import NodeId
from polder.v1 import agent_pb2

LIMIT_S = 15.0


class World:
    """One session that is heard only when told so."""

    def __init__(self) -> None:
        self.now = 1000.0
        fleet = Fleet(0.0, lambda: self.now)
        sessions = Sessions()
        node = NodeId("polder.test", "site-1", "n1")
        self.session = LiveSession(node, "01", agent_pb2.Hello(), self.now)
        sessions.enter(self.session)
        cache = SimpleNamespace(resources=lambda _kind: ())
        settings = GatewaySettings(member="m1", region="r", version="1")
        assert settings.heartbeat_s * settings.heartbeats_missed_max == LIMIT_S
        self.monitor = Monitor(cast(Any, cache), fleet, sessions, settings)

    def look_after(self, seconds: float) -> bool:
        """Whether the session was closed."""
        self.now += seconds
        self.monitor.look()
        return self.session.is_closed()


def test_an_agent_that_says_nothing_loses_its_session() -> None:
    world = World()
    assert not any(world.look_after(1.0) for _ in range(15))
    assert world.look_after(1.0)


def test_a_member_that_is_late_again_and_again_blames_nobody_for_it() -> None:
    world = World()
    assert not any(world.look_after(4.0) for _ in range(8)), "32 s, of which 11 count"
    assert not any(world.look_after(1.0) for _ in range(4))
    assert any(world.look_after(1.0) for _ in range(2)), "more than 15 s count"


def test_a_word_ends_the_silence() -> None:
    world = World()
    for _ in range(40):
        world.session.last_heard = world.now
        assert not world.look_after(4.0)


def test_of_thousands_that_fall_silent_some_are_named_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [1000.0]
    fleet = Fleet(0.0, lambda: now[0])
    nodes = [SimpleNamespace(name=f"n{number}") for number in range(1200)]
    cache = SimpleNamespace(resources=lambda _kind: nodes, node_status=lambda _name: object())
    settings = GatewaySettings(member="m1", region="r", version="1")
    monitor = Monitor(cast(Any, cache), fleet, Sessions(), settings)
    touched: list[str] = []
    fleet.subscribe(touched.append)
    for node in nodes:
        fleet.heard(node.name, 0.0)
    monitor.look()
    with caplog.at_level(logging.INFO, "orchestrator.gateway.monitor"):
        for _ in range(9):
            now[0] += 1.0
            monitor.look()
    assert len(touched) == 1200
    assert [r.getMessage() for r in caplog.records] == ["node is Silent"] * 50 + [
        "more nodes are Silent"
    ]
    assert vars(caplog.records[-1])["nodes"] == 1150
