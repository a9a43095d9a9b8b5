"""Every resource as operators see it, by key: stored kinds, and those that are only composed.

Get, List and Watch read here; nothing here waits or writes. A Replica is composed from placements,
an Operator from its identity record.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.api.decided import Decided
from orchestrator.api.index import Placed, PlacementIndex, Stopping
from orchestrator.api.job_views import with_job
from orchestrator.api.rollout_view import summary
from orchestrator.api.standbys import standbys_condition, with_standbys
from orchestrator.api.views import (
    LeaderView,
    NodeFacts,
    NodeView,
    Status,
    node_status,
    operator_status,
    replica_status,
    site_status,
    stopping_status,
    unplaced_status,
    with_conditions,
)
from orchestrator.api.workload_view import Said, workload_status
from orchestrator.authz import Caller, may_read, sees_secrets
from orchestrator.cache import Cache
from orchestrator.domain import reports
from orchestrator.domain.freezes import freeze_of, freezes_in
from orchestrator.domain.liveness import DEFAULT_PERIODS, Liveness, NodeLiveness, Periods
from orchestrator.domain.maintenance import Standing, cordons
from orchestrator.fleet import Fleet
from orchestrator.records import IdentityRecord, StoredResource
from orchestrator.store import keys
from polder.manifest import KINDS, InvalidManifest
from polder.statuses import condition

MIRROR_OLD_S = 5.0
"""A mirror that has not been current for so long is said to be old."""


class Explained(Protocol):
    """What the leader says of a workload (namespace, name); see explaining.py."""

    @property
    def source(self) -> str: ...

    @property
    def told_at_ms(self) -> int: ...

    @property
    def current(self) -> bool: ...

    def remarks(self, node: str) -> list[tuple[str, str]]: ...

    def unplaced(self, namespace: str, name: str) -> Sequence[Mapping[str, Any]]: ...

    def waiting(self, namespace: str, name: str) -> Sequence[Mapping[str, Any]]: ...

    def waits(self, namespace: str, workload: str, replica: str) -> Mapping[str, Any] | None: ...

    def desired(self, namespace: str, name: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """A resource to send, before it is encoded."""

    record: StoredResource
    status: Status | None


class Catalog:
    """`keys` and `get`. Keys are (namespace, name) within a kind; they are sorted."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        index: PlacementIndex,
        clock: Callable[[], float],
        explained: Explained,
        periods: Periods = DEFAULT_PERIODS,
    ) -> None:
        self.cache = cache
        self.fleet = fleet
        self.index = index
        self._clock = clock
        self._explained = explained
        self._periods = periods
        self._decided = Decided(cache)

    # --- keys --------------------------------------------------------------------------------

    def keys(
        self, caller: Caller, kind: str, namespace: str, after: tuple[str, str] | None = None
    ) -> Iterator[tuple[str, str]]:
        """What the caller may see of a kind, in order, behind `after`."""
        if kind == "Replica":
            yield from self._replica_keys(caller, namespace, after)
            return
        found: Iterator[tuple[str, str]]
        if kind == "Operator":
            found = (("", record.name) for record in self.cache.identities("operator"))
        else:
            found = ((record.namespace, record.name) for record in self.cache.resources(kind))
        for key in sorted(found):
            if after is not None and key <= after:
                continue
            if namespace and key[0] != namespace:
                continue
            if may_read(caller, kind, *key):
                yield key

    def _replica_keys(
        self, caller: Caller, namespace: str, after: tuple[str, str] | None
    ) -> Iterator[tuple[str, str]]:
        """By namespace and then by name, holding one namespace's names at a time."""
        workloads: dict[str, list[StoredResource]] = {}
        for record in self.cache.resources("Workload"):
            if (not namespace or record.namespace == namespace) and may_read(
                caller, "Replica", record.namespace, ""
            ):
                workloads.setdefault(record.namespace, []).append(record)
        for space in sorted(workloads):
            if after is not None and space < after[0]:
                continue
            names = sorted({name for w in workloads[space] for name in self.replica_names(w)})
            for name in names:
                if after is None or (space, name) > after:
                    yield space, name

    def replica_names(self, workload: StoredResource) -> Iterator[str]:
        """Placed, stopping, and those that wait for a place. May repeat a name."""
        placement = self.index.workload(workload.namespace, workload.name)
        for placed in placement.placed.values():
            yield placed.assignment.replica
        for stopping in placement.stopping.values():
            yield stopping.stop.replica
        if workload.deletion_requested_at_ms:
            return
        for item in self._explained.unplaced(workload.namespace, workload.name):
            yield str(item["replica"])
        spec = workload.decoded
        if spec.per_site is None and spec.per_node is None and spec.run != "once":
            for number in range(1 if spec.replicas is None else spec.replicas):
                yield f"{workload.name}-{number}"

    # --- one resource --------------------------------------------------------------------------

    def get(self, kind: str, namespace: str, name: str) -> Shown | None:
        """None when there is no such thing. While the Store cannot be read, every status says as
        of when it is."""
        shown = self._get(kind, namespace, name)
        if shown is None or self.cache.age_s() <= MIRROR_OLD_S:
            return shown
        return Shown(shown.record, {**(shown.status or {}), "asOfAt": self._mirror_ms()})

    def _get(self, kind: str, namespace: str, name: str) -> Shown | None:
        if kind == "Replica":
            return self._replica(namespace, name)
        if kind == "Operator":
            return self._operator(name)
        record = self.cache.resource(kind, namespace, name)
        return Shown(record, self._status(record)) if record is not None else None

    @property
    def lost_after_s(self) -> float:
        """A node that is silent for so long counts as lost."""
        return self._periods.lost_after_s

    def leader_view(self) -> LeaderView:
        explained = self._explained
        return LeaderView(explained.source, explained.told_at_ms, explained.current)

    def _mirror_ms(self) -> int:
        """Of what age is what the Store says."""
        at_s = self._clock() if self.cache.age_s() <= MIRROR_OLD_S else self.cache.synced_at
        return int(at_s * 1000)

    def _status(self, record: StoredResource) -> Status | None:
        if record.kind == "Node":
            return self._node_status(record.name)
        if record.kind == "Workload":
            return {**self._workload_status(record), **self._frozen(record.namespace)}
        if record.kind == "Namespace":
            return self._frozen(record.name) or None
        if record.kind == "Site":
            nodes = sorted(self.index.nodes_at(record.name))
            status = site_status([self._is_ready(node) for node in nodes])
            decided = self._decided.of_site(record.name)
            return {**status, "conditions": decided} if decided else status
        return None

    def _node_status(self, node: str) -> Status:
        """With what the leader has to say of it, besides the node itself and the gateway."""
        status = node_status(self.node_facts(node))
        told_ms, source = self._explained.told_at_ms, self._explained.source
        for kind, message in self._explained.remarks(node):
            said = condition(kind, True, source, message=message, heard_ms=told_ms)
            status["conditions"] = [*status["conditions"], said]
        return status

    def _frozen(self, namespace: str) -> Status:
        freeze = freeze_of(freezes_in(self.cache.kept(keys.FREEZES)), namespace)
        return {"frozen": f"{freeze}; {freeze.thaw}"} if freeze is not None else {}

    def node_facts(self, node: str) -> NodeFacts:
        placement = self.cache.placement(node)
        return NodeFacts(
            liveness=self.node_liveness(node),
            observation=self.fleet.get(node),
            reported=self.cache.node_status(node),
            placement=placement,
            allocated=self.index.allocated(placement),
            identity=self.cache.identity("node", node),
            record=self.cache.resource("Node", "", node),
            standing=self.standing(node),
            mirror_ms=self._mirror_ms(),
        )

    def standing(self, node: str) -> Standing:
        """What its site and provider say of new replicas, and of those that are there."""
        record = self.cache.resource("Node", "", node)
        name = str(record.spec.get("site", "")) if record is not None else ""
        site = self.cache.resource("Site", "", name)
        if site is None:
            return Standing()
        owner = str(site.spec.get("provider", ""))
        provider = self.cache.resource("Provider", "", owner)
        try:
            spec = provider.decoded if provider is not None else None
            return cordons(name, site.decoded, owner, spec, self._clock())
        except InvalidManifest:
            return cordons(name, None, owner, None, self._clock())

    def node_liveness(self, node: str) -> NodeLiveness:
        ever_seen = self.cache.node_status(node) is not None
        return self.fleet.liveness(node, ever_seen, self._periods)

    def _is_ready(self, node: str) -> bool:
        """As in the node's own status."""
        identity, seen = self.cache.identity("node", node), self.fleet.get(node)
        revoked = identity is not None and identity.revoked_at_ms > 0
        live = self.node_liveness(node).state is Liveness.LIVE
        return live and not revoked and not any(reports.unable(seen.heartbeat if seen else None))

    def view(self, node: str) -> NodeView:
        """What is heard of a node now."""
        return NodeView(self.node_liveness(node), self.fleet.get(node))

    def _workload_status(self, workload: StoredResource) -> Status:
        placement = self.index.workload(workload.namespace, workload.name)
        views: dict[str, NodeView] = {}
        replicas = []
        for placed in sorted(placement.placed.values(), key=lambda p: p.assignment.replica):
            view = views.setdefault(placed.node, self.view(placed.node))
            status = replica_status(placed.node, placed.assignment.replica_uid, (), view)
            replicas.append((placed, status))
        said = Said(
            self._explained.unplaced(workload.namespace, workload.name),
            self._explained.waiting(workload.namespace, workload.name),
            self._explained.desired(workload.namespace, workload.name),
            self.leader_view(),
            summary(workload, self.cache.kept_at(keys.rollout(workload.uid))),
        )
        now_ms = int(self._clock() * 1000)
        status = workload_status(workload, placement, replicas, said, now_ms)
        able = standbys_condition(
            (placed for placed, _ in replicas),
            lambda node: views.get(node) or views.setdefault(node, self.view(node)),
            wanted=bool(workload.spec.get("failover", {}).get("standbys")),
        )
        if able is not None:
            status["conditions"] = [*status["conditions"], able]
        status["conditions"] = [*status["conditions"], *self._decided.of_workload(workload.uid)]
        if workload.spec.get("run") != "once":
            return status
        kept = self.cache.kept_at(keys.job(workload.uid))
        stays = [stay for _, stay in replicas]
        return with_job(status, workload, kept, stays, said.leader, self._mirror_ms())

    def _replica(self, namespace: str, name: str) -> Shown | None:
        placed = self.index.replica(namespace, name)
        if placed is not None:
            return self._placed_replica(namespace, name, placed)
        owner = self._owner_of(namespace, name)
        if owner is None:
            return None
        stopping = self._stopping(owner, name)
        if stopping is not None:
            status = stopping_status(stopping, self.view(stopping.node))
            spec = {"workload": owner.name, "node": stopping.node, "epoch": 0, "revision": 0}
            return Shown(_composed(owner, name, stopping.stop.replica_uid, spec), status)
        if owner.deletion_requested_at_ms or name not in set(self.replica_names(owner)):
            return None
        explanations = self._explained.unplaced(namespace, owner.name)
        explanation = next((item for item in explanations if item["replica"] == name), None)
        status = unplaced_status(explanation, self.leader_view())
        spec = {
            "workload": owner.name,
            "node": "",
            "epoch": 0,
            "revision": owner.template_revision,
        }
        return Shown(_composed(owner, name, "", spec), status)

    def _placed_replica(self, namespace: str, name: str, placed: Placed) -> Shown:
        item = placed.assignment
        template = self.cache.revision_of(item.workload_uid, item.revision)
        ports = [p.host_port for p in template.decoded.host_ports()] if template else []
        view = self.view(placed.node)
        status = replica_status(placed.node, item.replica_uid, ports, view)
        ready_at = view.observation.ready_at(item.replica_uid) if view.observation else 0.0
        status = with_conditions(
            status, item.placed_at_ms, int(ready_at * 1000), self.leader_view(), self._mirror_ms()
        )
        decided = self._decided.of_replica(item.workload_uid, name, placed.node)
        status["conditions"] = [*status["conditions"], *decided]
        if item.group is not None or item.took_over:
            status = with_standbys(status, placed, self.view)
        waits = self._explained.waits(namespace, item.workload, name)
        if waits is not None and self._explained.current:
            status["waits"] = {
                "reason": waits["reason"],
                "message": waits["message"],
                "source": self._explained.source,
                "lastHeardAt": self._explained.told_at_ms,
            }
        owner = self.cache.resource("Workload", namespace, item.workload) or StoredResource(
            "Workload", namespace, item.workload, item.workload_uid, {}
        )
        spec = {
            "workload": item.workload,
            "node": placed.node,
            "epoch": item.epoch,
            "revision": item.revision,
        }
        return Shown(_composed(owner, name, item.replica_uid, spec), status)

    def _owner_of(self, namespace: str, replica: str) -> StoredResource | None:
        """The workload of a replica that has no node: the longest name that begins it."""
        name = replica
        while "-" in name:
            name = name.rpartition("-")[0]
            found = self.cache.resource("Workload", namespace, name)
            if found is not None:
                return found
        return None

    def _stopping(self, owner: StoredResource, replica: str) -> Stopping | None:
        items = self.index.workload(owner.namespace, owner.name).stopping.values()
        return next((item for item in items if item.stop.replica == replica), None)

    def _operator(self, name: str) -> Shown | None:
        record = self.cache.identity("operator", name)
        if record is None:
            return None
        return Shown(_operator_record(record), operator_status(record))


def shows_secrets(caller: Caller, shown: Shown) -> bool:
    return shown.record.kind == "Secret" and sees_secrets(caller, shown.record.namespace)


def is_kind(kind: str) -> bool:
    return kind in KINDS


def _composed(owner: StoredResource, name: str, uid: str, spec: dict[str, Any]) -> StoredResource:
    return StoredResource(
        kind="Replica",
        namespace=owner.namespace,
        name=name,
        uid=uid,
        spec=spec,
        labels={**owner.labels, "polder.eu/workload": owner.name},
        created_at_ms=owner.created_at_ms,
    )


def _operator_record(record: IdentityRecord) -> StoredResource:
    return StoredResource(
        kind="Operator",
        namespace="",
        name=record.name,
        uid="",
        spec={"roles": list(record.roles)},
        created_at_ms=record.joined_at_ms,
        store_revision=record.store_revision,
    )
