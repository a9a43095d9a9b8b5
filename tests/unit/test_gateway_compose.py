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
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import Node, Snapshot, Template
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


RICH: dict[str, Any] = {
    "containers": [
        {
            "name": "a",
            "image": "x",
            "env": [
                {"name": "M", "config": {"name": "mode", "key": "k"}},
                {"name": "C", "fact": "site.country"},
                {"name": "Z", "fact": "node.labels.zone"},
                {"name": "R", "fact": "replica.name"},
                {"name": "N", "fact": "node.name"},
            ],
        }
    ],
    "initContainers": [
        {
            "name": "i",
            "image": "x",
            "env": [
                {"name": "S", "secret": {"name": "early", "key": "k"}},
                {"name": "A", "fact": "node.arch"},
            ],
        }
    ],
    "volumes": [
        {"name": "c", "config": {"name": "web"}},
        {"name": "s", "secret": {"name": "tls"}},
    ],
}


def config(namespace: str, name: str) -> StoredResource | None:
    if name == "mode":
        return None
    return StoredResource("Config", namespace, name, "u", {"data": {"a.conf": "x = 1"}})


def test_it_carries_what_its_templates_name_and_nothing_else() -> None:
    revision = TemplateRevision("uid", 1, RICH, "d", 0)
    known = {"site.country": "NL", "node.arch": "arm64", "site.name": "s1"}
    payload = compose(
        PLACEMENT, AROUND, lambda u, n: revision, secret, config_of=config, fact_of=known.get
    )
    plan = plan_pb2.NodePlan.FromString(payload)
    assert [s.name for s in plan.secrets] == ["early", "tls"]
    assert [(c.namespace, c.name, dict(c.data)) for c in plan.configs] == [
        ("ns", "web", {"a.conf": "x = 1"})
    ]
    assert dict(plan.facts) == {"site.country": "NL", "node.arch": "arm64"}


def test_replacements_and_jobs_are_said() -> None:
    assignment = replace(PLACEMENT.assignments[0], replaces="r-old", once=True)
    placement = replace(PLACEMENT, assignments=(assignment,))
    payload = compose(placement, AROUND, lambda u, n: REVISION, secret)
    (made,) = plan_pb2.NodePlan.FromString(payload).assignments
    assert (made.replaces, made.run_once) == ("r-old", True)


def test_a_config_that_is_being_deleted_is_left_out() -> None:
    revision = TemplateRevision("uid", 1, RICH, "d", 0)

    def going(namespace: str, name: str) -> StoredResource:
        return StoredResource("Config", namespace, name, "u", {}, deletion_requested_at_ms=1)

    payload = compose(PLACEMENT, AROUND, lambda u, n: revision, secret, config_of=going)
    assert not plan_pb2.NodePlan.FromString(payload).configs


def digest_of(template: Template, **world: Any) -> str:
    snapshot = Snapshot(
        1,
        nodes=(Node("n1", site="s1", country="NL", labels=world.pop("labels", {})),),
        templates={("uid", 1): template},
        **world,
    )
    return Carried(snapshot).digest("n1", PLACEMENT.assignments)


def test_a_digest_is_of_what_the_plan_carries() -> None:
    assert digest_of(Template()) == ""
    named = Template(secrets=("s",))
    before = digest_of(named, secrets={("ns", "s"): "u:1"})
    # As it was before there were Configs: an upgrade makes no new generations.
    assert before == "841254a0c8be9cfcc765aa378416386c"
    assert before == digest_of(named, secrets={("ns", "s"): "u:1"}, configs={("ns", "c"): "u:9"})
    rich = Template(secrets=("s",), configs=("c",), facts=("node.labels.zone", "site.country"))
    seen = {
        digest_of(rich),
        digest_of(rich, configs={("ns", "c"): "u:1"}),
        digest_of(rich, configs={("ns", "c"): "u:2"}),
        digest_of(rich, labels={"zone": ""}),
        digest_of(rich, labels={"zone": "a"}),
        digest_of(rich, secrets={("ns", "s"): "u:1"}),
    }
    assert len(seen) == 6
    assert digest_of(rich, labels={"other": "x"}) == digest_of(rich)


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
