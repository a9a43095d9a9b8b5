"""The leader's explanations as the API shows them, with their age: an old word is not a word.

Any member shows the same: those that do not lead, what they heard last.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from orchestrator.api.index import PlacementIndex
from orchestrator.scheduling.decisions import Explanation

REPLICAS_SHOWN = 20
NAMED_MAX = 1_000
"""Of an explanation so many replicas are looked at: it may be about a million."""
_REMEMBERED_MAX = 1_000
SILENT_AFTER_S = 30.0
"""A leader that is there says something every few seconds, however quiet it is."""

Key = tuple[str, str]


class Explains(Protocol):
    """What is known of the leader, here or elsewhere: `orchestrator.mesh.voice.Voice`."""

    @property
    def explanations(self) -> Mapping[Key, tuple[Explanation, ...]]: ...

    @property
    def desired(self) -> Mapping[Key, int]: ...

    @property
    def told_at(self) -> float: ...

    @property
    def told_ago_s(self) -> float: ...

    @property
    def member(self) -> str: ...

    def remarks(self, node: str) -> list[tuple[str, str]]: ...


class Explaining:
    """Reads what the leader says, once there is somebody to ask."""

    def __init__(self, index: PlacementIndex, steady: Callable[[], float] = time.monotonic) -> None:
        """`steady`: seconds of a clock that never jumps."""
        self._index = index
        self._steady = steady
        self._since = steady()
        self._leader: Explains | None = None
        # Who waits for what, by workload, as long as the explanations are the same.
        self._named: dict[Key, tuple[tuple[Explanation, ...], dict[str, Explanation]]] = {}

    def use(self, leader: Explains) -> None:
        self._leader = leader

    @property
    def source(self) -> str:
        """As in an event's source."""
        member = self._leader.member if self._leader is not None else ""
        return f"leader/{member}" if member else "leader"

    @property
    def told_at_ms(self) -> int:
        """When the leader last said what is here; 0: it never did."""
        return int(self._leader.told_at * 1000) if self._leader is not None else 0

    @property
    def current(self) -> bool:
        """Whether it still says so. One that has just begun has a little time to say anything."""
        if self._leader is not None and self._leader.told_ago_s <= SILENT_AFTER_S:
            return True
        return not self.told_at_ms and self._steady() - self._since <= SILENT_AFTER_S

    def remarks(self, node: str) -> list[tuple[str, str]]:
        """(condition, message) of what the leader has to add about a node."""
        return self._leader.remarks(node) if self._leader is not None else []

    def unplaced(self, namespace: str, name: str) -> Sequence[Mapping[str, Any]]:
        """Of a workload's replicas without a node: [{replica, reasons, message}], bounded."""
        found: list[Mapping[str, Any]] = []
        for item in self._of((namespace, name)):
            for replica in item.replicas:
                if len(found) >= REPLICAS_SHOWN:
                    return found
                if self._index.replica(namespace, replica) is None:
                    found.append(_shown(item, replica))
        return found

    def waiting(self, namespace: str, name: str) -> Sequence[Mapping[str, Any]]:
        """What a workload's replicas with a node wait for: [{replica, reason, message}], bounded.

        An explanation of the whole workload has an empty replica.
        """
        found: list[Mapping[str, Any]] = []
        for item in self._of((namespace, name)):
            for replica in islice(item.replicas or ("",), NAMED_MAX):
                if len(found) >= REPLICAS_SHOWN:
                    return found
                if not replica or self._index.replica(namespace, replica) is not None:
                    found.append(_waits(item, replica))
        return found

    def waits(self, namespace: str, workload: str, replica: str) -> Mapping[str, Any] | None:
        """What one replica that has a node waits for."""
        found = self._by_replica((namespace, workload)).get(replica)
        return _waits(found, replica) if found is not None else None

    def desired(self, namespace: str, name: str) -> int | None:
        """How many replicas the leader wants; None when it has not said."""
        return self._leader.desired.get((namespace, name)) if self._leader is not None else None

    def fingerprints(self) -> dict[Key, int]:
        """For each explained workload a number that changes with its explanation."""
        if self._leader is None:
            return {}
        current = self.current
        return {key: hash((items, current)) for key, items in self._leader.explanations.items()}

    def _by_replica(self, key: Key) -> dict[str, Explanation]:
        items = self._of(key)
        known = self._named.get(key)
        if known is None or known[0] is not items:
            if len(self._named) >= _REMEMBERED_MAX:
                self._named.clear()
            named: dict[str, Explanation] = {}
            for item in items:
                for replica in islice(item.replicas, NAMED_MAX):
                    named.setdefault(replica, item)
            known = self._named[key] = (items, named)
        return known[1]

    def _of(self, key: Key) -> tuple[Explanation, ...]:
        return self._leader.explanations.get(key, ()) if self._leader is not None else ()


def _waits(item: Explanation, replica: str) -> dict[str, Any]:
    return {"replica": replica, "reason": item.code, "message": _message(item)}


def _message(item: Explanation) -> str:
    reasons = sorted(item.reasons, key=lambda reason: -reason.nodes)
    details = "; ".join(reason.example for reason in reasons[:3])
    return f"{item.message} ({details})" if details else item.message


def _shown(item: Explanation, replica: str) -> dict[str, Any]:
    reasons = sorted(item.reasons, key=lambda reason: -reason.nodes)
    return {
        "replica": replica,
        "reasons": [{"reason": r.code, "nodes": r.nodes} for r in reasons]
        or [{"reason": item.code, "nodes": 0}],
        "message": _message(item),
    }
