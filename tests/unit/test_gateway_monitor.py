"""The half-open rule: an agent's silence counts; time in which this member was late does not."""

from types import SimpleNamespace
from typing import Any, cast

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
        return self.session.closed.is_set()


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
