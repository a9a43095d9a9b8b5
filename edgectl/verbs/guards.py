"""`edgectl freeze`, `thaw`, `guards` and `approve`: the operator's hands on the guard rails."""

import sys
from typing import Any

from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.text import Table, age, clock, safe
from polder.v1 import operator_pb2

_HELD = ("ID", "WHAT", "HELD", "APPROVED", "MESSAGE")


def freeze(invocation: Invocation) -> int:
    """Without -n it is everything, whatever namespace the context has."""
    if invocation.options.dry_run:
        raise UsageError(
            "freeze has --dry-run at a site only, with --site-endpoint",
            "edgectl guards shows what is frozen",
        )
    namespace = invocation.explicit_namespace
    found = invocation.client.freeze(namespace, invocation.options.reason).freeze
    what = _what(found.namespace)
    why = f": {safe(found.reason)}" if found.reason else ""
    print(f"{what} frozen by {safe(found.by)}{why}", flush=True)
    end = f"edgectl thaw --namespace {namespace}" if namespace else "edgectl thaw"
    print(f"What runs runs on; nothing else changes until {end}", file=sys.stderr)
    return 0


def thaw(invocation: Invocation) -> int:
    namespace = invocation.explicit_namespace
    thawed = invocation.client.thaw(namespace).thawed
    print(f"{_what(namespace)} {'thawed' if thawed else 'was not frozen'}", flush=True)
    answer = invocation.client.guards("")
    for left in answer.freezes:
        if not left.namespace or not namespace or left.namespace == namespace:
            end = f"edgectl thaw --namespace {left.namespace}" if left.namespace else "edgectl thaw"
            print(f"{_what(left.namespace)} is still frozen; {end}", file=sys.stderr)
    return 0


def approve(invocation: Invocation) -> int:
    for identifier in invocation.options.ids:
        answer = invocation.client.approve(identifier)
        print(f"{safe(identifier)} approved: {safe(answer.message)}", flush=True)
    return 0


def show(invocation: Invocation) -> int:
    answer = invocation.client.guards(invocation.explicit_namespace)
    output = invocation.options.output
    if output:
        from edgectl.output import structured

        sys.stdout.write(structured(output, _view(answer)))
        return 0
    if not (answer.freezes or answer.holds or answer.silences):
        print("Nothing is frozen, and nothing is held back.", file=sys.stderr)
        return 0
    for line in _lines(answer):
        print(line)
    return 0


def _what(namespace: str) -> str:
    return f"namespace/{safe(namespace)}" if namespace else "everything"


def _lines(answer: operator_pb2.GuardsResponse) -> list[str]:
    now_ms, lines = answer.now_ms, []
    if answer.freezes:
        table = Table(("FROZEN", "BY", "FOR", "REASON"))
        lines += table.lines(
            [(_what(f.namespace), f.by, age(f.since_ms, now_ms), f.reason) for f in answer.freezes]
        )
    rows = [_hold_row(hold, now_ms) for hold in answer.holds]
    rows += [_silence_row(silence, now_ms) for silence in answer.silences]
    if rows:
        lines += [""] if lines else []
        lines += Table(_HELD).lines(rows)
    return lines


def _hold_row(hold: operator_pb2.HoldInfo, now_ms: int) -> tuple[str, ...]:
    where = f"{hold.scope}/{hold.name}" if hold.name else hold.scope
    approved = f"{hold.approved_by} {age(hold.approved_at_ms, now_ms)} ago"
    message = hold.message
    if hold.workloads:
        shown = ", ".join(hold.workloads[:3])
        more = len(hold.workloads) - 3
        message += f": {shown}{f' and {more} more' if more > 0 else ''}"
    return (
        hold.id,
        where,
        age(hold.since_ms, now_ms),
        approved if hold.approved_by else "no",
        message,
    )


def _silence_row(silence: operator_pb2.SilenceInfo, now_ms: int) -> tuple[str, ...]:
    where = f"{silence.scope}/{silence.name}" if silence.name else silence.scope
    until = f"until {clock(silence.until_ms, now_ms)}" if silence.until_ms else "until one is heard"
    many = f"{silence.silent} of {silence.nodes} nodes are silent"
    message = f"{many}: nothing moves off them {until}"
    return (silence.id, where, age(silence.since_ms, now_ms), "no", message)


def _view(answer: operator_pb2.GuardsResponse) -> dict[str, Any]:
    return {
        "freezes": [
            {"namespace": f.namespace, "by": f.by, "reason": f.reason, "sinceAt": f.since_ms}
            for f in answer.freezes
        ],
        "holds": [
            {
                "id": h.id,
                "scope": h.scope,
                "name": h.name,
                "message": h.message,
                "stops": h.stops,
                "replicas": h.replicas,
                "workloads": list(h.workloads),
                "sinceAt": h.since_ms,
                "approvedBy": h.approved_by,
                "approvedAt": h.approved_at_ms,
            }
            for h in answer.holds
        ],
        "silences": [
            {
                "id": s.id,
                "scope": s.scope,
                "name": s.name,
                "nodes": s.nodes,
                "silent": s.silent,
                "sinceAt": s.since_ms,
                "untilAt": s.until_ms,
            }
            for s in answer.silences
        ],
    }
