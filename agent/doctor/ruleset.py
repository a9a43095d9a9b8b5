"""Whether the rules of nftables let new connections in to a port. Pure; `network.py` asks.

The rules are what `nft -j list ruleset` says, libnftables-json(5). What cannot be told from a rule
(an address, a link, a match of iptables' own that nft only names) is taken for open to somebody:
so a closed port may be missed, and one that any rule opens is never called closed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rule = Sequence[Mapping[str, Any]]
_TCP = ("tcp", 6)
_LOOPBACK = ("lo", "127.0.0.1", "::1")
# How a rule names the protocol above IP.
_PROTOCOLS: Sequence[Mapping[str, Any]] = (
    {"meta": {"key": "l4proto"}},
    {"payload": {"protocol": "ip", "field": "protocol"}},
    {"payload": {"protocol": "ip6", "field": "nexthdr"}},
)
# A rule that looks at another protocol's fields is not for TCP connections.
_BELOW = ("ether", "vlan", "ip", "ip6", "tcp", "th")

# Matches of iptables, of which nft tells no more than this: without a port it is what answers have.
_CONNTRACK = ("conntrack", "state")


@dataclass(frozen=True, slots=True)
class _Table:
    """Its chains' rules and its sets, by name."""

    rules: Mapping[str, Sequence[Rule]]
    sets: Mapping[str, Any]


def shut_chains(ruleset: Sequence[Mapping[str, Any]], port: int) -> list[str]:
    """Input chains (`family table name`) that drop by policy, and where no rule opens the port."""
    shut = []
    for item in ruleset:
        chain = item.get("chain")
        if not isinstance(chain, dict) or chain.get("hook") != "input":
            continue
        if chain.get("policy") != "drop":
            continue
        name = str(chain.get("name"))
        table = _table(ruleset, chain)
        if not any(_opens(rule, port, table.sets) for rule in _reached(table, name)):
            shut.append(f"{chain.get('family')} {chain.get('table')} {name}")
    return shut


def _table(ruleset: Sequence[Mapping[str, Any]], chain: Mapping[str, Any]) -> _Table:
    where = (chain.get("family"), chain.get("table"))
    rules: dict[str, list[Rule]] = {}
    sets: dict[str, Any] = {}
    for item in ruleset:
        for kind in ("rule", "set", "map"):
            found = item.get(kind)
            if isinstance(found, dict) and (found.get("family"), found.get("table")) == where:
                if kind == "rule":
                    rules.setdefault(str(found.get("chain")), []).append(found.get("expr") or ())
                else:
                    sets[str(found.get("name"))] = found.get("elem", [])
    return _Table(rules, sets)


def _reached(table: _Table, chain: str) -> Iterator[Rule]:
    """The rules of a chain, and of those that it leads to."""
    ahead, seen = [chain], {chain}
    while ahead:
        for rule in table.rules.get(ahead.pop(), ()):
            yield rule
            for verdict in _verdicts(rule, table.sets):
                for leads in ("jump", "goto"):
                    target = (verdict.get(leads) or {}).get("target")
                    if target and target not in seen:
                        seen.add(target)
                        ahead.append(target)


def _verdicts(rule: Rule, sets: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for expression in rule:
        yield expression
        if "vmap" in expression:
            yield from (verdict for _, verdict in _pairs(expression["vmap"], sets))


def _pairs(vmap: Mapping[str, Any], sets: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    data = vmap.get("data")
    listed = sets.get(data[1:], []) if isinstance(data, str) else (data or {}).get("set", [])
    return [(value, verdict) for value, verdict in listed if isinstance(verdict, dict)]


def _opens(rule: Rule, port: int, sets: Mapping[str, Any]) -> bool:
    """Whether some new TCP connection to the port is accepted by it."""
    accepted = named = False
    for expression in rule:
        if "match" in expression:
            match = expression["match"]
            named |= _field(match.get("left")) == "dport"
            fits = _may_fit(match.get("left"), match.get("right"), port, sets)
            only = match.get("op") == "!="
            if (only and _surely(match, port, sets)) or (not only and not fits):
                return False
        elif "vmap" in expression:
            key = expression["vmap"].get("key")
            accepted |= any(
                "accept" in verdict and _may_fit(key, value, port, sets)
                for value, verdict in _pairs(expression["vmap"], sets)
            )
        accepted |= "accept" in expression
    tracks = any((e.get("xt") or {}).get("name") in _CONNTRACK for e in rule)
    return accepted and (named or not tracks)


def _surely(match: Mapping[str, Any], port: int, sets: Mapping[str, Any]) -> bool:
    """Whether every new connection to the port has it: then what is `!=` to it takes none."""
    left = match.get("left")
    asked = (left in _PROTOCOLS, _field(left) == "dport", left == {"ct": {"key": "state"}})
    return any(asked) and _may_fit(left, match.get("right"), port, sets)


def _may_fit(left: Any, right: Any, port: int, sets: Mapping[str, Any]) -> bool:
    """Whether a new TCP connection to the port, from another box, may have what a rule asks for."""
    if not isinstance(left, dict):
        return True
    protocol = str((left.get("payload") or {}).get("protocol", "tcp"))
    if protocol not in _BELOW:
        return False
    if left in _PROTOCOLS:
        return any(_holds(right, name, sets) for name in _TCP)
    if left == {"ct": {"key": "state"}}:
        return _holds(right, "new", sets)
    if _field(left) == "dport":
        return _holds(right, port, sets)
    if _field(left) == "sport":
        return not isinstance(right, int)  # one port: the answers of a service elsewhere
    if _field(left) == "saddr" and isinstance(right, dict) and "prefix" in right:
        return not str(right["prefix"].get("addr")).startswith("127.")
    return right not in _LOOPBACK


def _field(left: Any) -> str:
    """Of a packet's headers."""
    payload = left.get("payload") if isinstance(left, dict) else None
    return str((payload or {}).get("field", ""))


def _holds(right: Any, value: object, sets: Mapping[str, Any]) -> bool:
    if isinstance(right, str) and right.startswith("@"):
        return _holds(sets.get(right[1:], []), value, {})
    if isinstance(right, list):
        return any(_holds(item, value, sets) for item in right)
    if isinstance(right, dict):
        if "range" in right and isinstance(value, int):
            low, high = right["range"]
            return bool(low <= value <= high)
        return _holds(right.get("set", []), value, sets)
    return bool(right == value)
