"""Who holds replicas of some workloads, kept from tick to tick: only changed placements are read.

Used where few workloads of many are looked at; `holders.py` is for a plan, which needs them all.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from orchestrator.records import AssignmentRecord, NodePlacement

Stay = tuple[str, AssignmentRecord]
"""(node, the replica there)."""

_Indexed = tuple[NodePlacement, Mapping[str, list[Stay]]]


@dataclass(frozen=True, slots=True)
class Holdings:
    """By node: the placement, and its stays by workload uid."""

    by_node: Mapping[str, _Indexed] = field(default_factory=lambda: MappingProxyType({}))

    def at(self, placements: Mapping[str, NodePlacement]) -> "Holdings":
        """The same for these placements; those that are the same objects are not read again."""
        known: dict[str, _Indexed] = {}
        changed = len(placements) != len(self.by_node)
        for node, placement in placements.items():
            before = self.by_node.get(node)
            if before is None or before[0] is not placement:
                before, changed = (placement, _by_workload(placement)), True
            known[node] = before
        return Holdings(known) if changed else self

    def of(self, uids: frozenset[str]) -> dict[str, list[Stay]]:
        """Stays by workload uid, of these workloads."""
        found: dict[str, list[Stay]] = {uid: [] for uid in uids}
        for _, mine in self.by_node.values():
            # Over the smaller of both: a set of one and a view of the other would not choose so.
            for uid in mine if len(mine) < len(uids) else uids:
                if uid in mine and uid in uids:
                    found[uid] += mine[uid]
        return found


def _by_workload(placement: NodePlacement) -> Mapping[str, list[Stay]]:
    found: defaultdict[str, list[Stay]] = defaultdict(list)
    for record in placement.assignments:
        found[record.workload_uid].append((placement.node, record))
    return found
