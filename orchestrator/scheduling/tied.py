"""Local volumes in the words of `edgectl why`: the nodes on which a replica's data is not.

Placing looks at each replica's own volume (`part.py`); this is for one more replica of a workload,
which is the next one that has no node.
"""

from collections.abc import Mapping
from itertools import islice

from orchestrator.scheduling.desired import index_names
from orchestrator.scheduling.holders import Holder
from orchestrator.scheduling.part import is_lost
from orchestrator.scheduling.reasons import Need, Reason
from orchestrator.scheduling.snapshot import Mode, Snapshot, Template, Workload
from orchestrator.scheduling.table import Mask, NodeTable

LOOKED_AT_MAX = 1000


class VolumeElsewhere:
    """A filter: only the nodes will do that have the data of one of the `homes`' replicas."""

    code = "VolumeElsewhere"

    def __init__(self, volumes: tuple[str, ...], homes: Mapping[str, str]) -> None:
        self._volumes = volumes
        self._homes = homes

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = ~table.nowhere
        rows = [table.index[node] for node in self._homes.values() if node in table.index]
        failing[rows] = False
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        replica, node = next(iter(self._homes.items()))
        text = f"the data of volume {', '.join(self._volumes)} of {replica} is on node {node}"
        return (Reason(self.code, text, f"volume/{replica}-{self._volumes[0]}"),)


def tied(
    snapshot: Snapshot,
    workload: Workload,
    template: Template,
    held: Mapping[str, Holder],
    table: NodeTable,
) -> VolumeElsewhere | None:
    """None when one of those that wait for a node is free to go anywhere."""
    if not template.local_volumes or workload.mode is not Mode.REPLICAS:
        return None
    missing = (name for name in index_names(workload) if name not in held)
    waiting = list(islice(missing, LOOKED_AT_MAX))
    if not waiting:
        waiting = [name for name, holder in sorted(held.items()) if _must_go(holder, table)]
    if not waiting:
        waiting = [f"{workload.name}-{workload.count}"]
    known = {name: snapshot.volumes.get((workload.namespace, name), "") for name in waiting}
    if not all(node in table.index for node in known.values()):
        return None
    return VolumeElsewhere(template.local_volumes, known)


def _must_go(holder: Holder, table: NodeTable) -> bool:
    if holder.row is None:
        return False
    node = table.nodes[holder.row]
    return node.draining or is_lost(node)
