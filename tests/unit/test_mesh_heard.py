"""What members say to each other arrives as it is, and silence counts from where it may."""

import random
from collections.abc import Iterator

import pytest

from orchestrator.domain.liveness import Liveness, Periods
from orchestrator.fleet import Fleet
from orchestrator.mesh.newer import SessionName
from orchestrator.mesh.nodes_heard import Heard, NodesHeard
from orchestrator.mesh.nodes_told import REPLICAS_PER_MESSAGE, NodesTold
from orchestrator.records import NodePlacement, StopRecord
from polder.v1 import agent_pb2, member_pb2

PERIODS = Periods(10.0, 30.0)


class Mirror:
    def __init__(self) -> None:
        self.stops: dict[str, tuple[str, ...]] = {}

    def placement(self, node: str) -> NodePlacement:
        stops = [
            StopRecord("d", "w", uid, uid, "c", "m", 0) for uid in self.stops.get(node, ())
        ]  # fmt: skip
        return NodePlacement(node, stops=tuple(stops))


class Nobody:
    def supersede(self, node: str, by: SessionName, member: str) -> None:
        raise AssertionError("this member has no session")


class Pair:
    """`b` follows `a`, and would lead. `now`: the steady clock of both, 1,000 apart."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self.a = Fleet(0.0, lambda: self.now)
        self.b = Fleet(0.0, lambda: self.now + 1_000.0)
        self.mirror = Mirror()
        self.told = NodesTold(self.a)
        self.told.start()
        self.a.subscribe(self._noted)
        self.heard = NodesHeard(self.b, self.mirror, Nobody(), lambda: self.now)  # type: ignore[arg-type]
        self.of_a: Heard = self.heard.of("a")

    def _noted(self, node: str) -> None:
        self.told.changed(node)

    def open(self, node: str, session: str = "s1", *replicas: str) -> None:
        seen = self.a.observe(node)
        seen.belong(None, SessionName("i", 1, session), "a")
        seen.replicas = {uid: _status(uid) for uid in replicas}
        seen.complete = True
        self.a.touch(node)

    def close(self, node: str) -> None:
        self.a.observe(node).connected = False
        self.a.touch(node)

    def link(self) -> None:
        self.heard.begin(self.of_a)
        self.pulse()
        said = [part for node in self.told.nodes() for part in self.told.whole(node)]
        self.heard.take(self.of_a, member_pb2.NodesSaid(nodes=said, complete=True))

    def tell(self) -> list[member_pb2.NodeSaid]:
        said = list(self.told.differences())
        for part in said:  # the worst case: each in a message of its own
            raw = member_pb2.NodesSaid(nodes=[part]).SerializeToString()
            self.heard.take(self.of_a, member_pb2.NodesSaid.FromString(raw))
        return said

    def pulse(self, **silent_s: float) -> None:
        silent = [
            member_pb2.SilentNode(node=node, silence_ms=int(silence * 1000))
            for node, silence in silent_s.items()
        ]
        self.heard.pulse(self.of_a, member_pb2.Pulse(silent=silent))

    def pass_s(self, seconds: float) -> None:
        """With a pulse each second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.pulse()

    def state(self, node: str) -> Liveness:
        return self.b.liveness(node, True, PERIODS).state


@pytest.fixture
def pair() -> Iterator[Pair]:
    yield Pair()


def _status(uid: str, message: str = "") -> agent_pb2.ReplicaStatus:
    return agent_pb2.ReplicaStatus(replica_uid=uid, message=message)


def _shown(fleet: Fleet, node: str) -> object:
    seen = fleet.observe(node)
    facts = (seen.connected, seen.session_id, seen.complete, seen.acked_generation, seen.plan_error)
    standbys = {key: s.SerializeToString() for key, s in sorted(seen.standbys.items())}
    return facts, {uid: s.SerializeToString() for uid, s in sorted(seen.replicas.items())}, standbys


def _standbys(*replicas: str, reason: str = "") -> dict[tuple[str, str], agent_pb2.StandbyStatus]:
    return {
        ("w", name): agent_pb2.StandbyStatus(
            workload_uid="w", replica=name, able=not reason, reason=reason
        )
        for name in replicas
    }


@pytest.mark.parametrize("seed", range(20))
def test_differences_come_to_the_same_as_everything(seed: int) -> None:
    pair, dice = Pair(), random.Random(seed)
    pair.link()
    for step in range(200):
        node = f"n{dice.randrange(4)}"
        seen = pair.a.observe(node)
        match dice.randrange(9):
            case 0:
                pair.open(node, f"s{step}", *(f"r{i}" for i in range(dice.randrange(250))))
            case 1:
                pair.close(node)
            case 2 if seen.replicas:
                seen.replicas.pop(dice.choice(list(seen.replicas)))
            case 3:
                seen.acked_generation += 1
            case 4:
                seen.plan_error = f"e{step}"
            case 5:
                pair.tell()
                pair.link()  # it was broken, and is heard from the beginning
            case 6:
                seen.standbys = _standbys(f"web-{dice.randrange(9)}", reason=f"R{step}")
            case _:
                uid = f"r{dice.randrange(250)}"
                seen.replicas[uid] = _status(uid, f"m{step}")
        pair.a.touch(node)
        if dice.random() < 0.5:
            pair.tell()
    pair.tell()
    for i in range(4):
        if pair.a.observe(f"n{i}").connected:
            assert _shown(pair.b, f"n{i}") == _shown(pair.a, f"n{i}")
        else:
            assert not pair.b.observe(f"n{i}").connected


def test_only_what_changed_is_told(pair: Pair) -> None:
    pair.open("n", "s1", "r1", "r2")
    assert [len(said.replicas) for said in pair.tell()] == [2]
    pair.a.observe("n").replicas["r1"] = _status("r1", "new")
    pair.a.touch("n")
    (said,) = pair.tell()
    assert [s.replica_uid for s in said.replicas] == ["r1"] and not said.whole
    pair.a.touch("n")
    assert not pair.tell()


def test_what_standbys_are_able_to_is_told_whole_when_it_changed(pair: Pair) -> None:
    pair.open("n")
    pair.a.observe("n").standbys = _standbys("web-0", "web-1")
    (said,) = pair.tell()
    assert len(said.standbys) == 2
    pair.a.observe("n").acked_generation += 1
    pair.a.touch("n")
    (said,) = pair.tell()
    assert not said.standbys
    pair.a.observe("n").standbys = _standbys("web-1", reason="NoRoom")
    pair.a.touch("n")
    pair.tell()
    (heard,) = pair.b.observe("n").standbys.values()
    assert (heard.replica, heard.able, heard.reason) == ("web-1", False, "NoRoom")


def test_a_large_node_is_not_complete_before_its_last_part(pair: Pair) -> None:
    pair.open("n", "s1", *(f"r{i}" for i in range(REPLICAS_PER_MESSAGE * 2 + 1)))
    parts = list(pair.told.differences())
    assert [part.hello_complete for part in parts] == [False, False, True]
    assert [part.whole for part in parts] == [True, False, False]


def test_what_a_stop_waits_for_is_heard_and_forgotten_with_the_stop(pair: Pair) -> None:
    pair.open("n", "s1", "r1", "r2")
    pair.mirror.stops["n"] = ("r1",)
    pair.tell()
    seen = pair.a.observe("n")
    del seen.replicas["r1"], seen.replicas["r2"]
    seen.gone = {"r1"}
    pair.a.touch("n")
    pair.tell()
    assert pair.b.observe("n").gone == {"r1"} and not pair.b.observe("n").replicas
    pair.mirror.stops["n"] = ()
    seen.acked_generation = 2
    pair.a.touch("n")
    pair.tell()
    assert pair.b.observe("n").gone == set()


def test_words_of_a_session_that_was_not_told_whole_change_nothing(pair: Pair) -> None:
    said = member_pb2.NodeSaid(node="n", connected=True, session_id="s", replicas=[_status("r")])
    pair.heard.take(pair.of_a, member_pb2.NodesSaid(nodes=[said]))
    assert pair.b.get("n") is None


# --- silence --------------------------------------------------------------------------------------


def test_a_pulse_keeps_all_alive_but_the_silent(pair: Pair) -> None:
    pair.open("n1")
    pair.open("n2")
    pair.tell()
    pair.link()
    for second in range(1, 41):
        pair.now += 1.0
        pair.pulse(n2=second)
    assert (pair.state("n1"), pair.state("n2")) == (Liveness.LIVE, Liveness.LOST)
    seen = pair.b.get("n2")
    assert seen is not None and pair.now - seen.last_seen == pytest.approx(40.0)


def test_silence_of_a_session_that_ended_counts_from_its_last_word(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.now += 15.0
    pair.pulse(n=15.0)
    pair.close("n")
    pair.tell()
    pair.pass_s(14)
    assert pair.state("n") is Liveness.SILENT
    pair.pass_s(2)
    assert pair.state("n") is Liveness.LOST


def test_who_is_not_named_again_is_silent_from_then_on(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.heard.end(pair.of_a)
    pair.now += 300.0
    pair.close("n")
    list(pair.told.differences())  # nobody hears it
    pair.link()
    assert not pair.b.observe("n").connected
    assert pair.state("n") is Liveness.LIVE
    pair.pass_s(29)
    assert pair.state("n") is Liveness.SILENT
    pair.pass_s(2)
    assert pair.state("n") is Liveness.LOST


def test_nothing_is_lost_while_a_member_that_is_there_cannot_be_asked(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.heard.end(pair.of_a)
    pair.b.cannot_ask({"a": "cannot be reached since 12:00:00 UTC"})
    pair.now += 3_000.0
    assert pair.state("n") is pair.state("elsewhere") is Liveness.SILENT
    assert "member a, which has its session" in pair.b.doubt("n")
    assert "member a, which may have a session" in pair.b.doubt("elsewhere")
    pair.b.cannot_ask({})  # its lease ran out
    assert pair.state("n") is Liveness.SILENT and not pair.b.doubt("n")
    pair.now += 29.0
    assert pair.state("n") is Liveness.SILENT
    pair.now += 2.0
    assert pair.state("n") is Liveness.LOST


def test_a_member_without_a_lease_leaves_its_agents_a_full_period(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.now += 20.0  # a pulse came last then
    pair.heard.end(pair.of_a)
    pair.now += 29.0
    assert pair.state("n") is Liveness.SILENT
    pair.now += 2.0
    assert pair.state("n") is Liveness.LOST


def test_who_was_lost_before_stays_lost_when_a_link_breaks(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.close("n")
    pair.tell()
    pair.pass_s(100)
    assert pair.state("n") is Liveness.LOST
    pair.heard.end(pair.of_a)
    assert pair.state("n") is Liveness.LOST
    pair.b.cannot_ask({"a": "cannot be reached"})
    assert pair.state("n") is Liveness.LOST


def test_another_link_that_breaks_while_a_member_cannot_be_asked_makes_nobody_lost(
    pair: Pair,
) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.heard.end(pair.of_a)
    pair.b.cannot_ask({"a": "cannot be reached"})
    pair.now += 200.0  # the link stays broken, and the member is there
    pair.b.link_ended()  # of a third member
    assert pair.state("n") is Liveness.SILENT
    pair.now += 200.0
    pair.b.attend()
    pair.now += 60.0  # SIGSTOP, and on
    pair.b.attend()
    assert pair.state("n") is Liveness.SILENT
    pair.b.cannot_ask({})
    pair.now += 29.0
    pair.b.attend()
    assert pair.state("n") is Liveness.SILENT


def test_deaf_times_that_a_longer_patience_spans_are_one() -> None:
    """A node that was silent before the first is not lost in the second."""
    now = 1_000.0
    fleet, patient = Fleet(0.0, lambda: now, lost_after_s=300.0), Periods(10.0, 300.0)
    fleet.observe("n").heard_at = now
    now += 10.0
    fleet.cannot_ask({"a": "cannot be reached"})
    now += 300.0
    fleet.cannot_ask({})
    now += 100.0
    fleet.link_ended()
    assert fleet.liveness("n", True, patient).state is Liveness.SILENT


def test_a_new_leader_waits_a_full_period_for_nodes_that_others_hear_of(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.now += 1.0
    pair.pulse(n=100.0)
    led_since = pair.b.steady()
    assert pair.b.liveness("n", True, PERIODS, led_since).state is Liveness.SILENT
    pair.now += 31.0
    pair.pulse(n=131.0)
    assert pair.b.liveness("n", True, PERIODS, led_since).state is Liveness.LOST


def test_a_process_that_was_stopped_heard_nobody_meanwhile(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.b.observe("own").heard_at = pair.b.steady()
    pair.b.attend()
    pair.now += 60.0  # SIGSTOP, and on
    assert pair.state("own") is pair.state("n") is Liveness.SILENT
    for _ in range(29):
        pair.now += 1.0
        pair.b.attend()
        pair.pulse()
    assert (pair.state("own"), pair.state("n")) == (Liveness.SILENT, Liveness.LIVE)
    pair.now += 2.0
    pair.b.attend()
    assert pair.state("own") is Liveness.LOST


def test_who_has_moved_while_a_member_says_everything_is_no_claim_of_it(pair: Pair) -> None:
    pair.open("n")
    pair.tell()
    pair.link()
    pair.heard.end(pair.of_a)
    pair.close("n")
    list(pair.told.differences())  # nobody hears it
    pair.heard.begin(pair.of_a)
    other = pair.heard.of("c")
    other.peer.reachable = True
    said = member_pb2.NodeSaid(
        node="n", connected=True, whole=True, instance_id="i", session_number=2, session_id="s2"
    )
    pair.heard.take(other, member_pb2.NodesSaid(nodes=[said]))
    pair.heard.take(pair.of_a, member_pb2.NodesSaid(complete=True))
    pair.heard.take(
        other, member_pb2.NodesSaid(nodes=[member_pb2.NodeSaid(node="n", session_id="s2")])
    )
    assert not pair.heard.unclaimed(pair.of_a)
