"""`edgectl override list`, `accept` and `drop`: what operators decided at sites, seen from here.

At a site itself it is `edgectl overrides --site-endpoint`.
"""

import sys
from typing import Any

from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.text import NONE, Table, age, safe
from polder.overrides import PLACED_ON
from polder.v1 import operator_pb2, plan_pb2

_HEADERS = ("NAME", "SITE", "DECIDED", "BY", "NODE", "CONFLICT", "AGE")
_SITE = "site/"


def show(invocation: Invocation) -> int:
    """Without -n those of all namespaces, and of whole sites: they are few, and matter."""
    options = invocation.options
    namespace = "" if options.all_namespaces else invocation.explicit_namespace
    answer = invocation.client.overrides(namespace)
    if options.output not in ("", "wide"):
        from edgectl.output import structured

        sys.stdout.write(structured(options.output, [_view(info) for info in answer.overrides]))
        return 0
    if not answer.overrides:
        print("No site decided anything by itself that stands.", file=sys.stderr)
        return 0
    for line in _lines(answer, wide=options.output == "wide"):
        print(line)
    if answer.left_out:
        print(f"{answer.left_out} more are left out; name a namespace with -n", file=sys.stderr)
    return 0


def accept(invocation: Invocation) -> int:
    return _resolve(invocation, drop=False)


def drop(invocation: Invocation) -> int:
    return _resolve(invocation, drop=True)


def _resolve(invocation: Invocation, *, drop: bool) -> int:
    options = invocation.options
    request = operator_pb2.ResolveOverrideRequest(
        site=options.site,
        field=options.field,
        reason=options.reason,
        drop=drop,
        dry_run=options.dry_run,
    )
    if options.name.startswith(_SITE):
        if options.site:
            raise UsageError("a site is named once", f"{options.name}, without --site")
        request.site = options.name.removeprefix(_SITE)
    else:
        request.namespace = invocation.namespace
        request.replica = options.name.removeprefix("replica/")
    answer = invocation.client.resolve_override(request)
    suffix = " (dry run)" if options.dry_run else ""
    print(f"{safe(answer.message)}{suffix}", flush=True)
    return 0


def _lines(answer: operator_pb2.OverridesResponse, *, wide: bool) -> list[str]:
    headers = [*_HEADERS[:-1], *(("REASON", "ACCEPTED") if wide else ()), _HEADERS[-1]]
    rows = []
    for info in answer.overrides:
        found = info.override
        name = f"{found.namespace}/{found.replica}" if found.replica else f"{_SITE}{info.site}"
        row = [
            name,
            info.site,
            _decided(found),
            found.by or NONE,
            found.node or NONE,
            found.conflict or NONE,
        ]
        extra = [found.reason or NONE, info.accepted or NONE] if wide else []
        rows.append([*row, *extra, age(found.at_ms, answer.now_ms)])
    return Table(headers).lines(rows)


def _decided(found: plan_pb2.Override) -> str:
    return f"placed on {found.value}" if found.field == PLACED_ON else found.field


def _view(info: operator_pb2.OverrideInfo) -> dict[str, Any]:
    found = info.override
    return {
        "site": info.site,
        "namespace": found.namespace,
        "workload": info.workload,
        "replica": found.replica,
        "field": found.field,
        "value": found.value,
        "by": found.by,
        "node": found.node,
        "reason": found.reason,
        "decidedAt": found.at_ms,
        "heardAt": info.heard_ms,
        "stamp": found.stamp,
        "conflict": found.conflict,
        "accepted": info.accepted,
    }
