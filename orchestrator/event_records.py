"""One event as it is kept and told. Used by whoever records, keeps or shows events. Pure."""

import hashlib
import json
from dataclasses import dataclass, replace

from orchestrator.records import encode_in_order, fields_of, known_fields
from orchestrator.store import keys
from polder.v1 import common_pb2

ObjectKey = tuple[str, str, str]


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
        """The same for every repeat, whichever member tells it."""
        parts = (*self.object, self.reason, self.message, *([self.uid] if self.uid else []))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def is_of(self, uid: str, created_at_ms: int) -> bool:
        """Whether it is about the object with this uid, and not about an earlier one."""
        return self.uid == uid if self.uid else self.last_at_ms >= created_at_ms

    def and_before(self, earlier: "EventRecord | None") -> "EventRecord":
        """As one event, this one being the newer part of it."""
        if earlier is None:
            return self
        return replace(
            self,
            first_at_ms=min(earlier.first_at_ms, self.first_at_ms),
            last_at_ms=max(earlier.last_at_ms, self.last_at_ms),
            count=earlier.count + self.count,
        )

    @property
    def key(self) -> str:
        return keys.event(self.namespace, self.identifier)

    def to_bytes(self) -> bytes:
        return encode_in_order(fields_of(self)).encode()

    @staticmethod
    def from_bytes(raw: bytes) -> "EventRecord":
        """Raises ValueError and TypeError."""
        return EventRecord(**known_fields(EventRecord, json.loads(raw)))

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
