"""Serves Story: gathers what is known of a replica, a workload or a node, and has it composed.

From the mirror (records, placements, kept states), the fleet, what the leader says and the
events. What a caller may not read of other namespaces does not come in.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from orchestrator.api.catalog import Catalog, Shown
from orchestrator.api.event_stream import is_replica_of
from orchestrator.api.explaining import Explaining
from orchestrator.api.foretelling import Ahead, Circumstances
from orchestrator.api.index import Placed, WorkloadPlacement
from orchestrator.api.job_story import ahead_of_job
from orchestrator.api.reading import checked_ref, describe_ref, missing
from orchestrator.api.standbys import ABLE, VOTES, standby_text, standbys_of
from orchestrator.api.story import (
    Entry,
    NodeFacts,
    ReplicaFacts,
    Stay,
    Story,
    WorkloadFacts,
    node_story,
    replica_story,
    with_sources,
    workload_story,
)
from orchestrator.authz import Caller, may_read
from orchestrator.domain.freezes import freeze_of, freezes_in
from orchestrator.domain.holds import Hold, Scope, holds_in
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.rollout_state import RolloutState
from orchestrator.events import EventRecord, EventRecorder
from orchestrator.records import AssignmentRecord, StoredResource
from orchestrator.refusals import forbidden, invalid
from orchestrator.store import keys
from polder.manifest import InvalidManifest, SiteSpec, WorkloadSpec
from polder.v1 import operator_pb2

KINDS = ("Replica", "Workload", "Node")
_REVISIONS_MAX = 10

Because = Callable[[tuple[str, str], str], tuple[str, ...]]


class Telling:
    """`because`: the facts by which a workload (namespace, name) may be on a node. `rollout_of`:
    how far the rollout of a workload's uid has come."""

    def __init__(
        self,
        catalog: Catalog,
        explaining: Explaining,
        events: EventRecorder,
        clock: Callable[[], float],
        because: Because,
        rollout_of: Callable[[str], RolloutState | None],
    ) -> None:
        self._catalog = catalog
        self._cache = catalog.cache
        self._explaining = explaining
        self._events = events
        self._clock = clock
        self._because = because
        self._rollout_of = rollout_of

    def story(
        self, caller: Caller, request: operator_pb2.StoryRequest
    ) -> operator_pb2.StoryResponse:
        """Raises Refused (NotFound, Forbidden, BadKind)."""
        ref = checked_ref(request.ref)
        if ref.kind not in KINDS:
            raise invalid(f"{ref.kind} has no story", "ask of a replica, a workload or a node")
        if not may_read(caller, ref.kind, ref.namespace, ref.name):
            raise forbidden(f"{caller} may not read {describe_ref(ref)}")
        shown = self._catalog.get(ref.kind, ref.namespace, ref.name)
        if shown is None:
            raise missing(ref)
        tell = {"Replica": self._replica, "Workload": self._workload}.get(ref.kind, self._node)
        return _to_wire(with_sources(tell(shown), self._explaining.source), self._now_ms())

    # --- a replica ------------------------------------------------------------------------------

    def _replica(self, shown: Shown) -> Story:
        namespace, name = shown.record.namespace, shown.record.name
        status = shown.status or {}
        workload = str(shown.record.spec.get("workload", ""))
        owner = self._cache.resource("Workload", namespace, workload)
        placement = self._catalog.index.workload(namespace, workload)
        placed = [p for p in placement.placed.values() if p.assignment.replica == name]
        placed.sort(key=lambda p: p.assignment.epoch)
        stops = [s for s in placement.stopping.values() if s.stop.replica == name]
        stays = tuple(self._stay(item, placed, status) for item in placed)
        current = self._catalog.index.replica(namespace, name)
        revision = current.assignment.revision if current is not None else 0
        uid = current.assignment.workload_uid if current is not None else ""
        facts = ReplicaFacts(
            name=name,
            status=status,
            leader=self._explaining.source,
            stays=stays,
            stops=tuple((item.node, item.stop) for item in stops),
            revision=self._cache.revision_of(uid, revision) if uid else None,
            events=self._since(self._of("Replica", namespace, name), owner),
            workload_events=self._since(self._of("Workload", namespace, workload), owner),
            circumstances=self._of_replica(owner, current, placed, status, (namespace, name)),
        )
        return replica_story(facts)

    def _stay(self, item: Placed, placed: Iterable[Placed], status: dict[str, Any]) -> Stay:
        assignment = item.assignment
        node = self._cache.resource("Node", "", item.node)
        events = self._of("Node", "", item.node)
        if node is not None:
            events = [e for e in events if e.is_of(node.uid, node.created_at_ms)]
        former = {p.assignment.replica_uid: p.node for p in placed}.get(assignment.replaces, "")
        return Stay(
            node=item.node,
            site=str(node.spec.get("site", "")) if node is not None else "",
            assignment=assignment,
            status=status if status.get("node") == item.node else {},
            because=self._facts(assignment, item.node),
            former_node=former,
            events=tuple(events),
        )

    def _facts(self, assignment: AssignmentRecord, node: str) -> tuple[str, ...]:
        """By which facts it may be there; asked only where somebody demands any."""
        key = (assignment.namespace, assignment.workload)
        owner = self._cache.resource("Workload", *key)
        space = self._cache.resource("Namespace", "", assignment.namespace)
        demands = (owner and owner.spec.get("sovereignty")) or (space and space.spec.get("floor"))
        return self._because(key, node) if demands else ()

    def _of_replica(
        self,
        owner: StoredResource | None,
        current: Placed | None,
        placed: Iterable[Placed],
        status: dict[str, Any],
        key: tuple[str, str],
    ) -> Circumstances:
        namespace, name = key
        found = self._of_workload(owner, namespace)
        if owner is not None:
            found = replace(found, job=self._job(owner, name))
        if current is None:
            reason, message = str(status.get("reason", "")), str(status.get("message", ""))
            return replace(found, waits=(("", reason, message),), stops=())
        assignment = current.assignment
        found = self._at_node(found, current.node)
        waits = self._explaining.waits(namespace, assignment.workload, assignment.replica)
        newer = _replacement(placed, assignment)
        return replace(
            found,
            revision=assignment.revision,
            waits=(("", str(waits["reason"]), str(waits["message"])),) if waits else (),
            stops=tuple(stop for stop in found.stops if stop[0] != current.node),
            replaces_on=current.node if newer else "",
            standbys=self._standbys(current, able=True),
            unable=self._standbys(current, able=False),
            lost_after_s=self._lost_after_s(owner),
            exclusive=assignment.group is not None and assignment.group.exclusive,
            containers=tuple(status.get("containers", ())),
        )

    def _lost_after_s(self, owner: StoredResource | None) -> float:
        """A workload may be more patient than the installation."""
        try:
            asked_s = owner.decoded.failover.lost_after if owner is not None else None
        except InvalidManifest:
            asked_s = None
        return max(self._catalog.lost_after_s, asked_s or 0.0)

    def _standbys(self, current: Placed, *, able: bool) -> tuple[str, ...]:
        """As far as its site takes it over: those that could now, or the others, with the why."""
        found = standbys_of(current, self._catalog.view)
        return tuple(
            standby_text(item)
            for item in found
            if item["state"] != VOTES and (item["state"] == ABLE) is able
        )

    # --- a workload -----------------------------------------------------------------------------

    def _workload(self, shown: Shown) -> Story:
        record = shown.record
        events = [*self._of("Workload", record.namespace, record.name)]
        events += [
            event
            for event in self._events.list(kind="Replica", namespace=record.namespace)
            if is_replica_of(self._cache, record.name, event.name)
        ]
        numbers = range(record.template_revision, 0, -1)
        kept = (self._cache.revision_of(record.uid, number) for number in numbers)
        revisions = [revision for revision in kept if revision is not None][:_REVISIONS_MAX]
        facts = WorkloadFacts(
            record=record,
            status=shown.status or {},
            revisions=tuple(revisions),
            events=self._since(events, record),
            circumstances=self._of_workload(record, record.namespace),
        )
        return workload_story(facts)

    def _of_workload(self, record: StoredResource | None, namespace: str) -> Circumstances:
        freezes = freezes_in(self._cache.kept(keys.FREEZES))
        found = Circumstances(
            now_ms=self._now_ms(),
            leader=self._explaining.source,
            leader_current=self._explaining.current,
            freeze=freeze_of(freezes, namespace),
        )
        if record is None:
            return found
        name = f"{namespace}/{record.name}"
        holds = holds_in(self._cache.kept(keys.HOLDS)).values()
        waiting = self._explaining.waiting(namespace, record.name)
        unplaced = self._explaining.unplaced(namespace, record.name)
        placement = self._catalog.index.workload(namespace, record.name)
        return replace(
            found,
            deleting=bool(record.deletion_requested_at_ms),
            rollout=self._rollout_of(record.uid),
            update=_update(record),
            newest=record.template_revision,
            wanted=_wanted(record),
            holds=tuple(hold for hold in holds if name in hold.workloads),
            waits=tuple(
                (str(w["replica"]), str(w.get("reason", "NotPlaced")), str(w["message"]))
                for w in [*waiting, *unplaced]
            ),
            stops=_stops(placement),
            job=self._job(record),
        )

    def _job(self, record: StoredResource, replica: str = "") -> tuple[Ahead, ...]:
        kept = self._cache.kept_at(keys.job(record.uid))
        return ahead_of_job(record, kept, self._explaining.source, self._clock(), replica)

    # --- a node ---------------------------------------------------------------------------------

    def _node(self, shown: Shown) -> Story:
        record = shown.record
        identity = self._cache.identity("node", record.name)
        events = [
            event
            for event in self._of("Node", "", record.name)
            if event.is_of(record.uid, record.created_at_ms)
        ]
        found = self._at_node(self._of_workload(None, ""), record.name)
        holds = holds_in(self._cache.kept(keys.HOLDS)).values()
        found = replace(
            found,
            deleting=bool(record.deletion_requested_at_ms),
            holds=tuple(hold for hold in holds if self._concerns(hold, record)),
            waits=(),
            lost_after_s=self._catalog.lost_after_s,
        )
        facts = NodeFacts(
            record=record,
            status=shown.status or {},
            joined_at_ms=identity.joined_at_ms if identity is not None else 0,
            events=tuple(events),
            circumstances=found,
        )
        return node_story(facts)

    def _concerns(self, hold: Hold, node: StoredResource) -> bool:
        site = str(node.spec.get("site", ""))
        if hold.scope is Scope.SITE:
            return hold.name == site
        if hold.scope is Scope.REGION:
            record = self._cache.resource("Site", "", site)
            return record is not None and record.spec.get("region") == hold.name
        return hold.scope in (Scope.EVERYTHING, Scope.FLEET)

    def _at_node(self, found: Circumstances, node: str) -> Circumstances:
        """With what holds of the node."""
        record = self._cache.resource("Node", "", node)
        if record is None:
            return found
        facts = self._catalog.node_facts(node)
        silent = facts.liveness.state not in (Liveness.LIVE, Liveness.NEVER_SEEN)
        site = self._cache.resource("Site", "", str(record.spec.get("site", "")))
        try:
            deadline_s = record.decoded.drain_deadline
        except InvalidManifest:
            deadline_s = None
        own = "the node is cordoned" if record.spec.get("unschedulable") else ""
        return replace(
            found,
            node=node,
            node_silent_since_ms=int(facts.liveness.since * 1000) if silent else 0,
            site=str(record.spec.get("site", "")),
            cordoned="; ".join(text for text in (own, facts.standing.cordoned) if text),
            draining=bool(record.spec.get("draining")) or facts.standing.draining,
            drain_deadline_s=deadline_s,
            replicas_left=len(facts.placement.assignments),
            windows=_windows(site),
            node_by=record.changed_by or "operator",
            site_by=site.changed_by or "operator" if site is not None else "operator",
        )

    # --- pieces ---------------------------------------------------------------------------------

    def _of(self, kind: str, namespace: str, name: str) -> list[EventRecord]:
        return self._events.list(kind=kind, namespace=namespace, name=name)

    def _since(
        self, events: Iterable[EventRecord], owner: StoredResource | None
    ) -> tuple[EventRecord, ...]:
        """Those of this workload, and not of one that had its name before."""
        created_ms = owner.created_at_ms if owner is not None else 0
        return tuple(event for event in events if event.last_at_ms >= created_ms)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _replacement(placed: Iterable[Placed], current: AssignmentRecord) -> bool:
    return any(item.assignment.replaces == current.replica_uid for item in placed)


def _stops(placement: WorkloadPlacement) -> tuple[tuple[str, str, str], ...]:
    found = [(s.node, s.stop.cause, s.stop.message) for s in placement.stopping.values()]
    return tuple(sorted(found))


def _update(record: StoredResource) -> Any:
    try:
        return record.decoded.update
    except InvalidManifest:
        return Circumstances().update


def _wanted(record: StoredResource) -> int | None:
    """None: it depends on sites or nodes, or nobody can read it."""
    try:
        spec = record.decoded
    except InvalidManifest:
        return None
    if not isinstance(spec, WorkloadSpec) or spec.per_site is not None or spec.per_node is not None:
        return None
    return 1 if spec.replicas is None else spec.replicas


def _windows(site: StoredResource | None) -> tuple[Any, ...]:
    try:
        spec = site.decoded if site is not None else None
    except InvalidManifest:
        return ()
    return spec.maintenance if isinstance(spec, SiteSpec) else ()


def _to_wire(story: Story, now_ms: int) -> operator_pb2.StoryResponse:
    return operator_pb2.StoryResponse(
        entries=[_entry(item) for item in story.entries],
        next=[_entry(item) for item in story.next],
        now_ms=now_ms,
    )


def _entry(item: Entry | Ahead) -> operator_pb2.StoryEntry:
    return operator_pb2.StoryEntry(
        at_ms=item.at_ms,
        source=item.source,
        reason=item.reason,
        message=item.message,
        warning=item.warning,
        count=item.count if isinstance(item, Entry) else 1,
    )
