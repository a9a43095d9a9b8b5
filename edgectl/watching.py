"""A watch that survives broken streams. Called by get -w, wait, delete and describe-like verbs.

After a break everything is read again and compared with what was known, so that the caller sees
one consistent sequence: no change twice, and a deletion that happened meanwhile is not missed.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from edgectl.errors import CallError
from edgectl.reader import WatchSource
from edgectl.resources import Item
from polder.v1 import common_pb2, operator_pb2

ADDED, MODIFIED, DELETED, SYNCED, TICK = "ADDED", "MODIFIED", "DELETED", "SYNCED", "TICK"
SLICE_S = 5.0  # a bounded watch is read anew this often: composed status may not be pushed
MAX_BACKOFF_S = 5.0

_TYPES = {
    operator_pb2.WATCH_TYPE_ADDED: ADDED,
    operator_pb2.WATCH_TYPE_MODIFIED: MODIFIED,
    operator_pb2.WATCH_TYPE_DELETED: DELETED,
}
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """`item` is None for SYNCED (everything there was has been told) and TICK (time has passed)."""

    type: str
    item: Item | None = None


class Watch:
    """Iterate over `changes()`. `on_break` is told about each break, once, before the retry."""

    def __init__(
        self,
        client: WatchSource,
        request: operator_pb2.WatchRequest,
        *,
        deadline: float | None = None,
        on_break: Callable[[CallError], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._request = request
        self._deadline = deadline
        self._on_break = on_break
        self._known: dict[_Key, common_pb2.Resource] = {}
        self._synced_once = False

    def changes(self) -> Generator[Change, None, None]:
        """Ends at the deadline (time.monotonic()); without one, never. Raises CallError when the
        orchestrator refuses."""
        failures = 0
        while (left := self._left_s()) is None or left > 0:
            timeout = None if left is None else min(SLICE_S, left)
            try:
                for change in self._stream(timeout):
                    failures = 0
                    yield change
            except CallError as error:
                if timeout is not None and error.code == "DEADLINE_EXCEEDED":
                    yield Change(TICK)
                    continue
                if not error.transient and error.code not in ("CANCELLED", "ABORTED"):
                    raise
                failures += 1
                if failures == 1:
                    self._on_break(error)
                yield Change(TICK)
                self._pause(failures)
            else:
                yield Change(TICK)
                failures += 1
                self._pause(failures)

    def _stream(self, timeout_s: float | None) -> Iterator[Change]:
        fresh: dict[_Key, common_pb2.Resource] = {}
        synced = False
        for message in self._client.watch(self._request, timeout_s):
            if message.type == operator_pb2.WATCH_TYPE_SYNCED:
                synced = True
                yield from self._resynced(fresh, message.now_ms)
                continue
            kind = _TYPES.get(message.type)
            if kind is None:
                continue  # of a newer server
            resource = message.resource
            key = (resource.metadata.namespace, resource.metadata.name)
            if synced:
                yield from self._changed(kind, key, resource, message.now_ms)
            elif kind == DELETED:
                fresh.pop(key, None)
            else:
                fresh[key] = resource

    def _changed(
        self, kind: str, key: _Key, resource: common_pb2.Resource, now_ms: int
    ) -> Iterator[Change]:
        if kind == DELETED:
            self._known.pop(key, None)
        elif self._known.get(key) == resource:
            return
        else:
            self._known[key] = resource
        yield Change(kind, Item(resource, now_ms))

    def _resynced(self, fresh: dict[_Key, common_pb2.Resource], now_ms: int) -> Iterator[Change]:
        known, self._known = self._known, fresh
        for key, resource in known.items():
            if key not in fresh:
                yield Change(DELETED, Item(resource, now_ms))
        for key, resource in fresh.items():
            if key not in known:
                yield Change(ADDED, Item(resource, now_ms))
            elif known[key] != resource:
                yield Change(MODIFIED, Item(resource, now_ms))
        if not self._synced_once:
            self._synced_once = True
            yield Change(SYNCED)

    def _left_s(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _pause(self, failures: int) -> None:
        longest = min(MAX_BACKOFF_S, 0.2 * 2 ** min(failures, 10))
        left = self._left_s()
        time.sleep(max(0.0, min(random.uniform(0.05, longest), left if left else longest)))
