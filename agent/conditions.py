"""Which conditions of the node are true now, and since when.

Filled by the supervisor and the plan store, read by the session for every heartbeat.

Types: RuntimeDown, NetworkNotReady, DiskPressure, StateNotWritable, SitePortUnavailable,
SiteUnavailable, and those of `agent/domain/site/`, such as AutonomyOver.
"""

from collections.abc import Callable

from polder.v1 import agent_pb2

MAX_MESSAGE = 512


class Conditions:
    """`wall` gives unix seconds; `on_change(type, status, message)` hears of every flip; of one
    that ends with what it was last."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._true: dict[str, agent_pb2.NodeCondition] = {}
        self.on_change: Callable[[str, bool, str], None] = lambda _type, _status, _message: None

    def set(self, type_: str, reason: str, message: str) -> None:
        """True from now on; if it was already, only reason and message change."""
        known = self._true.get(type_)
        message = message[:MAX_MESSAGE]
        if known is not None:
            if (known.reason, known.message) != (reason, message):
                known.reason, known.message = reason, message
            return
        self._true[type_] = agent_pb2.NodeCondition(
            type=type_,
            status=True,
            reason=reason,
            message=message,
            since_ms=int(self._wall() * 1000),
        )
        self.on_change(type_, True, message)

    def clear(self, type_: str) -> None:
        known = self._true.pop(type_, None)
        if known is not None:
            was = known.message or known.reason
            self.on_change(type_, False, f"it is over: {was}"[:MAX_MESSAGE])

    def is_set(self, type_: str) -> bool:
        return type_ in self._true

    def all(self) -> list[agent_pb2.NodeCondition]:
        """Those that are true, sorted by type. The caller must not change them."""
        return [self._true[type_] for type_ in sorted(self._true)]
