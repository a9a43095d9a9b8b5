"""Of two sessions of one node both members keep the same one, whoever hears what first."""

from dataclasses import dataclass, field
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.fleet import Fleet
from orchestrator.mesh.newer import SessionName, is_newer
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.mesh.nodes_told import NodesTold
from orchestrator.records import NodePlacement
from polder.v1 import agent_pb2, member_pb2

IDS = ("s1", "s2", "s3")


@st.composite
def names(draw: st.DrawFn, session_id: str) -> SessionName:
    return SessionName(
        draw(st.sampled_from(["i1", "i2", ""])),
        draw(st.integers(0, 3)),
        session_id,
        draw(st.sampled_from(["", "other", *IDS])),
    )


@given(names("s1"), names("s2"))
def test_of_two_sessions_exactly_one_is_newer(one: SessionName, other: SessionName) -> None:
    assert is_newer(one, other) is not is_newer(other, one)


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["", "s1", "s2"]))
def test_an_agent_counts_its_own_sessions(first: int, second: int, supersedes: str) -> None:
    one = SessionName("i", first, "s1", supersedes)
    other = SessionName("i", second, "s2", supersedes)
    if first != second:
        assert is_newer(one, other) is (first > second)


@given(st.integers(0, 9), st.integers(0, 9))
def test_another_agent_is_newer_where_its_member_knew_of_the_first(n: int, m: int) -> None:
    old, new = SessionName("i", n, "z"), SessionName("j", m, "a", supersedes="z")
    assert is_newer(new, old) and not is_newer(old, new)


def test_who_knew_nothing_draws_lots() -> None:
    assert is_newer(SessionName("i", 7, "b"), SessionName("j", 9, "a"))


# --- three members, any order of what they hear ---------------------------------------------------


class Mirror:
    def placement(self, node: str) -> NodePlacement:
        return NodePlacement(node)


@dataclass
class Party:
    """A member: its fleet, the session that it has with the node, and what it heard."""

    name: str
    session: SessionName | None = None
    closed: int = 0
    fleet: Fleet = field(default_factory=lambda: Fleet(0.0, lambda: 1_000.0))

    def __post_init__(self) -> None:
        self.heard = NodesHeard(self.fleet, Mirror(), self, lambda: 5.0)  # type: ignore[arg-type]
        self.told = NodesTold(self.fleet)
        self.told.start()
        self.fleet.subscribe(lambda node: self.told.changed(node) and None)

    def open(self, session: SessionName) -> None:
        self.session = session
        seen = self.fleet.observe("n")
        seen.belong(None, session, self.name)
        seen.replicas = {"r": agent_pb2.ReplicaStatus(replica_uid="r", message=session.session_id)}
        seen.complete = True
        self.fleet.touch("n")

    def supersede(self, node: str, by: SessionName, member: str) -> None:
        self.session = None
        self.closed += 1

    def says(self) -> list[member_pb2.NodesSaid]:
        return [member_pb2.NodesSaid(nodes=[said]) for said in self.told.differences()]

    def hears(self, other: str, said: member_pb2.NodesSaid) -> None:
        heard = self.heard.of(other)
        heard.peer.reachable = True
        heard.peer.heard_at = 1_000.0
        self.heard.take(heard, said)

    def view(self) -> tuple[str, str]:
        seen = self.fleet.get("n")
        if seen is None or not seen.connected:
            return "", ""
        return seen.member, seen.replicas["r"].message


def play(sessions: list[SessionName], choices: list[int]) -> list[Party]:
    """Each of the first members has a session; what they say arrives in any order between pairs,
    and in order within one."""
    parties = [Party(name) for name in "abc"]
    lines: dict[tuple[str, str], list[member_pb2.NodesSaid]] = {
        (a.name, b.name): [] for a, b in permutations(parties, 2)
    }

    def send(party: Party) -> None:
        for said in party.says():
            for (source, _), line in lines.items():
                if source == party.name:
                    line.append(said)

    for party, session in zip(parties, sessions, strict=False):
        party.open(session)
        send(party)
    by_name = {party.name: party for party in parties}
    dice = iter(choices)
    while ready := sorted(pair for pair, line in lines.items() if line):
        source, target = ready[next(dice, 0) % len(ready)]
        by_name[target].hears(source, lines[source, target].pop(0))
        for party in parties:
            send(party)
    return parties


@settings(max_examples=300, deadline=None)
@given(names("s1"), names("s2"), st.lists(st.integers(0, 5), max_size=40))
def test_every_interleaving_of_two_sessions_ends_with_one_of_them(
    one: SessionName, other: SessionName, choices: list[int]
) -> None:
    a, b, c = play([one, other], choices)
    winner, loser = (a, b) if is_newer(one, other) else (b, a)
    assert winner.session is not None and winner.closed == 0
    assert loser.session is None and loser.closed == 1
    expected = (winner.name, winner.session.session_id)
    assert a.view() == b.view() == c.view() == expected
    assert all(not a.heard.unclaimed(a.heard.of(name)) for name in "bc")


@settings(max_examples=300, deadline=None)
@given(names("s1"), names("s2"), names("s3"), st.lists(st.integers(0, 5), max_size=60))
def test_of_three_sessions_at_most_one_stays_and_no_two_members_disagree(
    one: SessionName, two: SessionName, three: SessionName, choices: list[int]
) -> None:
    """The rule is no order: of three that beat each other in a circle none may stay."""
    parties = play([one, two, three], choices)
    open_now = [party for party in parties if party.session is not None]
    assert len(open_now) <= 1
    for party in parties:
        if open_now:
            unclaimed = party.heard.unclaimed(party.heard.of(open_now[0].name))
            mine = (open_now[0].name, open_now[0].session.session_id)  # type: ignore[union-attr]
            # Or it knows that it must hear that member from the beginning.
            assert party.view() == mine or unclaimed
        else:
            assert party.view() == ("", "")
