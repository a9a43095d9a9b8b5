"""Fence: an operator vouches that an exclusive replica runs nowhere any more.

The last resort where the leader waits for a node that nobody hears (`orchestrator/scheduling/
exclusive.py`). It only writes a record of which stays are meant; see `orchestrator/domain/
fences.py`. What a node that is heard runs is never fenced: it says itself when it has stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isinf

import grpc

from orchestrator.authz import Caller, require
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.fences import UIDS_MAX, Fence
from orchestrator.domain.liveness import Periods
from orchestrator.domain.overrides import decisions
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.records import AssignmentRecord, StopRecord
from orchestrator.refusals import Refused, conflict, in_use, not_found
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Put, Store
from polder.manifest.quantity import format_duration
from polder.roles import Level
from polder.v1 import common_pb2, operator_pb2

_ATTEMPTS = 8
RISK = (
    "if it still runs there, two of it run until that node is heard again, and two that write to "
    "the same storage may destroy what is in it for good"
)
ADVICE = (
    "fence only what is switched off, or cut off from its storage and from its users, and keep it "
    "so until it has connected here and got its new plan"
)


@dataclass(frozen=True, slots=True)
class _Stay:
    """What a placement says of a replica on one node. `stopping`: it was told to go."""

    node: str
    uid: str
    workload_uid: str
    stopping: bool


@dataclass(frozen=True, slots=True)
class Fencing:
    """Serves the RPC."""

    store: Store
    cache: Cache
    fleet: Fleet
    periods: Periods
    events: Recorder
    clock: Callable[[], float]

    async def fence(
        self, caller: Caller, request: operator_pb2.FenceRequest
    ) -> operator_pb2.FenceResponse:
        """Raises Refused (Forbidden, NotFound, InUse, StoppedLocally, Conflict) and StoreError."""
        namespace, replica = request.namespace, request.replica
        require(caller, Level.OPERATOR, namespace, f"fence {replica}")
        for _ in range(_ATTEMPTS):
            meant = self._meant(namespace, replica)
            names = sorted({stay.node for stay in meant})
            what = f"{namespace}/{replica} on {', '.join(names)}"
            warnings = [RISK, ADVICE, *self._silences(names)]
            if not request.force:
                text = f"nothing was done; with --force you vouch that {what} does not run any more"
                return operator_pb2.FenceResponse(message=text, warnings=warnings)
            if await self._write(caller, meant, replica):
                message = f"{caller.source} vouches that {what} does not run any more"
                warning = common_pb2.EVENT_TYPE_WARNING
                self.events.record(
                    "Replica", namespace, replica, warning, "Fenced", message, caller.source
                )
                text = f"{what} is taken for gone; it is placed anew where a node fits"
                return operator_pb2.FenceResponse(fenced=True, message=text, warnings=warnings)
        raise conflict("the fence kept changing", "try again")

    def _meant(self, namespace: str, replica: str) -> list[_Stay]:
        """The stays of which nothing is known. Raises Refused when there are none, or it is of no
        use."""
        found = list(self._stays(namespace, replica))
        if not found:
            hint = "edgectl get replicas shows them; only those of failover.exclusive are fenced"
            raise not_found(f"no exclusive replica {namespace}/{replica} has a node", hint)
        for stay in [stay for stay in found if not stay.stopping]:
            if self.fleet.is_live(stay.node, self.periods.silent_after_s):
                hint = f"to move it: edgectl drain {stay.node}"
                raise in_use(f"node {stay.node} is heard, and has it", hint)
            self._check_wanted(stay, replica)
        return found

    def _check_wanted(self, stay: _Stay, replica: str) -> None:
        """What operators of its site stopped is placed nowhere, wherever it does not run. Raises
        Refused."""
        node = self.cache.resource("Node", "", stay.node)
        site = str(node.spec.get("site", "")) if node is not None else ""
        stopped = decisions(self.cache.kept(keys.OVERRIDES)).stopped
        found = stopped.get((site, stay.workload_uid, replica))
        if found is not None:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                "StoppedLocally",
                f"{replica} is {found}: it would be placed nowhere",
                f"`edgectl override drop {replica}` takes that back; then fence it",
            )

    def _stays(self, namespace: str, replica: str) -> Iterator[_Stay]:
        for placement in self.cache.placements():
            stays: list[AssignmentRecord | StopRecord] = [*placement.assignments, *placement.stops]
            for stay in stays:
                same = (stay.namespace, stay.replica) == (namespace, replica)
                if same and stay.group is not None and stay.group.exclusive:
                    stopping = isinstance(stay, StopRecord)
                    yield _Stay(placement.node, stay.replica_uid, stay.workload_uid, stopping)

    def _silences(self, names: list[str]) -> Iterator[str]:
        for name in names:
            silence_s = self.fleet.silence_s(name)
            if isinf(silence_s):
                yield f"node {name} has not been heard since this member started"
            elif silence_s > self.periods.silent_after_s:
                yield f"node {name} was last heard {format_duration(round(silence_s))} ago"

    async def _write(self, caller: Caller, meant: list[_Stay], replica: str) -> bool:
        """Whether the record was still as the mirror showed it; with what it says already."""
        uid = meant[0].workload_uid
        key = keys.fence(uid, replica)
        before = self.cache.kept_at(key)
        known = tuple(before.body.get("uids", ())) if before is not None else ()
        uids = dict.fromkeys((*(stay.uid for stay in meant), *known))
        now_ms = int(self.clock() * 1000)
        fence = Fence(uid, replica, tuple(uids)[:UIDS_MAX], caller.source, now_ms)
        expected = before.store_revision if before is not None else 0
        compare = Compare(key, CompareTarget.MOD_REVISION, expected)
        result = await self.store.txn([compare], [Put(key, fence.record().to_bytes())])
        await catch_up(self.cache, result.revision)
        return result.committed
