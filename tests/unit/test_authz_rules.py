"""The table of who may call what, and the checks for each resource."""

from collections.abc import Callable

import grpc
import pytest

from orchestrator.authz import (
    ANONYMOUS,
    RULES,
    Caller,
    Listener,
    admit,
    may_read,
    require_write,
    rule_for,
    sees_secrets,
)
from orchestrator.refusals import Refused
from polder.identity import MemberId, NodeId, OperatorId
from polder.roles import parse_role

_OPERATOR = "/polder.v1.OperatorService/"
_AGENT = "/polder.v1.AgentService/"


def operator(*roles: str) -> Caller:
    return Caller(OperatorId("t", "x"), "1", tuple(parse_role(role) for role in roles))


NODE = Caller(NodeId("t", "s", "n"), "1")
MEMBER = Caller(MemberId("t", "r", "m"), "1")


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except Refused:
        return True
    return False


def test_nothing_is_served_where_its_row_does_not_say() -> None:
    with pytest.raises(Refused):
        rule_for(_AGENT + "Join", Listener.MTLS)
    with pytest.raises(Refused):
        rule_for(_AGENT + "Session", Listener.JOIN)
    with pytest.raises(Refused):
        rule_for(_OPERATOR + "NewOne", Listener.MTLS)


@pytest.mark.parametrize("method", [m for m in RULES if m.startswith(_OPERATOR)])
def test_operator_rpcs_are_for_operators(method: str) -> None:
    rule = rule_for(method, Listener.MTLS)
    for caller in (NODE, MEMBER, ANONYMOUS, operator()):
        with pytest.raises(Refused):
            admit(rule, caller)
    admit(rule, operator("admin"))


def test_no_certificate_is_told_apart_from_not_allowed() -> None:
    rule = rule_for(_OPERATOR + "Get", Listener.MTLS)
    with pytest.raises(Refused) as caught:
        admit(rule, ANONYMOUS)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(Refused) as caught:
        admit(rule, NODE)
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("roles", "kind", "namespace", "allowed"),
    [
        (["admin"], "Provider", "", True),
        (["admin"], "Workload", "any", True),
        (["operator:a"], "Workload", "a", True),
        (["operator:a"], "Secret", "a", True),
        (["operator:a"], "Workload", "b", False),
        (["operator:a"], "Node", "", False),
        (["operator:a"], "Namespace", "", False),
        (["viewer:a"], "Workload", "a", False),
        (["viewer:a", "operator:b"], "Workload", "b", True),
        ([], "Workload", "a", False),
    ],
)
def test_writing(roles: list[str], kind: str, namespace: str, allowed: bool) -> None:
    act = lambda: require_write(operator(*roles), kind, namespace, "x")  # noqa: E731
    assert refused(act) is not allowed


@pytest.mark.parametrize(
    ("roles", "kind", "namespace", "name", "allowed"),
    [
        (["viewer:a"], "Workload", "a", "x", True),
        (["viewer:a"], "Replica", "b", "x", False),
        (["viewer:a"], "Node", "", "n", True),
        (["viewer:a"], "Site", "", "s", True),
        (["viewer:a"], "Namespace", "", "a", True),
        (["viewer:a"], "Namespace", "", "b", False),
        (["operator:a"], "Operator", "", "x", False),
        (["admin"], "Operator", "", "x", True),
        ([], "Node", "", "n", False),
    ],
)
def test_reading(roles: list[str], kind: str, namespace: str, name: str, allowed: bool) -> None:
    assert may_read(operator(*roles), kind, namespace, name) is allowed


def test_secrets_are_for_operators_of_their_namespace() -> None:
    assert sees_secrets(operator("operator:a"), "a")
    assert not sees_secrets(operator("viewer:a", "operator:b"), "a")
