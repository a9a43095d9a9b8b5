"""The leader's explanations as the API shows them. Empty while another member leads."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.api.index import PlacementIndex
from orchestrator.scheduling.decisions import Explanation

REPLICAS_SHOWN = 20

Key = tuple[str, str]


class Explains(Protocol):
    """The part of the leader that is needed here."""

    explanations: Mapping[Key, tuple[Explanation, ...]]
    desired: Mapping[Key, int]


class Explaining:
    """Reads the leader of this process, once there is one."""

    def __init__(self, index: PlacementIndex) -> None:
        self._index = index
        self._leader: Explains | None = None

    def use(self, leader: Explains) -> None:
        self._leader = leader

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

    def desired(self, namespace: str, name: str) -> int | None:
        """How many replicas the leader wants; None when it has not said."""
        return self._leader.desired.get((namespace, name)) if self._leader is not None else None

    def fingerprints(self) -> dict[Key, int]:
        """For each explained workload a number that changes with its explanation."""
        if self._leader is None:
            return {}
        return {key: hash(items) for key, items in self._leader.explanations.items()}

    def _of(self, key: Key) -> tuple[Explanation, ...]:
        return self._leader.explanations.get(key, ()) if self._leader is not None else ()


def _shown(item: Explanation, replica: str) -> dict[str, Any]:
    reasons = sorted(item.reasons, key=lambda reason: -reason.nodes)
    details = "; ".join(reason.example for reason in reasons[:3])
    return {
        "replica": replica,
        "reasons": [{"reason": r.code, "nodes": r.nodes} for r in reasons]
        or [{"reason": item.code, "nodes": 0}],
        "message": f"{item.message} ({details})" if details else item.message,
    }
