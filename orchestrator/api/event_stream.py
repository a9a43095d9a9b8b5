"""Events: those kept, and with `follow` those that come; of namespaces that the caller may see."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from orchestrator.api.losing import Losing
from orchestrator.authz import Caller, require
from orchestrator.cache import Cache
from orchestrator.events import EventRecord, EventRecorder
from polder.roles import Level, level_in
from polder.v1 import common_pb2, operator_pb2

BATCH = 200
PENDING_MAX = 1_000
_COALESCE_S = 0.1


async def stream_events(
    events: EventRecorder,
    losing: Losing,
    cache: Cache,
    clock: Callable[[], float],
    caller: Caller,
    request: operator_pb2.EventsRequest,
) -> AsyncIterator[operator_pb2.EventsResponse]:
    """Batches, oldest first; a first one always comes. Raises Refused (Forbidden, and one that
    follows StoreUnavailable, once the Store is lost).

    A workload's events are also those of its replicas: that is where things happen.
    A reader that is slow loses the oldest of what it has not read, never memory.
    """
    wanted = request.object
    namespace = request.namespace or wanted.namespace
    if namespace:
        require(caller, Level.VIEWER, namespace, "read events")

    created_ms = _created_ms(cache, wanted, request.uid)

    def matches(event: EventRecord) -> bool:
        return (
            (not request.uid or _is_its_own(wanted, event, request.uid, created_ms))
            and namespace in ("", event.namespace)
            and (
                (wanted.kind in ("", event.kind) and wanted.name in ("", event.name))
                or _of_its_replica(cache, wanted, event)
            )
            and level_in(caller.roles, event.namespace) >= Level.VIEWER
        )

    def response(batch: list[EventRecord]) -> operator_pb2.EventsResponse:
        return operator_pb2.EventsResponse(
            events=[event.to_proto() for event in batch], now_ms=int(clock() * 1000)
        )

    pending: OrderedDict[str, EventRecord] = OrderedDict()
    news, lost = asyncio.Event(), asyncio.Event()

    def lose() -> None:
        lost.set()
        news.set()

    def on_event(event: EventRecord) -> None:
        if matches(event):
            pending[event.key] = event
            if len(pending) > PENDING_MAX:
                pending.popitem(last=False)
            news.set()

    ends = [events.subscribe(on_event), losing.subscribe(lose)] if request.follow else []
    try:
        found = [event for event in events.list() if matches(event)]
        found = found[-request.limit :] if request.limit > 0 else found
        for start in range(0, max(1, len(found)), BATCH):
            yield response(found[start : start + BATCH])
        while request.follow:
            await news.wait()
            if lost.is_set():
                raise losing.refusal()
            await asyncio.sleep(_COALESCE_S)
            batch = [pending.popitem(last=False)[1] for _ in range(min(BATCH, len(pending)))]
            if not pending:
                news.clear()
            yield response(batch)
    finally:
        for end in ends:
            end()


def _created_ms(cache: Cache, wanted: common_pb2.ResourceRef, uid: str) -> int:
    record = cache.resource(wanted.kind, wanted.namespace, wanted.name) if uid else None
    return record.created_at_ms if record is not None and record.uid == uid else 0


def _is_its_own(
    wanted: common_pb2.ResourceRef, event: EventRecord, uid: str, created_ms: int
) -> bool:
    """Not of a former object of the same name. A replica's events are told apart by their time."""
    if event.kind == wanted.kind:
        return event.is_of(uid, created_ms)
    return event.last_at_ms >= created_ms


def _of_its_replica(cache: Cache, wanted: common_pb2.ResourceRef, event: EventRecord) -> bool:
    """By the replica's name, WORKLOAD-INDEX, WORKLOAD-NODE or WORKLOAD-SITE: it may be gone."""
    if wanted.kind != "Workload" or not wanted.name or event.kind != "Replica":
        return False
    return is_replica_of(cache, wanted.name, event.name)


def is_replica_of(cache: Cache, workload: str, replica: str) -> bool:
    """By its name alone."""
    rest = replica.removeprefix(f"{workload}-")
    if rest == replica:
        return False
    return rest.isdecimal() or any(
        cache.resource(kind, "", rest) is not None for kind in ("Node", "Site")
    )
