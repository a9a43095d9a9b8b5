"""A NodePlan is made the same on every member, and not at all when it would be incomplete."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.gateway.compose import CannotCompose, Surroundings, compose
from orchestrator.gateway.outbox import MAX_WAITING, Outbox, OutboxFull
from orchestrator.records import (
    AssignmentRecord,
    NodePlacement,
    StopRecord,
    StoredResource,
    TemplateRevision,
)
from polder.v1 import agent_pb2, plan_pb2

TEMPLATE: dict[str, Any] = {
    "containers": [
        {"name": "a", "image": "x", "env": [{"name": "K", "secret": {"name": "s", "key": "k"}}]}
    ],
    "imagePullSecrets": ["pull"],
}
REVISION = TemplateRevision("uid", 1, TEMPLATE, "d", 0)
PLACEMENT = NodePlacement(
    "n1",
    4,
    (AssignmentRecord("ns", "web", "uid", "web-0", "r0", 12, 1, ("n2",)),),
    (StopRecord("ns", "old", "old-1", "r1", "ScaledDown", "why", 5),),
    decided_at_ms=77,
)
AROUND = Surroundings("s1", "td", ("a:1", "b:2"))


def secret(namespace: str, name: str) -> StoredResource:
    spec = {"data": {"k": "v", "a": "ä"}}
    return StoredResource("Secret", namespace, name, "u", spec)


def test_everything_is_in_the_plan_and_it_is_the_same_twice() -> None:
    first = compose(PLACEMENT, AROUND, lambda u, n: REVISION, secret)
    assert first == compose(PLACEMENT, AROUND, lambda u, n: replace(REVISION), secret)
    plan = plan_pb2.NodePlan.FromString(first)
    assert (plan.node, plan.site, plan.generation, plan.issued_at_ms) == ("n1", "s1", 4, 77)
    assert (plan.assignment_count, plan.stop_count) == (1, 1)
    assert plan.assignments[0].template_json == REVISION.template_json
    assert (plan.assignments[0].epoch, list(plan.assignments[0].standbys)) == (12, ["n2"])
    assert plan.stops[0].cause == "ScaledDown"
    assert [s.name for s in plan.secrets] == ["pull", "s"]
    assert dict(plan.secrets[0].data) == {"k": b"v", "a": "ä".encode()}


def test_a_missing_secret_is_left_out() -> None:
    payload = compose(PLACEMENT, AROUND, lambda u, n: REVISION, lambda ns, name: None)
    assert not plan_pb2.NodePlan.FromString(payload).secrets


@pytest.mark.parametrize(
    ("revision", "reason"),
    [(None, "MissingRevision"), (replace(REVISION, template={}), "UnreadableRecord")],
)
def test_an_incomplete_plan_is_none(revision: TemplateRevision | None, reason: str) -> None:
    with pytest.raises(CannotCompose) as caught:
        compose(PLACEMENT, AROUND, lambda u, n: revision, secret)
    assert caught.value.reason == reason


async def test_a_newer_plan_replaces_one_that_waits() -> None:
    outbox = Outbox()
    for generation in (1, 2, 3):
        outbox.put_plan(plan_pb2.SignedNodePlan(generation=generation))
    taken = await outbox.take()
    assert taken is not None and taken.plan.generation == 3
    outbox.close(agent_pb2.Goodbye(reason="Shutdown"))
    outbox.put_plan(plan_pb2.SignedNodePlan(generation=4))
    taken = await outbox.take()
    assert taken is not None and taken.goodbye.reason == "Shutdown"
    assert await outbox.take() is None


async def test_an_outbox_is_bounded() -> None:
    outbox = Outbox()
    for _ in range(MAX_WAITING):
        outbox.put(agent_pb2.SessionResponse())
    with pytest.raises(OutboxFull):
        outbox.put(agent_pb2.SessionResponse())
