"""Which firewalls shut a port, as `nft -j list ruleset` shows them.

`tests/integration/test_doctor_firewall.py` asks the real nft about whole rulesets.
"""

from typing import Any

import pytest

from agent.doctor.ruleset import shut_chains

WHERE = {"family": "inet", "table": "filter"}
INPUT = {**WHERE, "name": "input", "hook": "input", "policy": "drop"}
ACCEPT = {"accept": None}
OPEN = {**WHERE, "name": "open", "elem": [22, {"range": [7440, 7450]}]}


def shut(*rules: list[Any], chain: str = "input") -> bool:
    """Whether a chain that drops by policy, with these rules in `chain`, keeps port 7445 shut."""
    items = [{"rule": {**WHERE, "chain": chain, "expr": rule}} for rule in rules]
    found = shut_chains(({"chain": INPUT}, *items, {"set": OPEN}), 7445)
    assert found in ([], ["inet filter input"])
    return bool(found)


def match(left: object, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


DPORT, STATE, L4 = field("tcp", "dport"), {"ct": {"key": "state"}}, {"meta": {"key": "l4proto"}}
LINK, SADDR = {"meta": {"key": "iifname"}}, field("ip", "saddr")


@pytest.mark.parametrize(
    ("conditions", "opens"),
    [
        ([match(DPORT, 7445)], True),
        ([match(DPORT, {"set": [80, 7445]})], True),
        ([match(DPORT, {"range": [7000, 8000]})], True),
        ([match(DPORT, {"set": [{"range": [7000, 8000]}]})], True),
        ([match(DPORT, "@open")], True),
        ([match(DPORT, "@closed")], False),
        ([match(DPORT, 7445, "!=")], False),
        ([match(DPORT, 22, "!=")], True),
        ([match(DPORT, 7443)], False),
        ([match(L4, {"set": ["tcp", "udp"]}), match(field("th", "dport"), 7445)], True),
        ([match(STATE, "new", "in"), match(DPORT, 7445)], True),
        # What is for other traffic, or for answers.
        ([match(STATE, ["established", "related"], "in")], False),
        ([match(STATE, {"set": ["established", "related"]})], False),
        ([match(STATE, "invalid", "!=")], True),
        ([match(L4, "icmp")], False),
        ([match(L4, 6)], True),
        ([match(field("ip", "protocol"), "icmp")], False),
        ([match(field("ip6", "nexthdr"), "ipv6-icmp")], False),
        ([match(field("icmpv6", "type"), "echo-request")], False),
        ([match(field("udp", "dport"), 7445)], False),
        ([match(field("tcp", "sport"), 443)], False),
        ([match(LINK, "lo")], False),
        ([match(LINK, "lo", "!=")], True),
        ([match(SADDR, {"prefix": {"addr": "127.0.0.0", "len": 8}})], False),
        # Who comes from there is let in; who that is, the rule does not say.
        ([match(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}})], True),
        ([match(LINK, "wg0")], True),
        ([match(L4, "tcp"), {"xt": {"type": "match", "name": "multiport"}}, {"counter": {}}], True),
        ([match(L4, "tcp"), {"xt": {"type": "match", "name": "conntrack"}}], False),
        ([match(DPORT, 7445), {"xt": {"type": "match", "name": "conntrack"}}], True),
        ([], True),
    ],
)
def test_a_rule_that_accepts(conditions: list[Any], opens: bool) -> None:
    assert shut([*conditions, ACCEPT]) is not opens
    assert shut([*conditions, {"drop": None}])


@pytest.mark.parametrize(
    ("key", "pairs", "opens"),
    [
        (DPORT, [[22, ACCEPT], [7445, ACCEPT]], True),
        (DPORT, [[7445, {"drop": None}], [22, ACCEPT]], False),
        (STATE, [["established", ACCEPT], ["invalid", {"drop": None}]], False),
        (LINK, [["lo", ACCEPT]], False),
        (LINK, [["lo", ACCEPT], ["eth0", ACCEPT]], True),
    ],
)
def test_a_verdict_map(key: object, pairs: list[Any], opens: bool) -> None:
    assert shut([{"vmap": {"key": key, "data": {"set": pairs}}}]) is not opens
    named = {"map": {**WHERE, "name": "verdicts", "elem": pairs}}
    rule = {
        "rule": {**WHERE, "chain": "input", "expr": [{"vmap": {"key": key, "data": "@verdicts"}}]}
    }
    assert bool(shut_chains(({"chain": INPUT}, rule, named), 7445)) is not opens


def test_only_chains_that_input_leads_to_count() -> None:
    let_in = {"rule": {**WHERE, "chain": "services", "expr": [match(DPORT, 7445), ACCEPT]}}
    leads = {"rule": {**WHERE, "chain": "input", "expr": [{"jump": {"target": "services"}}]}}
    by_map = {"vmap": {"key": L4, "data": {"set": [["tcp", {"goto": {"target": "services"}}]]}}}
    mapped = {"rule": {**WHERE, "chain": "input", "expr": [by_map]}}
    back = {"rule": {**WHERE, "chain": "services", "expr": [{"jump": {"target": "input"}}]}}
    assert shut_chains(({"chain": INPUT}, let_in), 7445), "nothing leads there: it may be of output"
    assert not shut_chains(({"chain": INPUT}, leads, back, let_in), 7445)
    assert not shut_chains(({"chain": INPUT}, mapped, let_in), 7445)


def test_a_chain_that_accepts_by_policy_is_open() -> None:
    chain = {**INPUT, "policy": "accept"}
    assert shut_chains(({"chain": chain},), 7445) == []
