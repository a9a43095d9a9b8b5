"""How a drill went, as one of the surviving members sees it: events in, report out. Pure.

Fed by `orchestrator/drill.py`. Times are seconds of the member's steady clock; what is reported
counts from the moment the region fell silent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from orchestrator.domain.drill import Drill, Report

NOT_BACK_MAX = 100
"""Names in a report; the count is whole."""

Marks = tuple[tuple[str, str, int], ...]
"""Of the containers of a replica that ran: (name, id, started_at_ms)."""


@dataclass(frozen=True, slots=True)
class NodeMarks:
    """What ran on a node: by replica uid."""

    replicas: Mapping[str, Marks]


def restarted(before: NodeMarks, after: NodeMarks, excused: Iterable[str] = ()) -> int:
    """How many replicas had a container stopped or started anew. `excused`: uids that somebody
    asked to stop or change meanwhile. Containers that came in addition are none of these."""
    spared, count = frozenset(excused), 0
    for uid, marks in before.replicas.items():
        found = {name: (identity, at) for name, identity, at in after.replicas.get(uid, ())}
        same = all(found.get(name) == (identity, at) for name, identity, at in marks)
        count += not same and uid not in spared
    return count


class Measure:
    """One drill. `silent_at`: when the region falls silent; `nodes`: who was connected there."""

    def __init__(self, drill: Drill, silent_at: float, nodes: Mapping[str, NodeMarks]) -> None:
        self.drill = drill
        self.silent_at = silent_at
        self.nodes = nodes
        self.back: dict[str, float] = {}
        self.detected_s = -1.0
        self.leader = ""
        self.leader_s = -1.0
        self.write_s = -1.0
        self.plan_changes = 0

    @property
    def had_leader(self) -> bool:
        return self.drill.leader in self.drill.members

    def since(self, at: float) -> float:
        return max(0.0, at - self.silent_at)

    def left_s(self, at: float) -> float:
        """Until it ends by itself."""
        return max(0.0, self.ends_at - at)

    @property
    def ends_at(self) -> float:
        return self.silent_at + self.drill.duration_s

    # --- events ----------------------------------------------------------------------------------

    def present(self, members: Iterable[str], at: float) -> bool:
        """Who has a lease in the Store. True when the last of the region's is found to be gone."""
        if self.detected_s >= 0 or set(members) & set(self.drill.members):
            return False
        self.detected_s = self.since(at)
        return True

    def led_by(self, member: str, at: float) -> bool:
        """True when a leader elsewhere has been found just now."""
        if not self.had_leader or self.leader_s >= 0 or not member or member in self.drill.members:
            return False
        self.leader, self.leader_s = member, self.since(at)
        return True

    def wrote(self, at: float) -> bool:
        """A write was accepted. True for the first."""
        if self.write_s >= 0:
            return False
        self.write_s = self.since(at)
        return True

    def node_at(self, node: str, member: str, at: float) -> bool:
        """A node is connected to a member. True when that brings it back."""
        if node not in self.nodes or node in self.back or member in self.drill.members:
            return False
        self.back[node] = self.since(at)
        return True

    def planned(self, changes: int) -> None:
        """What the leader placed, moved or stopped."""
        self.plan_changes += changes

    # --- the end ---------------------------------------------------------------------------------

    def report(self, restarts: int, by: str) -> Report:
        """`by`: this member."""
        times = sorted(self.back.values())
        missing = sorted(set(self.nodes) - set(self.back))
        return Report(
            nodes=len(self.nodes),
            nodes_back=len(times),
            not_back=tuple(missing[:NOT_BACK_MAX]),
            reconnect_p50_s=_rounded(percentile(times, 50)),
            reconnect_p99_s=_rounded(percentile(times, 99)),
            reconnect_last_s=_rounded(times[-1]) if times else -1.0,
            detected_s=_rounded(self.detected_s),
            had_leader=self.had_leader,
            leader=self.leader,
            leader_s=_rounded(self.leader_s),
            write_s=_rounded(self.write_s),
            plan_changes=self.plan_changes,
            restarts=restarts,
            measured_by=by,
        )


def percentile(times: Sequence[float], share: float) -> float:
    """By nearest rank, of a sorted sequence; -1 of none. `share` in percent."""
    if not times:
        return -1.0
    return times[max(0, ceil(len(times) * share / 100) - 1)]


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
