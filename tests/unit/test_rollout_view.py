"""A rollout as operators see it."""

import pytest

from edgectl import rollouts
from orchestrator.api.rollout_view import Stay, status_of
from orchestrator.domain.rollout_state import Phase, RolloutState
from orchestrator.records import StoredResource

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
