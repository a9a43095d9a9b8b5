"""What happened, for operators: bounded, counted instead of repeated, and never in anyone's way.

The gateway, the leader, identity and the operator API call `record`, which only touches memory; a
task writes to the Store a few times a second (`event_log.py`). Repeats of the same reason and
message on the same object count up. Losing the last quarter second of events in a crash is
accepted; waiting for the disk in a heartbeat would not be. Every member shows what any recorded.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

from orchestrator.event_log import EventLog
from orchestrator.event_records import EventRecord, ObjectKey
from orchestrator.store.port import Store

__all__ = ["EventRecord", "EventRecorder", "Recorder"]

KEEP_S = 24 * 3600.0
TOTAL_MAX = 5_000
PER_OBJECT_MAX = 100
_MESSAGE_MAX = 1024

Listener = Callable[[EventRecord], None]


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


class EventRecorder:
    """`start` reads what the Store has; `stop` writes what it has not.

    `uid_of`: which object has a (kind, namespace, name) now; empty: none. `deletes`: whether this
    member deletes from the Store what is dropped; exactly one should.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        uid_of: Callable[[str, str, str], str] = lambda *_: "",
    ) -> None:
        self._clock = clock
        self._uid_of = uid_of
        self.deletes: Callable[[], bool] = lambda: True
        self._log = EventLog(store, self._on_stored, self._deletes)
        # By key, least recently seen first: what retention drops stands at the front.
        self._events: OrderedDict[str, EventRecord] = OrderedDict()
        self._of_object: defaultdict[ObjectKey, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._listeners: list[Listener] = []
        self._started = False

    async def start(self) -> None:
        """Raises StoreError."""
        for event in sorted(await self._log.start(), key=lambda event: event.last_at_ms):
            self._keep(event.key, event)
        self._started = True
        self._prune()

    async def stop(self) -> None:
        """Writes what is left, once."""
        await self._log.stop()

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
        self._show(self._log.add(event))

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
        """The listener gets every event that any member records from now on; it must be quick."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # --- keeping and dropping ----------------------------------------------------------------

    def _deletes(self) -> bool:
        return self.deletes()

    def _on_stored(self, key: str) -> None:
        """The Store's copy changed: by this member, or by another one."""
        if self._started:
            self._show(key)

    def _show(self, key: str) -> None:
        event = self._log.now(key)
        if event is None:
            self._forget(key)
            return
        if event == self._events.get(key):
            return
        self._keep(key, event)
        self._prune()
        for listener in list(self._listeners):
            listener(event)

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
        self._forget(key)
        self._log.drop(key)

    def _forget(self, key: str) -> None:
        event = self._events.pop(key, None)
        if event is None:
            return
        mine = self._of_object[event.object]
        mine.pop(key, None)
        if not mine:
            del self._of_object[event.object]
