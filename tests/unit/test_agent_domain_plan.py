"""Which plans are accepted, and that a refusal has a reason."""

from typing import Any

import pytest

from agent.domain.plan import Accepted, ParsedPlan, Refused, Unchanged, consider, issued_at
from polder.v1 import plan_pb2
from tests.sim.agent_plans import IDENTITY, assignment, node_plan, plan, stop

CURRENT: ParsedPlan = plan(5, [assignment("a"), assignment("b")])


def offered(message: plan_pb2.NodePlan, current: ParsedPlan | None = CURRENT) -> Any:
    return consider(current, IDENTITY, message.SerializeToString())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (node_plan(4, [assignment("a")]), "Stale"),
        (node_plan(6, node="box-2"), "WrongNode"),
        (node_plan(6, site="elsewhere"), "WrongNode"),
        (node_plan(6, trust_domain="foreign.test"), "WrongDomain"),
        (node_plan(6, [assignment("a")], assignment_count=2), "Truncated"),
        (node_plan(6, [assignment("a")], stop_count=1), "Truncated"),
        (node_plan(0), "Unreadable"),
        (node_plan(6, [assignment("a"), assignment("a")]), "DuplicateReplica"),
        (node_plan(6, [assignment("a")], [stop("a")]), "DuplicateReplica"),
        (node_plan(6, [assignment("", replica="x-0")]), "Unreadable"),
        (node_plan(6, [], [stop("a", cause="")]), "CauseMissing"),
        (node_plan(5, [assignment("a")]), "Conflict"),
    ],
)
def test_refused_with_reason(message: plan_pb2.NodePlan, reason: str) -> None:
    answer = offered(message)
    assert isinstance(answer, Refused) and answer.reason == reason, answer
    assert answer.message


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, b"\x0a\x05box"])
def test_bytes_that_are_no_plan_are_refused(payload: bytes) -> None:
    assert isinstance(consider(CURRENT, IDENTITY, payload), Refused)
    assert isinstance(consider(None, IDENTITY, payload), Refused)
    assert issued_at(payload) == 0.0


def test_no_cut_of_a_plan_loses_a_replica() -> None:
    payload = node_plan(6, [assignment("a"), assignment("b")], [stop("c")]).SerializeToString()
    for length in range(len(payload)):
        answer = consider(CURRENT, IDENTITY, payload[:length])
        if isinstance(answer, Accepted):  # only endpoints were lost
            assert set(answer.plan.assignments) == {"a", "b"}
            assert set(answer.plan.stops) == {"c"}


def test_the_same_bytes_again_change_nothing() -> None:
    assert isinstance(consider(CURRENT, IDENTITY, CURRENT.payload), Unchanged)


def test_the_same_generation_may_renew_endpoints_but_not_replicas() -> None:
    replicas = [assignment("a"), assignment("b")]
    renewed = node_plan(5, replicas)
    renewed.endpoints.append("10.0.0.1:7443")
    answer = offered(renewed)
    assert isinstance(answer, Accepted) and len(answer.plan.endpoints) == 2
    renewed.issued_at_ms -= 1000
    assert isinstance(offered(renewed), Unchanged), "older: another member's clock is behind"
    later = node_plan(5, replicas, issued_at_ms=1_800_000_000_000)
    assert isinstance(offered(later), Unchanged)


def test_a_newer_plan_is_accepted_and_what_it_drops_is_named() -> None:
    answer = offered(node_plan(6, [assignment("a")]))
    assert isinstance(answer, Accepted)
    assert answer.dropped == ("b",)
    emptied = offered(node_plan(7))
    assert isinstance(emptied, Accepted) and emptied.dropped == ("a", "b")
    stopped = offered(node_plan(7, [assignment("a")], [stop("b")]))
    assert isinstance(stopped, Accepted) and stopped.dropped == ()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"containers": []}', b"[" * 100_000]
)
def test_a_bad_template_is_an_error_of_its_assignment_only(raw: bytes) -> None:
    answer = offered(node_plan(6, [assignment("a", raw or b" "), assignment("b")]))
    assert isinstance(answer, Accepted)
    bad, good = answer.plan.assignments["a"], answer.plan.assignments["b"]
    assert bad.template is None and bad.error and len(bad.error) <= 1024
    assert good.template is not None and len(good.digest) == 64


def test_configs_and_facts_are_renewed_at_the_same_generation() -> None:
    replicas = [assignment("a"), assignment("b")]
    config = plan_pb2.ConfigData(namespace="default", name="web", data={"motd": "hello"})
    answer = offered(node_plan(5, replicas, configs=[config], facts={"site.country": "NL"}))
    assert isinstance(answer, Accepted)
    assert answer.plan.configs["default", "web"].data == {"motd": "hello"}
    assert answer.plan.facts == {"site.country": "NL"}
    again = node_plan(5, replicas, configs=[config], facts={"site.country": "NL"}, issued_at_ms=2)
    assert isinstance(offered(again, answer.plan), Unchanged)
    config.data["motd"] = "bye"
    renewed = offered(node_plan(5, replicas, configs=[config]), answer.plan)
    assert isinstance(renewed, Accepted) and not renewed.plan.facts
    older = node_plan(5, replicas, configs=[config], issued_at_ms=2)
    assert isinstance(offered(older, answer.plan), Unchanged), "another member is behind"


def test_one_replica_may_have_two_stays_and_once_is_read() -> None:
    pair = [assignment("a"), assignment("a2", replica="a-0", replaces="a", run_once=True)]
    answer = offered(node_plan(6, pair))
    assert isinstance(answer, Accepted)
    assert answer.plan.assignments["a2"].replaces == "a" and answer.plan.assignments["a2"].run_once
    changed = [assignment("a"), assignment("a2", replica="a-0", replaces="a")]
    refused = offered(node_plan(6, changed), answer.plan)
    assert isinstance(refused, Refused) and refused.reason == "Conflict"
