"""What sites did without an orchestrator, written into the placements: a part of the leader's tick.

Called by `orchestrator/scheduling/steer.py` before everything else that looks at placements, so
that a replica that a standby runs is not given another place in the same tick. Every replica is
decided on by `adoption.py`; this finds who is meant, and what is written. Pure.

Of several local stays of a replica the newest counts; the others stop when it is ready, as every
stay does that no record names (`scheduling/strays.py`). What a site runs of a workload that was
deleted meanwhile is told to stop: by name, since nothing stops for want of a record (ADR 4).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.domain.adoption import Case, Verdict, judge, raised
from orchestrator.domain.liveness import SILENT_AFTER_S, Liveness
from orchestrator.domain.site_freezes import frozen_nodes
from orchestrator.records import AssignmentRecord, GroupRecord, NodePlacement, StopRecord
from orchestrator.scheduling.apply import GENERATION_LEAD_MAX
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.desired import is_indexed
from orchestrator.scheduling.plan import frozen_workloads
from orchestrator.scheduling.snapshot import Mode, Node, Observed, Snapshot
from orchestrator.scheduling.strays import stop_of
from orchestrator.scheduling.tick import Batch, Moment, Stray, Tell, World, Write
from orchestrator.store import keys
from polder import epochs
from polder.succession import Contender

NODES_PER_TICK = 1_000
NODES_OF_SITE = 60
"""One transaction has to hold them; and what else comes with them, until the next tick."""

_Key = tuple[str, str]
_Holder = tuple[str, AssignmentRecord]


@dataclass(frozen=True, slots=True)
class Adoption:
    """`world`: as it is with what `batches` write; without the strays that they settle, and without
    those of nodes that they write, which come again in the next tick."""

    world: World
    batches: tuple[Batch, ...] = ()


def adopt(world: World, moment: Moment) -> Adoption:
    """One batch for each site. An incomplete world changes nothing."""
    local = [stray for stray in world.strays if stray.takes_over]
    if not local or not world.snapshot.complete:
        return Adoption(world)
    step = _Step(world, moment)
    holders = _holders(world.snapshot, local)
    frozen, still = frozen_workloads(world.snapshot), frozen_nodes(world.snapshot)
    for stray in _newest(local):
        if stray.workload_uid not in frozen and stray.node not in still:
            step.decide(stray, holders.get((stray.workload_uid, stray.replica), []))
    return step.done()


class _Step:
    """Of one tick. `touched`: the placements as they will be, by node; `_site_of`: in the batch of
    which site each is written, so that a replica's old and new holder stand or fall together.
    `_later`: whose replicas there was no room for in this tick."""

    def __init__(self, world: World, moment: Moment) -> None:
        self._world = world
        self._snapshot = world.snapshot
        self._moment = moment
        self._nodes = {node.name: node for node in world.snapshot.nodes}
        self._workloads = {workload.uid: workload for workload in world.snapshot.workloads}
        self._observed: dict[tuple[str, str], Observed] = {}
        self._tells: defaultdict[str, list[Tell]] = defaultdict(list)  # by site
        self._site_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()  # nodes by site
        self._later: set[str] = set()
        self.touched: dict[str, NodePlacement] = {}

    def done(self) -> Adoption:
        if not self.touched:
            return Adoption(self._world)
        by_site: defaultdict[str, list[Write]] = defaultdict(list)
        for name, after in sorted(self.touched.items()):
            expected = self._before(name).store_revision
            write = Write(keys.placement(name), after.to_bytes(), expected)
            by_site[self._site_of[name]].append(write)
        batches = tuple(
            Batch(tuple(writes), tuple(self._tells[site])) for site, writes in by_site.items()
        )
        snapshot = replace(
            self._snapshot,
            nodes=tuple(map(self._doubted, self._snapshot.nodes)),
            placements={**self._snapshot.placements, **self.touched},
            observed={**self._snapshot.observed, **self._observed},
        )
        left = tuple(stray for stray in self._world.strays if stray.node not in self.touched)
        return Adoption(replace(self._world, snapshot=snapshot, strays=left), batches)

    def _doubted(self, node: Node) -> Node:
        """What its site took over of a lost node is not placed anew only because it waits."""
        if node.name not in self._later:
            return node
        text = "its site took its replicas over; they are written down first"
        return replace(node, liveness=Liveness.SILENT, suspect=text)

    # --- deciding --------------------------------------------------------------------------------

    def decide(self, stray: Stray, holders: list[_Holder]) -> None:
        """What becomes of a replica's newest local stay."""
        workload = self._workloads.get(stray.workload_uid)
        if workload is None or workload.deleting:
            if workload is not None or keys.deleted(stray.workload_uid) in self._world.kept:
                text = f"workload {stray.workload} was deleted"
                self._end(stray, Cause.WORKLOAD_DELETED, text)
        elif workload.once or workload.mode is Mode.PER_NODE:
            return  # nobody takes these over
        elif holders:
            self._settle(stray, holders)
        elif workload.mode is Mode.REPLICAS and not is_indexed(workload, stray.replica):
            text = f"workload {workload.name} now asks for replicas: {workload.count}"
            self._end(stray, Cause.SCALED_DOWN, text)

    def _settle(self, stray: Stray, holders: list[_Holder]) -> None:
        node, record = max(holders, key=lambda holder: (holder[1].epoch, holder[0]))
        case = self._case(stray, node, record)
        verdict = judge(case)
        if verdict is Verdict.WAIT or self._may_be_heard_yet(record, node):
            return
        if not self._has_room(stray, {name for name, _ in holders}):
            self._later.update(name for name, _ in holders)
        elif verdict is Verdict.ADOPT:
            self._adopt(stray, case, holders, replaces="")
        elif verdict is Verdict.KEEP:
            self._keep(stray, case)
        elif self._may_start(stray.node):
            self._adopt(stray, case, holders, replaces=record.replica_uid)

    def _may_be_heard_yet(self, record: AssignmentRecord, name: str) -> bool:
        """Whether we only began to listen: the holder may serve, and say so in a moment. By the
        lease of an exclusive replica it does not."""
        node = self._nodes.get(name)
        if node is None or node.liveness is not Liveness.SILENT:
            return False
        patience_s = min(SILENT_AFTER_S, self._snapshot.lost_after_s / 2)
        alone = record.group is not None and record.group.exclusive
        return not alone and self._moment.now - node.since < patience_s

    def _may_start(self, name: str) -> bool:
        """Whether a replacement may start there: the plan would give up one that may not."""
        node = self._nodes.get(name)
        return node is not None and not (node.draining or node.deleting)

    def _has_room(self, stray: Stray, holders: set[str]) -> bool:
        """Whether they can be written in this tick, and in one batch."""
        site = self._site(stray.node)
        nodes = {stray.node, *holders}
        if any(self._site_of.get(name, site) != site for name in nodes):
            return False
        new = len(nodes - self._site_of.keys())
        if len(self._site_of) + new > NODES_PER_TICK or self._count[site] + new > NODES_OF_SITE:
            return False
        self._count[site] += new
        self._site_of |= dict.fromkeys(nodes, site)
        return True

    def _case(self, stray: Stray, node: str, record: AssignmentRecord) -> Case:
        known = self._nodes.get(node)
        heard = known is not None and known.liveness is Liveness.LIVE
        seen = self._snapshot.observed.get((node, record.replica_uid))
        serves = heard and seen is not None and seen.running and seen.ready and not seen.terminating
        said = self._world.heard.get((node, record.replica_uid))
        return Case(
            node=node,
            record=record,
            epoch=max(record.epoch, said.epoch if said is not None else 0),
            heard=heard,
            serves=serves,
            ready_for_s=said.ready_for_s if said is not None else 0.0,
            local=Contender(
                stray.node, stray.replica_uid, stray.epoch, stray.ready, stray.ready_for_s
            ),
            same_site=self._site(stray.node) == self._site(node) != "",
            asked=self._asked(stray),
        )

    def _asked(self, stray: Stray) -> str:
        """The node to which operators of its site moved it."""
        key = (self._site(stray.node), stray.workload_uid, stray.replica)
        found = self._snapshot.local.placed_on.get(key)
        return found.decision.value if found is not None else ""

    # --- writing ---------------------------------------------------------------------------------

    def _adopt(self, stray: Stray, case: Case, holders: list[_Holder], replaces: str) -> None:
        shown = epochs.shown(stray.epoch)
        for node, record in holders:
            if record.replica_uid != replaces:
                text = f"node {stray.node} took it over (epoch {shown})"
                self._stop(node, record, Cause.TAKEN_OVER, text)
        made = self._record(stray, case, replaces)
        self._put(stray, made)
        self._observed[stray.node, stray.replica_uid] = Observed(
            running=True, ready=stray.ready, revision=stray.revision, ready_for_s=stray.ready_for_s
        )
        text = f"node {stray.node} took it over from node {case.node} (epoch {shown})"
        self._tell(stray, True, "TakenOver", text)
        text = f"stays on node {stray.node}, as its site decided"
        if replaces:
            text += f"; its stay on node {case.node} stops when this one is ready"
        self._tell(stray, False, "Adopted", text)

    def _record(self, stray: Stray, case: Case, replaces: str) -> AssignmentRecord:
        """As its site runs it, unless that template is not known any more."""
        record = case.record
        known = (stray.workload_uid, stray.revision) in self._snapshot.templates
        group = _led_by(record.group, stray.node)
        since = self._moment.now - stray.ready_for_s
        return replace(
            record,
            replica_uid=stray.replica_uid,
            epoch=stray.epoch,
            revision=stray.revision if known else record.revision,
            standbys=group.members[1:] if group is not None else (),
            replaces=replaces,
            because=Cause.TAKEN_OVER.value,
            placed_at_ms=max(record.placed_at_ms, int(since * 1000)),
            group=group,
            took_over=case.node,
        )

    def _keep(self, stray: Stray, case: Case) -> None:
        record = case.record
        epoch = raised(self._snapshot.revision, case.epoch, stray.epoch)
        self._change(case.node, [replace(record, epoch=epoch)], [], {record.replica_uid})
        text = f"node {case.node} has it (epoch {epochs.shown(epoch)})"
        self._stop(stray.node, stray, Cause.TAKEN_OVER, text, stray.generation_seen)
        text = f"ran on nodes {case.node} and {stray.node}, and stays on node {case.node}"
        self._tell(stray, False, "TakeoverEnds", text)

    def _end(self, stray: Stray, cause: Cause, message: str) -> None:
        """Nobody wants it any more."""
        if not self._has_room(stray, set()):
            return
        self._stop(stray.node, stray, cause, message, stray.generation_seen)
        text = f"its stay on node {stray.node} stops, which its site started: {message}"
        self._tell(stray, True, cause.value, text)

    def _put(self, stray: Stray, made: AssignmentRecord) -> None:
        self._change(stray.node, [made], [], {made.replica_uid}, stray.generation_seen)

    def _stop(
        self,
        node: str,
        stay: AssignmentRecord | Stray,
        cause: Cause,
        message: str,
        generation_seen: int = 0,
    ) -> None:
        stop = stop_of(stay, cause, message, self._moment)
        self._change(node, [], [stop], {stay.replica_uid}, generation_seen)

    def _change(
        self,
        node: str,
        put: list[AssignmentRecord],
        stops: list[StopRecord],
        without: set[str],
        generation_seen: int = 0,
    ) -> None:
        """One generation for all of a tick, and one that the agent takes, whatever plan it has."""
        before, now = self._before(node), self.touched.get(node, self._before(node))
        if generation_seen - before.generation > GENERATION_LEAD_MAX:
            generation_seen = 0
        kept = [item for item in now.assignments if item.replica_uid not in without]
        obeyed = [stop for stop in now.stops if stop.replica_uid not in without]
        self.touched[node] = replace(
            now,
            generation=max(now.generation, before.generation + 1, generation_seen + 1),
            assignments=tuple(
                sorted([*kept, *put], key=lambda a: (a.namespace, a.replica, a.epoch))
            ),
            stops=tuple(
                sorted([*obeyed, *stops], key=lambda s: (s.namespace, s.replica, s.replica_uid))
            ),
            decided_at_ms=int(self._moment.now * 1000),
        )

    def _tell(self, stray: Stray, warning: bool, reason: str, message: str) -> None:
        tell = Tell("Replica", stray.namespace, stray.replica, warning, reason, message)
        self._tells[self._site(stray.node)].append(tell)

    # --- looking up ------------------------------------------------------------------------------

    def _before(self, node: str) -> NodePlacement:
        return self._snapshot.placements.get(node, NodePlacement(node))

    def _site(self, node: str) -> str:
        found: Node | None = self._nodes.get(node)
        return found.site if found is not None else ""


def _newest(local: Iterable[Stray]) -> list[Stray]:
    """Of each replica the newest local stay, in a fixed order."""
    found: dict[_Key, Stray] = {}
    for stray in local:
        key = (stray.workload_uid, stray.replica)
        before = found.get(key)
        if before is None or (before.epoch, before.node) < (stray.epoch, stray.node):
            found[key] = stray
    return [found[key] for key in sorted(found)]


def _holders(snapshot: Snapshot, local: Iterable[Stray]) -> Mapping[_Key, list[_Holder]]:
    """Who the records say has these replicas: in one walk."""
    wanted = {(stray.workload_uid, stray.replica) for stray in local}
    owners = {uid for uid, _ in wanted}
    found: defaultdict[_Key, list[_Holder]] = defaultdict(list)
    for node, placement in snapshot.placements.items():
        for item in placement.assignments:
            if item.workload_uid in owners and (item.workload_uid, item.replica) in wanted:
                found[item.workload_uid, item.replica].append((node, item))
    return found


def _led_by(group: GroupRecord | None, node: str) -> GroupRecord | None:
    """The same voters in the order of who has it now: the number stays."""
    if group is None:
        return None
    return replace(group, members=(node, *(name for name in group.members if name != node)))
