"""A member that is cut off from the Store says so to its agents, and that it is back."""

from agent.domain.site.lease import RESTART_S
from agent.domain.site.silence import LOOK_S
from agent.domain.site.tenure import KILL_S
from agent.session_stream import Timing
from orchestrator.freshness import READ_S
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.standing import CUT_OFF_AFTER_S, LOOK_EVERY_S, Standing
from orchestrator.members import TTL_S
from orchestrator.scheduling.exclusive import ISOLATION_MARGIN_S
from polder.identity import NodeId
from polder.v1 import agent_pb2


class Member:
    def __init__(self) -> None:
        self.sessions = Sessions()
        self.behind_s = 0.0
        self.standing = Standing(self.sessions, lambda: self.behind_s)

    def agent(self, node: str) -> LiveSession:
        session = LiveSession(NodeId("td", "s1", node), "01", agent_pb2.Hello(), 0.0)
        self.sessions.enter(session)
        return session

    async def look(self, behind_s: float) -> None:
        self.behind_s = behind_s
        await self.standing.look()


def end() -> agent_pb2.SessionResponse:
    return agent_pb2.SessionResponse(endpoints=agent_pb2.Endpoints())


async def told(session: LiveSession) -> list[bool]:
    """What it was told of the member's standing since this was asked last."""
    session.send(end())
    found = []
    while (message := await session.outbox.take()) is not None and message != end():
        found.append(message.standing.cut_off)
    return found


async def test_agents_hear_of_it_once_and_when_it_is_over() -> None:
    member = Member()
    agents = [member.agent("n1"), member.agent("n2")]
    await member.look(CUT_OFF_AFTER_S - 0.1)
    assert [await told(one) for one in agents] == [[], []]
    assert not member.standing.for_welcome().cut_off
    await member.look(CUT_OFF_AFTER_S + 0.1)
    await member.look(CUT_OFF_AFTER_S + 60.0)
    assert [await told(one) for one in agents] == [[True], [True]]
    assert member.standing.for_welcome().cut_off, "who comes now hears it in the Welcome"
    await member.look(0.0)
    assert [await told(one) for one in agents] == [[False], [False]]
    assert not member.standing.for_welcome().cut_off


def test_a_site_has_stopped_before_its_replica_is_placed_anew() -> None:
    """From the last word that the leader can have of it: see `ISOLATION_MARGIN_S`."""
    stops_s = LOOK_S + RESTART_S + KILL_S
    timing = Timing()
    dead_connection_s = timing.keepalive_s + timing.keepalive_timeout_s
    assert dead_connection_s + stops_s < ISOLATION_MARGIN_S
    # Who is cut off is asked for as long as its presence lasts; until then nobody's silence counts.
    told_s = CUT_OFF_AFTER_S + READ_S + LOOK_EVERY_S
    assert told_s + stops_s < TTL_S + ISOLATION_MARGIN_S
