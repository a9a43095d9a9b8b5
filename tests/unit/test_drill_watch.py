"""What a drill counts as a change of the plan, and how a member plays dead around its work."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import drill
from orchestrator.cache import Cache, Change
from orchestrator.calls import LiveCalls
from orchestrator.domain.drill import LEAD_IN_S, Drill
from orchestrator.fleet import NodeObservation
from orchestrator.playing_dead import PlayingDead
from orchestrator.records import AssignmentRecord, KeptRecord, NodePlacement, StoredResource
from orchestrator.refusals import Refused
from orchestrator.store import keys
from polder.v1 import agent_pb2

NOW = 1_000_000.0
DRILL = Drill("eu", "d1", "operator/ann", "", int(NOW * 1000), 60.0, ("a1",), "a1")


def assigned(uid: str, revision: int = 1, workload: str = "w", *, once: bool = False) -> Any:
    return AssignmentRecord("ns", workload, workload, uid, uid, 1, revision, once=once)


def placement(*assignments: AssignmentRecord, generation: int = 1) -> NodePlacement:
    return NodePlacement("n1", generation, assignments)


def moved(before: NodePlacement | None, after: NodePlacement, *touched: str) -> int:
    return drill._moves(Change(keys.placement("n1"), 9, after, before), set(touched))


def test_what_counts_as_a_change_of_the_plan() -> None:
    both = placement(assigned("r1"), assigned("r2"))
    assert moved(None, both) == 2
    assert moved(both, placement(assigned("r1"), assigned("r3"))) == 2  # one left, one came
    assert moved(both, placement(assigned("r1", 2), assigned("r2"))) == 1
    assert moved(both, replace(both, generation=2)) == 0
    standbys = replace(both, assignments=(replace(both.assignments[0], standbys=("n2",)),))
    assert moved(placement(assigned("r1")), standbys) == 0
    assert moved(None, placement(assigned("j1", once=True))) == 0  # a job's: they come and go
    assert moved(both, placement(), "w") == 0  # an operator changed the workload
    assert drill._moves(Change("/specs/x", 9, None, None), set()) == 0


def test_what_operators_do_meanwhile_is_no_change_of_the_leaders() -> None:
    stored = StoredResource("Workload", "ns", "w", "uid", {})
    change = Change("k", 9, replace(stored, generation=2), stored)
    assert drill._by_operator(change)
    assert not drill._by_operator(replace(change, value=stored))
    assert drill._by_operator(replace(change, previous=None))
    node = replace(stored, kind="Node")
    assert not drill._by_operator(Change("k", 9, node, None))


def test_only_containers_that_ran_and_were_ready_are_compared() -> None:
    def status(uid: str, *, ready: bool = True, state: str = "running") -> agent_pb2.ReplicaStatus:
        found = agent_pb2.ReplicaStatus(replica_uid=uid, ready=ready)
        found.containers.add(name="app", id=f"{uid}-1", state=state, started_at_ms=7)
        return found

    node = NodeObservation("n1")
    node.replicas = {
        "r1": status("r1"),
        "r2": status("r2", ready=False),
        "r3": status("r3", state="exited"),
    }
    assert drill.marks_of(node).replicas == {"r1": (("app", "r1-1", 7),), "r3": ()}


# --- playing dead ---------------------------------------------------------------------------------


class Fakes:
    """A mirror with one record and a clock that the test moves."""

    def __init__(self) -> None:
        self.record: KeptRecord | None = None
        self.steady = 100.0
        self.cut: list[bool] = []
        mirror: Any = Cache(None, lambda: NOW)  # type: ignore[arg-type]
        mirror.kept_at = lambda _: self.record
        self.calls = LiveCalls(mirror, lambda: NOW)
        self.playing = PlayingDead("eu", mirror, self.calls, lambda: NOW, lambda: self.steady)
        self.playing.also(self.cut.append)


async def test_everybody_is_refused_from_the_lead_in_to_the_end() -> None:
    fakes = Fakes()
    fakes.playing.look()
    fakes.record = DRILL.record()
    fakes.playing.look()
    fakes.calls.check_open()  # the lead-in: the others note how things are
    fakes.steady += LEAD_IN_S
    fakes.playing.look()
    with pytest.raises(Refused, match="plays dead for another 60 s"):
        fakes.calls.check_open()
    fakes.steady += DRILL.duration_s
    fakes.playing.look()
    fakes.calls.check_open()
    assert fakes.cut == [True, False]


async def test_work_rests_while_the_member_plays_dead() -> None:
    fakes, runs = Fakes(), []

    async def work() -> None:
        runs.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            runs.append("ended")

    task = asyncio.create_task(fakes.playing.around(work))
    await settled()
    fakes.record = DRILL.record()  # found at the first look: for what is left
    fakes.playing.look()
    await settled()
    assert runs == ["began", "ended"]
    fakes.steady += 100.0
    fakes.playing.look()
    await settled()
    assert runs == ["began", "ended", "began"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert runs[-1] == "ended"


async def test_work_that_fails_is_not_hidden() -> None:
    async def work() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await Fakes().playing.around(work)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
