"""What the scheduler is told of replicas, from what agents say. Used by `leader_snapshot.py`.

A node of which nothing else is assigned and said since the last look costs a comparison of
identities: of a hundred thousand replicas nearly all are so, in every tick of the leader.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

from orchestrator.domain.reports import TERMINATING
from orchestrator.domain.restored import is_credible
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.records import NodePlacement
from orchestrator.scheduling.snapshot import Observed
from polder.v1 import agent_pb2

_Watched = tuple[agent_pb2.ReplicaStatus, float, Observed]
"""What was said last, the steady seconds since which it is ready, and what it came to."""

READY_LONG_S = 60.0
"""Beyond this, and the longest `minReady` that is asked for, it does not matter for how long."""


@dataclass(slots=True)
class _Reported:
    """What came of a node's replicas; it stands as long as nothing else is assigned and said.

    `ready_least_s`: how long the one has been ready that became it last."""

    placement: NodePlacement
    statuses: list[agent_pb2.ReplicaStatus]
    watched: dict[str, _Watched]  # by replica uid
    found: dict[tuple[str, str], Observed]
    ready_least_s: float
    foreign: tuple[tuple[str, str], ...] = ()

    def stands(
        self, placement: NodePlacement, statuses: list[agent_pb2.ReplicaStatus], long_s: float
    ) -> bool:
        return (
            self.placement is placement
            and self.ready_least_s >= long_s
            and self.statuses == statuses
        )


class ReportedReplicas:
    """Remembers since when each has been ready, until `forget`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._reported: dict[str, _Reported] = {}  # by node
        self.foreign: frozenset[tuple[str, str]] = frozenset()  # of what was observed last
        self.highest_epoch = 0  # of all that was ever said here of what runs, and credible

    def forget(self) -> None:
        """Nobody watched for a while."""
        self._reported = {}

    def observed(
        self,
        placements: Iterable[NodePlacement],
        steady: float | None,
        asked_s: float,
        counted: int = 0,
    ) -> Mapping[tuple[str, str], Observed]:
        """By node and replica uid. `steady`: seconds of a clock that never jumps; None: those that
        are ready have been for long. `asked_s`: the longest `minReady` that anybody asks for.
        `counted`: the revision by which epochs are decided now."""
        found: dict[tuple[str, str], Observed] = {}
        reported: dict[str, _Reported] = {}
        foreign: list[tuple[str, str]] = []
        long_s = max(READY_LONG_S, asked_s)
        for placement in placements:
            seen = self._fleet.get(placement.node)
            if seen is None:
                continue
            if steady is None:
                ready = dict(_long_ready(placement, seen))
                foreign += _foreign(ready)
                found.update(ready)
                continue
            known = self._reported.get(placement.node)
            if known is None or not known.stands(placement, list(seen.replicas.values()), long_s):
                known = _report(known, placement, seen, steady, long_s)
                said = (s.epoch for s in known.statuses if is_credible(s.epoch, counted))
                self.highest_epoch = max((self.highest_epoch, *said))
            reported[placement.node] = known
            found.update(known.found)
            foreign += known.foreign
        self.foreign = frozenset(foreign)
        if steady is not None:
            self._reported = reported
        return found


def _report(
    before: _Reported | None,
    placement: NodePlacement,
    seen: NodeObservation,
    steady: float,
    long_s: float,
) -> _Reported:
    known = before.watched if before is not None else {}
    after = _Reported(placement, list(seen.replicas.values()), {}, {}, inf)
    for assignment in placement.assignments:
        uid = assignment.replica_uid
        status = seen.replicas.get(uid)
        if status is not None:
            after.watched[uid] = _watch(known.get(uid), status, steady, long_s)
            observed = after.found[placement.node, uid] = after.watched[uid][2]
            if observed.ready:
                after.ready_least_s = min(after.ready_least_s, observed.ready_for_s)
    after.foreign = _foreign(after.found)
    return after


def _foreign(found: Mapping[tuple[str, str], Observed]) -> tuple[tuple[str, str], ...]:
    return tuple(key for key, observed in found.items() if observed.is_foreign)


def _long_ready(
    placement: NodePlacement, seen: NodeObservation
) -> Iterator[tuple[tuple[str, str], Observed]]:
    for assignment in placement.assignments:
        status = seen.replicas.get(assignment.replica_uid)
        if status is not None:
            ready_for_s = inf if status.ready else 0.0
            yield (placement.node, assignment.replica_uid), _seen(status, ready_for_s)


def _watch(
    before: _Watched | None, status: agent_pb2.ReplicaStatus, steady: float, long_s: float
) -> _Watched:
    """The same object while nothing about it changes, as nearly always."""
    since = steady
    if before is not None:
        observed = before[2]
        if observed.ready and status.ready and observed.revision == status.revision:
            since = before[1]
        settled = not observed.ready or observed.ready_for_s >= long_s
        if settled and before[0] is status:
            return before
    return status, since, _seen(status, steady - since if status.ready else 0.0)


def _seen(status: agent_pb2.ReplicaStatus, ready_for_s: float) -> Observed:
    failed = status.phase == agent_pb2.REPLICA_PHASE_FAILED
    return Observed(
        running=status.phase == agent_pb2.REPLICA_PHASE_RUNNING,
        ready=status.ready,
        revision=status.revision,
        ready_for_s=ready_for_s,
        finished=failed or status.phase == agent_pb2.REPLICA_PHASE_SUCCEEDED,
        failed=failed,
        restarts=status.restarts,
        reason=status.reason,
        terminating=status.reason == TERMINATING,
        epoch=status.epoch,
    )
