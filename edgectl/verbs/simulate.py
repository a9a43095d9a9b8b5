"""`edgectl simulate lose WHAT/NAME...`: what would be left, and what would run where instead."""

import sys
from collections.abc import Iterator

from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import enum_word, plain
from edgectl.text import NONE, Table, safe
from polder.v1 import operator_pb2

KINDS = ("region", "provider", "country", "law", "site", "node")
SITES_SHOWN = 20
WORKLOADS_SHOWN = 50
REPLACEMENTS_SHOWN = 20


def lose(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    namespace = invocation.explicit_namespace
    losses = [_loss(word) for word in options.losses]
    answer = invocation.client.simulate(
        operator_pb2.SimulateRequest(losses=losses, namespace=namespace)
    )
    if options.output:
        sys.stdout.write(structured(options.output, plain(answer)))
        return 0
    print("\n".join(safe(line) for line in _lines(answer)))
    return 0


def _loss(word: str) -> operator_pb2.SimulatedLoss:
    kind, slash, name = word.partition("/")
    if not slash or not name or kind not in KINDS:
        text = f"{word!r} is nothing that can be lost"
        raise UsageError(text, "such as provider/x or law/US-CLOUD-ACT; kinds: " + ", ".join(KINDS))
    return operator_pb2.SimulatedLoss(kind=kind, name=name)


def _lines(answer: operator_pb2.SimulateResponse) -> Iterator[str]:
    sites = "site" if answer.sites_lost == 1 else "sites"
    lose = "loses" if answer.workloads_interrupted == 1 else "lose"
    yield (
        f"{answer.nodes_lost} of {answer.nodes} nodes go dark ({answer.sites_lost} whole {sites}), "
        f"and with them {answer.replicas_lost} of {answer.replicas} replicas."
    )
    yield (
        f"Workloads: {answer.workloads_surviving} survive "
        f"({answer.workloads_interrupted} of them {lose} replicas meanwhile), "
        f"{answer.workloads_degraded} degrade, {answer.workloads_dead} die."
    )
    yield (
        f"Replacements: {answer.replicas_replaced} of {answer.replicas_lost} lost replicas fit "
        f"elsewhere; {answer.replicas_unplaced} replicas are missing in the end."
    )
    yield from _sites(answer)
    yield from _workloads(answer)
    yield from _replacements(answer)
    if answer.incomplete:
        yield ""
        yield "The look ahead was ended early: more may follow."


def _sites(answer: operator_pb2.SimulateResponse) -> Iterator[str]:
    rows = [
        (
            site.site,
            site.country or NONE,
            site.provider or NONE,
            site.nodes,
            ("not declared: " if site.for_want_of_facts else "") + (site.reason or "-"),
        )
        for site in answer.sites[:SITES_SHOWN]
    ]
    if rows:
        yield ""
        yield from Table(("DARK SITE", "COUNTRY", "PROVIDER", "NODES", "WHY")).lines(rows)
        hidden = len(answer.sites) - SITES_SHOWN
        if hidden > 0:
            yield f"and {hidden} more: -o json"


def _workloads(answer: operator_pb2.SimulateResponse) -> Iterator[str]:
    field = operator_pb2.WorkloadSurvival.DESCRIPTOR.fields_by_name["outcome"]
    shown = answer.workloads[:WORKLOADS_SHOWN]
    rows = [
        (
            f"{item.namespace}/{item.name}",
            enum_word(field, item.outcome),
            item.replicas,
            item.lost,
            item.replaced,
            item.unplaced,
            item.message or "-",
        )
        for item in shown
    ]
    if rows:
        yield ""
        headers = ("WORKLOAD", "OUTCOME", "REPLICAS", "LOST", "REPLACED", "MISSING", "WHY")
        yield from Table(headers).lines(rows)
        more = len(answer.workloads) - len(shown) + answer.workloads_left_out
        if more > 0:
            yield f"and {more} more: -o json"


def _replacements(answer: operator_pb2.SimulateResponse) -> Iterator[str]:
    shown = answer.replacements[:REPLACEMENTS_SHOWN]
    rows = [
        (item.site, item.country or NONE, item.provider or NONE, item.replicas) for item in shown
    ]
    if rows:
        yield ""
        yield from Table(("REPLACEMENTS AT", "COUNTRY", "PROVIDER", "REPLICAS")).lines(rows)
        more = len(answer.replacements) - len(shown) + answer.replacements_left_out
        if more > 0:
            yield f"and {more} more sites: -o json"
