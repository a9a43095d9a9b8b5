"""Questions to records that the checks of a simulation share, without the code under test."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource
from orchestrator.store import keys

if TYPE_CHECKING:
    from tests.sim.rollouts_world import World


def assignments(
    uid: str, placements: Mapping[str, NodePlacement]
) -> list[tuple[str, AssignmentRecord]]:
    return [
        (node, item)
        for node, placement in placements.items()
        for item in placement.assignments
        if item.workload_uid == uid
    ]


def is_numbered(workload: StoredResource) -> bool:
    return "perNode" not in workload.spec and "perSite" not in workload.spec


def is_wanted(workload: StoredResource, name: str) -> bool:
    if not is_numbered(workload):
        return True
    return int(name.rpartition("-")[2]) < int(workload.spec.get("replicas", 1))


def kept_body(world: "World", workload: StoredResource) -> dict[str, Any]:
    """The rollout's record, as JSON; empty when there is none."""
    record = world.mirror.kept_at(keys.rollout(workload.uid))
    return record.body if record is not None else {}
