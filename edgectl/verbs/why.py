"""`edgectl why workload/x`: why replicas are where they are, or nowhere, and what would help."""

import sys
from collections.abc import Iterator, Sequence

from edgectl import targets
from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import plain
from edgectl.requests import ask
from edgectl.resources import Item, reference
from edgectl.text import Table, safe, since
from edgectl.verbs.apply import read_files
from polder.v1 import operator_pb2

NODES_SHOWN = 10
NODES_SHOWN_NARROWED = 200
PLACED_SHOWN = 10
GROUPS_SHOWN = 15


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    if bool(options.targets) == bool(options.filename):
        raise UsageError("name a workload, such as workload/hello, or give its manifest with -f")
    answer = _of_files(invocation) if options.filename else _of_target(invocation)
    if options.output:
        sys.stdout.write(structured(options.output, plain(answer)))
        return 0
    narrowed = bool(options.node or options.site)
    texts = ["\n".join(_lines(found, narrowed, answer.now_ms)) for found in answer.workloads]
    print("\n\n".join(texts))
    for found in answer.workloads:
        for warning in found.warnings:
            print(f"warning: workload/{found.name}: {safe(warning)}", file=sys.stderr)
    return 0


def _narrowed(invocation: Invocation) -> operator_pb2.WhyRequest:
    options = invocation.options
    return operator_pb2.WhyRequest(
        nodes=[targets.node_name(name) for name in options.node],
        sites=[name.removeprefix("site/") for name in options.site],
    )


def _of_target(invocation: Invocation) -> operator_pb2.WhyResponse:
    wanted = targets.parse(invocation.options.targets, names_needed=True)
    if len(wanted) != 1 or wanted[0].info.name not in ("Workload", "Replica"):
        raise UsageError("ask about one workload or replica at a time, such as workload/hello")
    name = wanted[0].name
    if wanted[0].info.name == "Replica":
        name = _workload_of(invocation, name)
    request = _narrowed(invocation)
    request.ref.CopyFrom(reference("Workload", invocation.namespace, name))
    return invocation.client.why(request)


def _workload_of(invocation: Invocation, replica: str) -> str:
    """The answer is about all replicas of a workload, each by its name."""
    answer = invocation.client.get(reference("Replica", invocation.namespace, replica))
    return str(Item(answer.resource, answer.now_ms).spec["workload"])


def _of_files(invocation: Invocation) -> operator_pb2.WhyResponse:
    def call(documents: list[operator_pb2.Document]) -> operator_pb2.WhyResponse:
        request = _narrowed(invocation)
        request.documents.extend(documents)
        return invocation.client.why(request)

    return ask(read_files(invocation), "explained", call)


def _lines(found: operator_pb2.WorkloadDiagnosis, narrowed: bool, now_ms: int) -> Iterator[str]:
    which = "nodes asked about" if narrowed else "nodes"
    yield (
        f"workload/{found.name} in namespace {found.namespace}: "
        f"{found.replicas_placed} of {found.replicas_wanted} replicas have a node; "
        f"{found.nodes_fitting} of {found.nodes} {which} would take one more now"
    )
    yield from _section("Nothing is placed while:", map(_reason, found.blockers))
    yield from _section("What the scheduler says:", map(_waiting, found.waiting))
    yield from _section("Reasons, by number of nodes:", _groups(found.groups))
    yield from _section("The smallest change that would help:", (s.text for s in found.suggestions))
    yield from _section(
        "Where its replicas are, and why they may be there:", _placed(found, now_ms)
    )
    limit = NODES_SHOWN_NARROWED if narrowed else NODES_SHOWN
    yield from _section("Node by node:", _nodes(found, limit))


def _section(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    body = [f"  {safe(line)}" for line in lines]
    if body:
        yield ""
        yield title
        yield from body


def _reason(reason: operator_pb2.PlacementReason) -> str:
    return f"{reason.code}: {reason.message}"


def _waiting(item: operator_pb2.WaitingReplicas) -> str:
    count = f" ({item.replicas} replicas)" if item.replicas > 1 else ""
    return f"{item.code}{count}: {item.message}"


def _groups(groups: Sequence[operator_pb2.ReasonGroup]) -> list[str]:
    table = Table(("NODES", "SITES", "REASON", "FIELD", "EXAMPLE"))
    rows = [
        (group.nodes, group.sites, group.code, group.knob or "-", group.example)
        for group in groups[:GROUPS_SHOWN]
    ]
    if not rows:
        return []
    more = len(groups) - GROUPS_SHOWN
    return table.lines(rows) + ([f"and {more} more: -o json has all"] if more > 0 else [])


def _placed(found: operator_pb2.WorkloadDiagnosis, now_ms: int) -> Iterator[str]:
    for item in found.placed[:PLACED_SHOWN]:
        about = ", ".join(part for part in (item.site, item.country, item.provider) if part)
        yield f"{item.replica} on {item.node} ({about or 'its site is not declared'})"
        if item.took_over_from:
            when = since(item.took_over_at_ms, now_ms)
            yield f"  taken over from {item.took_over_from} {when}".rstrip()
        yield from (f"  {text}" for text in item.because)
        yield from (f"  but {_reason(reason)}" for reason in item.against)
        yield from (f"  {_standby(standby)}" for standby in item.standbys)
    more = len(found.placed) - PLACED_SHOWN + found.placed_left_out
    if more > 0:
        yield f"and {more} more: narrow with --node or --site, or use -o json"


def _standby(item: operator_pb2.PlacedStandby) -> str:
    if item.state == "Able":
        return f"standby {item.node}: could take it over now"
    if item.state == "Votes":
        return f"witness {item.node}: votes, and never takes it over"
    words = [word for word in (item.reason, item.message) if word]
    return f"standby {item.node}: {item.state}: {': '.join(words)}"


def _nodes(found: operator_pb2.WorkloadDiagnosis, limit: int) -> Iterator[str]:
    # A node that fits stands last: what one looks for is what does not.
    shown = sorted(found.verdicts, key=lambda verdict: not verdict.reasons)[:limit]
    for verdict in shown:
        if not verdict.reasons:
            yield f"{verdict.node} (site {verdict.site}): fits"
            continue
        yield f"{verdict.node} (site {verdict.site}):"
        yield from (f"  {_reason(reason)}" for reason in verdict.reasons)
    more = len(found.verdicts) - len(shown) + found.verdicts_left_out
    if more > 0:
        yield f"and {more} more: narrow with --node or --site, or use -o json"
