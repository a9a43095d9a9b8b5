"""What waits to be sent over one session: bounded, and newer facts replace older ones.

`agent/session_stream.py` owns one per stream. No asyncio in here: the stream decides when to send.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from polder.v1 import agent_pb2, common_pb2

MAX_REPLICAS = 20_000  # twice what a plan may name
BATCH_REPLICAS = 256
MAX_EVENTS = 1_000
BATCH_EVENTS = 100
MAX_URGENT = 64


class Overflow(Exception):
    """More replicas changed than a session may hold back: start again with a complete Hello."""


class EventQueue:
    """Events of the agent, kept while there is no session; the oldest go first when it is full."""

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self._events: deque[common_pb2.Event] = deque()
        self._limit = limit
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: common_pb2.Event) -> None:
        if len(self._events) >= self._limit:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)

    def take(self) -> agent_pb2.AgentEvents | None:
        """The next batch; `give_back` it when it could not be sent."""
        if not self._events and not self._dropped:
            return None
        size = min(BATCH_EVENTS, len(self._events))
        batch = [self._events.popleft() for _ in range(size)]
        dropped, self._dropped = self._dropped, 0
        return agent_pb2.AgentEvents(events=batch, dropped=dropped)

    def give_back(self, batch: agent_pb2.AgentEvents) -> None:
        """At least once is better than never: the server merges repeated events."""
        self._dropped += batch.dropped
        room = self._limit - len(self._events)
        kept = batch.events[max(0, len(batch.events) - room) :] if room > 0 else []
        self._dropped += len(batch.events) - len(kept)
        self._events.extendleft(reversed(kept))


class Outbox:
    """Requests for one stream, in the order: urgent, replica statuses, inventory."""

    def __init__(self) -> None:
        self._urgent: deque[agent_pb2.SessionRequest] = deque()
        self._changed: dict[str, agent_pb2.ReplicaStatus] = {}
        self._gone: dict[str, None] = {}
        self._standbys: list[agent_pb2.StandbyStatus] | None = None
        self._inventory: agent_pb2.NodeInventory | None = None

    def __bool__(self) -> bool:
        replicas = self._changed or self._gone or self._standbys is not None
        return bool(self._urgent or replicas or self._inventory)

    @property
    def has_urgent(self) -> bool:
        return bool(self._urgent)

    def put_urgent(self, request: agent_pb2.SessionRequest) -> None:
        """A PlanAck or RenewRequest: sent next. Raises Overflow."""
        if len(self._urgent) >= MAX_URGENT:
            raise Overflow
        self._urgent.append(request)

    def put_replicas(
        self, changed: Iterable[agent_pb2.ReplicaStatus], gone: Iterable[str] = ()
    ) -> None:
        """A replica's newer status replaces its older one. Raises Overflow."""
        for status in changed:
            self._gone.pop(status.replica_uid, None)
            self._changed[status.replica_uid] = status
        for uid in gone:
            self._changed.pop(uid, None)
            self._gone[uid] = None
        if len(self._changed) + len(self._gone) > MAX_REPLICAS:
            raise Overflow

    def put_standbys(self, standbys: Sequence[agent_pb2.StandbyStatus]) -> None:
        """All of them; the newer list replaces the older one."""
        self._standbys = list(standbys)

    def put_inventory(self, inventory: agent_pb2.NodeInventory) -> None:
        self._inventory = inventory

    def take(self) -> agent_pb2.SessionRequest | None:
        """The next message to send, or None."""
        if self._urgent:
            return self._urgent.popleft()
        if self._changed or self._gone or self._standbys is not None:
            changed = [self._changed.pop(uid) for uid in list(self._changed)[:BATCH_REPLICAS]]
            gone = list(self._gone)[:BATCH_REPLICAS]
            for uid in gone:
                del self._gone[uid]
            standbys, self._standbys = self._standbys, None
            update = agent_pb2.ReplicaStatusUpdate(changed=changed, gone=gone, standbys=standbys)
            return agent_pb2.SessionRequest(replica_status=update)
        if self._inventory is not None:
            inventory, self._inventory = self._inventory, None
            return agent_pb2.SessionRequest(inventory=inventory)
        return None
