"""What the members elsewhere do while a region plays dead: look, measure, and end the record.

Run by server.py on every member, because nobody knows beforehand who will lead. Each notes how the
region's nodes are before it falls silent, and sees them come back through the fleet. The leader
ends the record when its time is over, and adds its report; should none lead, another does, a little
later. Who began the drill (`orchestrator/api/drilling.py`) reads what is seen from `progress`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.cache import Cache, Change
from orchestrator.domain.drill import LEAD_IN_S, Drill, Report, drills_in
from orchestrator.domain.drill_measure import Marks, Measure, NodeMarks, restarted
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.records import NodePlacement, StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Put, Store, StoreError
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
_ASK_S = 2.0
_SETTLE_S = 3.0
"""After the end: for what nodes say to arrive, and before somebody reports who does not lead."""
_NOTES_MAX = 100
_AT_ONCE = 100  # nodes looked at before others have their turn: ten thousand take half a second


class Leads(Protocol):
    """The part of the leader that is needed here."""

    @property
    def is_leading(self) -> bool: ...


@dataclass(slots=True)
class Progress:
    """Of the drill that is under way, for those who watch it."""

    drill: Drill
    measure: Measure | None
    seen_at: float  # steady: since when it is known here
    notes: list[tuple[float, str]] = field(default_factory=list)
    """When (steady), and what."""
    over_at: float | None = None  # when it was first found to be over
    all_back: bool = False
    touched: set[str] = field(default_factory=set)
    """Uids of workloads that operators changed meanwhile."""


class DrillWatch:
    """One per member. `run` until cancelled; `look` is one round."""

    def __init__(
        self,
        member: str,
        store: Store,
        cache: Cache,
        fleet: Fleet,
        leader: Leads,
        events: Recorder,
        clock: Callable[[], float],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._member = member
        self._store = store
        self._cache = cache
        self._fleet = fleet
        self._leader = leader
        self._events = events
        self._clock = clock
        self.steady = steady
        self._wake = asyncio.Event()
        self._looked = False
        self._finished = ""  # id of the drill that has its report
        self.progress: Progress | None = None

    async def run(self) -> None:
        """A round that fails is logged, and the next one comes."""
        leave = self._cache.subscribe(self._on_changes), self._fleet.subscribe(self._on_node)
        try:
            while True:
                self._wake.clear()
                try:
                    await self.look()
                except StoreError as error:
                    log.info("the store fails during a drill; trying again: %s", error)
                except Exception:
                    log.exception("a look at the drill failed; trying again")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S if self.progress else None):
                        await self._wake.wait()
        finally:
            for each in leave:
                each()

    async def look(self) -> None:
        """Raises StoreError."""
        await self._follow()
        self._looked = True
        progress = self.progress
        if progress is None:
            return
        if progress.measure is not None and progress.drill.runs:
            await self._measure(progress, progress.measure)
        if self._is_due(progress):
            await self._finish(progress)

    def _note(self, progress: Progress, text: str) -> None:
        if len(progress.notes) < _NOTES_MAX:
            progress.notes.append((self.steady(), text))

    # --- which drill -----------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Takes up a drill that began, and lets go of one that has its report."""
        found = drills_in(self._cache.kept(keys.DRILLS)).values()
        open_ones = [d for d in found if d.report is None and d.id != self._finished]
        drill = max(open_ones, key=lambda d: d.started_at_ms, default=None)
        progress = self.progress
        if drill is None:
            self.progress = None
        elif progress is None or progress.drill.id != drill.id:
            self.progress = await self._begin(drill)
        else:
            progress.drill = drill

    async def _begin(self, drill: Drill) -> Progress:
        """A drill that it finds when it starts, or of its own region, it cannot measure."""
        if not self._looked or not drill.runs or self._member in drill.members:
            return Progress(drill, None, self.steady())
        seen_at, members = self.steady(), frozenset(drill.members)
        there = [n for n in self._fleet.nodes() if n.connected and n.member in members]
        nodes: dict[str, NodeMarks] = {}
        for node in there:
            nodes[node.node] = marks_of(node)
            if len(nodes) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        progress = Progress(drill, Measure(drill, seen_at + LEAD_IN_S, nodes), seen_at)
        count = len(nodes)
        self._note(progress, f"{len(members)} members and their {count} nodes: noted how they are")
        return progress

    # --- measuring -------------------------------------------------------------------------------

    async def _measure(self, progress: Progress, measure: Measure) -> None:
        at = self.steady()
        if at < measure.silent_at:
            return
        self._see_nodes(progress, measure)
        if measure.write_s < 0 and await self._write(progress.drill):
            measure.wrote(self.steady())
            self._note(progress, f"a write was accepted after {measure.write_s:.1f} s")
        present = [m.name for m in self._cache.members() if self._cache.present(m.name)]
        if measure.present(present, at):
            self._note(
                progress, f"the members are known to be gone after {measure.detected_s:.1f} s"
            )
        leader = await self.leader() if measure.had_leader and measure.leader_s < 0 else ""
        if measure.led_by(leader, self.steady()):
            self._note(progress, f"{leader} leads after {measure.leader_s:.1f} s")

    def _see_nodes(self, progress: Progress, measure: Measure) -> None:
        """Most are seen when they come (`_on_node`); this is for what was missed."""
        for name in measure.nodes:
            if name not in measure.back:
                self._see(measure, name)
        count = len(measure.nodes)
        if len(measure.back) == count > 0 and not progress.all_back:
            progress.all_back = True
            last_s = max(measure.back.values())
            self._note(progress, f"all {count} nodes are connected elsewhere after {last_s:.1f} s")

    def _see(self, measure: Measure, name: str) -> None:
        node = self._fleet.get(name)
        if node is not None and node.connected:
            measure.node_at(name, node.member, self.steady())

    async def _write(self, drill: Drill) -> bool:
        """The record again, unchanged: a write that compares, as an operator's does. Whether it
        was accepted; other members try the same, and one comes first."""
        record = drill.record()
        compare = Compare(record.key, CompareTarget.MOD_REVISION, drill.store_revision)
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                result = await self._store.txn([compare], [Put(record.key, record.to_bytes())])
                return result.committed
        return False

    async def leader(self) -> str:
        """Who leads now; empty: nobody, or the Store does not say."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                entry = await self._store.get(keys.LEADER)
                return entry.value.decode(errors="replace") if entry is not None else ""
        return ""

    # --- the end ---------------------------------------------------------------------------------

    def _is_due(self, progress: Progress) -> bool:
        """Whether this member is to end the record now."""
        drill, measure, at = progress.drill, progress.measure, self.steady()
        if drill.runs and at < self._ends_at(progress):
            return False
        if progress.over_at is None:
            progress.over_at = at
        waited_s = at - progress.over_at
        if measure is None:
            # Others saw more: theirs first.
            return self._leader.is_leading and waited_s >= 2 * _SETTLE_S
        if waited_s < _SETTLE_S and not self._all_said(measure):
            return False
        return self._leader.is_leading or waited_s >= _SETTLE_S

    def _ends_at(self, progress: Progress) -> float:
        """Steady, by when it became known here: wall clocks may differ by hours. At the latest, for
        a member that came while it ran; another one ends it then."""
        if progress.measure is not None:
            return progress.measure.ends_at
        return progress.seen_at + LEAD_IN_S + progress.drill.duration_s

    def running(self) -> frozenset[str]:
        """Ids of drills that run now, whatever wall clocks say."""
        progress = self.progress
        if progress is None or not progress.drill.runs or progress.measure is None:
            return frozenset()
        over = self.steady() >= self._ends_at(progress)
        return frozenset() if over else frozenset({progress.drill.id})

    def _all_said(self, measure: Measure) -> bool:
        """Every node that is back has said all that runs there."""
        found = (self._fleet.get(name) for name in measure.back)
        return all(node is not None and node.complete for node in found)

    async def _finish(self, progress: Progress) -> None:
        """Raises StoreError. The record may be another member's by now: then its report counts."""
        drill, measure = progress.drill, progress.measure
        report = Report()
        if measure is not None:
            report = measure.report(await self._restarts(progress, measure), self._member)
        ended = drill if not drill.runs else drill.ended(self._clock())
        record = replace(ended, report=report).record()
        compare = Compare(record.key, CompareTarget.MOD_REVISION, drill.store_revision)
        result = await self._store.txn([compare], [Put(record.key, record.to_bytes())])
        if not result.committed:
            return
        self._finished = drill.id
        log.info("a drill has ended", extra={"region": drill.region, "report": str(report)})
        self._tell(drill, report)

    async def _restarts(self, progress: Progress, measure: Measure) -> int:
        """Of nodes that are back; what operators asked for is none."""
        count = 0
        for number, name in enumerate(list(measure.back)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            node = self._fleet.get(name)
            if node is None or not node.complete:
                continue
            assigned = self._cache.placement(name).assignments
            touched = {a.replica_uid for a in assigned if a.workload_uid in progress.touched}
            gone = measure.nodes[name].replicas.keys() - {a.replica_uid for a in assigned}
            count += restarted(measure.nodes[name], marks_of(node), touched | gone)
        return count

    def _tell(self, drill: Drill, report: Report) -> None:
        back = f"{report.nodes_back} of {report.nodes} nodes were connected elsewhere"
        text = f"the drill is over: {back}" if report.measured_by else "the drill is over"
        fine = report.nodes_back == report.nodes and not (report.plan_changes or report.restarts)
        severity = common_pb2.EVENT_TYPE_NORMAL if fine else common_pb2.EVENT_TYPE_WARNING
        source = f"member/{self._member}"
        self._events.record("Region", "", drill.region, severity, "DrillEnded", text, source)

    # --- listening -------------------------------------------------------------------------------

    def _on_node(self, name: str) -> None:
        measure = self.progress.measure if self.progress is not None else None
        if measure is not None and name in measure.nodes and self.steady() >= measure.silent_at:
            self._see(measure, name)

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.DRILLS):
                self._wake.set()
        progress = self.progress
        if progress is None or progress.measure is None or not progress.drill.runs:
            return
        for change in changes:
            if _by_operator(change) and isinstance(change.value, StoredResource):
                progress.touched.add(change.value.uid)
        if self.steady() >= progress.measure.silent_at:
            changed = sum(_moves(change, progress.touched) for change in changes)
            if changed:
                progress.measure.planned(changed)
                self._note(progress, f"the leader changed {changed} assignments")


def marks_of(node: NodeObservation) -> NodeMarks:
    """Of the replicas that are ready: what fails by itself says nothing of a drill."""
    return NodeMarks({s.replica_uid: _marks(s) for s in node.replicas.values() if s.ready})


def _marks(status: agent_pb2.ReplicaStatus) -> Marks:
    return tuple(
        (container.name, container.id, container.started_at_ms)
        for container in status.containers
        if container.state == "running"
    )


def _by_operator(change: Change) -> bool:
    """A workload was made, changed or is to be deleted."""
    after, before = change.value, change.previous
    if not isinstance(after, StoredResource) or after.kind != "Workload":
        return False
    return (
        not isinstance(before, StoredResource)
        or before.generation != after.generation
        or bool(after.deletion_requested_at_ms)
    )


def _moves(change: Change, touched: set[str]) -> int:
    """How many replicas were placed, stopped or given another revision; jobs come and go."""
    if not change.key.startswith(keys.PLACEMENTS):
        return 0
    before, after = _assigned(change.previous, touched), _assigned(change.value, touched)
    return sum(before.get(uid) != after.get(uid) for uid in before.keys() | after.keys())


def _assigned(record: object, touched: set[str]) -> Mapping[str, int]:
    """Revision by replica uid."""
    if not isinstance(record, NodePlacement):
        return {}
    return {
        item.replica_uid: item.revision
        for item in record.assignments
        if not item.once and item.workload_uid not in touched
    }
