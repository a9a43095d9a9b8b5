"""How a rollout's replicas fare: what is seen of stays, and since when."""

from dataclasses import replace

from orchestrator.domain.liveness import Liveness
from orchestrator.domain.rollout import Progress, Tally
from orchestrator.records import AssignmentRecord, NodePlacement
from orchestrator.scheduling.holdings import Holdings, Stay
from orchestrator.scheduling.rollout_progress import (
    CRASH_LOOP_S,
    RESTARTS_WITHIN_S,
    UNREADY_S,
    Watches,
    progress,
    watched,
)
from orchestrator.scheduling.snapshot import Node, Observed

READY = Observed(running=True, ready=True, revision=2, ready_for_s=5.0)
DOWN = replace(READY, ready=False, ready_for_s=0.0)
CRASHED = replace(DOWN, running=False, reason="CrashLoop")


def stay(node: str, replica: str = "web-0", revision: int = 2, epoch: int = 1) -> Stay:
    uid = f"{replica}@{node}/{epoch}"
    return node, AssignmentRecord("ns", "web", "uid", replica, uid, epoch, revision)


class Watcher:
    """One workload on nodes of site s1, unless told otherwise."""

    def __init__(self, *stays: Stay, nodes: dict[str, Node] | None = None) -> None:
        self.stays = list(stays)
        self.nodes = nodes or {name: Node(name, "s1") for name, _ in stays}
        self.watches: Watches = {}
        self.steady = 100.0

    def sees(
        self, *said: Observed | None, after_s: float = 0.0, min_ready: float = 0.0
    ) -> Progress:
        self.steady += after_s
        observed = {
            (node, record.replica_uid): seen
            for (node, record), seen in zip(self.stays, said, strict=True)
            if seen is not None
        }
        before, self.watches = (
            self.watches,
            watched(self.stays, self.nodes, observed, self.watches, self.steady),
        )
        both = (before, self.watches)
        return progress(self.stays, 2, self.nodes, observed, both, self.steady, min_ready)


def test_available_is_ready_for_long_enough_with_the_revision_that_is_assigned() -> None:
    one = Watcher(stay("n1"))
    assert one.sees(READY).at(None) == Tally(1, 1, 1)
    assert one.sees(READY, min_ready=6.0).reasons == (("NotReadyLongEnough", 1),)
    assert one.sees(replace(READY, revision=1)).at(None) == Tally(1, 1, 0)
    assert one.sees(replace(READY, terminating=True)).at(None).available == 0
    assert one.sees(None).reasons == (("NotStarted", 1),)
    assert one.sees(CRASHED).reasons == (("CrashLoop", 1),)


def test_one_crash_is_no_crash_loop_but_three_are() -> None:
    one = Watcher(stay("n1"))
    one.sees(READY)
    for restarts in (1, 2):
        assert one.sees(replace(CRASHED, restarts=restarts), after_s=1.0).target.crashing == 0
    seen = one.sees(replace(CRASHED, restarts=3), after_s=2.0)
    assert (seen.target.crashing, seen.target.restarted) == (1, 1)


def test_waiting_in_a_crash_loop_is_crashing_whoever_led_before() -> None:
    one = Watcher(stay("n1"))
    assert one.sees(replace(CRASHED, restarts=7)).target.crashing == 0
    assert one.sees(replace(CRASHED, restarts=7), after_s=CRASH_LOOP_S).target.crashing == 1


def test_restarts_far_apart_are_no_crash_loop_and_closer_ones_are_one_in_slow_motion() -> None:
    for apart_s, crashing in ((RESTARTS_WITHIN_S, 0), (300.0, 1)):
        one = Watcher(stay("n1"))
        one.sees(READY)
        for restarts in (1, 2, 3):
            seen = one.sees(replace(READY, restarts=restarts), after_s=apart_s)
            assert seen.target.restarted == 1
        assert seen.target.crashing == crashing


def test_what_was_ready_counts_as_unready_after_a_while_and_what_never_was_does_not() -> None:
    two = Watcher(stay("n1"), stay("n2", "web-1"))
    two.sees(READY, DOWN)
    assert two.sees(DOWN, DOWN).target.unready == 0
    assert two.sees(DOWN, DOWN, after_s=UNREADY_S - 1).target.unready == 0
    assert two.sees(DOWN, DOWN, after_s=1.0).target.unready == 1
    assert two.sees(READY, DOWN).target.unready == 0


def test_a_stay_that_gets_another_revision_is_watched_anew() -> None:
    one = Watcher(stay("n1", revision=1))
    one.sees(replace(READY, revision=1, restarts=9))
    one.stays = [stay("n1")]
    seen = one.sees(replace(DOWN, restarts=12), after_s=60.0)
    assert (seen.target.restarted, seen.target.unready) == (0, 0)


def test_nodes_that_cannot_be_reached_say_nothing() -> None:
    stays = [stay(f"n{n}", f"web-{n}") for n in range(5)]
    nodes = {
        "n0": Node("n0", "s1"),
        "n1": Node("n1", "s1", liveness=Liveness.SILENT),
        "n2": Node("n2", "s2", liveness=Liveness.LOST),
        "n3": Node("n3", "s2", not_ready=True),
    }
    seen = Watcher(*stays, nodes=nodes).sees(READY, CRASHED, CRASHED, CRASHED, READY)
    assert seen.sites == {
        "s1": Tally(1, 1, 1, away=1),
        "s2": Tally(lost=1, away=1),
        "": Tally(lost=1),
    }
    assert seen.target.stays == 1


def test_a_box_that_was_away_does_not_count_against_what_starts_there_again() -> None:
    one = Watcher(stay("n1"))
    one.sees(READY)
    here, away = one.nodes, {"n1": Node("n1", "s1", liveness=Liveness.SILENT)}
    one.nodes = away
    one.sees(READY, after_s=60.0)
    one.nodes = here
    one.sees(replace(DOWN, restarts=1))
    seen = one.sees(replace(DOWN, restarts=1), after_s=60.0)
    assert (seen.target.unready, seen.target.restarted) == (0, 0)


def test_a_replica_with_two_stays_counts_once_at_the_newer_one() -> None:
    nodes = {"n1": Node("n1", "s1"), "n2": Node("n2", "s2")}
    pair = Watcher(stay("n1", revision=1), stay("n2", epoch=9), nodes=nodes)
    seen = pair.sees(replace(READY, revision=1), DOWN)
    assert seen.sites == {"s2": Tally(1, 1, 0)}
    assert (seen.target.stays, seen.others.stays) == (1, 1)
    assert seen.in_use == {1, 2}
    assert pair.sees(replace(READY, revision=1), READY).sites == {"s2": Tally(1, 1, 1)}


def test_holdings_read_only_placements_that_changed() -> None:
    first, second = stay("n1")[1], stay("n2", "web-1")[1]
    placements = {"n1": NodePlacement("n1", 1, (first,)), "n2": NodePlacement("n2", 1, (second,))}
    held = Holdings().at(placements)
    assert held.at(dict(placements)) is held
    assert held.of(frozenset({"uid"})) == {"uid": [("n1", first), ("n2", second)]}
    assert held.of(frozenset({"else"})) == {"else": []}
    later = held.at({"n1": placements["n1"], "n2": NodePlacement("n2", 2)})
    assert later.of(frozenset({"uid"})) == {"uid": [("n1", first)]}
    assert later.by_node["n1"] is held.by_node["n1"]
    assert held.at({"n1": placements["n1"]}).of(frozenset({"uid"})) == {"uid": [("n1", first)]}
