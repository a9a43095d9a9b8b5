"""Drill and EndDrill: an operator rehearses the loss of a region, and watches how it goes.

Any member outside the region answers. It writes the record and tells what it sees
(`orchestrator/drill.py`); the drill goes on, and ends, whoever is watching.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc

from orchestrator.authz import Caller
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.drill import (
    GRACE_S,
    LEAD_IN_S,
    Drill,
    Installation,
    Objection,
    drills_in,
    objection,
    read,
)
from orchestrator.drill import LOOK_EVERY_S, DrillWatch, Progress
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.refusals import Refused, conflict, invalid, not_found, unavailable
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Put, Store
from polder.manifest.quantity import format_duration
from polder.v1 import common_pb2, operator_pb2

_TELL_EVERY_S = 5.0
_WARNING = common_pb2.EVENT_TYPE_WARNING
_ORCHESTRATORS_ONLY = (
    "this rehearses the loss of the orchestrators there, not of etcd: the region's etcd goes on"
)

Responses = AsyncIterator[operator_pb2.DrillResponse]


@dataclass(frozen=True, slots=True)
class Drilling:
    """Serves both RPCs. `region` is this member's own."""

    region: str
    store: Store
    cache: Cache
    fleet: Fleet
    events: Recorder
    watch: DrillWatch
    clock: Callable[[], float]

    async def drill(self, caller: Caller, request: operator_pb2.DrillRequest) -> Responses:
        """Raises Refused and StoreError."""
        region = request.region
        if request.follow_only:
            drill = self._latest(region)
        else:
            self._check_outside(region)
            duration_s = request.duration_ms / 1000
            self._check(region, duration_s, request.reason)
            if request.dry_run:
                yield _progress(await self._foretell(region, duration_s), 0.0, duration_s)
                return
            drill = await self._begin(caller, region, duration_s, request.reason)
        async for response in self._told(drill):
            yield response

    async def end(
        self, caller: Caller, request: operator_pb2.EndDrillRequest
    ) -> operator_pb2.EndDrillResponse:
        """Raises Refused (NotFound, Conflict) and StoreError."""
        drill = self._latest(request.region)
        if not drill.runs:
            return operator_pb2.EndDrillResponse(message="it has ended already")
        ended = drill.ended(self.clock(), caller.source).record()
        compare = Compare(ended.key, CompareTarget.MOD_REVISION, drill.store_revision)
        result = await self.store.txn([compare], [Put(ended.key, ended.to_bytes())])
        await catch_up(self.cache, result.revision)
        if not result.committed:
            raise conflict("the drill changed at the same moment", "try again")
        text = f"{caller.source} ended the drill early"
        self.events.record("Region", "", drill.region, _WARNING, "DrillEnding", text, caller.source)
        return operator_pb2.EndDrillResponse(message="ended: the members there serve again")

    # --- beginning -------------------------------------------------------------------------------

    def _check_outside(self, region: str) -> None:
        """UNAVAILABLE, so that clients go on with their next endpoint."""
        others = self._installation().present_outside(region)
        if region != self.region or not others:
            return
        there = [e for m in self.cache.members() if m.name in others for e in m.endpoints]
        raise unavailable(
            "InsideRegion",
            f"this member is in region {region} and could not watch its loss",
            f"edgectl --endpoint {there[0]} drill region {region}" if there else "",
        )

    def _check(self, region: str, duration_s: float, reason: str) -> None:
        found = objection(region, duration_s, reason, self._installation(), self.clock())
        if found is not None:
            raise _refused(found)

    def _installation(self) -> Installation:
        members = self.cache.members()
        return Installation(
            regions={member.name: member.region for member in members},
            present=frozenset(m.name for m in members if self.cache.present(m.name) is not None),
            drills=drills_in(self.cache.kept(keys.DRILLS)),
            running=self.watch.running(),
        )

    async def _foretell(self, region: str, duration_s: float) -> str:
        members = self._installation().present_in(region)
        nodes = sum(node.connected and node.member in members for node in self.fleet.nodes())
        leads = await self.watch.leader() in members
        return (
            f"would silence {len(members)} members ({', '.join(members)}) for "
            f"{format_duration(duration_s)}; {nodes} nodes are connected there"
            + ("; the leader is there, and another is elected" if leads else "")
            + f"; {_ORCHESTRATORS_ONLY}"
        )

    async def _begin(self, caller: Caller, region: str, duration_s: float, reason: str) -> Drill:
        world = self._installation()
        drill = Drill(
            region=region,
            id=secrets.token_hex(8),
            by=caller.source,
            reason=reason,
            started_at_ms=int(self.clock() * 1000),
            duration_s=duration_s,
            members=world.present_in(region),
            leader=await self.watch.leader(),
        )
        # Of every region: of two drills that begin at once, one fails.
        compares = [self._as_read(name) for name in sorted(set(world.regions.values()))]
        record = drill.record()
        result = await self.store.txn(compares, [Put(record.key, record.to_bytes())])
        await catch_up(self.cache, result.revision)
        if not result.committed:
            self._check(region, duration_s, reason)
            raise conflict("a drill began or ended at the same moment", "try again")
        text = f"{drill}, for {format_duration(duration_s)}"
        self.events.record("Region", "", region, _WARNING, "DrillBegan", text, caller.source)
        return drill

    def _as_read(self, region: str) -> Compare:
        key = keys.drill(region)
        record = self.cache.kept_at(key)
        revision = record.store_revision if record is not None else 0
        return Compare(key, CompareTarget.MOD_REVISION, revision)

    def _latest(self, region: str) -> Drill:
        drill = read(self.cache.kept_at(keys.drill(region)))
        if drill is None:
            raise not_found(
                f"region {region} has had no drill", f"edgectl drill region {region} --for 2m"
            )
        return drill

    # --- telling ---------------------------------------------------------------------------------

    async def _told(self, drill: Drill) -> Responses:
        """Progress until the report is there. It ends with the record, or when that is replaced."""
        if drill.runs:
            left_s = max(0.0, drill.over_at - self.clock())
            yield _progress(f"{drill}; {_ORCHESTRATORS_ONLY}", 0.0, left_s)
        told, next_at = 0, 0.0
        give_up_at = self.watch.steady() + LEAD_IN_S + drill.duration_s + GRACE_S
        while (now := read(self.cache.kept_at(keys.drill(drill.region)))) is not None:
            if now.id != drill.id:
                break
            if now.report is not None:
                yield operator_pb2.DrillResponse(report=report_of(now))
                return
            progress = self._progress(drill)
            at = self.watch.steady()
            if progress is not None:
                for noted_at, text in progress.notes[told:]:
                    yield _seen(progress, text, noted_at)
                told = max(told, len(progress.notes))
                if at >= next_at:
                    yield _seen(progress, "", at)
                    next_at = at + _TELL_EVERY_S
            if at >= give_up_at:
                raise unavailable(
                    "NoReport", "the drill is over and nobody has reported", "is there a leader?"
                )
            await asyncio.sleep(LOOK_EVERY_S)
        raise not_found(f"the record of the drill of region {drill.region} has gone")

    def _progress(self, drill: Drill) -> Progress | None:
        progress = self.watch.progress
        return progress if progress is not None and progress.drill.id == drill.id else None


def _seen(progress: Progress, text: str, at: float) -> operator_pb2.DrillResponse:
    measure = progress.measure
    if measure is None:
        return _progress(text, 0.0, 0.0)
    response = _progress(text, measure.since(at), measure.left_s(at))
    response.progress.nodes = len(measure.nodes)
    response.progress.nodes_back = len(measure.back)
    return response


def _progress(text: str, elapsed_s: float, left_s: float) -> operator_pb2.DrillResponse:
    return operator_pb2.DrillResponse(
        progress=operator_pb2.DrillProgress(
            message=text, elapsed_ms=int(elapsed_s * 1000), left_ms=int(left_s * 1000)
        )
    )


def report_of(drill: Drill) -> operator_pb2.DrillReport:
    """Of a drill that has one."""
    report = drill.report
    assert report is not None
    silent_at_ms = drill.started_at_ms + LEAD_IN_S * 1000
    return operator_pb2.DrillReport(
        region=drill.region,
        started_at_ms=drill.started_at_ms,
        started_by=drill.by,
        duration_s=max(0.0, min(drill.duration_s, (drill.ended_at_ms - silent_at_ms) / 1000)),
        ended_early=bool(drill.ended_by),
        members=drill.members,
        had_leader=report.had_leader,
        leader_s=report.leader_s,
        leader=report.leader,
        detected_s=report.detected_s,
        nodes=report.nodes,
        nodes_back=report.nodes_back,
        reconnect_p50_s=report.reconnect_p50_s,
        reconnect_p99_s=report.reconnect_p99_s,
        reconnect_last_s=report.reconnect_last_s,
        write_s=report.write_s,
        plan_changes=report.plan_changes,
        restarts=report.restarts,
        not_back=report.not_back,
        measured_by=report.measured_by,
        reason=drill.reason,
    )


def _refused(found: Objection) -> Refused:
    if found.code in ("BadDuration", "BadReason"):
        return invalid(found.message, found.hint, reason=found.code)
    if found.code == "UnknownRegion":
        return not_found(found.message, found.hint)
    code = grpc.StatusCode.FAILED_PRECONDITION
    return Refused(code, found.code, found.message, found.hint)
