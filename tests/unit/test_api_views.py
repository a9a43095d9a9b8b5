"""Status as operators see it: what is not heard of is unknown, and every part has its age."""

from typing import Any

import pytest

from orchestrator.api.index import Placed, WorkloadPlacement
from orchestrator.api.views import (
    NodeFacts,
    NodeView,
    node_status,
    replica_status,
    unplaced_status,
    without_age,
    workload_status,
)
from orchestrator.domain.liveness import Liveness, NodeLiveness
from orchestrator.fleet import NodeObservation
from orchestrator.records import AssignmentRecord, IdentityRecord, NodePlacement, StoredResource
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
    assert status["conditions"][0]["source"] == "agent/n"


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
    status = unplaced_status(why, 5)
    assert (status["phase"], status["reason"], status["message"]) == (
        "Unplaced",
        "Cpu",
        "no node fits",
    )
    assert unplaced_status(None, 5)["reason"] == "NotPlaced"


def placed(index: int) -> Placed:
    record = AssignmentRecord("ns", "w", "wu", f"w-{index}", "u", 1, 1)
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
    record = workload(**fields)
    return workload_status(record, WorkloadPlacement(), replicas, explanations, 2, 7)


READY = view(replicas=reported(phase=RUNNING, ready=True))
STARTING = view(replicas=reported(phase=PENDING))
CRASHING = view(replicas=reported(phase=RUNNING, reason="CrashLoop", message="exit 1"))
SILENT = view(Liveness.SILENT, replicas=reported(phase=RUNNING, ready=True))


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
        ([], 2, "Pending", "Cpu"),
    ],
)
def test_a_workloads_phase(states: list[NodeView], unplaced: int, phase: str, reason: str) -> None:
    status = status_of(*states, unplaced=unplaced)
    assert (status["phase"], status["reason"]) == (phase, reason)


def test_a_workload_being_deleted() -> None:
    assert status_of(READY, deletion_requested_at_ms=1)["phase"] == "Deleting"


def test_a_generation_is_observed_when_all_of_it_is_placed_or_explained() -> None:
    assert status_of(READY, READY, generation=4)["observedGeneration"] == 4
    assert status_of(READY, generation=4)["observedGeneration"] == 3
    assert status_of(READY, unplaced=1, generation=4)["observedGeneration"] == 4


def test_a_heartbeat_alone_is_no_news() -> None:
    one = without_age(node_status(facts(Liveness.LIVE, observed())))
    two = without_age(node_status(facts(Liveness.LIVE, observed(last_seen=105.0))))
    assert one == two
