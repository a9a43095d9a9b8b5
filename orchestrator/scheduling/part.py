"""What all parts of a plan share, and the state of one workload while it is decided on.

`plan()` makes one `Planning`, and one `WorkloadPlan` (which is a `Part`) per workload.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.domain.overrides import LocalOverride
from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling import filters
from orchestrator.scheduling.affinity import Neighbours
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.decisions import (
    Bind,
    Cause,
    Explanation,
    NonCompliant,
    Place,
    Revise,
    Standbys,
    Stop,
    Unbind,
)
from orchestrator.scheduling.desired import place_names, replica_uid
from orchestrator.scheduling.filters import ReasonCount
from orchestrator.scheduling.groups import GroupMaker
from orchestrator.scheduling.holders import Holder, Holders, template_of
from orchestrator.scheduling.lanes import Lane, Lanes
from orchestrator.scheduling.placements import Heirs, Places
from orchestrator.scheduling.placer import Placer, Rows
from orchestrator.scheduling.preemption import Preemption
from orchestrator.scheduling.quota import Quotas
from orchestrator.scheduling.reasons import Need
from orchestrator.scheduling.snapshot import Mode, Node, Observed, Snapshot, Template, Workload
from orchestrator.scheduling.standbys import StandbyChooser
from orchestrator.scheduling.table import Mask, NodeTable
from polder import epochs

DETAIL_ROWS_MAX = 2_000_000
"""Rows that one plan looks at to count reasons; after that it names them by `edgectl why` only."""


@dataclass(slots=True)
class Decisions:
    """What the workloads' plans add up to."""

    place: Places
    stop: list[Stop] = field(default_factory=list)
    revise: list[Revise] = field(default_factory=list)
    standbys: list[Standbys] = field(default_factory=list)
    bind: list[Bind] = field(default_factory=list)
    unbind: list[Unbind] = field(default_factory=list)
    noncompliant: list[NonCompliant] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)
    desired: list[tuple[str, int]] = field(default_factory=list)


class Planning:
    """One plan in the making. `now`: unix seconds."""

    def __init__(
        self, snapshot: Snapshot, table: NodeTable, holders: Holders, now: float = 0.0
    ) -> None:
        self.snapshot = snapshot
        self.table = table
        self.holders = holders
        self.now = now
        self.out = Decisions(
            Places(table.nodes, epochs.decided_at(snapshot.revision), int(now * 1000))
        )
        self.neighbours = Neighbours(snapshot.workloads)
        self.placer = Placer(table, self.neighbours)
        self.quotas = Quotas(snapshot.namespaces)
        self.detail_rows = DETAIL_ROWS_MAX
        self.preemption = Preemption(snapshot, table, holders, self.neighbours, self.quotas)
        by_uid = {workload.uid: workload for workload in snapshot.workloads}
        for uid, held in holders.by_workload.items():
            if uid in by_uid:
                self._count(by_uid[uid], held)

    def _count(self, workload: Workload, held: dict[str, Holder]) -> None:
        incoming = self.holders.incoming.get(workload.uid, {})
        if self.quotas.is_limited(workload.namespace):
            for holder in {**held, **incoming}.values():
                template = template_of(self.snapshot, workload.uid, holder.record.revision)
                self.quotas.use(workload.namespace, template)
        if self.neighbours.active:
            every = [*held.values(), *incoming.values()]
            self.neighbours.add(workload.uid, (h.row for h in every if h.row is not None))
            leaving = (held[name].row for name in incoming if name in held)
            self.neighbours.leave(workload.uid, (row for row in leaving if row is not None))

    def packs(self, namespace: str) -> bool:
        found = self.snapshot.namespaces.get(namespace)
        return found is not None and found.pack


class Part:
    """`held` are the workload's replicas by name, `incoming` those that replace one of them."""

    def __init__(self, planning: Planning, workload: Workload) -> None:
        snapshot = planning.snapshot
        self._planning = planning
        self._snapshot = snapshot
        self._table = planning.table
        self._workload = workload
        self._held = dict(planning.holders.by_workload.get(workload.uid, {}))
        self._incoming = dict(planning.holders.incoming.get(workload.uid, {}))
        self._out = planning.out
        self._lanes = Lanes(snapshot, planning.table, workload)
        # Of a new replica.
        self._need = self._lanes.first.need
        self._template = self._need.template
        self._pack = planning.packs(workload.namespace)
        self._choosers: dict[int, Chooser] = {}  # by the lane's revision
        self._lazy_staying: Mask | None = None
        self._lazy_standbys: StandbyChooser | None = None
        number = epochs.decided_at(snapshot.revision)
        self._groups = GroupMaker(planning.table, workload, number, planning.now)
        self._more_rows: list[int] = []  # of replicas that this plan placed beside `held`
        self._named: set[str] = set()  # names that it placed, where replicas have no index

    # --- doing -----------------------------------------------------------------------------------

    def _place(
        self,
        name: str,
        row: int,
        chooser: Chooser,
        *,
        leaving: Holder | None = None,
        because: str = "",
        beside: bool = False,
        forced: bool = False,
    ) -> None:
        """A new holder on `row`, found by `chooser`. `leaving` is what it moves away from; with
        `beside` that stays until the new one is ready, with `forced` nobody can ask it."""
        lanes = self._lanes
        revision = lanes.at(row) if leaving is None else lanes.after_move(leaving, row)
        chooser.take(row, lanes.template(revision))
        self._choosers = {key: one for key, one in self._choosers.items() if one is chooser}
        self._write_down(name, row, revision, leaving, because, beside, forced)

    def _place_beside(self, holder: Holder, row: int, revision: int) -> None:
        """A new holder of another revision on the same node, for an update."""
        self._table.hold(row, self._lanes.template(revision))
        for chooser in self._choosers.values():
            chooser.look_again(row)
        name = holder.record.replica
        self._write_down(name, row, revision, holder, Cause.UPDATED.value, beside=True)

    def _write_down(
        self,
        name: str,
        row: int,
        revision: int,
        leaving: Holder | None,
        because: str,
        beside: bool,
        forced: bool = False,
    ) -> None:
        workload, template = self._workload, self._lanes.template(revision)
        node = self._table.nodes[row].name
        standbys, group = self._heirs(row, leaving, forced)
        epoch = epochs.decided_at(self._snapshot.revision)
        record = AssignmentRecord(
            namespace=workload.namespace,
            workload=workload.name,
            workload_uid=workload.uid,
            replica=name,
            replica_uid=replica_uid(workload.uid, name, epoch),
            epoch=epoch,
            revision=revision,
            standbys=standbys,
            replaces=leaving.record.replica_uid if leaving is not None and beside else "",
            because=because,
            placed_at_ms=int(self._planning.now * 1000),
            once=workload.once,
            group=group,
        )
        self._out.place.append(Place(node, record, leaving.node if leaving is not None else ""))
        self._bind(name, node, template)
        self._planning.neighbours.add(workload.uid, [row])
        if leaving is not None:
            self._use_quota(leaving, -1)
            self._planning.quotas.use(workload.namespace, template)
            if beside and leaving.row is not None:
                self._planning.neighbours.leave(workload.uid, [leaving.row])
        target = self._incoming if beside else self._held
        target[name] = Holder(node, row, record)

    def _bind(self, name: str, node: str, template: Template) -> None:
        """The data of its local volumes is on the node that it was first placed on."""
        key = (self._workload.namespace, name)
        if template.local_volumes and self._snapshot.volumes.get(key) != node:
            self._out.bind.append(Bind(*key, template.local_volumes, node))

    def _stop(self, holder: Holder, cause: Cause, message: str, moved_to: str = "") -> None:
        self._out.stop.append(Stop(holder.node, holder.record, cause, message, moved_to))
        if not moved_to and holder.record.group is not None and holder.record.group.exclusive:
            self._planning.holders.remains(holder.node, holder.record)
        if holder.row is not None:
            self._planning.neighbours.add(self._workload.uid, [holder.row], -1)

    def _drop(self, name: str) -> None:
        """The replica is not wanted any more, or has no holder now."""
        holder = self._held.pop(name)
        self._use_quota(self._incoming.get(name, holder), -1)

    def _use_quota(self, holder: Holder, times: int) -> None:
        template = template_of(self._snapshot, self._workload.uid, holder.record.revision)
        self._planning.quotas.use(self._workload.namespace, template, times)

    # --- who else may hold it --------------------------------------------------------------------

    @property
    def _has_heirs(self) -> bool:
        return bool(self._workload.failover.standbys) or self._groups.shares

    def _heirs_for(self, rows: Rows) -> list[Heirs]:
        """Of new replicas on these rows."""
        found = zip(rows, self._standby_chooser().choose(rows), strict=True)
        return [self._agreed(self._groups.first(int(row), names), names) for row, names in found]

    def _heirs(self, row: int, leaving: Holder | None, forced: bool) -> Heirs:
        """Of one replica on this row. Of one that leaves another node of the site the same nodes
        go on, as far as they do."""
        if not self._has_heirs:
            return (), None
        before = leaving.record.group if leaving is not None else None
        if before is None or forced or not self._same_site(row, leaving):
            (names,) = self._standby_chooser().choose([row])
            return self._agreed(self._groups.first(row, names, forced), names)
        own = self._table.nodes[row].name
        former = tuple(name for name in before.members if name != own)
        names = self._standby_chooser().renew(row, former)
        group = self._groups.after(before, row, names, self._epoch(leaving))
        return self._agreed(group, names)

    def _epoch(self, holder: Holder | None) -> int:
        """The highest that is known of it: its site may have raised it."""
        if holder is None:
            return 0
        seen = self._observed(holder)
        return max(holder.record.epoch, seen.epoch if seen is not None else 0)

    def _agreed(self, group: GroupRecord | None, standbys: tuple[str, ...]) -> Heirs:
        """Too few voters leave an exclusive replica without standbys."""
        if group is not None and group.exclusive:
            return group.members[1:], group
        return standbys, group if standbys else None

    def _same_site(self, row: int, holder: Holder | None) -> bool:
        codes = self._table.site_codes
        if holder is None or holder.row is None:
            return False
        return bool(codes[row] == codes[holder.row])

    # --- explaining ------------------------------------------------------------------------------

    def _explain(
        self,
        code: str,
        message: str,
        replicas: Sequence[str] = (),
        reasons: tuple[ReasonCount, ...] = (),
    ) -> None:
        workload = self._workload
        if isinstance(replicas, list):  # a part of many: those who watch compare explanations
            replicas = tuple(replicas)
        self._out.explanations.append(
            Explanation(workload.namespace, workload.name, code, message, replicas, reasons)
        )

    def _fits_nowhere(
        self, among: Mask | None, where: str, but: int | None = None
    ) -> tuple[str, tuple[ReasonCount, ...]]:
        """`0 of 3 nodes fit: 2 InsufficientCpu`, and the reasons; counted while there is budget."""
        table, planning = self._table, self._planning
        scope = np.ones(table.size, dtype=np.bool_) if among is None else among.copy()
        if but is not None:
            scope[but] = False
        nodes = int(scope.sum())
        text = f"0 of {nodes} {where}{'node fits' if nodes == 1 else 'nodes fit'}"
        if planning.detail_rows <= 0:
            return f"{text}; `edgectl why` says the reasons", ()
        planning.detail_rows -= table.size
        found = tuple(self._chooser().why_not(scope))
        counted = ", ".join(f"{reason.nodes} {reason.code}" for reason in found)
        return text + (f": {counted}" if counted else ""), found

    # --- looking up ------------------------------------------------------------------------------

    def _chooser(self, lane: Lane | None = None) -> Chooser:
        """For a lane; None: for a new replica."""
        key, need = (lane.revision, lane.need) if lane else (self._lanes.first.revision, self._need)
        found = self._choosers.get(key)
        if found is None:
            found = self._planning.placer.chooser(self._workload, need, self._rows(), self._pack)
            self._choosers[key] = found
        return found

    def _choose(
        self,
        name: str,
        lanes: tuple[Lane, ...],
        among: Mask | None = None,
        leaving: Holder | None = None,
    ) -> tuple[int, Chooser] | None:
        """A node for a replica, in the first of the lanes that has one, and who found it."""
        for lane in lanes:
            scope = _within(_within(among, lane.rows), self._home_mask(name, lane.need))
            if not self._quota_allows(lane.need, leaving):
                continue
            chooser = self._chooser(lane)
            row = chooser.choose(scope, None if leaving is None else leaving.row)
            if row is not None:
                return row, chooser
        return None

    def _quota_allows(self, need: Need, leaving: Holder | None) -> bool:
        """A move counts once; one that brings a larger template has to fit."""
        quotas, namespace = self._planning.quotas, self._workload.namespace
        if leaving is None:
            return quotas.room(namespace, need.template, 1) > 0
        before = self._lanes.template(leaving.record.revision)
        return quotas.allows_update(namespace, before, need.template)

    def _home(self, name: str) -> int | None:
        """The row of the node that has the data of the replica's local volumes."""
        row = self._table.index.get(
            self._snapshot.volumes.get((self._workload.namespace, name), ""), -1
        )
        return None if row < 0 or self._table.nodes[row].deleting else row

    def _home_mask(self, name: str, need: Need) -> Mask | None:
        row = self._home(name) if need.template.local_volumes else None
        if row is None:
            return None
        mask = np.zeros(self._table.size, dtype=np.bool_)
        mask[row] = True
        return mask

    def _rows(self) -> list[int]:
        """Where its replicas count, those that are about to be replaced at their new place."""
        now = {**self._held, **self._incoming}
        return [h.row for h in now.values() if h.row is not None] + self._more_rows

    def _standby_chooser(self) -> StandbyChooser:
        if self._lazy_standbys is None:
            self._lazy_standbys = StandbyChooser(
                self._table, self._need, self._workload.failover, self._planning.now
            )
        return self._lazy_standbys

    def _staying(self) -> Mask:
        """Nodes on which a replica that is there may stay."""
        if self._lazy_staying is None:
            rules = filters.passing(filters.STAYING_RULES, self._table, self._need)
            self._lazy_staying = rules & ~self._table.flags("deleting")
        return self._lazy_staying

    def _sites(self, which: tuple[filters.Filter, ...] = filters.RULES) -> list[str]:
        """Sites with a node that qualifies, whatever its state."""
        rules = filters.passing(which, self._table, self._need)
        rows = np.flatnonzero(rules & ~self._table.flags("deleting"))
        names = (self._table.site_names[code] for code in np.unique(self._table.site_codes[rows]))
        return sorted(name for name in names if name)

    def _missing_places(self) -> list[tuple[str, str]]:
        """(name, site or node) of what perSite and perNode lack."""
        if self._workload.mode is Mode.PER_SITE:
            places = self._sites()
        else:
            usable = self._chooser().usable & ~self._table.flags("deleting")
            places = [self._table.nodes[row].name for row in np.flatnonzero(usable)]
        named = place_names(self._workload, places)
        there = {*self._held, *self._named, *self._withheld()}
        return [(name, place) for name, place in named if name not in there]

    def _withheld(self) -> set[str]:
        """Names that must have no holder yet; see `exclusive.py`."""
        return set()

    def _site_mask(self, site: str) -> Mask:
        mask: Mask = self._table.site_codes == self._table.site_names.index(site)
        return mask

    def _scope(self, holder: Holder) -> Mask | None:
        """Where the replica may go: a perSite replica stays in its site. So does one that operators
        of the site stopped: elsewhere it would run."""
        node = self._node(holder)
        tied = self._workload.mode is Mode.PER_SITE or self._stopped_by(holder) is not None
        if tied and node is not None and node.site:
            return self._site_mask(node.site)
        return None

    def _stopped_by(self, holder: Holder) -> LocalOverride | None:
        """What operators of its site decided: it is to run nowhere, and that is no failure."""
        stopped, node = self._snapshot.local.stopped, self._node(holder)
        if not stopped or node is None:
            return None
        return stopped.get((node.site, holder.record.workload_uid, holder.record.replica))

    def _node(self, holder: Holder) -> Node | None:
        return self._table.nodes[holder.row] if holder.row is not None else None

    def _is_live(self, holder: Holder) -> bool:
        node = self._node(holder)
        return node is not None and node.liveness is Liveness.LIVE

    def _is_lost(self, node: Node) -> bool:
        """Lost, and for as long as its workload wants."""
        wanted_s = self._workload.failover.lost_after
        if not is_lost(node):
            return False
        return wanted_s is None or self._planning.now - node.since >= wanted_s

    def _observed(self, holder: Holder) -> Observed | None:
        return self._snapshot.observed.get((holder.node, holder.record.replica_uid))

    def _is_ready(self, holder: Holder) -> bool:
        """Seen to run and to be ready at the revision that it should have."""
        seen = self._observed(holder)
        return (
            self._is_live(holder)
            and seen is not None
            and seen.running
            and seen.ready
            and seen.revision == holder.record.revision
        )

    def _is_available(self, holder: Holder) -> bool:
        """Ready, and for so long that it counts; not about to be stopped."""
        seen = self._observed(holder)
        return (
            self._is_ready(holder)
            and seen is not None
            and seen.ready_for_s >= self._workload.update.min_ready
            and not seen.terminating
        )


def is_lost(node: Node) -> bool:
    """Silent for so long, and alone with it, that what it has may be given to others."""
    return node.liveness is Liveness.LOST and not node.suspect


def _within(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def ordered(held: dict[str, Holder]) -> list[Holder]:
    """By number: `hello-2` before `hello-10`."""
    return sorted(held.values(), key=lambda holder: holder.order)


def revised(holder: Holder, revision: int) -> Holder:
    return replace(holder, record=replace(holder.record, revision=revision))
