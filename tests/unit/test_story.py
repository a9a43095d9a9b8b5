"""Stories: why it is there, what happened, what comes next; in order, bounded, with sources."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.api.foretelling import NEXT_MAX, Ahead, Circumstances
from orchestrator.api.story import (
    ENTRIES_MAX,
    NodeFacts,
    ReplicaFacts,
    Stay,
    WorkloadFacts,
    node_story,
    replica_story,
    with_sources,
    workload_story,
)
from orchestrator.domain.freezes import Freeze
from orchestrator.domain.holds import Hold, HoldKind, Scope
from orchestrator.domain.rollout_state import Past, Phase, RolloutState, Standing, Wave
from orchestrator.events import EventRecord
from orchestrator.records import AssignmentRecord, StoredResource, TemplateRevision
from polder.manifest.facts import Maintenance
from polder.manifest.update import Canary, Update
from polder.v1 import common_pb2

NOW = 1_800_000_000_000
NORMAL, WARNING = common_pb2.EVENT_TYPE_NORMAL, common_pb2.EVENT_TYPE_WARNING
RUNNING = {"phase": "Running", "ready": True, "observedAt": NOW, "source": "agent/n1"}


def event(
    reason: str, message: str, at: int, kind: str = "Replica", name: str = "w-0", **more: Any
) -> EventRecord:
    fields = {"type": NORMAL, "source": "leader/m", "first_at_ms": at, "last_at_ms": at, **more}
    return EventRecord(kind, "ns", name, reason=reason, message=message, **fields)


def assignment(**changes: Any) -> AssignmentRecord:
    record = AssignmentRecord("ns", "w", "wu", "w-0", "u1", 41, 3, placed_at_ms=NOW - 60_000)
    return replace(record, **changes)


def stay(**changes: Any) -> Stay:
    return replace(Stay("n1", "s1", assignment(), RUNNING), **changes)


def replica(**changes: Any) -> ReplicaFacts:
    return replace(ReplicaFacts("w-0", RUNNING, "leader/m", (stay(),)), **changes)


def told(story: Any) -> list[str]:
    return [f"{entry.reason}: {entry.message}" for entry in story.entries]


# --- what happened ------------------------------------------------------------------------------


def test_it_begins_with_why_the_replica_is_there() -> None:
    because = ("residency: site s1 is in NL",)
    there = stay(because=because, assignment=assignment(because="Drained", replaces="u0"),
                 former_node="n0")  # fmt: skip
    story = replica_story(replica(stays=(there,)))
    first, fact = story.entries[:2]
    assert first.message == (
        "placed on node n1 at site s1 (epoch 41), to replace its stay on node n0, because: Drained"
    )
    assert (first.at_ms, first.source) == (NOW - 60_000, "leader/m")
    assert fact.message == "it may be there: residency: site s1 is in NL"
    assert (story.entries[-1].reason, story.entries[-1].source) == ("Ready", "agent/n1")


def test_everything_stands_in_its_order() -> None:
    container = {"name": "app", "restarts": 2, "lastExit": {
        "exitCode": 3, "reason": "Error", "finishedAt": NOW - 20_000}}  # fmt: skip
    facts = replica(
        stays=(
            stay(
                status={**RUNNING, "containers": [container]},
                events=(event("Silent", "no word", NOW - 15_000, "Node", "n1"),),
            ),
        ),
        events=(event("Started", "container app", NOW - 59_000),),
        workload_events=(event("RolloutSoaking", "watched", NOW - 30_000, "Workload", "w"),),
        revision=TemplateRevision("wu", 3, {}, "d", NOW - 90_000, "operator/ann"),
    )
    story = replica_story(facts)
    assert [entry.reason for entry in story.entries] == [
        "Revision",
        "Placed",
        "Started",
        "RolloutSoaking",
        "Exited",
        "Silent",
        "Ready",
    ]
    exit_ = story.entries[4]
    assert exit_.message == (
        "container app ended with exit code 3 (Error); it has been started again 2 times"
    )
    assert exit_.warning
    assert story.entries[5].message == "node n1: no word"


def test_what_its_node_did_before_it_came_is_not_its_story() -> None:
    old = event("Silent", "no word", NOW - 100_000, "Node", "n1")
    assert "Silent" not in str(told(replica_story(replica(stays=(stay(events=(old,)),)))))


def test_what_is_said_of_its_siblings_is_not_its_story() -> None:
    about = (
        event("CannotMove", "w-1: no node fits", NOW - 5_000, "Workload", "w"),
        event("CannotMove", "w-1, w-0: no node fits", NOW - 4_000, "Workload", "w"),
        event("RolloutProven", "revision 3 held", NOW - 3_000, "Workload", "w"),
    )
    shown = told(replica_story(replica(workload_events=about)))
    assert sum("CannotMove" in line for line in shown) == 1
    assert any("RolloutProven" in line for line in shown)


def test_what_befell_its_workload_in_its_earlier_stays_is_told() -> None:
    failed = event("RolloutFailed", "revision 2 failed", NOW - 70_000, "Workload", "w")
    before = event("RolloutStarted", "revision 1 begins", NOW - 900_000, "Workload", "w")
    own = event("Started", "container app", NOW - 80_000)
    shown = str(told(replica_story(replica(events=(own,), workload_events=(before, failed)))))
    assert "revision 2 failed" in shown and "revision 1 begins" not in shown


def test_a_placement_is_told_once() -> None:
    again = event("Placed", "placed on node n1", NOW - 60_000)
    former = event("Placed", "placed on node n0", NOW - 90_000)
    shown = told(replica_story(replica(events=(former, again))))
    assert sum(line.startswith("Placed") for line in shown) == 2
    assert shown[0] == "Placed: placed on node n0"


def test_an_earlier_stay_on_the_same_node_is_told_too() -> None:
    twice = event("Placed", "placed on node n1", NOW - 60_000, first_at_ms=NOW - 90_000, count=2)
    found = [e for e in replica_story(replica(events=(twice,))).entries if e.reason == "Placed"]
    assert [entry.at_ms for entry in found] == [NOW - 90_000, NOW - 60_000]


def test_of_a_repeated_event_the_first_and_the_last_time_are_told() -> None:
    often = event("CrashLoop", "exit 1", NOW - 1_000, first_at_ms=NOW - 50_000, count=7)
    found = [e for e in replica_story(replica(events=(often,))).entries if e.reason == "CrashLoop"]
    assert [(entry.at_ms, entry.count) for entry in found] == [(NOW - 50_000, 1), (NOW - 1_000, 7)]


def test_a_story_is_bounded_and_keeps_its_beginning() -> None:
    many = tuple(event("Started", f"turn {n}", NOW - 50_000 + n) for n in range(300))
    story = replica_story(replica(events=many))
    assert len(story.entries) == ENTRIES_MAX
    assert story.entries[0].reason == "Placed"
    assert story.entries[1].reason == "LeftOut"
    assert story.entries[-1].reason == "Ready"


def test_an_unknown_state_says_since_when() -> None:
    silent = {"phase": "Unknown", "reason": "NodeSilent", "message": "no word from node n1",
              "observedAt": NOW - 9_000, "source": "agent/n1"}  # fmt: skip
    last = replica_story(replica(status=silent)).entries[-1]
    assert (last.reason, last.at_ms, last.warning) == ("Unknown", NOW - 9_000, True)


WORKLOAD = StoredResource("Workload", "ns", "w", "wu", {}, created_at_ms=NOW - 100_000)


def test_a_workloads_story_has_its_revisions_and_how_they_fared() -> None:
    state = RolloutState(3, 2, history=(
        Past(2, "b", "b", Standing.PROVEN, "", NOW - 70_000),
        Past(3, "c", "c", Standing.FAILED, "it crashed", NOW - 40_000),
    ))  # fmt: skip
    facts = WorkloadFacts(
        replace(WORKLOAD, changed_by="operator/bob", changed_at_ms=NOW - 60_000, generation=4),
        {"phase": "Degraded", "placed": 1, "reason": "RolledBack", "updatedAt": NOW},
        (TemplateRevision("wu", 3, {}, "c", NOW - 60_000, "operator/bob"),
         TemplateRevision("wu", 1, {}, "a", NOW - 100_000, "operator/ann")),
        (event("Placed", "placed on node n1", NOW - 99_000),
         event("Former", "of another w", NOW - 500_000, "Workload", "w")),
        Circumstances(rollout=state),
    )  # fmt: skip
    story = workload_story(facts)
    assert story.entries[0].source == "operator/ann"
    shown = told(story)
    assert "Former" not in str(shown)
    assert "Placed: w-0: placed on node n1" in shown
    assert "Changed: last changed (generation 4)" in shown
    assert shown[-1] == "Degraded: RolledBack"


def test_who_asked_for_the_deletion_is_told() -> None:
    gone = replace(
        WORKLOAD, changed_by="operator/eve", changed_at_ms=NOW, deletion_requested_at_ms=NOW
    )
    entry = workload_story(WorkloadFacts(gone, {})).entries[1]
    assert (entry.source, entry.reason, entry.at_ms) == ("operator/eve", "Deleting", NOW)


def test_a_decision_is_told_once() -> None:
    state = RolloutState(1, 1, history=(Past(1, "a", "a", Standing.PROVEN, "", NOW - 9_000),))
    said = (event("RolloutProven", "revision 1 held", NOW - 9_010, "Workload", "w"),)
    facts = WorkloadFacts(WORKLOAD, {}, (), said, Circumstances(rollout=state))
    shown = told(workload_story(facts))
    assert [line for line in shown if line.startswith("Rollout")] == [
        "RolloutProven: revision 1 held"
    ]


def test_decisions_older_than_the_events_are_told_from_the_record() -> None:
    state = RolloutState(2, 2, history=(Past(1, "a", "a", Standing.FAILED, "crash", NOW - 50_000),))
    kept = (event("Started", "x", NOW - 10_000),)
    facts = WorkloadFacts(WORKLOAD, {}, (), kept, Circumstances(rollout=state))
    assert "RolloutFailed: revision 1 was found failed: crash" in told(workload_story(facts))


def test_a_nodes_story_begins_when_it_joined() -> None:
    record = StoredResource("Node", "", "n1", "u2", {"site": "s1"}, created_at_ms=NOW - 50_000)
    status = {"ready": None, "reason": "Silent", "lastSeenAt": NOW - 20_000, "source": "gateway/m"}
    story = node_story(NodeFacts(record, status, joined_at_ms=NOW - 50_000))
    assert told(story) == ["Joined: joined site s1", "Unknown: Silent"]
    again = event("JoinedAgain", "joined site s1; it is a new node", NOW - 49_000, "Node", "n1")
    assert told(node_story(NodeFacts(record, status, events=(again,))))[0].startswith("JoinedAgain")


def test_sources_name_the_leader() -> None:
    state = RolloutState(2, 2, history=(Past(1, "a", "a", Standing.PROVEN, "", NOW - 5),))
    story = workload_story(WorkloadFacts(WORKLOAD, {}, circumstances=Circumstances(rollout=state)))
    sources = {entry.source for entry in with_sources(story, "leader/m7").entries}
    assert "leader/m7" in sources and "leader" not in sources


# --- what comes next ----------------------------------------------------------------------------

CANARY = Update(canary=Canary(sites=1, soak=60.0), proven_after=600.0, progress_deadline=300.0)
HERE = Circumstances(now_ms=NOW, leader="leader/m", node="n1", site="s1")


def lines(found: tuple[Ahead, ...]) -> dict[str, str]:
    return {item.reason: item.message for item in found}


def test_how_it_is_now_comes_last_with_its_age() -> None:
    later = event("NodeSilent", "nothing is heard", NOW - 1_000)
    silent = {"phase": "Unknown", "reason": "NodeSilent", "observedAt": NOW - 9_000}
    reasons = [e.reason for e in replica_story(replica(status=silent, events=(later,))).entries]
    assert reasons[-2:] == ["NodeSilent", "Unknown"]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (RolloutState(5, 5, Phase.SOAKING, wave=Wave.CANARY, sites=("s1",), held_s=18.0),
         "RolloutSoaking", "watched for another 42s (canary: s1)"),
        (RolloutState(5, 5, Phase.PROVING, held_s=500.0), "RolloutProving", "proven in 100s"),
        (RolloutState(5, 5, Phase.PROGRESSING, stalled_s=200.0), "RolloutProgressing", "for 100s"),
        (RolloutState(5, 4, Phase.ROLLING_BACK, message="it crashed"),
         "RollingBack", "return to revision 4: it crashed"),
        (RolloutState(5, 5, Phase.PAUSED), "RolloutPaused", "rollout resume"),
        (RolloutState(5, 4, Phase.ROLLED_BACK, message="bad"), "RolledBack", "not tried again"),
        (RolloutState(5, 5, Phase.FAILED, message="late"), "Failed", "its replicas go on trying"),
        (RolloutState(5, 5, Phase.FAILED, late=True, message="it crashed"),
         "Failed", "revision 5 is not tried again: it crashed"),
        (RolloutState(5, 4, Phase.FAILED, message="gone"), "Failed", "revision 5 is not tried"),
    ],
)  # fmt: skip
def test_what_a_rollout_waits_for(state: RolloutState, reason: str, words: str) -> None:
    found = lines(replace(HERE, rollout=state, update=CANARY).next_of_workload())
    assert words in found[reason]


def test_without_replicas_no_proof_is_promised() -> None:
    state = RolloutState(5, 5, Phase.PROVING, held_s=500.0)
    found = lines(replace(HERE, rollout=state, update=CANARY, wanted=0).next_of_workload())
    assert "cannot be proven" in found["RolloutProving"]


def test_a_template_that_the_leader_has_not_seen_is_what_comes_next() -> None:
    state = RolloutState(5, 5, Phase.PROVING)
    found = lines(replace(HERE, rollout=state, update=CANARY, newest=6).next_of_workload())
    assert found == {"RolloutPending": "revision 6 begins as soon as the leader takes it up"}


def test_nothing_is_next_of_what_is_proven() -> None:
    state = RolloutState(5, 5, Phase.PROVEN)
    assert replace(HERE, rollout=state).next_of_workload() == ()


def test_a_replica_of_an_old_revision_waits_for_its_turn() -> None:
    state = RolloutState(5, 5, Phase.SOAKING, wave=Wave.CANARY, sites=("s2",))
    found = lines(replace(HERE, rollout=state, revision=4, update=CANARY).next_of_replica())
    assert found["UpdateAhead"] == "it goes from revision 4 to 5 when its turn comes (canary: s2)"
    assert "RolloutSoaking" not in found


def test_guards_come_first_and_say_what_to_type() -> None:
    hold = Hold(
        "ab12", HoldKind.STOPS, Scope.SITE, "s1", "12 stops are held", NOW, workloads=("ns/w",)
    )
    freeze = Freeze("ns", "operator/ann", "audit", NOW)
    state = RolloutState(5, 5, Phase.PROGRESSING)
    found = replace(HERE, freeze=freeze, holds=(hold,), rollout=state).next_of_workload()
    assert [item.reason for item in found] == ["Frozen", "Held"]  # no clock goes on meanwhile
    assert "edgectl thaw --namespace ns" in found[0].message
    assert "edgectl approve ab12" in found[1].message
    assert found[0].source == "operator/ann"
    approved = replace(hold, approved_at_ms=NOW)
    assert "Held" not in lines(replace(HERE, holds=(approved,)).next_of_workload())


def test_a_silent_leader_is_told() -> None:
    assert "LeaderSilent" in lines(replace(HERE, leader_current=False).next_of_replica())


def test_a_drain_and_a_window_are_told_with_their_ends() -> None:
    now_s = NOW / 1000
    windows = (
        Maintenance(now_s + 3600, now_s + 7200, drain=True),
        Maintenance(now_s - 60, now_s + 60),
        Maintenance(now_s - 600, now_s - 60),  # over
    )
    there = replace(HERE, draining=True, drain_deadline_s=now_s + 300, windows=windows)
    found = there.next_of_replica()
    ahead = {item.reason: item.at_ms for item in found}
    assert ahead["DrainPending"] == NOW + 300_000
    assert ahead["MaintenanceEnds"] == NOW + 60_000
    assert ahead["MaintenanceBegins"] == NOW + 3_600_000
    assert len([item for item in found if item.reason.startswith("Maintenance")]) == 2


def test_a_crash_loop_says_when_it_is_started_again() -> None:
    looping = {
        "name": "app",
        "state": "waiting",
        "reason": "CrashLoop",
        "message": "exit code 1; next start in 40 s",
        "lastExit": {"finishedAt": NOW - 5_000},
    }
    found = replace(HERE, containers=(looping,)).next_of_replica()
    assert (found[0].reason, found[0].source) == ("CrashLoop", "agent/n1")
    assert found[0].message == "container app is started again: exit code 1; next start in 40 s"
    assert found[0].at_ms == NOW + 35_000


def test_who_takes_over_is_named() -> None:
    found = lines(replace(HERE, standbys=("n2", "n3")).next_of_replica())
    assert found["Standby"] == "if node n1 fails, it is taken over by n2, n3"
    one = replace(HERE, standbys=("n3",), unable=("n2 (Unable: NoRoom)",))
    text = "if node n1 fails, it is taken over by n3; passed over: n2 (Unable: NoRoom)"
    assert lines(one.next_of_replica())["Standby"] == text
    (none,) = replace(HERE, unable=("n2 (Unable: NoRoom)",)).next_of_replica()
    assert none.warning and "cannot be taken over by any other now" in none.message
    silent = replace(HERE, node_silent_since_ms=NOW - 5_000, lost_after_s=30.0).next_of_replica()
    assert silent[0].at_ms == NOW + 25_000
    alone = replace(HERE, node_silent_since_ms=NOW - 5_000, exclusive=True).next_of_replica()
    assert "takeover within its site" in alone[0].message and not alone[0].at_ms


def test_a_node_says_what_is_left_on_it() -> None:
    there = replace(HERE, draining=True, replicas_left=2, cordoned="node n1 is cordoned")
    found = lines(there.next_of_node())
    assert found["Draining"] == "2 replica(s) have to move away"
    assert "Drained" in lines(replace(there, replicas_left=0).next_of_node())


def test_what_comes_next_is_bounded() -> None:
    many = tuple((f"w-{n}", "CannotMove", "no node fits") for n in range(100))
    assert len(replace(HERE, waits=many).next_of_workload()) == NEXT_MAX
