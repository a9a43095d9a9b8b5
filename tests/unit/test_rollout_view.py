"""A rollout as operators see it."""

import pytest

from edgectl import rollouts
from orchestrator.api.rollout_view import Stay, gravest, seen_state, status_of, troubles_of
from orchestrator.domain.rollout_state import Phase, RolloutState
from orchestrator.records import StoredResource
from orchestrator.scheduling.decisions import Explanation
from polder.v1 import agent_pb2

TEMPLATE = {"containers": [{"name": "app", "image": "app:2"}]}


def workload(replicas: int) -> StoredResource:
    spec = {"replicas": replicas, "template": TEMPLATE}
    return StoredResource("Workload", "default", "web", "u", spec, template_revision=2)


def test_with_no_replicas_there_is_nothing_to_wait_for() -> None:
    status = status_of(workload(0), RolloutState(2, 2, phase=Phase.PROVING), [], None)
    assert rollouts.ended(status, "proven") and rollouts.succeeded(status, "proven")
    assert "no replicas are asked for" in rollouts.success(status)


def test_what_failed_stays_failed_without_replicas() -> None:
    status = status_of(workload(0), RolloutState(2, 2, phase=Phase.FAILED), [], None)
    assert rollouts.ended(status, "proven") and not rollouts.succeeded(status, "proven")


@pytest.mark.parametrize("replicas", [0, 1])
def test_replicas_that_are_there_are_waited_for(replicas: int) -> None:
    stays = [Stay("web-0", 2, live=True, status=None)]
    state = RolloutState(2, 2, phase=Phase.PROGRESSING)
    assert not rollouts.ended(status_of(workload(replicas), state, stays, None), "proven")


def said(revision: int, reason: str = "") -> agent_pb2.ReplicaStatus:
    return agent_pb2.ReplicaStatus(revision=revision, ready=not reason, reason=reason)


def test_what_the_leader_has_not_taken_up_has_updated_nothing() -> None:
    """As in a freeze: the replicas of the template before are not of the newest one."""
    stays = [Stay("web-0", 1, live=True, status=said(1))]
    state = seen_state(workload(1), RolloutState(1, 1, phase=Phase.PROVEN))
    status = status_of(workload(1), state, stays, None)
    assert (status.replicas_updated, status.replicas_available) == (0, 1)
    back = status_of(workload(1), RolloutState(2, 1, phase=Phase.ROLLING_BACK), stays, None)
    assert back.replicas_updated == 1


def test_what_does_not_start_says_why() -> None:
    stays = [
        Stay("web-0", 2, live=True, status=said(2, "ImageRegistry")),
        Stay("web-1", 2, live=True, status=said(2, "ImageRegistry")),
        Stay("web-2", 2, live=False, status=said(2, "CrashLoop")),
        Stay("web-3", 1, live=True, status=said(1, "ConfigMissing")),
        Stay("web-4", 2, live=True, status=said(2, "Starting")),
    ]
    assert troubles_of(RolloutState(2, 2), stays) == "2 ImageRegistry"


def test_success_tells_what_nobody_vouches_for() -> None:
    """A replica on a node that is silent is assigned the revision, and may not run it."""
    stays = [Stay("web-0", 2, live=True, status=said(2)), Stay("web-1", 2, live=False, status=None)]
    status = status_of(workload(2), RolloutState(2, 2, phase=Phase.PROVING), stays, None)
    assert "of which 1 are known to be ready" in rollouts.success(status)


def test_a_first_revision_that_failed_has_no_undo() -> None:
    state = RolloutState(2, 2, phase=Phase.FAILED, message="it crashed")
    status = status_of(workload(1), state, [], None)
    assert any("rollout undo" in hint for hint in rollouts.failure("workload/web", status)[1])
    status.newest_revision = 1
    hints = rollouts.failure("workload/web", status)[1]
    assert not any("rollout undo" in hint or "not tried again" in hint for hint in hints)


def test_what_is_in_the_way_is_said_before_whose_turn_it_is() -> None:
    turn = Explanation("default", "web", "ReplacementWaits", "the old holder stops when")
    silent = Explanation("default", "web", "NodeSuspect", "node n1 is silent")
    assert gravest((turn, silent)) == "node n1 is silent"
    assert (gravest((turn,)), gravest(())) == ("the old holder stops when", "")
