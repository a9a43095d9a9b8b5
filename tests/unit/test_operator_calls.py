"""What the front door does for each call of an operator: whoever adds an RPC decides here."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.authz import RULES, Who
from orchestrator.operator_calls import OPERATOR_SERVICE, UNASKED, WRITES, OperatorCalls, operation
from orchestrator.refusals import Refused

READS = {
    "Get", "List", "Watch", "Logs", "Exec", "Events", "Why", "Plan", "Simulate", "Concentration",
    "Compliance", "Rollout", "Guards", "Overrides", "Story", "Regions", "Drill", "Releases",
    "AgentUpgrades",
}  # fmt: skip


class FakeFreshness:
    """`age` seconds; remembers how it was asked."""

    def __init__(self, age: float) -> None:
        self.age = age
        self.asked: list[str] = []

    async def to_read(self) -> float:
        self.asked.append("read")
        return self.age

    async def to_write(self) -> float:
        self.asked.append("write")
        return self.age


def calls(age: float) -> tuple[OperatorCalls, FakeFreshness]:
    freshness = FakeFreshness(age)
    return OperatorCalls(freshness, "eu-1"), freshness  # type: ignore[arg-type]


def test_every_rpc_of_operators_reads_or_writes() -> None:
    served = {operation(m) for m, rule in RULES.items() if rule.who is Who.OPERATOR}
    assert served == READS | WRITES | UNASKED
    assert not READS & WRITES
    assert operation("/polder.v1.AgentService/Session") == ""
    assert operation(f"{OPERATOR_SERVICE}Get") == "Get"


async def test_a_current_answer_names_its_member_and_no_age() -> None:
    made, freshness = calls(0.0)
    assert await made.metadata("Get", None) == (("polder-member", "eu-1"),)
    assert await made.metadata("Apply", None) == (("polder-member", "eu-1"),)
    assert await made.metadata("WhoAmI", None) == (("polder-member", "eu-1"),)
    assert freshness.asked == ["read", "write"]


async def test_an_old_answer_says_so_and_a_write_is_refused() -> None:
    made, freshness = calls(42.0004)
    assert dict(await made.metadata("Get", None))["polder-age-ms"] == "42000"
    with pytest.raises(Refused) as refused:
        await made.metadata("Apply", SimpleNamespace(dry_run=False))
    assert refused.value.reason == "StoreUnavailable" and "nothing was written" in str(
        refused.value
    )
    assert dict(await made.metadata("Apply", SimpleNamespace(dry_run=True)))["polder-age-ms"]
    assert freshness.asked == ["read", "write", "read"]
    made, _ = calls(0.0001)
    assert dict(await made.metadata("Get", None))["polder-age-ms"] == "1", "old is never 0"


def test_only_writes_are_requests() -> None:
    made, _ = calls(0.0)
    context: Any = SimpleNamespace(
        invocation_metadata=lambda: (("polder-request", "x" * 500), ("polder-repeated", "1")),
        time_remaining=lambda: None,
    )
    from orchestrator.settling import _current

    with made.request("Get", context):
        assert _current.get() is None
    with made.request("Apply", context):
        request = _current.get()
        assert request is not None and request.repeated and request.named
        assert len(request.identifier) <= 64
    assert _current.get() is None
