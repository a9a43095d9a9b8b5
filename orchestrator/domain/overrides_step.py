"""What becomes of the decisions of sites: a part of the leader's tick. Pure.

Called by `orchestrator/scheduling/steer.py` in every tick. For each that stands the first line that
fits decides:

    its workload was deleted, or its site has no nodes       taken back, and told
    it moved a replica, and the records say so               taken back: done
    something was decided against it, and nobody was told    a conflict: in the record, the site's
                                                             plans and an event, until somebody
                                                             drops or accepts it
    it is looked at for the first time                       noted

The first look finds what the orchestrator decided of the replica before it heard of it: another
place or another revision than its writer knew. What it decides later it decides knowingly, and only
what leaves the decision without an object contradicts it: the replica is not wanted any more, or
runs at another site. A conflict stays when its cause has gone: somebody at the site or here was not
obeyed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.overrides import FORGOTTEN_AFTER_S, ORCHESTRATOR, LocalOverride
from orchestrator.records import AssignmentRecord, NodePlacement
from orchestrator.scheduling.desired import is_indexed
from orchestrator.scheduling.snapshot import Mode, Snapshot
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from polder import epochs
from polder.overrides import FROZEN, PLACED_ON, SITE, STOPPED, Subject

WRITES_PER_TICK = 100


@dataclass(frozen=True, slots=True)
class _Stay:
    """A record of the replica, and the site of its node."""

    site: str
    node: str
    record: AssignmentRecord


def settle(world: World, moment: Moment) -> tuple[Batch, ...]:
    """One transaction for each that changes; an incomplete world changes nothing."""
    every = world.snapshot.local.all
    if not every or not world.snapshot.complete:
        return ()
    step = _Step(world, moment, every)
    batches = []
    for override in every:
        batch = step.look(override)
        if batch is not None:
            batches.append(batch)
            if len(batches) == WRITES_PER_TICK:
                break
    return tuple(batches)


class _Step:
    """Of one tick."""

    def __init__(self, world: World, moment: Moment, every: Iterable[LocalOverride]) -> None:
        self._snapshot = world.snapshot
        self._now_ms = int(moment.now * 1000)
        self._workloads = {workload.uid: workload for workload in world.snapshot.workloads}
        self._known = {record.uid for record in world.workloads} | self._workloads.keys()
        self._sites = {node.name: node.site for node in world.snapshot.nodes}
        self._inhabited = set(self._sites.values())
        standing = {item.decision.subject for item in every if item.decision.stands}
        self._stays = _stays(world.snapshot, self._sites, standing - {SITE})

    def look(self, override: LocalOverride) -> Batch | None:
        """What is to be written of it; None: nothing."""
        decision = override.decision
        if not decision.stands:
            age_s = (self._now_ms - override.heard_ms) / 1000
            if age_s <= FORGOTTEN_AFTER_S:
                return None
            return Batch((Write(override.key, None, override.store_revision),))
        gone = self._gone(override)
        if gone:
            after = override.taken_back(ORCHESTRATOR, gone, self._now_ms)
            return _batch(after, self._tell(override, True, "LocalOverrideOver", gone))
        if decision.conflict:
            return None
        done = self._done(override)
        if done:
            after = override.taken_back(ORCHESTRATOR, done, self._now_ms)
            return _batch(after, self._tell(override, False, "LocalOverrideDone", done))
        against = self._against(override)
        if against and against != override.accepted:
            tell = self._tell(override, True, "OverrideConflict", against)
            return _batch(override.contradicted(against), tell)
        return None if override.judged else _batch(override.contradicted(""))

    # --- what became of it -----------------------------------------------------------------------

    def _gone(self, override: LocalOverride) -> str:
        """Why it has no object any more; empty: it has."""
        if override.site not in self._inhabited:
            return f"site {override.site} has no nodes any more" if self._sites else ""
        uid = override.decision.workload_uid
        if not uid:
            return ""
        workload = self._workloads.get(uid)
        if workload is not None and not workload.deleting:
            return ""
        if workload is None and (uid in self._known or self._stays[override.decision.subject]):
            return ""  # it is only not readable, or its record was lost
        return "its workload was deleted"

    def _done(self, override: LocalOverride) -> str:
        """That a move stands in the records, or was overtaken by what came after it."""
        decision = override.decision
        if decision.field != PLACED_ON:
            return ""
        here = [stay for stay in self._stays[decision.subject] if stay.site == override.site]
        newest = max(here, key=_order, default=None)
        if newest is None or newest.record.epoch < decision.base_epoch:
            return ""  # from before: its site may move it back to where it was
        if newest.node == decision.value:
            return "" if newest.record.replaces else f"it is placed on node {newest.node}"
        if newest.record.epoch == decision.base_epoch:
            return ""
        if override.judged or epochs.is_local(newest.record.epoch):
            return f"it went on to node {newest.node} since"
        return ""

    def _against(self, override: LocalOverride) -> str:
        """What was decided that contradicts it; empty: nothing."""
        decision = override.decision
        if decision.field == FROZEN:
            return "" if override.judged else self._under_way(override.site)
        workload = self._workloads.get(decision.workload_uid)
        if workload is None:
            return ""
        if workload.mode is Mode.REPLICAS and not is_indexed(workload, decision.replica):
            return f"workload {workload.name} asks for replicas: {workload.count}"
        stays = self._stays[decision.subject]
        newest = max(stays, key=_order, default=None)
        if newest is not None and all(stay.site != override.site for stay in stays):
            return f"it was placed on node {newest.node} of site {newest.site}, and runs there"
        if override.judged:
            return ""
        return _meanwhile(override, newest) if newest is not None else ""

    def _under_way(self, site: str) -> str:
        """What its nodes were told to stop, and may not have done yet."""
        stops = sum(
            (node, stop.replica_uid) not in self._snapshot.gone
            for node, where in self._sites.items()
            if where == site
            for stop in self._placement(node).stops
        )
        if not stops:
            return ""
        return f"{stops} replica(s) there were told to stop before the freeze was known here"

    # --- pieces ----------------------------------------------------------------------------------

    def _placement(self, node: str) -> NodePlacement:
        return self._snapshot.placements.get(node, NodePlacement(node))

    def _tell(self, override: LocalOverride, warning: bool, reason: str, why: str) -> Tell:
        decision = override.decision
        message = f"{override}; {why}"
        if reason == "OverrideConflict":
            name = decision.replica or f"site/{override.site}"
            message += f"; `edgectl override accept {name}` or `edgectl override drop {name}`"
        if not decision.replica:
            return Tell("Site", "", override.site, warning, reason, message)
        return Tell("Replica", decision.namespace, decision.replica, warning, reason, message)


def _batch(after: LocalOverride, *tells: Tell) -> Batch:
    write = Write(after.key, after.record().to_bytes(), after.store_revision)
    return Batch((write,), tells)


def _meanwhile(override: LocalOverride, newest: _Stay) -> str:
    """What was decided before anybody here knew of it, and after its writer's plan."""
    decision, record = override.decision, newest.record
    if record.epoch > decision.base_epoch > 0 and not epochs.is_local(record.epoch):
        if newest.node != decision.value:
            cause = f" ({record.because})" if record.because else ""
            return f"it was placed on node {newest.node} meanwhile{cause}"
    elif decision.field == STOPPED and record.revision > decision.base_revision > 0:
        text = f"it was given revision {record.revision} meanwhile, and was stopped at revision"
        return f"{text} {decision.base_revision}"
    return ""


def _order(stay: _Stay) -> tuple[int, str]:
    return (stay.record.epoch, stay.node)


def _stays(
    snapshot: Snapshot, sites: dict[str, str], subjects: set[Subject]
) -> dict[Subject, list[_Stay]]:
    """Who the records say has these replicas: in one walk."""
    owners = {uid for uid, _ in subjects}
    found: dict[Subject, list[_Stay]] = {subject: [] for subject in subjects}
    for node, placement in snapshot.placements.items() if owners else ():
        for record in placement.assignments:
            if record.workload_uid in owners:
                subject = (record.workload_uid, record.replica)
                if subject in found:
                    found[subject].append(_Stay(sites.get(node, ""), node, record))
    return found
