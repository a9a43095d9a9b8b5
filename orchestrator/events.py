"""What happened, for operators: bounded, counted instead of repeated, and never in anyone's way.

The gateway, the leader, identity and the operator API call `record`, which only touches memory; a
task writes to the Store a few times a second. Repeats of the same reason and message on the same
object count up. Losing the last quarter second of events in a crash is accepted; waiting for the
disk in a heartbeat would not be.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from orchestrator.store import keys
from orchestrator.store.port import Delete, Op, Put, Store, StoreError
from polder.v1 import common_pb2

log = logging.getLogger(__name__)

KEEP_S = 24 * 3600.0
TOTAL_MAX = 5_000
PER_OBJECT_MAX = 100
_FLUSH_EVERY_S = 0.25
_BATCH_OPS = 100
_MESSAGE_MAX = 1024
_RETRY_S = 2.0

ObjectKey = tuple[str, str, str]
Listener = Callable[["EventRecord"], None]


class Recorder(Protocol):
    """What those need who only tell: the leader and the gateway. `EventRecorder` is one."""

    def record(
        self,
        kind: str,
        namespace: str,
        name: str,
        type: int,
        reason: str,
        message: str,
        source: str,
        count: int = 1,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event. `type` is a `common_pb2.EventType`; times are unix milliseconds.

    `uid` is the object's, so that a node that joins again has not done what the former of its name
    did; empty for objects without a record of their own.
    """

    kind: str
    namespace: str
    name: str
    type: int
    reason: str
    message: str
    source: str
    first_at_ms: int
    last_at_ms: int
    count: int = 1
    uid: str = ""

    @property
    def object(self) -> ObjectKey:
        return (self.kind, self.namespace, self.name)

    @property
    def identifier(self) -> str:
        """The same for every repeat."""
        parts = (*self.object, self.reason, self.message, *([self.uid] if self.uid else []))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def is_of(self, uid: str, created_at_ms: int) -> bool:
        """Whether it is about the object with this uid, and not about an earlier one."""
        return self.uid == uid if self.uid else self.last_at_ms >= created_at_ms

    @property
    def key(self) -> str:
        return keys.event(self.namespace, self.identifier)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False).encode()

    def to_proto(self) -> common_pb2.Event:
        return common_pb2.Event(
            object=common_pb2.ResourceRef(kind=self.kind, namespace=self.namespace, name=self.name),
            type=common_pb2.EventType.ValueType(self.type),
            reason=self.reason,
            message=self.message,
            source=self.source,
            first_at_ms=self.first_at_ms,
            last_at_ms=self.last_at_ms,
            count=self.count,
            uid=self.uid,
        )


class EventRecorder:
    """`start` reads what the Store has; `stop` writes what it has not.

    `uid_of`: which object has a (kind, namespace, name) now; empty: none.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        uid_of: Callable[[str, str, str], str] = lambda *_: "",
    ) -> None:
        self._store = store
        self._clock = clock
        self._uid_of = uid_of
        # By key, least recently seen first: what retention drops stands at the front.
        self._events: OrderedDict[str, EventRecord] = OrderedDict()
        self._of_object: defaultdict[ObjectKey, OrderedDict[str, None]] = defaultdict(OrderedDict)
        # Keys to write or, when they are gone from `_events`, to delete. Bounded by both limits.
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises StoreError."""
        found = (await self._store.range(keys.EVENTS)).entries
        records = []
        for entry in found:
            try:
                records.append((entry.key, EventRecord(**json.loads(entry.value))))
            except (ValueError, TypeError):
                log.warning("an event cannot be read and is dropped", extra={"key": entry.key})
                self._dirty[entry.key] = None
        for key, record in sorted(records, key=lambda item: item[1].last_at_ms):
            self._keep(key, record)
        self._prune()
        self._task = asyncio.create_task(self._flush_forever(), name="events")

    async def stop(self) -> None:
        """Writes what is left, once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            while self._dirty:
                await self._flush()
        except StoreError as error:
            log.warning("the last events were not written: %s", error)

    def record(
        self,
        kind: str,
        namespace: str,
        name: str,
        type: int,
        reason: str,
        message: str,
        source: str,
        count: int = 1,
    ) -> None:
        """Remember an event, or that it happened again. Returns at once, whatever the Store does.

        `type` is a `common_pb2.EventType`; `reason` is CamelCase; `source` is as in
        `agent/<node>`, `leader/<member>`, `gateway/<member>`, `operator/<name>`.
        """
        now_ms = int(self._clock() * 1000)
        event = EventRecord(
            kind,
            namespace,
            name,
            type,
            reason,
            message[:_MESSAGE_MAX],
            source,
            now_ms,
            now_ms,
            count,
            self._uid_of(kind, namespace, name),
        )
        key = event.key
        before = self._events.get(key)
        if before is not None:
            event = replace(event, first_at_ms=before.first_at_ms, count=before.count + count)
        self._keep(key, event)
        self._dirty[key] = None
        self._prune()
        self._wake.set()
        for listener in list(self._listeners):
            listener(event)

    def list(
        self, *, kind: str = "", namespace: str = "", name: str = "", limit: int = 0
    ) -> list[EventRecord]:
        """Newest last. Empty arguments match everything; `limit` keeps the newest."""
        candidates: Iterable[EventRecord] = self._events.values()
        if kind and name:
            mine = self._of_object.get((kind, namespace, name), OrderedDict())
            candidates = [self._events[key] for key in mine]
        found = [
            event
            for event in candidates
            if (not kind or event.kind == kind)
            and (not namespace or event.namespace == namespace)
            and (not name or event.name == name)
        ]
        return found[-limit:] if limit else found

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """The listener gets every event recorded from now on; it must be quick."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # --- keeping and dropping ----------------------------------------------------------------

    def _keep(self, key: str, event: EventRecord) -> None:
        self._events[key] = event
        self._events.move_to_end(key)
        mine = self._of_object[event.object]
        mine[key] = None
        mine.move_to_end(key)
        if len(mine) > PER_OBJECT_MAX:
            self._drop(next(iter(mine)))

    def _prune(self) -> None:
        oldest_ms = int((self._clock() - KEEP_S) * 1000)
        while self._events:
            key, event = next(iter(self._events.items()))
            if len(self._events) <= TOTAL_MAX and event.last_at_ms >= oldest_ms:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        event = self._events.pop(key)
        mine = self._of_object[event.object]
        mine.pop(key, None)
        if not mine:
            del self._of_object[event.object]
        self._dirty[key] = None
        if len(self._dirty) > 4 * TOTAL_MAX:  # the Store is away for long: the oldest marks go
            self._dirty.pop(next(iter(self._dirty)))

    # --- writing -----------------------------------------------------------------------------

    async def _flush_forever(self) -> None:
        while True:
            await self._wake.wait()
            try:
                await self._flush()
            except StoreError as error:
                log.warning("events were not written; trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
            if not self._dirty:
                self._wake.clear()
            await asyncio.sleep(_FLUSH_EVERY_S)

    async def _flush(self) -> None:
        batch = list(self._dirty)[:_BATCH_OPS]
        if not batch:
            return
        for key in batch:
            del self._dirty[key]
        ops: list[Op] = []
        for key in batch:
            event = self._events.get(key)
            ops.append(Put(key, event.to_bytes()) if event is not None else Delete(key))
        try:
            await self._store.txn([], ops)
        except BaseException:
            self._dirty.update(dict.fromkeys(batch))
            raise
