"""`edgectl get`: tables, documents, and a watch of one kind."""

import sys
from itertools import groupby

from edgectl import selectors, targets
from edgectl.columns import number
from edgectl.errors import CallError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import Printer
from edgectl.resources import Item, reference
from edgectl.targets import Target
from edgectl.text import safe, since
from edgectl.verbs import regions


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.targets and options.targets[0] in ("concentration", "compliance"):
        from edgectl.verbs import assurance

        assurance.check(invocation)
        return assurance.TABLES[options.targets[0]](invocation)
    region = regions.of(options.targets)
    if region is not None:
        return regions.get(invocation, region)
    wanted = targets.parse(options.targets)
    selectors.parse(options.selector)
    if options.selector and any(target.name for target in wanted):
        raise UsageError("a name and --selector exclude each other")
    printer = invocation.printer(
        options.output,
        namespaces=options.all_namespaces,
        show_headers=not options.no_headers,
    )
    if options.watch:
        return _watch(invocation, wanted, printer)
    groups, missing = collect(invocation, wanted)
    single = len(wanted) == 1 and bool(wanted[0].name)
    count = sum(len(items) for _, items in groups)
    if count or not printer.is_table:
        if not missing or count:
            sys.stdout.write(printer.all(groups, single=single))
    elif not missing:
        print(_nothing_found(invocation, wanted), file=sys.stderr)
    if not invocation.reader.answered_by[1]:  # who has said so already
        _say_old([item for _, items in groups for item in items])
    if missing:
        for error in missing[:-1]:
            print(f"error: {error.message}", file=sys.stderr)
        raise missing[-1]
    return 0


def collect(
    invocation: Invocation, wanted: list[Target]
) -> tuple[list[tuple[str, list[Item]]], list[CallError]]:
    """The resources by kind, in the order asked for, and an error for each that is not found."""
    groups: list[tuple[str, list[Item]]] = []
    missing: list[CallError] = []
    for kind, same in groupby(wanted, key=lambda target: target.info.name):
        items: list[Item] = []
        for target in same:
            try:
                items.extend(_fetch(invocation, target))
            except CallError as error:
                if error.code != "NOT_FOUND":
                    raise
                missing.append(error)
        groups.append((kind, items))
    return groups, missing


def _fetch(invocation: Invocation, target: Target) -> list[Item]:
    client = invocation.reader
    kind = target.info.name
    if target.name:
        namespace = invocation.namespace if target.info.namespaced else ""
        answer = client.get(reference(kind, namespace, target.name))
        return [Item(answer.resource, answer.now_ms)]
    resources, now_ms = client.list_all(
        kind, scope(invocation, target), invocation.options.selector
    )
    items = [Item(resource, now_ms) for resource in resources]
    return sorted(items, key=lambda item: (item.namespace, _natural(item.name)))


def scope(invocation: Invocation, target: Target) -> str:
    """The namespace to list; empty: all, or the kind belongs to none."""
    if not target.info.namespaced or invocation.options.all_namespaces:
        return ""
    return invocation.namespace


def _natural(name: str) -> list[tuple[int, int, str]]:
    """hello-2 stands before hello-10."""
    return [
        (0, int(part), "") if digits else (1, 0, part)
        for digits, group in groupby(name, key=lambda c: c.isascii() and c.isdigit())
        for part in ["".join(group)]
    ]


def _watch(invocation: Invocation, wanted: list[Target], printer: Printer) -> int:
    from edgectl.watching import DELETED, Watch
    from polder.v1 import operator_pb2

    if len(wanted) != 1:
        raise UsageError("watch one kind, or one resource, at a time")
    target = wanted[0]
    request = operator_pb2.WatchRequest(
        kind=target.info.name,
        namespace=scope(invocation, target),
        name=target.name,
        label_selector=invocation.options.selector,
    )
    for change in Watch(invocation.reader, request, on_break=_say_broken).changes():
        if change.item is None:
            continue
        text = printer.one(change.item)
        if change.type == DELETED and printer.is_table:
            text = text.rstrip("\n") + "   (deleted)\n"
        sys.stdout.write(text)
        sys.stdout.flush()
    return 0


def _say_old(items: list[Item]) -> None:
    """What is shown may be old: tables have no room to say so in each row."""
    times = [number(item.status.get("asOfAt")) for item in items]
    if any(times):
        old = since(min(at for at in times if at), items[0].now_ms)
        print(f"warning: the orchestrator cannot read its store {old}", file=sys.stderr)


def _say_broken(error: CallError) -> None:
    print(f"warning: {safe(error.message)}; connecting again", file=sys.stderr, flush=True)


def _nothing_found(invocation: Invocation, wanted: list[Target]) -> str:
    kinds = " or ".join(target.info.plural for target in wanted)
    namespaced = any(target.info.namespaced for target in wanted)
    if namespaced and not invocation.options.all_namespaces:
        return f"No {kinds} in the namespace {invocation.namespace}."
    return f"No {kinds}."
