"""Status as operators see it: what is not heard of is unknown, and every part has its age."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.api.index import Placed, Stopping, WorkloadPlacement
from orchestrator.api.views import (
    LeaderView,
    NodeFacts,
    NodeView,
    node_status,
    replica_status,
    unplaced_status,
    with_conditions,
    without_age,
)
from orchestrator.api.workload_view import Said, workload_status
from orchestrator.domain.liveness import Liveness, NodeLiveness
from orchestrator.domain.maintenance import Standing
from orchestrator.fleet import NodeObservation
from orchestrator.records import (
    AssignmentRecord,
    IdentityRecord,
    NodePlacement,
    StopRecord,
    StoredResource,
)
from polder.v1 import agent_pb2

RUNNING = agent_pb2.REPLICA_PHASE_RUNNING
PENDING = agent_pb2.REPLICA_PHASE_PENDING
SPEC: dict[str, Any] = {"template": {"containers": [{"name": "a", "image": "a"}]}}


def observed(**changes: Any) -> NodeObservation:
    seen = NodeObservation("n", "m", connected=True, last_seen=100.0, complete=True)
    seen.heartbeat = agent_pb2.Heartbeat()
    for key, value in changes.items():
        setattr(seen, key, value)
    return seen


def facts(
    state: Liveness, seen: NodeObservation | None, identity: IdentityRecord | None = None
) -> NodeFacts:
    return NodeFacts(NodeLiveness(state, 90.0), seen, None, NodePlacement("n"), {}, identity)


def view(state: Liveness = Liveness.LIVE, **changes: Any) -> NodeView:
    return NodeView(NodeLiveness(state, 90.0), observed(**changes))


@pytest.mark.parametrize(
    ("state", "seen", "ready", "reason"),
    [
        (Liveness.LIVE, observed(), True, ""),
        (Liveness.SILENT, observed(), None, "Silent"),
        (Liveness.LOST, observed(), None, "Silent"),
        (Liveness.SILENT, None, None, "NotReported"),
        (Liveness.NEVER_SEEN, None, None, "NeverConnected"),
    ],
)
def test_a_node_is_ready_only_while_it_is_heard(
    state: Liveness, seen: NodeObservation | None, ready: bool | None, reason: str
) -> None:
    status = node_status(facts(state, seen))
    assert (status["ready"], status["reason"]) == (ready, reason)
    if ready is None and state is not Liveness.NEVER_SEEN:
        assert status["sinceAt"] == 90_000


def test_a_revoked_node_is_not_ready_whatever_it_says() -> None:
    identity = IdentityRecord("node", "n", revoked_at_ms=1, revoked_reason="stolen")
    status = node_status(facts(Liveness.LIVE, observed(), identity))
    assert (status["ready"], status["reason"], status["message"]) == (False, "Revoked", "stolen")


def test_a_node_without_a_runtime_is_not_ready() -> None:
    down = agent_pb2.NodeCondition(
        type="RuntimeDown", status=True, message="no socket", since_ms=95_000
    )
    seen = observed(heartbeat=agent_pb2.Heartbeat(conditions=[down]), connected_at=50.0)
    status = node_status(facts(Liveness.LIVE, seen))
    assert (status["ready"], status["reason"]) == (False, "RuntimeDown")
    assert status["sinceAt"] == 95_000  # not since it connected
    said = next(item for item in status["conditions"] if item["type"] == "RuntimeDown")
    assert said["source"] == "agent/n"
    assert (said["lastTransitionAt"], said["lastHeardAt"]) == (95_000, 100_000)


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["type"]: item for item in status["conditions"]}


def test_what_a_silent_node_said_of_itself_is_unknown_since_it_was_heard() -> None:
    full = agent_pb2.NodeCondition(type="DiskPressure", status=True, since_ms=95_000)
    usage = agent_pb2.Usage(cpu_millis=500)
    seen = observed(heartbeat=agent_pb2.Heartbeat(conditions=[full], usage=usage))
    live = node_status(facts(Liveness.LIVE, seen))
    assert conditions(live)["DiskPressure"]["status"] is True
    assert live["usageKnown"] is True
    silent = node_status(facts(Liveness.SILENT, seen))
    for kind in ("DiskPressure", "Ready"):
        said = conditions(silent)[kind]
        assert (said["status"], said["unknownSinceAt"]) == (None, 100_000)
    assert (silent["usageKnown"], silent["usageAt"]) == (False, 100_000)


def test_a_node_says_why_it_gets_no_new_replicas() -> None:
    record = StoredResource("Node", "", "n", "u", {"unschedulable": True}, changed_by="operator/a")
    standing = Standing("maintenance of site s until 2026-11-22T05:00:00Z", draining=True)
    found = node_status(replace(facts(Liveness.LIVE, observed()), record=record, standing=standing))
    assert found["cordoned"].startswith("node n is cordoned; maintenance of site s until")
    assert found["draining"] is True
    assert conditions(found)["Cordoned"]["message"] == found["cordoned"]
    own = node_status(replace(facts(Liveness.LIVE, observed()), record=record))
    assert conditions(own)["Cordoned"]["source"] == "operator/a"
    assert "Cordoned" not in conditions(node_status(facts(Liveness.LIVE, observed())))


def reported(**fields: Any) -> dict[str, agent_pb2.ReplicaStatus]:
    return {"u": agent_pb2.ReplicaStatus(replica_uid="u", **fields)}


def test_a_replica_on_a_silent_node_is_unknown_with_its_age() -> None:
    silent = view(Liveness.SILENT, replicas=reported(phase=RUNNING, ready=True))
    status = replica_status("n", "u", (), silent)
    assert (status["phase"], status["ready"], status["reason"]) == ("Unknown", False, "NodeSilent")
    assert status["observedAt"] == 100_000


def test_a_replica_after_our_restart_is_unknown_until_the_node_reports() -> None:
    status = replica_status("n", "u", (), NodeView(NodeLiveness(Liveness.SILENT, 90.0), None))
    assert (status["phase"], status["reason"]) == ("Unknown", "NotReported")


def test_a_replica_that_the_node_has_not_taken_up_says_why() -> None:
    assert replica_status("n", "u", (), view())["reason"] == "NotStarted"
    refused = replica_status("n", "u", (), view(plan_error="bad signature"))
    assert (refused["reason"], refused["message"]) == ("PlanRefused", "bad signature")


def test_a_replica_that_must_leave_is_stopping_with_its_cause() -> None:
    running = view(replicas=reported(phase=RUNNING, ready=True))
    status = replica_status("n", "u", (), running, "Drained")
    assert (status["phase"], status["ready"], status["reason"]) == ("Stopping", False, "Drained")
    assert replica_status("n", "u", (), view(), "Drained")["phase"] == "Stopped"


def test_a_containers_last_exit_is_shown() -> None:
    exit_ = agent_pb2.ContainerExit(exit_code=3, reason="Error", last_log="boom")
    container = agent_pb2.ContainerStatus(name="a", state="waiting", last_exit=exit_)
    status = replica_status("n", "u", (80,), view(replicas=reported(containers=[container])))
    assert status["containers"][0]["lastExit"]["lastLog"] == "boom"
    assert status["hostPorts"] == [80]


def test_an_unplaced_replica_carries_the_leaders_words() -> None:
    why = {"reasons": [{"reason": "Cpu", "nodes": 3}], "message": "no node fits"}
    leader = LeaderView("leader/m", 5, current=True)
    status = unplaced_status(why, leader)
    assert (status["phase"], status["reason"], status["message"]) == (
        "Unplaced",
        "Cpu",
        "no node fits",
    )
    assert (status["source"], status["observedAt"]) == ("leader/m", 5)
    assert conditions(status)["Placed"]["status"] is False
    assert unplaced_status(None, leader)["reason"] == "NotPlaced"


def test_the_words_of_a_leader_that_fell_silent_are_not_passed_on() -> None:
    status = unplaced_status(None, LeaderView("leader/m", 5, current=False))
    assert (status["phase"], status["reason"]) == ("Unknown", "LeaderSilent")
    placed = conditions(status)["Placed"]
    assert (placed["status"], placed["unknownSinceAt"]) == (None, 5)


def test_a_replicas_conditions_say_who_and_when() -> None:
    heard = view(replicas=reported(phase=RUNNING, ready=True, started_at_ms=40))
    leader = LeaderView("leader/m", 5)
    status = with_conditions(replica_status("n", "u", (), heard), 30, 50, leader, 99)
    shown = {
        item["type"]: (
            item["status"],
            item["source"],
            item["lastTransitionAt"],
            item["lastHeardAt"],
        )
        for item in status["conditions"]
    }
    assert shown == {
        "Placed": (True, "leader/m", 30, 99),
        "Running": (True, "agent/n", 40, 100_000),
        "Ready": (True, "agent/n", 50, 100_000),
    }
    silent = view(Liveness.SILENT, replicas=reported(phase=RUNNING, ready=True))
    status = with_conditions(replica_status("n", "u", (), silent), 30, 50, leader, 99)
    found = conditions(status)
    assert found["Placed"]["status"] is True
    assert found["Ready"]["status"] is None and found["Running"]["status"] is None
    assert found["Ready"]["unknownSinceAt"] == 100_000


def placed(index: int, revision: int = 1) -> Placed:
    record = AssignmentRecord("ns", "w", "wu", f"w-{index}", "u", 1, revision)
    return Placed("n", record)


def workload(**fields: Any) -> StoredResource:
    spec = {**SPEC, "replicas": 2}
    return StoredResource("Workload", "ns", "w", "wu", spec, template_revision=1, **fields)


def status_of(*states: NodeView, unplaced: int = 0, **fields: Any) -> dict[str, Any]:
    replicas = [(placed(i), replica_status("n", "u", (), state)) for i, state in enumerate(states)]
    explanations = [
        {"replica": f"w-{9 - i}", "reasons": [{"reason": "Cpu", "nodes": 1}], "message": "full"}
        for i in range(unplaced)
    ]
    said = Said(unplaced=explanations, wants=2)
    return workload_status(workload(**fields), WorkloadPlacement(), replicas, said, 7)


READY = view(replicas=reported(phase=RUNNING, ready=True))
STARTING = view(replicas=reported(phase=PENDING))
CRASHING = view(replicas=reported(phase=RUNNING, reason="CrashLoop", message="exit 1"))
SILENT = view(Liveness.SILENT, replicas=reported(phase=RUNNING, ready=True))
STOPPED = view(replicas=reported(phase=agent_pb2.REPLICA_PHASE_STOPPED, reason="StoppedLocally"))


@pytest.mark.parametrize(
    ("states", "unplaced", "phase", "reason"),
    [
        ([READY, READY], 0, "Running", ""),
        ([READY, STARTING], 0, "Progressing", ""),
        ([READY, CRASHING], 0, "Degraded", "CrashLoop"),
        ([READY], 1, "Degraded", "Cpu"),
        ([READY, SILENT], 0, "Degraded", "NodeSilent"),
        ([SILENT, SILENT], 0, "Unknown", "NodeSilent"),
        ([STARTING, STARTING], 0, "Pending", "NotStarted"),
        ([STOPPED, STOPPED], 0, "Degraded", "StoppedLocally"),
        ([], 2, "Pending", "Cpu"),
    ],
)
def test_a_workloads_phase(states: list[NodeView], unplaced: int, phase: str, reason: str) -> None:
    status = status_of(*states, unplaced=unplaced)
    assert (status["phase"], status["reason"]) == (phase, reason)


def test_a_workload_being_deleted() -> None:
    assert status_of(READY, deletion_requested_at_ms=1)["phase"] == "Deleting"


def test_a_deletion_names_the_nodes_that_it_waits_for() -> None:
    left = WorkloadPlacement({f"u{i}": replace(placed(i), node=f"n{i}") for i in range(4)})
    stop = StopRecord("ns", "w", "w-9", "u9", "WorkloadDeleted", "", 0)
    left.stopping["u9"] = Stopping("n0", stop)
    found = workload_status(workload(deletion_requested_at_ms=1), left, [], Said(wants=2), 7)
    expected = "5 replica(s) are not known to have stopped, on n0, n1, n2 and 1 more"
    assert found["message"] == expected


def test_a_generation_is_observed_when_all_of_it_is_placed_or_explained() -> None:
    assert status_of(READY, READY, generation=4)["observedGeneration"] == 4
    assert status_of(READY, generation=4)["observedGeneration"] == 3
    assert status_of(READY, unplaced=1, generation=4)["observedGeneration"] == 4


def test_a_replica_with_two_stays_counts_once() -> None:
    stays = [(placed(0), READY), (placed(0, 2), STARTING), (placed(1), READY)]
    replicas = [(stay, replica_status("n", "u", (), state)) for stay, state in stays]
    found = workload_status(workload(), WorkloadPlacement(), replicas, Said(wants=2), 7)
    assert (found["placed"], found["ready"], found["updated"]) == (2, 2, 1)
    assert found["phase"] == "Progressing"


def test_a_workload_knows_what_it_does_not_know() -> None:
    found = status_of(READY, SILENT)
    assert (found["ready"], found["unknown"]) == (1, 1)
    assert conditions(found)["Ready"]["status"] is None  # it depends on the silent one
    assert conditions(found)["Placed"]["status"] is True


def test_explanations_of_a_silent_leader_are_left_out() -> None:
    item = {"replica": "w-1", "reasons": [{"reason": "Cpu", "nodes": 1}], "message": "full"}
    said = Said(unplaced=[item], waiting=[item], wants=2, leader=LeaderView("l", 3, current=False))
    found = workload_status(workload(), WorkloadPlacement(), [], said, 7)
    assert (found["unplaced"], found["waiting"]) == ([], [])


def test_a_rollout_is_part_of_the_status() -> None:
    rollout = {"phase": "RolledBack", "message": "it crashed", "newestRevision": 1, "sinceAt": 4}
    replicas = [(placed(i, 2), replica_status("n", "u", (), READY)) for i in range(2)]
    said = Said(wants=2, rollout=rollout)
    found = workload_status(workload(), WorkloadPlacement(), replicas, said, 7)
    assert (found["phase"], found["reason"]) == ("Degraded", "RolledBack")
    assert conditions(found)["RolledOut"]["status"] is False


def test_a_heartbeat_alone_is_no_news() -> None:
    one = without_age(node_status(facts(Liveness.LIVE, observed())))
    two = without_age(node_status(facts(Liveness.LIVE, observed(last_seen=105.0))))
    assert one == two
