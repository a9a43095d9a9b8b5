"""`edgectl plan -f`: what an apply would place, move, stop and preempt. It changes nothing."""

import sys
from collections.abc import Iterator

from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import enum_word, plain
from edgectl.requests import ask
from edgectl.resources import Item
from edgectl.text import Table, safe
from edgectl.verbs.apply import OUTCOMES, read_files
from polder.v1 import operator_pb2

CHANGES_SHOWN = 50


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")

    def call(documents: list[operator_pb2.Document]) -> operator_pb2.PlanResponse:
        return invocation.client.plan(operator_pb2.PlanRequest(documents=documents))

    answer = ask(read_files(invocation), "planned", call)
    if options.output:
        shown = plain(answer)
        shown["results"] = [
            {
                "resource": Item(result.resource, 0).label,
                "outcome": OUTCOMES.get(result.outcome, ""),
                "warnings": list(result.warnings),
            }
            for result in answer.results
        ]
        sys.stdout.write(structured(options.output, shown))
        return 0
    for result in answer.results:
        label = Item(result.resource, 0).label
        for warning in result.warnings:
            print(f"warning: {label}: {safe(warning)}", file=sys.stderr)
        outcome = OUTCOMES.get(result.outcome, "applied")
        print(f"{label} would be {outcome}" if outcome != "unchanged" else f"{label} unchanged")
    print("\n".join(_lines(answer)))
    return 0


def _lines(answer: operator_pb2.PlanResponse) -> Iterator[str]:
    yield ""
    if not answer.totals and not answer.unplaced and not answer.changes_hidden:
        yield "No replica would be placed, moved or stopped."
    for total in answer.totals:
        word = enum_word(total.DESCRIPTOR.fields_by_name["action"], total.action)
        many = "replica" if total.replicas == 1 else "replicas"
        yield f"{word} {total.replicas} {many} of {total.namespace}/{total.workload}"
    if answer.totals_left_out:
        yield f"and {answer.totals_left_out} more such lines: -o json has more"
    if answer.changes_hidden:
        yield f"and {answer.changes_hidden} changes in namespaces that you may not read"
    for item in answer.unplaced:
        many = "replica" if item.replicas == 1 else "replicas"
        where = f"{item.namespace}/{item.workload}"
        yield safe(f"no place for {item.replicas} {many} of {where}: {item.message}")
    yield from _table(answer)
    if answer.incomplete:
        yield ""
        yield "The look ahead was ended early: more may follow."


def _table(answer: operator_pb2.PlanResponse) -> Iterator[str]:
    shown = answer.changes[:CHANGES_SHOWN]
    if not shown:
        return
    yield ""
    table = Table(("ACTION", "NAMESPACE", "REPLICA", "FROM", "NODE", "CAUSE"))
    field = operator_pb2.ReplicaChange.DESCRIPTOR.fields_by_name["action"]
    yield from table.lines(
        [
            (
                enum_word(field, item.action),
                item.namespace,
                item.replica,
                item.from_node or "-",
                item.node,
                item.cause or "-",
            )
            for item in shown
        ]
    )
    more = len(answer.changes) - len(shown) + answer.changes_left_out
    if more > 0:
        yield f"and {more} more"
