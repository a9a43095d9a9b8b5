"""Puts together what one tick of the leader may know: the snapshot, and the records behind it.

Called by the leader before each tick. What changes rarely is gathered again only when it changed.
"""

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.cache import Cache, Change
from orchestrator.domain.liveness import DEFAULT_PERIODS, Periods
from orchestrator.fleet import Fleet
from orchestrator.gateway.roles import RoleBook
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import KeptRecord, NodePlacement, TemplateRevision
from orchestrator.scheduling.steer import World
from orchestrator.scheduling.tick import Heard, Stray
from orchestrator.store import keys
from polder.v1 import agent_pb2

_NAMED_MAX = 100_000  # nodes
_STARTING = agent_pb2.REPLICA_PHASE_PENDING
_AT_WORK = (agent_pb2.REPLICA_PHASE_RUNNING, agent_pb2.REPLICA_PHASE_ORPHANED)


class WorldBuilder:
    """Give `on_changes` every batch of changes of the mirror."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        periods: Periods = DEFAULT_PERIODS,
        roles: RoleBook | None = None,
    ) -> None:
        self._cache = cache
        self._fleet = fleet
        self._roles = roles
        self._named: dict[str, tuple[NodePlacement, frozenset[str]]] = {}
        self._snapshots = SnapshotBuilder(cache, fleet, periods, roles)
        self._revisions: Mapping[tuple[str, int], TemplateRevision] | None = None
        self._kept: Mapping[str, KeptRecord] | None = None

    def on_changes(self, changes: list[Change]) -> None:
        if any(change.key.startswith(keys.REVISIONS) for change in changes):
            self._revisions = None
        if any(change.key.startswith(keys.KEPT) for change in changes):
            self._kept = None

    def build(self, now: float, led_since: float, steady: float) -> World:
        """`now` and `led_since` in unix seconds, `steady` by a clock that never jumps, as for the
        snapshot."""
        if self._revisions is None:
            found = self._cache.revisions()
            self._revisions = {(item.workload_uid, item.number): item for item in found}
        if self._kept is None:
            self._kept = {
                record.key: record for prefix in keys.KEPT for record in self._cache.kept(prefix)
            }
        strays = tuple(self._strays(now))
        return World(
            snapshot=self._snapshots.build(now, led_since, steady, strays),
            workloads=tuple(self._cache.resources("Workload")),
            revisions=self._revisions,
            kept=self._kept,
            strays=strays,
            heard=dict(self._heard(strays, now)),
        )

    def _heard(
        self, strays: Iterable[Stray], now: float
    ) -> Iterator[tuple[tuple[str, str], Heard]]:
        """What is said of the stays that records name, of replicas that a site took over."""
        for stray in strays:
            if not stray.takes_over or self._roles is None:
                continue
            for node in self._roles.holders_around(stray.node):
                seen = self._fleet.get(node)
                for uid, status in seen.replicas.items() if seen is not None else ():
                    key = (status.workload_uid, status.replica)
                    if key == (stray.workload_uid, stray.replica):
                        yield (node, uid), Heard(status.epoch, _ready_for_s(status, now))

    def _strays(self, now: float) -> Iterator[Stray]:
        """What agents report that no record names."""
        for seen in self._fleet.nodes():
            if not (seen.connected and seen.complete and seen.replicas):
                continue
            if self._cache.resource("Node", "", seen.node) is None:
                continue
            named = self._uids(seen.node)
            if seen.replicas.keys() <= named:
                continue
            for uid, status in seen.replicas.items():
                starts = status.takes_over and status.phase == _STARTING
                if (
                    uid not in named
                    and status.workload_uid
                    and (starts or status.phase in _AT_WORK)
                ):
                    yield Stray(
                        seen.node,
                        status.namespace,
                        status.workload,
                        status.workload_uid,
                        status.replica,
                        uid,
                        status.epoch,
                        status.revision,
                        seen.acked_generation,
                        status.takes_over,
                        status.ready,
                        _ready_for_s(status, now),
                    )

    def _uids(self, node: str) -> frozenset[str]:
        """Of all stays that a node's placement names."""
        placement = self._cache.placement(node)
        known = self._named.get(node)
        if known is None or known[0] is not placement:
            uids = {item.replica_uid for item in placement.assignments}
            uids.update(stop.replica_uid for stop in placement.stops)
            if len(self._named) > _NAMED_MAX:
                self._named.clear()
            known = self._named[node] = (placement, frozenset(uids))
        return known[1]


def _ready_for_s(status: agent_pb2.ReplicaStatus, now: float) -> float:
    """By the clock of the member that has its node's session: see `reports.on_our_clock`."""
    return max(0.0, now - status.ready_since_ms / 1000) if status.ready_since_ms else 0.0
