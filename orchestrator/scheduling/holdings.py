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

_Indexed = tuple[NodePlacement, Mapping[str, tuple[AssignmentRecord, ...]]]


@dataclass(frozen=True, slots=True)
class Holdings:
    """By node: the placement, and what it assigns by workload uid."""

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
        for node, (_, mine) in self.by_node.items():
            for uid in mine.keys() & uids:
                found[uid] += [(node, record) for record in mine[uid]]
        return found


def _by_workload(placement: NodePlacement) -> Mapping[str, tuple[AssignmentRecord, ...]]:
    found: defaultdict[str, list[AssignmentRecord]] = defaultdict(list)
    for record in placement.assignments:
        found[record.workload_uid].append(record)
    return {uid: tuple(records) for uid, records in found.items()}
