"""What must hold at every step of a simulated rollout, counted without the code under test.

Two views are checked. What the leader could know when it decided: a decision must not take away a
replica that is available, as far as it was told, when that leaves fewer than the budget allows. And
what the boxes really do: of the replicas that were taken away by an order, and not by a fault, at
most the budget are missing at once.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource
from orchestrator.scheduling.decisions import Plan
from polder.manifest.quantity import amount_of
from tests.sim.rollouts_agents import Rec
from tests.sim.rollouts_jobs import JobChecks
from tests.sim.rollouts_records import assignments, is_numbered, is_wanted, kept_body

if TYPE_CHECKING:
    from tests.sim.rollouts_world import World

HEARD_S = 10.0
WINDOW_S = 300.0
DOUBLE_MAX_S = 150.0
SUSPICION_S = 600.0
TOGETHER_S = 15.0

# What an operator ordered, or a fault that came before: no budget holds for it.
NOT_VOLUNTARY = {
    "WorkloadDeleted",
    "ScaledDown",
    "NodeDeleted",
    "NodeLost",
    "Preempted",
    "DeadlineExceeded",
    "Completed",
    "Replaced",
    "JobRetry",
    "ReplacementFailed",
    "TakenOver",
}


class Checks:
    """`served` is called by agents, `committed` after every tick of the leader."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.stops = 0
        self.voluntary_stops = 0
        # By stay: steady time since which the leader was told that it is ready.
        self._told_ready: dict[str, float] = {}
        # Stays that an order ends although they were available or unknown: by uid, its cause, when.
        self._taken: dict[str, tuple[str, float]] = {}
        # (workload uid, replica) that were serving and are not, because of an order.
        self._missing: dict[tuple[str, str], str] = {}
        self._budgets: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        self._surges: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        self._double: dict[tuple[str, str], float] = {}
        self._jobs = JobChecks(world)
        self._proven: set[tuple[str, int]] = set()
        self._rules: dict[tuple[str, int], tuple[bool, dict[str, Any]]] = {}
        self._crashed: dict[tuple[str, int], float] = {}
        self._began: dict[tuple[str, int], float] = {}
        self._good: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._canaries: dict[tuple[str, int], list[tuple[float, str]]] = {}

    # --- what agents do --------------------------------------------------------------------------

    def served(self, rec: Rec, serves: bool, order: str) -> None:
        """A stay begins or ends to serve; `order`: power, crash, ended, or why it was stopped."""
        key = (rec.workload_uid, rec.replica)
        if serves:
            workload = self._workload(rec.workload_uid)
            settle_s = 0.0 if workload is None else workload.decoded.update.min_ready
            self._world.later(settle_s, lambda: rec.serves and self._missing.pop(key, None))
            return
        self._world.note(f"  {rec.replica} on {rec.node} serves no more: {order}")
        agent = self._world.agents.get(rec.node)
        if agent is None:
            return  # the box is taken away
        if order == "crash" and rec.pod is not None and agent.connected:
            self._crashed[rec.workload_uid, rec.pod.want.record.revision] = self._world.steady
        if order in ("power", "crash", "ended", "isolated"):
            return
        cause, decided_at = self._taken.get(rec.uid, ("", 0.0))
        # An order that was under way when its node fell silent comes when it comes.
        late = agent.silent_since > decided_at - HEARD_S
        if cause and not late and not self._serving(key):
            self._missing[key] = cause
            self._count_missing(rec.workload_uid)

    def _serving(self, key: tuple[str, str]) -> list[Rec]:
        return [
            rec
            for agent in self._world.agents.values()
            for rec in agent.recs.values()
            if (rec.workload_uid, rec.replica) == key and rec.serves
        ]

    def _count_missing(self, uid: str) -> None:
        workload = self._workload(uid)
        if workload is None or workload.deletion_requested_at_ms:
            return
        placements = {item.node: item for item in self._world.mirror.placements()}
        # What belongs to a place that is lost cannot be anywhere else, and holds nobody up.
        placed = {
            a.replica
            for node, a in assignments(uid, placements)
            if is_numbered(workload) or self._heard(node)
        }
        missing = {
            name: cause
            for (owner, name), cause in self._missing.items()
            if owner == uid
            and is_wanted(workload, name)
            and name in placed
            and not self._is_back(workload, name)
        }
        allowed = max((n for _, n in self._recent(self._budgets[uid])), default=0)
        if len(missing) > allowed:
            self._world.broken(
                f"{workload.name}: {len(missing)} replicas were taken away at once, {allowed} may"
                f" be: {missing}"
            )

    def _is_back(self, workload: StoredResource, name: str) -> bool:
        """It serves again for as long as the rules ask that hold now."""
        now, settle_s = self._world.steady, workload.decoded.update.min_ready
        return any(
            now - self._told_ready.get(rec.uid, now) >= settle_s
            for rec in self._serving((workload.uid, name))
            if rec.uid in self._told_ready
        )

    def _recent(self, history: list[tuple[float, int]]) -> list[tuple[float, int]]:
        since = self._world.steady - WINDOW_S
        newest_old = [item for item in history if item[0] < since][-1:]
        history[:] = newest_old + [item for item in history if item[0] >= since]
        return history

    # --- what the leader decides -----------------------------------------------------------------

    def forget_reports(self) -> None:
        """A new leader has been told nothing."""
        self._told_ready.clear()

    def committed(self, before: Mapping[str, NodePlacement], plan: Plan) -> None:
        """Compares what stood before a tick with what stands after it."""
        self._hear()
        after = {item.node: item for item in self._world.mirror.placements()}
        self._note_budgets(before)
        self._note_budgets(after)  # places that lacked a replica count, too
        changed = any(after.get(node) is not item for node, item in before.items()) or (
            after.keys() != before.keys()
        )
        if changed:
            self._check_stops(before, after)
            self._check_frozen(before, after)
            for workload in self._workloads():
                if workload.spec.get("run") == "once":
                    self._jobs.check(workload, before, after)
                    continue
                self._check_availability(workload, before, after)
                self._check_surge(workload, before, after)
                self._check_canary(workload, after)
        for workload in self._workloads():
            self._check_proven(workload)
        self._check_doubles()

    def _hear(self) -> None:
        """What the fleet says is ready, since when."""
        ready = {
            uid
            for seen in self._world.fleet.nodes()
            for uid, status in seen.replicas.items()
            if status.ready
        }
        for uid in list(self._told_ready):
            if uid not in ready:
                del self._told_ready[uid]
        for uid in ready:
            self._told_ready.setdefault(uid, self._world.steady)

    def _note_budgets(self, placements: Mapping[str, NodePlacement]) -> None:
        for workload in self._workloads():
            total = self._total(workload, placements)
            now = self._world.steady
            runs = bool(assignments(workload.uid, placements))
            began = (runs, _waves(workload))
            self._rules.setdefault((workload.uid, workload.template_revision), began)
            budget = max(_budgets(workload, total).values())
            for history, amount in (
                (self._budgets[workload.uid], budget),
                (self._surges[workload.uid], _surge(workload, total)),
            ):
                if not history or history[-1][1] != amount:
                    history.append((now, amount))

    def _total(self, workload: StoredResource, placements: Mapping[str, NodePlacement]) -> int:
        if is_numbered(workload):
            return int(workload.spec.get("replicas", 1))
        return len({a.replica for _, a in assignments(workload.uid, placements)})

    # --- availability ----------------------------------------------------------------------------

    def _check_availability(
        self,
        workload: StoredResource,
        before: Mapping[str, NodePlacement],
        after: Mapping[str, NodePlacement],
    ) -> None:
        if workload.deletion_requested_at_ms:
            return
        stops = {
            stop.replica_uid: (node, stop.cause)
            for node, placement in after.items()
            for stop in placement.stops
            if stop.workload_uid == workload.uid
        }
        was, now, ordered, taken = set[str](), set[str](), dict[str, str](), []
        stays_after = {a.replica_uid: a for _, a in assignments(workload.uid, after)}
        for node, item in assignments(workload.uid, before):
            kept = stays_after.get(item.replica_uid)
            available = self._is_available(workload, node, item)
            if available:
                was.add(item.replica)
            if kept is not None and self._same(item, kept):
                if available:
                    now.add(item.replica)
                continue
            self.stops += 1
            cause = "Updated" if kept is not None else stops.get(item.replica_uid, ("", ""))[1]
            if available or item.replica not in ordered:
                ordered[item.replica] = cause
            excused = cause in NOT_VOLUNTARY or (cause == "Drained" and self._overdue(node))
            self._taken.pop(item.replica_uid, None)
            if not excused and (available or not self._heard(node)):
                taken.append((item, cause))
        for node, item in assignments(workload.uid, after):
            if self._is_available(workload, node, item):
                now.add(item.replica)
        for item, cause in taken:
            self.voluntary_stops += 1
            if item.replica not in now:  # otherwise its successor was there when it was decided
                self._taken[item.replica_uid] = (cause, self._world.steady)
        lost = {n for n in was - now if is_wanted(workload, n)}
        excused_names = {n for n in lost if self._excused(ordered.get(n, ""), n, before)}
        lost -= excused_names
        if not lost or not is_numbered(workload):
            return
        total = self._total(workload, after)
        budgets = _budgets(workload, total)
        kinds = {"update" if ordered.get(n) in ("Updated", "") else "move" for n in lost}
        allowed = max(budgets[kind] for kind in kinds)
        left = len({n for n in now if is_wanted(workload, n)}) + len(excused_names)
        if left < total - allowed:
            self._world.broken(
                f"{workload.name}: {sorted(lost)} taken away ({ordered}), {left} of {total} are"
                f" left and {allowed} may be missing"
            )

    def _excused(self, cause: str, name: str, before: Mapping[str, NodePlacement]) -> bool:
        if cause in NOT_VOLUNTARY:
            return True
        return cause == "Drained" and any(
            self._overdue(node)
            for node, placement in before.items()
            for item in placement.assignments
            if item.replica == name
        )

    def _overdue(self, node: str) -> bool:
        record = self._world.mirror.resource("Node", "", node)
        deadline = record.decoded.drain_deadline if record is not None else None
        return deadline is not None and self._world.wall >= deadline

    def _heard(self, node: str) -> bool:
        """Lately, as far as anybody can know."""
        seen = self._world.fleet.get(node)
        if seen is None or not seen.complete or seen.heard_at is None:
            return False
        return self._world.steady - seen.heard_at <= HEARD_S

    def _is_available(self, workload: StoredResource, node: str, item: AssignmentRecord) -> bool:
        """As far as the leader was told: ready long enough, of the template that it has to be."""
        since = self._told_ready.get(item.replica_uid)
        seen = self._world.fleet.get(node)
        if since is None or seen is None or not self._heard(node):
            return False
        status = seen.replicas.get(item.replica_uid)
        if status is None or self._world.steady - since < workload.decoded.update.min_ready:
            return False
        revision = self._world.mirror.revision_of(item.workload_uid, item.revision)
        return revision is not None and revision.digest == status.template_digest

    def _same(self, before: AssignmentRecord, after: AssignmentRecord) -> bool:
        """Whether the template is the same: otherwise what runs is to end."""
        if before.revision == after.revision:
            return True
        find = self._world.mirror.revision_of
        one = find(before.workload_uid, before.revision)
        other = find(after.workload_uid, after.revision)
        return one is not None and other is not None and one.digest == other.digest

    # --- the other rules -------------------------------------------------------------------------

    def _check_stops(
        self, before: Mapping[str, NodePlacement], after: Mapping[str, NodePlacement]
    ) -> None:
        for node, placement in before.items():
            now = after.get(node)
            if now is None:  # the node's record is gone: it was deleted, and held nothing
                if placement.assignments:
                    self._world.broken(f"node {node} went with replicas on it")
                continue
            kept = {item.replica_uid for item in now.assignments}
            stops = {stop.replica_uid: stop for stop in now.stops}
            for item in placement.assignments:
                if item.replica_uid not in kept:
                    stop = stops.get(item.replica_uid)
                    if stop is None or not stop.cause or not stop.message:
                        self._world.broken(f"{item.replica} left {node} without a recorded cause")
                    elif stop.cause == "NodeLost":
                        self._check_silence(node, item)
            agent = self._world.agents.get(node)
            for stop in placement.stops:
                if stop.replica_uid not in stops and agent is not None:
                    rec = agent.recs.get(stop.replica_uid)
                    if rec is not None and rec.pod is not None and agent.powered:
                        self._world.broken(f"the stop of {stop.replica} was dropped; it runs on")

    def _check_silence(self, node: str, item: AssignmentRecord) -> None:
        """Nothing moves for loss where most are silent at once."""
        agents = self._world.agents
        if node not in agents:
            return
        silent = {n for n in agents if not self._heard(n)}
        if len(agents) >= 2 and len(silent) == len(agents):
            self._world.broken(f"{item.replica} left {node} as lost while nobody is heard")
        site, since = agents[node].site, agents[node].silent_since
        quiet = {n for n in silent if abs(agents[n].silent_since - since) < TOGETHER_S}
        here = {n for n in agents if agents[n].site == site} - (silent - quiet)
        quiet &= here
        young = self._world.steady - max(since, self._world.led_at) < SUSPICION_S
        if len(quiet) >= 3 and 2 * len(quiet) > len(here) and young:
            self._world.broken(f"{item.replica} left {node} as lost; {len(quiet)} are silent")

    def _check_frozen(
        self, before: Mapping[str, NodePlacement], after: Mapping[str, NodePlacement]
    ) -> None:
        def held(placements: Mapping[str, NodePlacement], namespace: str) -> set[Any]:
            return {
                (node, a.replica_uid, a.revision)
                for node, placement in placements.items()
                for a in placement.assignments
                if a.namespace == namespace
            }

        for namespace in {w.namespace for w in self._workloads()}:
            if self._world.is_frozen(namespace):
                difference = held(before, namespace) ^ held(after, namespace)
                if difference:
                    self._world.broken(f"namespace {namespace} is frozen, and: {difference}")

    def _check_surge(
        self,
        workload: StoredResource,
        before: Mapping[str, NodePlacement],
        after: Mapping[str, NodePlacement],
    ) -> None:
        def replacing(placements: Mapping[str, NodePlacement]) -> set[str]:
            found = [a for _, a in assignments(workload.uid, placements)]
            uids = {a.replica_uid for a in found}
            return {
                a.replica
                for a in found
                if a.replaces and a.replaces in uids and is_wanted(workload, a.replica)
            }

        were, are = replacing(before), replacing(after)
        allowed = max((n for _, n in self._recent(self._surges[workload.uid])), default=0)
        # A stop that was refused is made good in the next tick; its successor was counted on it.
        if are - were and len(are) > allowed and not self._world.refused:
            text = f"{workload.name}: {sorted(are)} have replacements, {allowed} may"
            self._world.broken(text)

    def _check_canary(self, workload: StoredResource, after: Mapping[str, NodePlacement]) -> None:
        """The newest revision goes to so many sites, waits, to their regions, waits, everywhere."""
        canary = workload.decoded.update.canary
        target = workload.template_revision
        placed = [
            (self._world.agents[node].site, item)
            for node, item in assignments(workload.uid, after)
            if node in self._world.agents
        ]
        rules = self._rules.setdefault((workload.uid, target), (bool(placed), _waves(workload)))
        if rules != (True, _waves(workload)):
            # There was nobody to protect, or the operator changed the waves on the way: where it
            # came to since was not noted, also if they are as they were later.
            self._rules[workload.uid, target] = (False, {})
            return
        if canary is None or target == 1 or self._was_proven(workload):
            return
        began = self._began.setdefault((workload.uid, target), self._world.steady)
        if self._world.steady - began >= 2 * canary.soak:
            return  # soaks add up, also over a time without replicas
        met = self._canaries.setdefault((workload.uid, target), [])
        leaving = {item.replaces for _, item in placed}
        sites = {
            site
            for site, item in placed
            if item.revision == target
            and item.replica_uid not in leaving
            # One that is to stop and waits for an approval is no canary any more.
            and not _is_surplus(workload, item.replica)
        }
        known = {site for _, site in met}
        if sites:  # what left one of them went on elsewhere; scaled to zero, it goes on there
            met[:] = [item for item in met if item[1] in sites]
        met += [(self._world.steady, site) for site in sorted(sites - known)]
        if not met:
            return
        first = {site for _, site in met[: canary.sites]}
        regions = {self._world.region(site) for site in first}
        others = {s for s, _ in placed if s not in first and self._world.region(s) in regions}
        now = self._world.steady
        earlier = [site for at, site in met[canary.sites :] if at < now]
        if any(self._world.region(site) not in regions for site in earlier):
            return  # it was right that one came there, and so everywhere is
        for at, site in met[canary.sites :]:
            if at < now:
                continue
            waves = 2 if others and self._world.region(site) not in regions else 1
            if at - met[0][0] < waves * canary.soak:
                self._world.broken(
                    f"{workload.name} r{target} came to {site} after {at - met[0][0]:.0f} s:"
                    f" {met}, soak {canary.soak:.0f} s"
                )

    def _was_proven(self, workload: StoredResource) -> bool:
        """Whether its template, but for a restart, is one that was proven before."""

        def plain(template: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in template.items() if key != "restartedAt"}

        wanted = plain(workload.spec["template"])
        return any(plain(template) == wanted for template in self._good[workload.uid])

    def _check_doubles(self) -> None:
        """Two that serve under one name: only as long as a replacement takes."""
        serving: defaultdict[tuple[str, str], list[Rec]] = defaultdict(list)
        for agent in self._world.agents.values():
            for rec in agent.recs.values():
                if rec.serves:
                    serving[(rec.workload_uid, rec.replica)].append(rec)
        now = self._world.steady
        for key, recs in serving.items():
            namespace = recs[0].namespace
            workload = self._workload(key[0])
            held_up = (
                workload is None
                or workload.decoded.update.paused
                or not is_wanted(workload, key[1])  # its stop may wait for an operator
                or kept_body(self._world, workload).get("phase") == "Failed"
                or self._world.is_frozen(namespace)
                or any(not self._heard(rec.node) for rec in recs)
            )
            if len(recs) < 2 or held_up:
                self._double.pop(key, None)
                continue
            since = self._double.setdefault(key, now)
            if now - since > DOUBLE_MAX_S:
                self._world.broken(
                    f"{key[1]} has {len(recs)} ready holders for {now - since:.0f} s"
                )
        for key in self._double.keys() - serving.keys():
            del self._double[key]

    def _check_proven(self, workload: StoredResource) -> None:
        """What cannot work is never one to return to."""
        for past in kept_body(self._world, workload).get("history", ()):
            revision = self._world.mirror.revision_of(workload.uid, past["number"])
            if past["standing"] != "Proven" or revision is None:
                continue
            image = self._world.image(revision.decoded.containers[0].image)
            crashed_at = self._crashed.get((workload.uid, past["number"]), 0.0)
            held_s = self._world.steady - crashed_at
            held = image.kind == "crash_late" and held_s >= workload.decoded.update.proven_after - 5
            if image.is_bad and not held and (workload.uid, past["number"]) not in self._proven:
                self._world.broken(f"{workload.name} r{past['number']} is proven: {image.name}")
            self._proven.add((workload.uid, past["number"]))
            if revision.template not in self._good[workload.uid]:
                self._good[workload.uid].append(revision.template)

    # --- records ---------------------------------------------------------------------------------

    def _workloads(self) -> list[StoredResource]:
        return list(self._world.mirror.resources("Workload"))

    def _workload(self, uid: str) -> StoredResource | None:
        return next((w for w in self._workloads() if w.uid == uid), None)


def _budgets(workload: StoredResource, total: int) -> dict[str, int]:
    spec = workload.decoded
    update = amount_of(spec.update.max_unavailable, total, up=False)
    if not update and not _surge(workload, total):
        update = 1  # a share that rounds to nothing must not stop everything
    move = spec.disruption.max_unavailable
    moves = update if move is None else amount_of(move, total, up=False)
    return {"update": update, "move": moves}


def _surge(workload: StoredResource, total: int) -> int:
    if workload.decoded.failover.exclusive:
        return 0
    return amount_of(workload.decoded.update.max_surge, total, up=True)


def _waves(workload: StoredResource) -> dict[str, Any]:
    """What says where a new revision goes and when. A pause changes nothing of that."""
    return {key: v for key, v in workload.spec.get("update", {}).items() if key != "paused"}


def _is_surplus(workload: StoredResource, replica: str) -> bool:
    """Of a numbered workload: scaled away, whether it has stopped or not."""
    count, number = workload.decoded.replicas, replica.removeprefix(f"{workload.name}-")
    return count is not None and number.isdecimal() and int(number) >= count
