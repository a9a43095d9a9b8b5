"""`edgectl get concentration` and `edgectl get compliance`: tables that are no resources."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import plain
from edgectl.text import NONE, Table, age, moment, safe
from polder.v1 import operator_pb2

REPLICAS_SHOWN = 100
EXPIRIES_SHOWN = 50
_TITLES = {
    "provider": "PROVIDER",
    "ownerCountry": "OWNER COUNTRY",
    "country": "COUNTRY",
    "region": "REGION",
}


def concentration(invocation: Invocation) -> int:
    request = operator_pb2.ConcentrationRequest(namespace=invocation.explicit_namespace)
    return _show(invocation, invocation.client.concentration(request), _concentration)


def compliance(invocation: Invocation) -> int:
    request = operator_pb2.ComplianceRequest(namespace=invocation.explicit_namespace)
    return _show(invocation, invocation.client.compliance(request), _compliance)


TABLES: dict[str, Callable[[Invocation], int]] = {
    "concentration": concentration,
    "compliance": compliance,
}


def _show(invocation: Invocation, answer: Any, lines: Callable[[Any], Iterator[str]]) -> int:
    if invocation.options.output in ("json", "yaml"):
        sys.stdout.write(structured(invocation.options.output, plain(answer)))
        return 0
    print("\n".join(safe(line) for line in lines(answer)))
    return 0


def check(invocation: Invocation) -> None:
    """Raises UsageError for options of `get` that make no sense here."""
    options = invocation.options
    if options.output not in ("", "wide", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    if options.watch or options.selector or len(options.targets) > 1:
        raise UsageError(f"{options.targets[0]} is one table: no names, no -l and no -w")


def _concentration(answer: operator_pb2.ConcentrationResponse) -> Iterator[str]:
    for number, table in enumerate(answer.tables):
        if number:
            yield ""
        title = _TITLES.get(table.by, table.by)
        rows = [
            (
                row.name,
                f"{row.replicas_percent:g}%",
                row.replicas,
                f"{row.capacity_percent:g}%",
                row.nodes,
                row.sites,
            )
            for row in table.rows
        ]
        if rows:
            headers = (title, "REPLICAS %", "REPLICAS", "CAPACITY %", "NODES", "SITES")
            yield from Table(headers).lines(rows)
        else:
            yield f"{title}: there are no nodes"
        if table.rows_left_out:
            yield f"and {table.rows_left_out} more"


def _compliance(answer: operator_pb2.ComplianceResponse) -> Iterator[str]:
    if not answer.judged:
        yield "No replica with a node has a sovereignty policy."
        return
    yield f"{answer.compliant} of {answer.judged} replicas with a policy comply."
    rows = [
        (
            item.namespace,
            item.replica,
            item.node,
            item.site or NONE,
            f"{age(item.since_ms, answer.now_ms)} ago" if item.since_ms else "<unknown>",
            item.replacement or NONE,
            "; ".join(f"{reason.code}: {reason.message}" for reason in item.reasons),
        )
        for item in answer.replicas[:REPLICAS_SHOWN]
    ]
    if rows:
        yield ""
        headers = ("NAMESPACE", "REPLICA", "NODE", "SITE", "SINCE", "REPLACEMENT ON", "WHY")
        yield from Table(headers).lines(rows)
        more = len(answer.replicas) - REPLICAS_SHOWN
        if max(0, more) + answer.replicas_left_out:
            yield f"and {max(0, more) + answer.replicas_left_out} more"
    yield from _expiries(answer)


def _expiries(answer: operator_pb2.ComplianceResponse) -> Iterator[str]:
    shown = answer.expiries[:EXPIRIES_SHOWN]
    if not shown:
        return
    yield ""
    rows = [
        (
            moment(item.at_ms, answer.now_ms),
            item.what,
            item.replicas,
            item.replicas_without,
            ", ".join(item.workloads),
        )
        for item in shown
    ]
    yield from Table(("EXPIRES", "WHAT", "REPLICAS", "THEN LACK IT", "WORKLOADS")).lines(rows)
    more = len(answer.expiries) - len(shown) + answer.expiries_left_out
    if more > 0:
        yield f"and {more} more"
