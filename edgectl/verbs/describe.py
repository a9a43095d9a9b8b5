"""`edgectl describe`: everything about a resource, with its story or the events that concern it."""

import sys

from edgectl import selectors, stories, targets
from edgectl.errors import CallError
from edgectl.invocation import Invocation
from edgectl.resources import Item, reference
from edgectl.verbs import regions
from edgectl.verbs.events import lines_of
from edgectl.verbs.get import collect
from polder.v1 import common_pb2, operator_pb2

MAX_EVENTS = 20
WITH_STORY = ("Replica", "Workload", "Node")
_COMPOSED = ("Replica", "Operator")  # their events know no uid


def run(invocation: Invocation) -> int:
    options = invocation.options
    region = regions.of(options.targets)
    if region is not None:
        return regions.describe(invocation, region)
    wanted = targets.parse(options.targets)
    selectors.parse(options.selector)
    groups, missing = collect(invocation, wanted)
    items = [item for _, group in groups for item in group]
    for number, item in enumerate(items):
        if number:
            print()
        sys.stdout.write("\n".join(invocation.described(item)) + "\n")
        for line in _related(invocation, item):
            print(line)
        for line in _story(invocation, item) or _events(invocation, item):
            print(line)
    if missing:
        raise missing[-1]
    return 0


def _related(invocation: Invocation, item: Item) -> list[str]:
    """The replicas of a workload or of a node."""
    if item.kind not in ("Workload", "Node"):
        return []
    from edgectl import columns
    from edgectl.text import Table

    key = "workload" if item.kind == "Workload" else "node"
    resources, now_ms = invocation.reader.list_all("Replica", item.namespace)
    own = [Item(r, now_ms) for r in resources]
    own = [replica for replica in own if replica.spec.get(key) == item.name]
    if not own:
        return []
    namespaces = item.kind == "Node"
    table = Table(columns.headers("Replica", wide=False, namespaces=namespaces))
    rows = [columns.row(replica, wide=False, namespaces=namespaces) for replica in own]
    return ["Replicas:", *(f"  {line}" for line in table.lines(rows))]


def _story(invocation: Invocation, item: Item) -> list[str]:
    """Empty for kinds without one, and where the orchestrator does not know it yet."""
    if item.kind not in WITH_STORY:
        return []
    try:
        story = invocation.reader.story(reference(item.kind, item.namespace, item.name))
    except CallError as error:
        if error.code in ("UNIMPLEMENTED", "NOT_FOUND"):
            return []
        return [f"Story: not available: {error.message}"]
    return list(stories.lines(story))


def _events(invocation: Invocation, item: Item) -> list[str]:
    """Of this object, and not of one that had its name before."""
    ref: common_pb2.ResourceRef = reference(item.kind, item.namespace, item.name)
    request = operator_pb2.EventsRequest(namespace=item.namespace, object=ref, limit=MAX_EVENTS)
    if item.kind not in _COMPOSED:
        request.uid = item.resource.metadata.uid
    events: list[common_pb2.Event] = []
    now_ms = item.now_ms
    try:
        for response in invocation.reader.events(request):
            events.extend(response.events)
            now_ms = response.now_ms or now_ms
    except CallError as error:
        return [f"Events: not available: {error.message}"]
    if not events:
        return ["Events: none"]
    return ["Events:", *(f"  {line}" for line in lines_of(events[-MAX_EVENTS:], now_ms))]
