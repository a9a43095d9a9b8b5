"""Which replicas of others a node may take over, or votes on, by the placements that name it. Pure.

Called by `orchestrator/gateway/roles.py`, for the plan that a node gets and for the digest by which
the leader knows that it must get another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.overrides import LocalOverride
from orchestrator.records import AssignmentRecord, GroupRecord, NodePlacement

ROLES_MAX = 2_000
"""Of one node: what is beyond them would make a plan that is too large, or that it refuses."""


@dataclass(frozen=True, slots=True)
class SitePeer:
    """Another node of the site, and how it is reached: as in plan.proto."""

    node: str
    endpoints: tuple[str, ...]
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Role:
    """A replica of `primary` that this node may take over, or, as a witness, only votes on."""

    primary: str
    assignment: AssignmentRecord
    witness: bool


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What a node's plan says of its site beside its own replicas. Empty: it is alone there, and
    nobody decided anything there. `overrides`: all of the site, by key."""

    roster: tuple[SitePeer, ...] = ()
    roles: tuple[Role, ...] = ()
    overrides: tuple[LocalOverride, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.roster or self.roles or self.overrides)


NOBODY = Neighbourhood()


def _involved(group: GroupRecord) -> set[str]:
    """Everybody who has a say, or had one in a group that must be sealed first."""
    return {*group.voters, *(node for former in group.before for node in former.voters)}


def shared(placement: NodePlacement) -> tuple[AssignmentRecord, ...]:
    """Its assignments that somebody else may take over."""
    return tuple(item for item in placement.assignments if item.group is not None)


def named_by(placement: NodePlacement) -> frozenset[str]:
    """The other nodes that have a part in its replicas."""
    groups = (item.group for item in placement.assignments)
    named = {node for group in groups if group is not None for node in _involved(group)}
    return frozenset(named - {placement.node})


def roles_of(node: str, placements: Iterable[NodePlacement]) -> tuple[Role, ...]:
    """In order of namespace and replica, at most ROLES_MAX. `placements`: those that name the node,
    and its own.

    A replica gives one role, however many stays it has. Of two on one node the older counts: as
    long as both are there the newer has not been seen ready. Of stays on different nodes the newest
    counts, which an adoption or a move made. Whoever has a stay of it himself has no role in it.
    """
    mine: set[tuple[str, str]] = set()
    found: dict[tuple[str, str], Role] = {}
    for placement in placements:
        for item in placement.assignments:
            key = (item.workload_uid, item.replica)
            if placement.node == node:
                mine.add(key)
            elif item.group is not None and node in item.group.voters:
                role = Role(placement.node, item, node in item.group.witnesses)
                before = found.get(key)
                if before is None or _counts_more(role, before):
                    found[key] = role
    ordered = sorted(
        (role for key, role in found.items() if key not in mine),
        key=lambda role: (role.assignment.namespace, role.assignment.replica),
    )
    return tuple(ordered[:ROLES_MAX])


def _counts_more(one: Role, other: Role) -> bool:
    newer = one.assignment.epoch > other.assignment.epoch
    return newer is not (one.primary == other.primary)


def peers_of(node: str, placements: Iterable[NodePlacement]) -> tuple[str, ...]:
    """Whom it speaks to, sorted: everybody with whom it shares a replica."""
    found: set[str] = set()
    for placement in placements:
        for item in placement.assignments:
            group = item.group
            if group is None:
                continue
            if placement.node == node or node in group.members or node in _involved(group):
                found |= _involved(group)
                found.add(placement.node)
    return tuple(sorted(found - {node}))
