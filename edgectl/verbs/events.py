"""`edgectl events`: what happened, oldest first; with -w what happens next."""

import json
import random
import sys
import time
from collections.abc import Sequence

from edgectl import targets
from edgectl.errors import CallError, UsageError
from edgectl.invocation import Invocation
from edgectl.resources import reference
from edgectl.text import NONE, Table, age, safe
from edgectl.verbs import regions
from polder.v1 import common_pb2, operator_pb2

_HEADERS = ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE")
_WIDE = ("LAST SEEN", "FIRST SEEN", "COUNT", "TYPE", "REASON", "OBJECT", "SOURCE", "MESSAGE")
_TYPES = {
    common_pb2.EVENT_TYPE_NORMAL: "Normal",
    common_pb2.EVENT_TYPE_WARNING: "Warning",
}
MAX_BACKOFF_S = 5.0
_EventKey = tuple[str, str, str, str, str, str, int, int]


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "wide", "json"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: wide, json")
    request = _request(invocation)
    show = _Shower(options.output, only_warnings=options.warnings)
    if options.watch:
        return _follow(invocation, request, show)
    for response in invocation.reader.events(request):
        show(response.events, response.now_ms)
    if not show.count and not options.output:
        print("No events.", file=sys.stderr)
    return 0


def lines_of(events: Sequence[common_pb2.Event], now_ms: int) -> list[str]:
    """A table for describe: without the object column, unless it is about several (replicas)."""
    several = len({(e.object.kind, e.object.name) for e in events}) > 1
    column = "OBJECT" if several else "SOURCE"
    table = Table(("LAST SEEN", "TYPE", "REASON", column, "MESSAGE"))
    return table.lines(
        [
            (
                _when(e, now_ms),
                _TYPES.get(e.type, NONE),
                e.reason,
                _object(e) if several else e.source,
                e.message,
            )
            for e in events
        ]
    )


def _request(invocation: Invocation) -> operator_pb2.EventsRequest:
    """Without -n: all that the caller may see, because nodes belong to no namespace."""
    options = invocation.options
    namespace = "" if options.all_namespaces else invocation.explicit_namespace
    request = operator_pb2.EventsRequest(
        namespace=namespace, follow=options.watch, limit=options.limit
    )
    region = regions.of([options.object]) if "/" in options.object else None
    if region is not None:
        ref = common_pb2.ResourceRef(kind=region.kind.title(), name=region.names[0])
        request.namespace = ""
        request.object.CopyFrom(ref)
    elif options.object:
        target = targets.parse([options.object])[0]
        where = invocation.namespace if target.info.namespaced else ""
        request.namespace = where
        request.object.CopyFrom(reference(target.info.name, where, target.name))
    return request


def _follow(invocation: Invocation, request: operator_pb2.EventsRequest, show: "_Shower") -> int:
    failures = 0
    while True:
        try:
            for response in invocation.reader.events(request):
                failures = 0
                show(response.events, response.now_ms)
        except CallError as error:
            if not error.transient and error.code not in ("CANCELLED", "ABORTED"):
                raise
            if not failures:
                print(f"warning: {safe(error.message)}; connecting again", file=sys.stderr)
        failures += 1
        time.sleep(random.uniform(0.05, min(MAX_BACKOFF_S, 0.2 * 2 ** min(failures, 10))))


class _Shower:
    """Prints each event once, also when a broken stream starts again."""

    def __init__(self, output: str, *, only_warnings: bool) -> None:
        self._output = output
        self._only_warnings = only_warnings
        self._seen: dict[_EventKey, None] = {}
        self._table = Table(_WIDE if output == "wide" else _HEADERS)
        self.count = 0

    def __call__(self, events: Sequence[common_pb2.Event], now_ms: int) -> None:
        fresh = [event for event in events if self._is_new(event)]
        self.count += len(fresh)
        if self._output == "json":
            text = "".join(json.dumps(_view(event), ensure_ascii=False) + "\n" for event in fresh)
        elif fresh:
            rows = [_row(event, now_ms, wide=self._output == "wide") for event in fresh]
            text = "".join(f"{line}\n" for line in self._table.lines(rows))
        else:
            text = ""
        sys.stdout.write(text)
        sys.stdout.flush()

    def _is_new(self, event: common_pb2.Event) -> bool:
        if self._only_warnings and event.type != common_pb2.EVENT_TYPE_WARNING:
            return False
        ref = event.object
        key = (
            ref.kind,
            ref.namespace,
            ref.name,
            event.reason,
            event.message,
            event.source,
            event.count,
            event.last_at_ms,
        )
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > 10_000:
            del self._seen[next(iter(self._seen))]
        return True


def _row(event: common_pb2.Event, now_ms: int, *, wide: bool) -> tuple[str, ...]:
    kind = _TYPES.get(event.type, NONE)
    if not wide:
        return _when(event, now_ms), kind, event.reason, _object(event), event.message
    return (
        age(event.last_at_ms, now_ms),
        age(event.first_at_ms, now_ms),
        str(event.count),
        kind,
        event.reason,
        _object(event),
        event.source,
        event.message,
    )


def _object(event: common_pb2.Event) -> str:
    return f"{event.object.kind.lower()}/{event.object.name}"


def _when(event: common_pb2.Event, now_ms: int) -> str:
    """`5s (x3 over 2m)`"""
    last = age(event.last_at_ms, now_ms)
    if event.count < 2:
        return last
    return f"{last} (x{event.count} over {age(event.first_at_ms, now_ms)})"


def _view(event: common_pb2.Event) -> dict[str, object]:
    ref = event.object
    return {
        "object": {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name},
        "type": _TYPES.get(event.type, ""),
        "reason": event.reason,
        "message": event.message,
        "source": event.source,
        "firstAt": event.first_at_ms,
        "lastAt": event.last_at_ms,
        "count": event.count,
    }
